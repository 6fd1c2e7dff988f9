"""`rollsight study directions`: cosines and gains are what they say, and looking changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv
from test_compiled_arms import frozen

from rollsight import cli
from rollsight.studies import store
from rollsight.studies.directions.cell import Settings, cells_of
from rollsight.studies.directions.results import KEYS, read_results
from rollsight.studies.directions.updates import Compared, measure
from rollsight.studies.ppo_arms import PPOArm
from rollsight.training.compiled import arms
from rollsight.training.compiled.arms import policy_parameters
from rollsight.training.compiled.batch import Batch
from rollsight.training.compiled.environments import make

LAKE = "FrozenLake-v1"
arm_of = PPOArm.of


def normalized(advantages: torch.Tensor) -> torch.Tensor:
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def test_measures_are_torchs() -> None:
    """Steps along and against the gradient of the buffer, and the objective after them, by the host's own policy."""
    snapshot, round = frozen()
    records, policy = snapshot.records, snapshot.policy
    taken = normalized(records.advantages)
    gradient = torch.autograd.grad(
        (policy(records).log_prob * taken).mean(), list(policy.module.parameters()), allow_unused=True
    )
    names = [name for name, _ in policy.module.named_parameters()]
    slope = {name: g for name, g in zip(names, gradient, strict=True) if g is not None and bool(g.any())}
    assert set(slope) == policy_parameters(round.network, round.parameters)

    def at(step: float) -> dict[str, Any]:
        return {n: p + (step * slope[n].numpy() if n in slope else 7.0) for n, p in round.parameters.items()}

    half = records.take(torch.arange(0, len(records), 2))
    up, down = measure(round, Batch.of(half), {"up": at(0.05), "down": at(-0.1)})
    assert (up.along_own, down.along_own) == (pytest.approx(1, abs=1e-4), pytest.approx(-1, abs=1e-4))
    assert 0.1 < up.along_fresh < 0.999
    assert (up.length, down.length) == (1, pytest.approx(2, rel=1e-3))
    with torch.no_grad():
        for name, p in policy.module.named_parameters():
            if name in slope:
                p += 0.05 * slope[name]
    for seen, gain in ((records, up.gain_own), (half, up.gain_fresh)):
        change = torch.exp(policy(seen).log_prob - seen.log_probs) - 1
        assert gain == pytest.approx(1000 * float((change * normalized(seen.advantages)).mean().detach()), rel=1e-3)
    assert down.gain_own < 0 < up.gain_own
    assert down.kl > up.kl > 0


def test_the_first_arm_trains_as_if_it_were_alone() -> None:
    _, round = frozen(env=DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    both = {name: arm_of(name).training(7) for name in ("ppo", "prioritised")}
    compared = Compared(both, make("CartPole-v1", 2, (1,)), 7, 30, 2)
    alone, watched = arms.Filtered(every=0)(round), compared(round)
    assert all(np.array_equal(p, watched.trained.parameters[n]) for n, p in alone.trained.parameters.items())
    assert [row["arm"] for row in compared.rows] == ["ppo", "prioritised"]
    assert compared.rows[0]["length"] == 1 != compared.rows[1]["length"]


def command(out: Path, *more: str) -> list[str]:
    return ["study", "directions", "--envs", LAKE, "--rounds", "4", "--every", "2", "--records", "256",
            "--out", str(out), *more]  # fmt: skip


def test_a_study_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert cli.main(command(out, "--seeds", "2", "--arms", "ppo,iif")) == 0
    assert "2 runs, 0 of them done" in capsys.readouterr().out
    key = (LAKE, "ppo", 0)
    first = store.stored(out, KEYS)[key]
    rows = list(zip(first["round"], first["arm"], strict=True))
    assert rows == [(r, a) for r in (2, 4) for a in ("ppo", "iif:0.5")]
    assert cli.main(command(out, "--seeds", "2", "--arms", "ppo")) == 0
    assert "2 runs, 2 of them done" in capsys.readouterr().out
    assert cli.main(command(out, "--seeds", "1", "--arms", "ppo", "iif", "random")) == 0
    shown = capsys.readouterr().out
    assert "1 runs, 0 of them done" in shown
    assert "| `iif:0.5` |" in shown
    assert "| `random:0.5` |" not in shown  # seed 1 does not have it
    again = store.stored(out, KEYS)[key]
    before = again["arm"] != "random:0.5"
    assert len(before) == 6
    assert all((again[name][before] == column).all() for name, column in first.items())
    files = {"curves.parquet", "settings.json", "results.md", "results.csv", "directions.png", "index.html"}
    assert {path.name for path in out.iterdir()} - {".lock"} == files
    (result,) = read_results(out)
    lengths = first["length"][first["arm"] == "iif:0.5"]
    assert result.means[arm_of("iif:0.5")]["length"][0] == pytest.approx(np.mean(lengths))
    assert cli.main(["study", "directions", "--out", str(out), "--records", "64"]) == 1
    assert "was started with rounds 4, not None" in capsys.readouterr().err
    assert cli.main(["study", "directions", "--out", str(out), "--only-report"]) == 0
    capsys.readouterr()
    assert cli.main(["study", "directions", "--out", str(out), "--against", "iif"]) == 0
    compared = capsys.readouterr().out
    assert "less `iif:0.5`'s" in compared
    (other,) = read_results(out, arm_of("iif"))
    one, back = result.difference(arm_of("iif:0.5"), "kl"), other.difference(arm_of("ppo"), "kl")
    assert one.value == pytest.approx(-back.value)


def test_thirty_comparisons_where_nothing_is_said() -> None:
    ppo = [arm_of("ppo")]
    assert [cells_of([env], ppo, [0], Settings())[0].every for env in (LAKE, "LunarLander-v3")] == [1, 5]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--envs", "Frozen"], "no environment 'Frozen'"),
        (["--envs", "ALE/Pong-v5"], "leaves Atari to Stable-Baselines3"),
        (["--arms", "ppo", "iff"], "'iff' is unknown"),
        (["--arms", "ppo", "iif@lr=0.1"], "has other options than ppo"),
        (["--records", "0"], "--records 0 is not possible"),
        (["--rounds", "4", "--every", "5"], "every=5 compares nothing in 4 rounds"),
        (["--only-report"], "holds no directions"),
        (["--against", "iif"], "holds no directions"),
    ],
)
def test_bad_input(arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "directions", "--out", str(tmp_path / "study"), *arguments]) == 1
    assert named in capsys.readouterr().err
