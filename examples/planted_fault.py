# Which rollouts hurt? One of eight CartPole environments pays every reward with the wrong sign:
#
#     python examples/planted_fault.py
#
# PPO trains on all eight. The scores of its records then show where the harm comes from, and the same training is
# repeated in three ways: without that environment's records, without half of the negative records wherever they are
# (IIF), and without as many random ones. All policies are tested in healthy environments.
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import rollsight as rs
from rollsight import runs
from rollsight.adapters.sb3 import InfluenceCallback


@dataclass
class Args:
    out: Path = Path("runs/planted-fault")
    """where the run folders and the picture go"""
    faulty: int = 5
    """the environment whose rewards have the wrong sign"""
    rounds: int = 10
    """rounds of 2048 records"""
    seeds: int = 1
    """training runs of each kind"""


PAIRS = [
    ("without the environment", "all records"),
    ("without the environment", "healthy"),
    ("without the environment", "IIF"),
    ("IIF", "all records"),
    ("IIF", "random drop"),
]


class WrongSign(gym.RewardWrapper):
    def reward(self, reward: float) -> float:
        return -float(reward)


def environments(faulty: int | None) -> DummyVecEnv:
    def make(number: int) -> gym.Env:
        env = gym.make("CartPole-v1")
        return Monitor(WrongSign(env) if number == faulty else env)

    return DummyVecEnv([lambda number=number: make(number) for number in range(8)])


def trained(args: Args, seed: int, name: str, faulty: int | None, selection: object = None) -> float:
    """Train; the mean return in 20 healthy episodes."""
    env = environments(faulty)
    env.seed(seed)
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, seed=seed, device="cpu")
    callback = InfluenceCallback(selection=selection, run=args.out / f"{name}-{seed}", overwrite=True)
    model.learn(args.rounds * 2048, callback=callback)
    healthy = environments(None)
    healthy.seed(1000 + seed)
    return float(evaluate_policy(model, healthy, n_eval_episodes=20, deterministic=False)[0])


def harm(args: Args, seed: int) -> np.ndarray:
    """(rounds, environments): each environment's share of the round's negative scores."""
    run = runs.open(args.out / f"all records-{seed}")
    rows = run.sql(
        "select sum(case when score_return < 0 then -score_return else 0 end) from records "
        "group by round, env order by round, env"
    ).fetchall()
    sums = np.array(rows).reshape(-1, 8)
    return sums / sums.sum(1, keepdims=True)


def draw(shares: np.ndarray, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    image = axes.imshow(shares.T, aspect="auto", cmap="magma", vmin=0, extent=(0.5, len(shares) + 0.5, 7.5, -0.5))
    axes.set(xlabel="round", ylabel="environment", yticks=range(8), title="share of the negative influence")
    figure.colorbar(image, format=lambda share, _: f"{share:.0%}")
    figure.savefig(path, dpi=150)


def main(args: Args) -> None:
    torch.set_num_threads(1)

    def without_faulty(scores: rs.Scores) -> rs.selection.Selection:
        weights = (scores.ids["env"] != args.faulty).to(scores.values)
        dropped = (weights == 0).nonzero().squeeze(1)
        return rs.selection.Selection(weights, dropped, requested=len(dropped), reached=len(dropped))

    kinds = {
        "healthy": (None, None),
        "all records": (args.faulty, None),
        "without the environment": (args.faulty, without_faulty),
        "IIF": (args.faulty, "negative:0.5"),
        "random drop": (args.faulty, "random:0.5"),
    }
    returns: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in range(args.seeds):
        for name, (faulty, selection) in kinds.items():
            returns[name].append(trained(args, seed, name, faulty, selection))
            print(f"seed {seed}, {name}: trained, return {returns[name][-1]:.0f}", flush=True)
        shares = harm(args, seed)
        worst = shares.argmax(1)
        print(f"\nseed {seed}: share of the negative influence by environment, mean over {len(shares)} rounds")
        print("  ".join(f"{env}: {share:.0%}" for env, share in enumerate(shares.mean(0))))
        found = int((worst == args.faulty).sum())
        print(f"environment {args.faulty} has the largest share in {found} of {len(shares)} rounds\n")
        draw(shares, args.out / f"harm-{seed}.png")
    print("return in healthy environments after training")
    for name, values in returns.items():
        print(f"  {name:<24} {np.mean(values):6.1f}   ({', '.join(f'{value:.0f}' for value in values)})")
    if args.seeds == 1:
        print("  one seed says where the harm is, not what helps: --seeds 5 compares with intervals")
    else:
        print("\ndifferences paired by seed, with 95 % t-intervals")
        for one, other in PAIRS:
            difference = np.subtract(returns[one], returns[other])
            half = stats.t.ppf(0.975, args.seeds - 1) * stats.sem(difference)
            print(f"  {one}, minus {other}: {difference.mean():.0f} ± {half:.0f}")
    print(f"\npicture: {args.out / 'harm-0.png'}\nlook:    rollsight top '{args.out / 'all records-0'}' --bottom")


if __name__ == "__main__":
    main(tyro.cli(Args))
