"""The run of a `learn`: a new one, or the one that the model belongs to, from where the model stands in it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rollsight import runs
from rollsight.errors import OptionError, RollsightError

# What the models of one run have in common, whatever their settings are by now.
_IDENTITY = ("algo", "policy", "env", "observation_space", "action_space", "n_envs", "n_steps", "parameters", "seed")
# What a run says about its making rather than about the model.
_CIRCUMSTANCES = ("host", "timesteps_before")

Row = Mapping[str, Any]
Model: TypeAlias = OnPolicyAlgorithm | OffPolicyAlgorithm


@dataclass(frozen=True, eq=False)
class Opened:
    """A run to write to.

    writer: writes the run folder; holds its lock.
    round: the last round that is done, 0 in a new run.
    evaluated: whether the run has an evaluation from before training.
    first_episode: the first number that no episode of the run has.
    """

    writer: runs.RunWriter
    round: int
    evaluated: bool = False
    first_episode: int = 0


def open_run(
    path: Path,
    model: Model,
    described: Mapping[str, Any],
    more: Mapping[str, Any],
    overwrite: bool,
    how: Mapping[str, Any],
) -> Opened:
    """The run in `path`: continued if the model is and the run is the model's, else made anew.

    described: the model, by names that a later one is compared by; more: further entries of `run.json`;
    how: of its `continued`.

    Raises:
        RollsightError: there is a run already, and it is not to be overwritten.
    """
    if model.num_timesteps > 0 and runs.is_run(path):
        run = runs.open(path)
        wrong = _misfit(run, described)
        if wrong is None:
            return _continued(run, model, described, how)
        if not overwrite:
            raise wrong
    writer = runs.create(path, {**described, **more}, overwrite=overwrite)
    return Opened(writer, _rounds(model, model.num_timesteps))


def _misfit(run: runs.Run, described: Mapping[str, Any]) -> RollsightError | None:
    """Why the run is not this model's, by the first thing that differs; None where it is."""
    advice = "continue a model of that run, choose another place, or replace the run with {overwrite}"
    if str(run.metadata.get("host", "")).split(" ")[0] != "stable-baselines3":
        return OptionError(
            f"the run {run.path} is another model's (not of Stable-Baselines3): {advice}", overwrite=True
        )
    for name, theirs, ours in _differences(run.metadata, described):
        if name == "parameters":
            name, theirs, ours = _first_difference(theirs, ours)
        elif name not in _IDENTITY:
            continue
        return OptionError(
            f"the run {run.path} is another model's ({name} {theirs!r}, this one's is {ours!r}): {advice}",
            overwrite=True,
        )
    return None


def _continued(run: runs.Run, model: Model, described: Mapping[str, Any], how: Mapping[str, Any]) -> Opened:
    """The run after the last round whose update the model holds.

    Rounds that the model has not seen are replaced. A checkpoint made while a rollout was collected, its last step
    included, is that of the round before: the host collects the rollout anew. A warning says which rounds are replaced,
    that the model was trained on without the run, and which settings changed; `run.json` keeps it in `continued`.
    """
    table = run.sql("select * from rounds order by round") if run.rounds else None
    rows = [] if table is None else [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    seen = [row for row in rows if _holds(model, row)]
    # Before its first complete round a run stands where it began.
    timesteps = min(int(run.metadata.get("timesteps_before", 0)), model.num_timesteps)
    last: Row = seen[-1] if seen else {"round": _rounds(model, timesteps), "timesteps": timesteps, "updates": None}
    missed = model.num_timesteps - last["timesteps"]
    changed = {
        name: {"was": theirs, "is": ours}
        for name, theirs, ours in _differences(run.metadata, described)
        if name not in _CIRCUMSTANCES
    }
    replaced = [row["round"] for row in rows if not seen or row["round"] > last["round"]]
    if replaced:
        _warn(f"the model is that of round {last['round']}: rounds {runs.spell(replaced)} of {run.path} are replaced")
    elif _trained_since(model, last):
        _warn(f"the model was trained beyond the run {run.path}, in {missed} time steps that are not recorded there")
    if changed:
        _warn(f"the run {run.path} is continued with another {', '.join(changed)} than it began with")
    noted = {"timesteps": model.num_timesteps, "timesteps_not_recorded": missed, "changed": changed, **how}
    writer = runs.resume(run.path, after=last["round"] if seen else 0, **noted)
    return Opened(writer, last["round"], 0 in run.evaluation_rounds, _first_episode(run, last) if seen else 0)


def _first_episode(run: runs.Run, last: Row) -> int:
    try:
        ((newest,),) = run.sql("select max(episode) from records").fetchall()
    except RollsightError:  # records that are lost or damaged do not keep a model from going on
        newest = None
    return int(last["timesteps"]) if newest is None else int(newest) + 1  # an episode has at least one step


def _rounds(model: Model, timesteps: int) -> int:
    """Rounds in so many time steps, where every one has as many; 0 where rounds are looks at a replay buffer."""
    return timesteps // (model.n_steps * model.n_envs) if isinstance(model, OnPolicyAlgorithm) else 0


def _holds(model: Model, row: Row) -> bool:
    # The time steps alone do not tell a checkpoint made at a rollout's last step from one made after the update.
    updates = row.get("updates")
    return bool(row["timesteps"] <= model.num_timesteps and (updates is None or updates <= model._n_updates))


def _trained_since(model: Model, last: Row) -> bool:
    updates = last.get("updates")
    if updates is None:
        return _rounds(model, model.num_timesteps - int(last["timesteps"])) > 0
    return bool(updates < model._n_updates)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, theirs, ours) of the entries that both have and that differ, `settings` taken apart."""
    here = runs.jsonable(ours)
    pairs = [(theirs, here), (theirs.get("settings") or {}, here.get("settings") or {})]
    return [
        (name, one[name], value)
        for one, other in pairs
        for name, value in other.items()
        if name in one and name != "settings" and _text(one[name]) != _text(value)
    ]


def _text(value: Any) -> str:
    """As it is compared: objects without a text of their own differ by their address from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, sort_keys=True))


def _first_difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> tuple[str, str | None, str | None]:
    name = next(name for name in [*theirs, *ours] if theirs.get(name) != ours.get(name))
    return f"shape of {name}", theirs.get(name), ours.get(name)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
