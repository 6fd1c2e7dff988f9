"""One training run: environment, model, callback, run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rollsight import runs, selection
from rollsight.adapters import options
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.adapters.sb3.metadata import describe
from rollsight.environments.make import make_environments, observations_of
from rollsight.errors import Diverged, RollsightError
from rollsight.studies.evaluation import Evaluation
from rollsight.studies.networks import MiniGridFeatures
from rollsight.studies.settings import A2C_LR, RECORDS_PER_ROUND, Algorithm, EnvSettings, Optimizer, settings_for

_OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}


Engine: TypeAlias = Literal["auto", "sb3", "fast"]


@dataclass(frozen=True)
class RunSettings:
    """What one run is; None stands for the paper's value for the environment (`settings_for`).

    selection: "negative:P" (IIF), "random:P" (as many random records), or None for plain training; `arm` is the run's
    name in comparisons. `eval_episodes` of the stochastic policy follow each round; 0 switches evaluation off.
    engine: "sb3" (Stable-Baselines3), "fast" (compiled, the same update), or "auto": fast where it is installed and has
    the algorithm, the optimiser and the environment.
    """

    env: str
    algo: Algorithm = "ppo"
    optimizer: Optimizer | None = None
    lr: float | None = None
    max_grad_norm: float = 0.5
    selection: str | None = None
    unit: str = "record"
    every: int = 1
    rounds: int | None = None
    seed: int = 0
    envs: int = 1
    eval_episodes: int = 20
    snapshots: str = "every:10"
    engine: Engine = "auto"
    arm: str | None = None

    def resolved(self) -> RunSettings:
        """With every None replaced, and the values checked."""
        paper: EnvSettings = settings_for(self.env)
        optimizer = self.optimizer or (paper.optimizer if self.algo == "ppo" else "rmsprop")
        usual = paper.lr_with(optimizer) if self.algo == "ppo" else A2C_LR
        rule = None if self.selection is None else selection.from_text(self.selection)
        settings = replace(
            self,
            optimizer=optimizer,
            lr=usual if self.lr is None else self.lr,
            rounds=paper.rounds if self.rounds is None else self.rounds,
            engine=_engine(self) if self.engine == "auto" else self.engine,
            selection=None if isinstance(rule, selection.DropNegative) and rule.p == 0 else self.selection,
        )
        if self.arm is None:
            settings = replace(settings, arm=_arm(settings))
        for name in ("rounds", "envs"):
            if getattr(settings, name) < 1:
                raise RollsightError(f"{name}={getattr(settings, name)} is not a positive number; give at least 1.")
        if settings.eval_episodes < 0 or not (settings.lr or 0) > 0:
            raise RollsightError(
                f"eval_episodes={settings.eval_episodes} and lr={settings.lr} must not be negative (lr not 0)."
            )
        if RECORDS_PER_ROUND % settings.envs:
            raise RollsightError(
                f"envs={settings.envs} does not divide the {RECORDS_PER_ROUND} records of a round; give 1, 2, 4, 8, ..."
            )
        return settings


def _engine(settings: RunSettings) -> Engine:
    covered = settings.algo == "ppo" and settings.optimizer != "rmsprop" and observations_of(settings.env) != "atari"
    return "fast" if covered and find_spec("jax") is not None else "sb3"


def _arm(settings: RunSettings) -> str:
    if settings.selection is None:
        return settings.algo
    kind, _, fraction = settings.selection.partition(":")
    return f"{'iif' if kind == 'negative' else kind} p={float(fraction):g}"


def run_training(
    settings: RunSettings,
    out: Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[float, Mapping[str, Any] | None], None] | None = None,
) -> None:
    """Train one agent and write its run folder `out`.

    on_progress: called with the rounds done so far, a fraction inside a round, and at a round's end with its summary.
    """
    settings = settings.resolved()
    assert settings.rounds is not None
    if settings.engine == "fast":
        run_fast(settings, out, overwrite, on_progress)
        return
    environments = make_environments(settings.env, settings.envs)
    # Before the model, which seeds the global streams: making environments draws from them.
    evaluate = Evaluation(settings.env, settings.eval_episodes, settings.seed) if settings.eval_episodes else None
    model = model_of(settings, environments)
    callback = InfluenceCallback(
        selection=settings.selection,
        unit=settings.unit,
        every=settings.every,
        run=out,
        overwrite=overwrite,
        snapshots=settings.snapshots,
        metadata={"arm": settings.arm, "run_settings": asdict(settings)},
        evaluate=evaluate,
        on_round=None if on_progress is None else lambda summary: on_progress(summary["round"], summary),
    )
    callbacks: list[BaseCallback] = [callback] if on_progress is None else [_Ticks(on_progress), callback]
    try:
        model.learn(settings.rounds * RECORDS_PER_ROUND, callback=callbacks)
    except ValueError as error:
        if all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters()):
            raise
        raise Diverged.in_round(model.num_timesteps // RECORDS_PER_ROUND) from error
    environments.close()


def run_fast(
    settings: RunSettings,
    out: Path,
    overwrite: bool,
    on_progress: Callable[[float, Mapping[str, Any] | None], None] | None,
) -> None:
    """The same run by the fast engine, with the model that Stable-Baselines3 would start from."""
    try:  # here: JAX is an extra
        from rollsight.training.classic import environments
        from rollsight.training.classic.arms import Filtered
        from rollsight.training.classic.trainer import FastTrainer, Plan, environment_key
    except ImportError as error:
        raise RollsightError(str(error)) from error
    assert settings.rounds is not None
    if settings.algo != "ppo":
        raise RollsightError(f"The fast engine trains PPO, not {settings.algo}; use --engine sb3.")
    training = environments.make(settings.env, settings.envs, environment_key(settings.seed))
    host = make_environments(settings.env, settings.envs)
    model = model_of(settings, host)
    assert isinstance(model, PPO)
    rule = options.rule_of(None, settings.selection, settings.unit, seed=settings.seed, floor=model.batch_size)
    plan = Plan(
        arm=Filtered(rule, settings.every),
        snapshot_every=options.interval_of(settings.snapshots),
        evaluation=partial(environments.make, settings.env) if settings.eval_episodes else None,
        episodes=settings.eval_episodes,
    )
    described = describe(model, rule=settings.selection, unit=settings.unit, targets=["return"], every=settings.every)
    described |= {"engine": "fast", "stepper": type(training).__name__}
    described |= {"arm": settings.arm, "run_settings": asdict(settings)}
    with runs.create(out, described, overwrite=overwrite) as writer:

        def report(summary: Mapping[str, Any]) -> None:
            if on_progress is not None and summary["round"]:
                on_progress(summary["round"], summary)

        FastTrainer(model, training, plan, writer).train(settings.rounds, report)
    host.close()


class _Ticks(BaseCallback):
    """Reports collection about twice a second: a round of a slow environment takes minutes."""

    def __init__(self, on_progress: Callable[[float, Mapping[str, Any] | None], None]) -> None:
        super().__init__()
        self._on_progress, self._last = on_progress, time.monotonic()

    def _on_step(self) -> bool:
        if time.monotonic() - self._last > 0.5:
            self._last = time.monotonic()
            # Collection counts for nine tenths of a round; the rest is its update, which does not report.
            done, collected = divmod(self.num_timesteps - 1, RECORDS_PER_ROUND)
            self._on_progress(done + 0.9 * collected / RECORDS_PER_ROUND, None)
        return True


def model_of(settings: RunSettings, environments: Any) -> OnPolicyAlgorithm:
    """An untrained model for resolved settings."""
    observations = observations_of(settings.env)
    keywords: dict[str, Any] = {"optimizer_class": _OPTIMIZERS[str(settings.optimizer)], "optimizer_kwargs": {}}
    if settings.optimizer == "adam":
        keywords["optimizer_kwargs"] = {"eps": 1e-5}
    if settings.optimizer == "rmsprop":
        keywords["optimizer_kwargs"] = {"alpha": 0.99, "eps": 1e-5}
    if observations == "minigrid":
        # MiniGrid's "image" holds object, colour and state numbers up to 10, not intensities to divide by 255.
        keywords |= {"features_extractor_class": MiniGridFeatures, "normalize_images": False, "net_arch": []}
    common: dict[str, Any] = {
        "policy": "MlpPolicy" if observations == "vector" else "CnnPolicy",
        "env": environments,
        "learning_rate": settings.lr,
        "n_steps": RECORDS_PER_ROUND // settings.envs,
        "gamma": 0.99,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "device": "cpu",
        "policy_kwargs": keywords,
    }
    if settings.algo == "a2c":
        return A2C(**common)
    return PPO(batch_size=64, n_epochs=10, gae_lambda=0.95, clip_range=0.2, ent_coef=0.0, vf_coef=0.5, **common)
