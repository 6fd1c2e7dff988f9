"""Both engines of `rollsight train`, ready to begin or to go on: what they open is closed with the block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rollsight import runs
from rollsight.adapters import options
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.adapters.sb3.environments import make_environments
from rollsight.adapters.sb3.metadata import describe
from rollsight.errors import Diverged, RollsightError
from rollsight.trackers import TensorBoard, Trackers
from rollsight.training import checkpoints, host_state
from rollsight.training.checkpoints import Checkpoints
from rollsight.training.evaluation import Evaluation
from rollsight.training.models import model_of
from rollsight.training.ticks import Ticks

if TYPE_CHECKING:
    from rollsight.training.run import RunSettings

OnProgress: TypeAlias = Callable[[float, Mapping[str, Any] | None], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is ready. done: rounds that an earlier process finished; train: trains the others, once.

    note: empty, or what a resumed run has otherwise than an uninterrupted one.
    """

    settings: RunSettings
    done: int
    train: Callable[[OnProgress | None], None]
    note: str = ""


@contextmanager
def prepare_sb3(
    settings: RunSettings, out: Path, *, overwrite: bool, tensorboard: Path | None, resume: bool
) -> Iterator[Prepared]:
    """Stable-Baselines3's own model, with `InfluenceCallback`."""
    with ExitStack() as opened:
        environments = host_environments(settings)
        opened.callback(environments.close)
        # Before the model, which seeds the global streams: making environments draws from them.
        evaluate = opened.enter_context(closing(Evaluation(settings))) if settings.eval_episodes else None
        model = model_of(settings, environments)
        state = resumable(out) if resume else None
        exact = state is not None and host_state.restore(model, state, runs.open(out))
    

def host_environments(settings: RunSettings) -> VecEnv:
    """The training environments as Stable-Baselines3 steps them."""
    made = make_environments(settings.env, settings.envs, env_kwargs=settings.env_kwargs)
    return VecNormalize(made, gamma=settings.gamma) if settings.normalize else made
