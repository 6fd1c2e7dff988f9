"""Where in its run a model stands, and whether the run is that model's at all."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rollsight import runs
from rollsight.errors import RollsightError

# What a model of the run has, whatever its settings are by now.
_IDENTITY = ("algo", "policy", "env", "observation_space", "action_space", "n_envs", "n_steps", "parameters", "seed")
# What a run says about its making rather than about the model.
_CIRCUMSTANCES = ("host", "timesteps_before")


def misfit(run: runs.Run, described: Mapping[str, Any]) -> RollsightError | None:
    """Why the run is not this model's, by the first thing that differs; None where it is."""
    if str(run.metadata.get("host", "")).split(" ")[0] != "stable-baselines3":
        return RollsightError(
            f"the run {run.path} was not written by Stable-Baselines3 and cannot be continued here: choose another "
            "place for this model's run"
        )
    for name, theirs, ours in _differences(run.metadata, described):
        if name not in _IDENTITY:
            continue
        if name == "parameters":
            name, theirs, ours = _first_difference(theirs, ours)
        return RollsightError(
            f"the run {run.path} is another model's ({name} {theirs!r}, this one's is {ours!r}): continue that model, "
            "or choose another place for this one's run"
        )
    return None


def resume(
    run: runs.Run, model: OnPolicyAlgorithm, described: Mapping[str, Any], how: Mapping[str, Any]
) -> tuple[runs.RunWriter, int]:
    """The run's writer after the last round whose update the model holds, and that round's number.

    Rounds that the model has not seen are replaced. A checkpoint made while a rollout was collected, its last step
    included, is that of the round before: the host collects the rollout anew. A warning says which rounds are replaced,
    that the model was trained on without the run, and which settings changed; `run.json` keeps all of it in
    `continued`, and the entries of `how`.
    """
    table = run.sql("select * from rounds order by round") if run.rounds else None
    rows = [] if table is None else [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    seen = [row for row in rows if _holds(model, row)]
    if seen:
        round, timesteps = seen[-1]["round"], seen[-1]["timesteps"]
    else:
        timesteps = min(int(run.metadata.get("timesteps_before", 0)), model.num_timesteps)
        round = timesteps // (model.n_steps * model.n_envs)
    changed = {
        name: {"was": theirs, "is": ours}
        for name, theirs, ours in _differences(run.metadata, described)
        if name not in _CIRCUMSTANCES
    }
    missed = model.num_timesteps - timesteps
    for said in (
        _replaced([row["round"] for row in rows[len(seen) :]], round, run.path),
        _trained_without(model, seen[-1] if seen else None, missed, run.path) if len(seen) == len(rows) else None,
        f"the run {run.path} is continued with other settings ({', '.join(changed)})" if changed else None,
    ):
        if said:
            warnings.warn(said, stacklevel=2)
    noted = {"timesteps": model.num_timesteps, "timesteps_not_recorded": missed, "changed": changed, **how}
    return runs.resume(run.path, after=seen[-1]["round"] if seen else 0, **noted), round


def _holds(model: OnPolicyAlgorithm, row: Mapping[str, Any]) -> bool:
    # The time steps alone do not tell a checkpoint made at a rollout's last step from one made after the update.
    updates = row.get("updates")
    return row["timesteps"] <= model.num_timesteps and (updates is None or updates <= model._n_updates)


def _replaced(rounds: list[int], after: int, path: Path) -> str | None:
    if not rounds:
        return None
    return f"the model is that of round {after}, so rounds {runs.spell(rounds)} of the run {path} are replaced"


def _trained_without(model: OnPolicyAlgorithm, last: Mapping[str, Any] | None, missed: int, path: Path) -> str | None:
    updates = None if last is None else last.get("updates")
    buffered = model.n_steps * model.n_envs
    trained = missed >= buffered if updates is None else updates < model._n_updates
    if not trained:
        return None
    return f"the model was trained beyond the run {path}: {missed} time steps are not recorded there"


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
    return f"the parameter {name} of shape", theirs.get(name), ours.get(name)
