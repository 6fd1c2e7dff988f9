"""The compiled engine's trainer for an arm of a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3 import PPO

from rollsight.environments.make import make_environments
from rollsight.studies.ppo_arms import PPOArm
from rollsight.training.compiled import environments
from rollsight.training.compiled.trainer import CompiledTrainer, Plan, environment_key
from rollsight.training.models import model_of
from rollsight.training.paper import settings_for
from rollsight.training.run import RunSettings


@contextmanager
def trainer_of(env: str, arm: PPOArm, seed: int, rounds: int, plan: Plan) -> Iterator[CompiledTrainer]:
    """A trainer with the arm's optimiser, learning rate and clipping; what it does in its rounds is the plan's.

    rounds: of the run, for its settings; `CompiledTrainer.train` says how many are trained.
    """
    arm = arm.resolved(settings_for(env))
    settings = RunSettings(
        env,
        optimizer=arm.optimizer,
        lr=arm.lr,
        max_grad_norm=arm.max_grad_norm,
        seed=seed,
        envs=arm.envs,
        rounds=rounds,
    ).resolved()
    training = environments.make(env, arm.envs, environment_key(seed))
    host = make_environments(env, arm.envs)
    model = model_of(settings, host)
    assert isinstance(model, PPO)
    try:
        yield CompiledTrainer(model, training, plan)
    finally:
        training.close()
        host.close()
