"""Do agents learn with the compiled engine as with Stable-Baselines3? Learning curves over seeds, and the verdict.

    python benchmarks/curves.py --out DIR [--cases NAME...] [--engines NAME...] [--seeds 5]

Plain PPO with SGD 5e-3, 20 evaluation episodes of the stochastic policy after each round. Finished runs in DIR stay,
so an interrupted comparison goes on; the table is made of the finished runs. For the area under the curve
(mean over rounds) and the final return (mean over the last tenth) it gives Welch's 95 % interval of the difference to
Stable-Baselines3's, and for single rounds the share in which the compiled engine's mean lies within Stable-Baselines3's
t-interval (88 % on average, were the engines the same) and in which the interval of the difference holds 0 (95 %).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy import stats

from rollsight import runs
from rollsight.training.run import RunSettings, run_training

Array = np.ndarray[Any, Any]


class Case(NamedTuple):
    """An environment, how many copies of it, how many rounds, and the engines that train in it."""

    env: str
    envs: int
    rounds: int
    engines: tuple[str, ...]


CASES = {
    "CartPole": Case("CartPole-v1", 1, 30, ("sb3", "compiled")),
    "CartPole-8": Case("CartPole-v1", 8, 30, ("sb3", "compiled envpool", "compiled gymnasium")),
    "Acrobot": Case("Acrobot-v1", 1, 50, ("sb3", "compiled")),
    "LunarLander": Case("LunarLander-v3", 1, 60, ("sb3", "compiled")),
}
ENGINES = ("sb3", "compiled", "compiled envpool", "compiled gymnasium")


def train(case: Case, engine: str, seed: int, out: Path) -> None:
    kind, _, stepper = engine.partition(" ")
    settings = RunSettings(
        case.env,
        optimizer="sgd",
        lr=5e-3,
        rounds=case.rounds,
        seed=seed,
        envs=case.envs,
        every=case.rounds + 1,  # no scores: they change nothing here
        eval_episodes=20,
        snapshots="none",
        engine=kind,  # type: ignore[arg-type]
    )
    if not stepper:
        run_training(settings, out, overwrite=True)
        return
    from rollsight.training.compiled import environments

    with mock.patch.object(environments, "make", partial(environments.make, stepper=stepper)):
        run_training(settings, out, overwrite=True)


def curve_of(folder: Path, rounds: int) -> Array | None:
    """(rounds,) mean evaluation return after each round; None where the run is missing or not finished."""
    if not runs.is_run(folder) or (run := runs.open(folder)).rounds[-1:] != [rounds]:
        return None
    rows = run.sql("select avg(return) from evaluations where round > 0 group by round order by round").fetchall()
    return np.array([mean for (mean,) in rows])


def welch(one: Array, other: Array) -> tuple[float, float, float]:
    """The difference of the means of `one` and `other`, (S,) each, and its 95 % interval."""
    if np.array_equal(one, other):
        return 0.0, 0.0, 0.0
    low, high = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    return float(one.mean() - other.mean()), float(low), float(high)


def spread(values: Array) -> str:
    """Mean and half the t-interval of (S,) values."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.1f} ± {half:.1f}"


def rows_of(case: Case, curves: dict[str, Array]) -> list[str]:
    """Lines of the Markdown table; curves: engine -> (S, rounds), Stable-Baselines3 first."""
    lines, tenth = [], max(case.rounds // 10, 1)
    host = curves[case.engines[0]]
    half = stats.t.ppf(0.975, len(host) - 1) * host.std(0, ddof=1) / len(host) ** 0.5
    for engine, curve in curves.items():
        area, final = curve.mean(1), curve[:, -tenth:].mean(1)
        cells = [case.env, str(case.envs), engine, str(len(curve)), spread(area), spread(final)]
        if curve is not host:
            for mine, theirs in ((area, host.mean(1)), (final, host[:, -tenth:].mean(1))):
                cells.append("{:.1f} ({:.1f} to {:.1f})".format(*welch(mine, theirs)))
            within = np.abs(curve.mean(0) - host.mean(0)) <= half
            several = [welch(curve[:, k], host[:, k]) for k in range(case.rounds)]
            covered = np.mean([low <= 0 <= high for _, low, high in several])
            cells += [f"{within.mean():.0%}", f"{covered:.0%}"]
        lines.append("| " + " | ".join(cells) + " |" * (1 + 4 * (curve is host)))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| environment | copies | engine | seeds | area | final | area, against SB3 | final, against SB3 ", end="")
    print("| rounds within SB3's interval | rounds whose difference's interval holds 0 |\n" + "|---" * 10 + "|")
    for name in given.cases:
        case, curves = CASES[name], dict[str, list[Array]]()
        for seed in range(given.seeds):
            for engine in case.engines:
                folder = given.out / f"{name}-{engine.replace(' ', '-')}-{seed}"
                if not given.table and engine in given.engines and curve_of(folder, case.rounds) is None:
                    train(case, engine, seed, folder)
                if (curve := curve_of(folder, case.rounds)) is not None:
                    curves.setdefault(engine, []).append(curve)
        if len(curves.get(case.engines[0], [])) > 1:
            stacked = {engine: np.stack(several) for engine, several in curves.items() if len(several) > 1}
            print("\n".join(rows_of(case, stacked)), flush=True)


if __name__ == "__main__":
    main()
