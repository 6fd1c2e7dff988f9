"""Both engines of `rollsight train`, ready to begin or to go on; what they open is closed at the end of the block."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rollsight import runs
from rollsight.adapters import options
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.adapters.sb3.episodes import EpisodeTracker
from rollsight.adapters.sb3.metadata import describe
from rollsight.adapters.top_records import top_records
from rollsight.doctor.live import LiveDoctor
from rollsight.environments.make import make_environments
from rollsight.errors import Diverged
from rollsight.runs.columns import Columns
from rollsight.trackers import Trackers
from rollsight.training import checkpoints, host_state
from rollsight.training.checkpoints import Checkpoints
from rollsight.training.evaluation import Evaluation
from rollsight.training.models import model_of
from rollsight.training.restoring import History
from rollsight.watching import Watch

if TYPE_CHECKING:
    from rollsight.training.run import RunSettings

OnProgress: TypeAlias = Callable[[float, Mapping[str, Any] | None], None]

_RESTORED = "the episodes under way go on, as if the run had not been interrupted"
_NEW = "new episodes begin, so that the run is not the one that it would have been without the interruption"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is ready.

    settings: what is trained.
    done: rounds that an earlier process finished.
    train: trains the others, once.
    note: empty, or what becomes of the episodes that a resumed run was in.
    """

    settings: RunSettings
    done: int
    train: Callable[[OnProgress | None], None]
    note: str = ""


@contextmanager
def prepare_sb3(
    settings: RunSettings, out: Path, *, overwrite: bool, trackers: Trackers, resume: bool
) -> Iterator[Prepared]:
    """Stable-Baselines3's own model, with `InfluenceCallback`."""
    with ExitStack() as opened:
        environments = host_environments(settings)
        opened.callback(environments.close)
        # Before the model, which seeds the global streams: making environments draws from them.
        evaluate = opened.enter_context(closing(Evaluation(settings))) if settings.eval_episodes else None
        model = model_of(settings, environments)
        state = checkpoints.newest(out) if resume else None
        exact = state is not None and host_state.restore(model, state, runs.open(out))
        note = "" if state is None else _RESTORED if exact else _NEW
        done = 0 if state is None else state["round"]
        out.mkdir(parents=True, exist_ok=True)

        def train(on_progress: OnProgress | None) -> None:
            kept: Checkpoints | None = None

            def on_round(summary: Mapping[str, Any]) -> None:
                nonlocal kept
                if kept is None and callback.writer is not None:
                    kept = Checkpoints(callback.writer, lambda: host_state.state_of(model, callback.tracker))
                if kept is not None:
                    kept.after(summary["round"], last=summary["round"] == settings.rounds)
                if on_progress is not None:
                    on_progress(summary["round"], summary)

            callback = InfluenceCallback(
                selection=settings.selection,
                unit=settings.unit,
                every=settings.every,
                run=out,
                overwrite=overwrite or resume,
                snapshots=settings.snapshots,
                doctor=settings.doctor,
                metadata=_described(settings),
                evaluate=evaluate,
                on_round=on_round,
            )
            callback.trackers = trackers
            if state is not None:
                host_state.restore_streams(state)
                callback.how_continued = {"episodes": note}
                if exact:
                    callback.tracker = EpisodeTracker()
                    callback.tracker.restore(state["tracker"])
            ticks: list[BaseCallback] = [] if on_progress is None else [_Ticks(on_progress, settings.records)]
            left = (settings.rounds or 0) - done
            try:
                with warnings.catch_warnings():
                    if resume:  # the note says so
                        warnings.filterwarnings("ignore", "the model is that of round")
                    model.learn(left * settings.records, [*ticks, callback], reset_num_timesteps=state is None)
            except ValueError as error:
                if all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters()):
                    raise
                raise Diverged.in_round(model.num_timesteps // settings.records) from error

        yield Prepared(settings, done, train, note)


@contextmanager
def prepare_compiled(
    settings: RunSettings, out: Path, *, overwrite: bool, trackers: Trackers, resume: bool
) -> Iterator[Prepared]:
    """The compiled engine, with the model that Stable-Baselines3 would start from."""
    # Here: JAX is an extra.
    from rollsight.training.compiled import environments
    from rollsight.training.compiled.arms import Filtered
    from rollsight.training.compiled.trainer import CompiledTrainer, Plan, environment_key

    with ExitStack() as opened:
        make = partial(environments.make, settings.env, env_kwargs=settings.env_kwargs)
        state = checkpoints.newest(out) if resume else None
        after = 0 if state is None else state["after"]
        training = make(settings.envs, environment_key(settings.seed, after))
        opened.callback(lambda: training.close())
        host = host_environments(settings)
        opened.callback(host.close)
        model = model_of(settings, host)
        assert isinstance(model, PPO)
        rule = options.rule_of(None, settings.selection, settings.unit, seed=settings.seed, floor=model.batch_size)
        plan = Plan(
            arm=Filtered(rule, settings.every),
            snapshot_every=options.interval_of(settings.snapshots),
            evaluation=make if settings.eval_episodes else None,
            episodes=settings.eval_episodes,
        )
        trainer = CompiledTrainer(model, training, plan)
        note = ""
        if state is not None:
            collection = state["collection"]
            history = History(runs.open(out), state["round"], collection["starts"], collection["begins"], after)
            note = _RESTORED if trainer.restore(state, history) else _NEW
            if note == _NEW:
                after = state["round"]
                training.close()
                training = make(settings.envs, environment_key(settings.seed, after))
                trainer = CompiledTrainer(model, training, plan)
                trainer.restore(state, None)
        done = 0 if state is None else state["round"]
        described = describe(
            model, rule=settings.selection, unit=settings.unit, targets=["return"], every=settings.every
        )
        described |= {"engine": "compiled", "stepper": type(training).__name__} | _described(settings)
        if state is None:
            writer = opened.enter_context(runs.create(out, described, overwrite=overwrite or resume))
        else:
            writer = opened.enter_context(runs.resume(out, after=done, episodes=note))
        trainer.writer = writer
        trainer.doctor = LiveDoctor(described, out) if settings.doctor else None

        def keep(columns: Columns) -> None:
            if trackers.wanted():
                trackers.keep(top_records(columns, described))

        trainer.on_records = keep

        def train(on_progress: OnProgress | None) -> None:
            watch = Watch()
            kept = Checkpoints(writer, lambda: {"after": after, **trainer.state()})

            def report(summary: Mapping[str, Any]) -> None:
                if not summary["round"]:
                    return
                kept.after(summary["round"], last=summary["round"] == settings.rounds)
                trackers.log(summary)
                if on_progress is not None:
                    watch.begin(summary["round"])
                    watch.attempt("progress shown", on_progress, summary["round"], summary)

            trainer.train((settings.rounds or 0) - done, report)

        yield Prepared(settings, done, train, note)


def host_environments(settings: RunSettings) -> VecEnv:
    """The training environments as Stable-Baselines3 steps them."""
    made = make_environments(settings.env, settings.envs, keywords=settings.env_kwargs)
    return VecNormalize(made, gamma=settings.gamma) if settings.normalize else made


def _described(settings: RunSettings) -> dict[str, Any]:
    return {"arm": settings.arm, "run_settings": asdict(settings)}


class _Ticks(BaseCallback):
    """Reports collection about twice a second: a round of a slow environment takes minutes."""

    def __init__(self, on_progress: OnProgress, records: int) -> None:
        super().__init__()
        self._on_progress, self._records, self._last = on_progress, records, time.monotonic()

    def _on_step(self) -> bool:
        if time.monotonic() - self._last > 0.5:
            self._last = time.monotonic()
            # Collection counts for nine tenths of a round; the rest is its update, which does not report.
            done, collected = divmod(self.num_timesteps - 1, self._records)
            self._on_progress(done + 0.9 * collected / self._records, None)
        return True
