"""The runs of the study: which there are, and how one is made."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollsight.errors import RollsightError
from rollsight.studies.doctor.faults import (
    ACROBOT,
    CAR,
    CART,
    ENVIRONMENTS,
    FAULTS,
    FITTED,
    GRID,
    LAKE,
    LANDER,
    PENDULUM,
    TAXI,
    Plant,
)
from rollsight.studies.doctor.language import LanguageCase, language_cases

_ROUNDS = 10
# Steps and environments of a round, so that episodes end in nearly every buffer, and what an environment is made with.
_SHAPES: dict[str, dict[str, Any]] = {
    CART: {"n_steps": 128, "envs": 8},
    LAKE: {"n_steps": 128, "envs": 8},
    ACROBOT: {"n_steps": 512, "envs": 4},
    CAR: {"n_steps": 512, "envs": 4, "env_kwargs": {"max_episode_steps": 300}},
}
_USUAL: dict[str, Any] = {"n_steps": 256, "envs": 8}
# Rates at which each is known to learn, after RL Baselines3 Zoo's; "untuned" are Stable-Baselines3's own defaults.
_TUNED: dict[str, dict[str, Any]] = {
    CART: {"lr": 1e-3, "gamma": 0.98, "gae_lambda": 0.8},
    ACROBOT: {"lr": 1e-3, "gae_lambda": 0.94},
    LAKE: {"lr": 1e-3},
    LANDER: {"lr": 6e-4, "gamma": 0.999, "gae_lambda": 0.98, "ent_coef": 0.01},
    PENDULUM: {"lr": 1e-3, "gamma": 0.9},
    CAR: {"lr": 3e-4, "gamma": 0.9999, "gae_lambda": 0.9},
    GRID: {"lr": 1e-3},
    TAXI: {"lr": 1e-3},
}
_LEARNT = {"undone"}  # faults that need a policy that has learnt something
# Faults that the compiled engine cannot be given in this way: it has no callbacks between collection and update, its
# environments are no Stable-Baselines3 vector, and its optimiser and layers are not torch's.
_SB3_ONLY = {"stale log-probabilities", "undone", "copies", "value untrained", "value diverging", "dead units"}


@dataclass(frozen=True)
class Case:
    """One run.

    env: name of the environment.
    fault: name of the planted one, None for a healthy run.
    strength: of the fault.
    seed: of every random stream.
    rate: learning rate, "tuned" or "untuned".
    engine: "sb3" or "compiled".
    rounds: of training.
    """

    env: str
    fault: str | None
    strength: float
    seed: int
    rate: str = "untuned"
    engine: str = "sb3"
    rounds: int = _ROUNDS

    @property
    def name(self) -> str:
        """Of its folder."""
        what = "healthy" if self.fault is None else f"{self.fault.replace(' ', '-').replace(':', '')}-{self.strength:g}"
        return f"{self.env}-{what}-{self.rate}-{self.engine}-{self.seed}"

    def run(self, folder: Path) -> None:
        """Train, into a new run folder; a run that its fault ends early keeps what it had by then."""
        if folder.exists():
            shutil.rmtree(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plant = Plant() if self.fault is None else FAULTS[self.fault].plant(self.strength, self.seed)
            try:
                if self.engine == "compiled":
                    self._compiled(folder, plant)
                else:
                    self._sb3(folder, plant)
            except (ValueError, RollsightError):  # of numbers that are not finite
                if self.fault is None or not (folder / "rounds").is_dir():
                    raise

    def _settings(self, plant: Plant) -> Any:
        from rollsight.training.run import RunSettings

        shape = {**_USUAL, **_SHAPES.get(self.env, {})}
        rate = _TUNED[self.env] if self.rate == "tuned" else {"lr": 3e-4}
        chosen = {"batch_size": 128, "epochs": 8, **shape, **rate, **plant.settings}
        kwargs = {**(shape.get("env_kwargs") or {}), **(plant.settings.get("env_kwargs") or {})}
        if self.env == GRID and "max_episode_steps" in kwargs:
            kwargs = {"max_steps": kwargs["max_episode_steps"]}
        chosen |= {"env_kwargs": kwargs or None, "optimizer": "adam", "eval_episodes": 0, "snapshots": "none"}
        engine: Any = self.engine
        return RunSettings(self.env, rounds=self.rounds, seed=self.seed, engine=engine, **chosen).resolved()

    def _compiled(self, folder: Path, plant: Plant) -> None:
        from stable_baselines3.common.vec_env import DummyVecEnv

        from rollsight import runs
        from rollsight.adapters.sb3.metadata import describe
        from rollsight.environments.make import make_environment
        from rollsight.training.compiled.environments import Copies, seeds_of
        from rollsight.training.compiled.trainer import CompiledTrainer, Plan, environment_key
        from rollsight.training.models import model_of
        from rollsight.training.run import run_training

        settings = self._settings(plant)
        if self.fault is None:
            run_training(settings, folder)
            return

        def made(number: int) -> Any:
            plain = make_environment(self.env, disable_env_checker=True, **(settings.env_kwargs or {}))
            return plant.wrap(plain, number)

        stepped = Copies([made(i) for i in range(settings.envs)], seeds_of(settings.envs, environment_key(self.seed)))
        model: Any = model_of(settings, DummyVecEnv([lambda: made(0)] * settings.envs))
        plant.model(model)
        about = describe(model, rule=None, unit="record", targets=["return"], every=1)
        trainer = CompiledTrainer(model, stepped, Plan())
        with runs.create(folder, about | {"engine": "compiled", "study": self.name}) as trainer.writer:
            trainer.train(settings.rounds)

    def _sb3(self, folder: Path, plant: Plant) -> None:
        from stable_baselines3.common.vec_env import DummyVecEnv

        from rollsight.adapters.sb3 import InfluenceCallback
        from rollsight.environments.make import make_environment
        from rollsight.training.models import model_of

        settings = self._settings(plant)

        def maker(number: int) -> Any:
            return lambda: plant.wrap(make_environment(self.env, **(settings.env_kwargs or {})), number)

        venv = plant.all_environments(DummyVecEnv([maker(number) for number in range(settings.envs)]))
        try:
            model: Any = model_of(settings, venv)
            plant.model(model)
            callback = InfluenceCallback(run=folder, snapshots="none", metadata={"study": self.name})
            before = [] if plant.callback is None else [plant.callback()]
            with callback:
                model.learn(settings.rounds * settings.records, [*before, callback])
        finally:
            venv.close()


def cases(seeds: int) -> Iterator[Case]:
    """All runs: healthy ones first, then the strongest faults, the first seeds of everything first; the compiled
    engine's last."""
    for seed in range(max(seeds, 2)):
        for env in ENVIRONMENTS:
            yield from (Case(env, None, 0, seed, rate) for rate in ("tuned", "untuned"))
        yield from (Case(env, None, 0, seed, "tuned", "compiled") for env in ENVIRONMENTS[:4])
    for seed in range(seeds):
        for place in range(max(len(fault.strengths) for fault in FAULTS.values())):
            for name, fault in FAULTS.items():
                for env in fault.envs if place < len(fault.strengths) else ():
                    rate, rounds = ("tuned", 14) if name in _LEARNT else ("untuned", _ROUNDS)
                    yield Case(env, name, fault.strengths[place], seed, rate, rounds=rounds)
    for name, fault in FAULTS.items():
        # One environment that thresholds were set on, and one that none was.
        chosen = (next((one for one in fault.envs if (one in FITTED) == fitted), None) for fitted in (True, False))
        for where in chosen:
            if where is not None and name not in _SB3_ONLY:
                yield Case(where, name, fault.strengths[0], 0, "untuned", "compiled")


def all_cases(seeds: int) -> Iterator[Case | LanguageCase]:
    """Those of language models first: they are the quicker ones."""
    yield from language_cases(seeds)
    yield from cases(seeds)
