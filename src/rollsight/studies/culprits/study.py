"""Each run measured: how well rankings find the tagged records, and what leaving out their first ones does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollsight import runs
from rollsight.analysis.culprits import Behaviour, gather, score_rounds
from rollsight.analysis.culprits.behaviour import of_step_query
from rollsight.analysis.culprits.groups import columns, flat
from rollsight.arrays import Floats
from rollsight.runs import whole_file
from rollsight.streams import Purpose, stream
from rollsight.studies.culprits.comparing import compared
from rollsight.studies.culprits.planted import FAULTY, PAID, Cell

REPLAYED = (2, 5, 8)  # rounds
_GAMMA = 0.99
_AT = 100  # precision at so many
_USED = ("round", "env", "step", "episode", "action", "reward", "value", "advantage", "obs")


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train the run, rank its records without their tags, and compare with the tags."""
    tags = cell.train(folder)
    run = runs.open(folder)
    action, _ = PAID[cell.env]
    last = run.rounds[-1]
    behaviour = of_step_query(run, f"select round, env, step from records where action = {action} and round = {last}")
    (influences,) = score_rounds(run, [behaviour])
    table = columns(run, influences, _USED)
    round, env, step = (np.array(table[name].to_pylist()) for name in ("round", "env", "step"))
    tagged = tags[round - 1, step, env]
    rankings = {"influence": flat(influences)[0], **_others({n: _array(table, n) for n in _USED}, behaviour, cell.seed)}
    row = {"env": cell.env, "cause": cell.cause, "seed": cell.seed, "tagged": int(tagged.sum()), "records": len(tagged)}
    named = None
    if cell.cause == "one environment":
        named = [group.value for group in gather(run, influences, "env")].index(FAULTY) + 1
    return {**row, "place of the environment": named, **compared(behaviour, rankings, tagged, round, REPLAYED, _AT)}


def _array(table: Any, name: str) -> Any:
    return np.array(table[name].to_pylist())


def _others(of: Mapping[str, Any], behaviour: Behaviour, seed: int) -> dict[str, Floats]:
    """What one would sort by without influence; higher is more suspect."""
    rng = stream(seed, Purpose.RANDOM_RANKING)
    return {
        "reward": of["reward"].astype(float),
        "|advantage|": np.abs(of["advantage"]).astype(float),
        "|TD error|": np.abs(_td_errors(of)),
        "nearest, same action": _nearness(of, behaviour),
        "recency": of["round"] * 1e6 + of["step"],
        "random": rng.random(len(of["round"])),
    }


def _td_errors(of: Mapping[str, Any]) -> Floats:
    """r + gamma V(s') - V(s), with V(s') = 0 at an episode's end and V(s) at the round's."""
    order = np.lexsort((of["step"], of["round"], of["env"]))
    episode, value = of["episode"][order], of["value"][order].astype(float)
    follows = np.append((of["round"][order][1:] == of["round"][order][:-1]) & (np.diff(of["env"][order]) == 0), False)
    goes_on = np.append(episode[1:] == episode[:-1], False)
    after = np.where(follows, np.where(goes_on, np.roll(value, -1), 0.0), value)
    errors = np.empty(len(order))
    errors[order] = of["reward"][order] + _GAMMA * after - value
    return errors


def _nearness(of: Mapping[str, Any], behaviour: Behaviour) -> Floats:
    """Minus the distance to the nearest state of the behaviour, for records of its action; the others come last."""
    from sklearn.neighbors import NearestNeighbors

    assert isinstance(behaviour.obs, torch.Tensor)
    assert isinstance(behaviour.actions, torch.Tensor)
    scale = of["obs"].std(0) + 1e-8
    search = NearestNeighbors(n_neighbors=1).fit(behaviour.obs.numpy() / scale)
    distance = search.kneighbors(of["obs"] / scale)[0][:, 0]
    same = of["action"] == int(behaviour.actions.reshape(-1)[0])
    nearness: Floats = np.where(same, -distance, -distance.max() - 1)
    return nearness


def read(path: Path) -> list[dict[str, Any]]:
    """What is measured already."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Keep what was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
