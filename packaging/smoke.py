"""What an installed wheel can do with one extra alone: `python smoke.py EXTRA`. Exits with an error where it cannot."""

import subprocess
import sys
import tempfile


def core() -> None:
    import torch
    from torch.distributions import Categorical

    import rollsight as rs

    def evaluate(module, obs, actions):
        distribution = Categorical(logits=module(obs))
        return rs.Evaluation(distribution.log_prob(actions), distribution.entropy())

    module, obs, actions = torch.nn.Linear(4, 2), torch.randn(32, 4), torch.randint(2, (32,))
    records = rs.Records(obs, actions, evaluate(module, obs, actions).log_prob.detach(), torch.randn(32))
    fast = rs.score_records(rs.Policy(module, evaluate), records).values
    slow = rs.score_records(rs.Policy(module, evaluate), records, backend="oracle").values
    assert torch.allclose(fast, slow, atol=1e-5)


def runs() -> None:
    from rollsight import runs

    with tempfile.TemporaryDirectory() as folder:
        with runs.create(f"{folder}/run", {}) as writer:
            writer.write_records(1, {"round": [1, 1], "score_return": [0.1, -0.2]})
            writer.write_round(1, {"records": 2})
        assert runs.open(f"{folder}/run").sql("select count(*) from records").fetchall() == [(2,)]


def sb3() -> None:
    from stable_baselines3 import PPO

    from rollsight.adapters.sb3 import InfluenceCallback

    with tempfile.TemporaryDirectory() as folder:
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu")
        model.learn(128, callback=InfluenceCallback(drop=0.5, run=f"{folder}/run", snapshots="all"))


def cli() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for line in (
            f"train CartPole-v1 --engine sb3 --rounds 1 --eval-episodes 0 --out {folder}/run",
            f"top {folder}/run --round 1",
        ):
            subprocess.run([sys.executable, "-m", "rollsight", *line.split()], check=True)


def explorer() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for line in (
            f"train CartPole-v1 --engine sb3 --rounds 2 --eval-episodes 0 --out {folder}/run",
            f"report {folder}/run -o {folder}/run.html",
        ):
            subprocess.run([sys.executable, "-m", "rollsight", *line.split()], check=True)
        assert_serves(folder)


def assert_serves(folder: str) -> None:
    """`rollsight view` answers, and its first page has the run."""
    from urllib.request import urlopen

    command = [sys.executable, "-m", "rollsight", "view", folder, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            address = next(line for line in server.stdout if "http://" in line)
            with urlopen("http://" + address.split("http://")[1].split()[0]) as page:
                assert page.status == 200
        finally:
            server.terminate()


def trackers() -> None:
    import mlflow  # noqa: F401
    import tensorboard  # noqa: F401
    import trackio  # noqa: F401
    import wandb  # noqa: F401

    import rollsight.trackers  # noqa: F401


def envs() -> None:
    import gymnasium as gym
    import highway_env  # noqa: F401
    import minigrid  # noqa: F401

    gym.make("LunarLander-v3").reset(seed=0)
    gym.make("MiniGrid-Empty-8x8-v0").reset(seed=0)


def fast() -> None:
    import rollsight.training.compiled.trainer  # noqa: F401


def llm() -> None:
    import rollsight.adapters.trl
    import rollsight.training.language  # noqa: F401


def ray() -> None:
    import rollsight.studies.ray_cluster  # noqa: F401


def docs() -> None:
    import furo  # noqa: F401
    import myst_nb  # noqa: F401


def dev() -> None:
    import mypy  # noqa: F401


def everything() -> None:
    for extra in (runs, sb3, cli, explorer, trackers, envs, fast, llm, ray, docs, dev):
        extra()


if __name__ == "__main__":
    core()
    if len(sys.argv) > 1 and sys.argv[1] != "core":
        everything() if sys.argv[1] == "all" else globals()[sys.argv[1]]()
    print("ok")
