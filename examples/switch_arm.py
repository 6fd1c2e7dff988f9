# Does filtering cure a run that is stuck, or only keep it from getting there? One arm trains until a round, another one
# goes on from there, with its parameters, optimiser state and environment:
#
#     python examples/switch_arm.py ppo@optimizer=adam,clip=off iif@optimizer=adam,clip=off --at 150 --rounds 250
#
# To the compiled engine an arm is any function from a round to its update, so switching is one line; search for "then".
# Arms are written as for `rollsight study paper`; learning rate, optimiser and clipping are the first one's.
import csv
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro

from rollsight.studies.ppo_arms import PPOArm
from rollsight.studies.trainer import trainer_of
from rollsight.training.compiled import environments
from rollsight.training.compiled.trainer import Plan
from rollsight.training.paper import settings_for

COLUMNS = ("round", "evaluation_return", "return_mean", "episodes", "kept_frac", "approx_kl", "update_norm")


def main(
    first: Annotated[str, tyro.conf.Positional],
    then: Annotated[str, tyro.conf.Positional],
    env: str = "LunarLander-v3",
    at: int = 150,
    rounds: int = 250,
    seed: int = 0,
    out: Path = Path("switch_arm.csv"),
) -> None:
    """Train one arm until a round, then another.

    Args:
        first: the arm of the first rounds.
        then: the arm of the rest.
        env: a gymnasium environment.
        at: the first arm's last round.
        rounds: rounds altogether.
        seed: of every random stream; the first rounds are those of `rollsight study paper` with this seed.
        out: the CSV file to write, a row for every tenth round.
    """
    torch.set_num_threads(1)
    before, after = (PPOArm.of(text).resolved(settings_for(env)) for text in (first, then))
    until, from_then_on = before.training(seed), after.training(seed)
    plan = Plan(
        arm=lambda round: (until if round.number <= at else from_then_on)(round),
        evaluation=partial(environments.make, env),
        episodes=50,
        evaluate_every=10,
    )
    rows = []

    def follow(summary):
        if "evaluation_return" in summary:
            rows.append([summary.get(column, "") for column in COLUMNS])
            print(f"round {summary['round']:4d}  return {summary['evaluation_return']:9.2f}", flush=True)

    with trainer_of(env, before, seed, rounds, plan) as trainer:
        trainer.train(rounds, follow)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    tyro.cli(main)
