"""The options of a training run, stated once: they are fields, the command line, and what `run.json` holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from tyro.conf import arg

Algorithm: TypeAlias = Literal["ppo", "a2c"]
Optimizer: TypeAlias = Literal["sgd", "adam", "rmsprop"]
Engine: TypeAlias = Literal["auto", "sb3", "compiled"]
Unit: TypeAlias = Literal["record", "episode"]


def _default(text: str, **more: Any) -> Any:
    """How the help states the default of a field whose None is filled in later."""
    return arg(help_behavior_hint=f"(default: {text})", **more)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How an agent is trained, scored and recorded."""

    # None stands for what the environment or the algorithm has by default: `RunSettings.resolved` fills it in.

    algo: Algorithm = "ppo"
    """The algorithm; A2C makes one step from each round, and defaults to RMSprop at 7e-4."""

    optimizer: Annotated[Optimizer | None, _default("the paper's")] = None
    """The optimiser."""

    lr: Annotated[float | None, _default("the paper's")] = None
    """Learning rate; with another optimiser than the environment's, 3e-4 for Adam and 5e-3 for SGD."""

    rounds: Annotated[int | None, _default("the paper's, else 50")] = None
    """Rounds to train: each collects records, scores them and trains on them."""

    steps: Annotated[int | None, _default("what --rounds gives")] = None
    """Time steps to train in all, in place of --rounds; the last round is filled up."""

    n_steps: Annotated[int | None, _default("2048 / --envs")] = None
    """Steps of each environment in a round; a round has n_steps x envs records."""

    envs: int = 1
    """Environments side by side. With the compiled engine, several in EnvPool spend one of the round's rows on every
    reset, so that a round has fewer records."""

    batch_size: Annotated[int | None, _default("64")] = None
    """PPO: records of one minibatch."""

    epochs: Annotated[int | None, _default("10")] = None
    """PPO: passes over the records of a round."""

    gamma: float = 0.99
    """Discount factor."""

    gae_lambda: Annotated[float | None, _default("0.95; A2C: 1")] = None
    """Lambda of generalised advantage estimation: lower has less variance and more bias."""

    clip: Annotated[float | None, _default("0.2")] = None
    """PPO: clip range of the probability ratio."""

    ent_coef: float = 0.0
    """Weight of the entropy bonus; raise it where the policy stops exploring too early."""

    vf_coef: float = 0.5
    """Weight of the value loss."""

    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm; inf leaves them as they are."""

    net: Annotated[str | None, _default("the host's", metavar="64,64")] = None
    """Hidden layers of the policy and of the value function, after the feature extractor where there is one."""

    normalize: bool = False
    """Normalise observations and rewards by running statistics (VecNormalize; Stable-Baselines3's engine only)."""

    unit: Unit = "record"
    """What is dropped."""

    every: int = 1
    """Score every k-th round, and keep everything in the others."""

    eval_episodes: int = 20
    """Episodes of the stochastic policy after each round, apart from training; 0 for none."""

    engine: Engine = "auto"
    """What trains: Stable-Baselines3 (sb3), or the compiled engine (compiled), which makes the same update several
    times faster; auto takes compiled where it is installed (rollsight[fast]) for PPO on all but Atari."""

    doctor: bool = False
    """Look for known faults while training; each is a warning, once, and stays in the run folder."""

    snapshots: Annotated[str, arg(metavar="every:K|all|none")] = "every:10"
    """Rounds frozen for replay."""

    seed: int = 0
    """Seed of every random stream."""
