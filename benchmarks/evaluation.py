"""What an evaluation costs when environments that have nothing left to play are stepped no more.

    python benchmarks/evaluation.py [--envs ENV...] [--rounds 30] [--repeats 5]

A policy of plain PPO after some rounds plays as many episodes as the paper's study evaluates, in both ways in turn: all
environments are stepped until the slowest has played its share, and as the engine does it. Processor seconds, medians.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import time
import warnings
from functools import partial
from statistics import median

import numpy as np
from stable_baselines3 import PPO

from rollsight.environments.make import make_environments
from rollsight.training.compiled.acting import Actor, executable
from rollsight.training.compiled.conversion import parameters_of
from rollsight.training.compiled.environments import Environments, make
from rollsight.training.compiled.evaluation import play, side_by_side
from rollsight.training.compiled.networks import network_of
from rollsight.training.compiled.trainer import CompiledTrainer, Plan, environment_key
from rollsight.training.models import model_of
from rollsight.training.paper import settings_for
from rollsight.training.run import RunSettings

ENVS = ("LunarLander-v3", "MiniGrid-Empty-8x8-v0", "Acrobot-v1", "FrozenLake-v1")


def play_shares(actor: Actor, environments: Environments, episodes: int, rng: np.random.Generator) -> int:
    """Environment steps until every environment has ended its share of the episodes."""
    count, steps = environments.count, 0
    left = np.full(count, -(-episodes // count))
    obs, resetting = environments.reset().obs, np.zeros(count, dtype=bool)
    while (left > 0).any():
        actions = executable(actor.act(obs, actor.noise(rng, count)), environments.action_space)
        outcome = environments.step(actions)
        over = np.logical_or(outcome.terminated, outcome.truncated) & ~resetting
        left -= over
        obs, resetting, steps = outcome.obs, over & environments.resets_next_step, steps + count
    environments.close()
    return steps


def actor_of(env: str, rounds: int) -> Actor:
    """A policy after so many rounds of plain PPO, SGD 5e-3, nothing clipped."""
    settings = RunSettings(env, optimizer="sgd", lr=5e-3, max_grad_norm=float("inf"), rounds=rounds).resolved()
    model = model_of(settings, make_environments(env, 1))
    assert isinstance(model, PPO)
    CompiledTrainer(model, make(env, 1, environment_key(0)), Plan()).train(rounds)
    return Actor(network_of(model.policy), parameters_of(model.policy), model.observation_space.shape or ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), metavar="ENV")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| environment | episodes | steps, shares | steps, now | s, shares | s, now | times |\n" + "|---" * 7 + "|")
    for env in given.envs:
        actor, episodes = actor_of(env, given.rounds), settings_for(env).episodes
        fresh = partial(make, env, side_by_side(episodes))
        seconds, steps = (list[float](), list[float]()), (list[int](), list[int]())
        for repeat in range(given.repeats):
            started = time.process_time()
            steps[0].append(play_shares(actor, fresh((repeat,)), episodes, np.random.default_rng(repeat)))
            between = time.process_time()
            steps[1].append(sum(play(actor, fresh((repeat,)), episodes, np.random.default_rng(repeat))[1]))
            seconds[0].append(between - started)
            seconds[1].append(time.process_time() - between)
        (shares, now), counts = map(median, seconds), [f"{median(s):,.0f}" for s in steps]
        print(
            f"| {env} | {episodes} | {' | '.join(counts)} | {shares:.2f} | {now:.2f} | {shares / now:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
