"""Seconds to score a whole replay buffer: 10^6 transitions, a critic of 64 x 64, DQN and SAC.

python benchmarks/replay.py [TRANSITIONS]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN, SAC

import rollsight as rs
from rollsight.adapters.sb3_off_policy.critics import critic_of
from rollsight.adapters.sb3_off_policy.held_out import environment_of, play
from rollsight.adapters.sb3_off_policy.scoring import score_with_trust
from rollsight.adapters.sb3_off_policy.transitions import Transitions
from rollsight.adapters.sb3_off_policy.translate import translate

CASES: dict[str, tuple[Any, str]] = {"DQN": (DQN, "LunarLander-v3"), "SAC": (SAC, "Pendulum-v1")}


def filled(kind: Any, env: str, count: int) -> Any:
    """A model whose buffer is full of random transitions."""
    model = kind("MlpPolicy", env, buffer_size=count, policy_kwargs={"net_arch": [64, 64]}, device="cpu", seed=0)
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    for column in (buffer.observations, buffer.next_observations):
        column[:] = rng.normal(size=column.shape)
    if kind is DQN:
        buffer.actions[:] = rng.integers(0, model.action_space.n, buffer.actions.shape)
    else:
        buffer.actions[:] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.rewards[:] = rng.normal(size=buffer.rewards.shape)
    buffer.dones[:] = rng.random(buffer.dones.shape) < 0.01
    buffer.full = True
    return model


def main(count: int) -> None:
    torch.set_num_threads(1)
    for name, (kind, env) in CASES.items():
        model = filled(kind, env, count)
        critic = critic_of(model)
        held = play(model, critic, environment_of(model, None), 10, (0, 1))
        laps = [time.perf_counter()]
        cpu = [time.process_time()]

        def lap(laps: list[float] = laps, cpu: list[float] = cpu) -> None:
            laps.append(time.perf_counter())
            cpu.append(time.process_time())

        replay = translate(model, critic, Transitions(count, 1), (0, 1))
        lap()
        target = rs.targets.Calibration(held.records)
        rs.score_records(critic.policy, replay.records, target, critic.objective)
        lap()
        score_with_trust(critic, replay, held, "auto", (0, 1))
        lap()
        wall, processor = np.diff(laps), np.diff(cpu)
        for what, seconds, own in zip(("targets y", "scores", "scores and trust line"), wall, processor, strict=True):
            print(f"{name} {count:,} transitions, {what}: {seconds:.2f} s ({own:.2f} s of processor time)", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
