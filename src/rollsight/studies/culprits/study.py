"""Each run measured: how well rankings find the tagged records, and what leaving out their first ones does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollsight import runs
from rollsight.analysis.culprits import Behaviour, gather, of_query, score_rounds
from rollsight.analysis.culprits.groups import columns, flat
from rollsight.analysis.culprits.scores import trained_weights
from rollsight.arrays import Bools, Floats
from rollsight.runs import Run, whole_file
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, stream
from rollsight.studies.culprits.planted import FAULTY, PAID, Cell
from rollsight.studies.metrics import auroc

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
    behaviour = of_query(run, f"select round, env, step from records where action = {action} and round = {last}")
    (influences,) = score_rounds(run, [behaviour])
    table = columns(run, influences, _USED)
    round, env, step = (np.array(table[name].to_pylist()) for name in ("round", "env", "step"))
    tagged = tags[round - 1, step, env]
    rankings = {"influence": flat(influences)[0], **_others({n: _array(table, n) for n in _USED}, behaviour, cell.seed)}
    gone = _left_out(run, behaviour, rankings | {"the tags themselves": tagged.astype(float)}, tagged, round)
    row = {"env": cell.env, "cause": cell.cause, "seed": cell.seed, "tagged": int(tagged.sum()), "records": len(tagged)}
    found = {
        name: {
            "auroc": auroc(scores, tagged),
            f"precision at {_AT}": float(tagged[np.argsort(-scores, kind="stable")[:_AT]].mean()),
        }
        for name, scores in rankings.items()
    }
    named = None
    if cell.cause == "one environment":
        named = [group.value for group in gather(run, influences, "env")].index(FAULTY) + 1
    return {**row, "place of the environment": named, "found": found, "left out": gone}


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


def _left_out(
    run: Run, behaviour: Behaviour, rankings: Mapping[str, Floats], tagged: Bools, round: Any
) -> dict[str, float | None]:
    """Mean over replayed rounds of log pi without a ranking's first k records less log pi without k random ones; k is
    how many records of the round are tagged. None where no round has any."""
    gained: dict[str, list[float]] = {name: [] for name in rankings if name != "random"}
    for number in REPLAYED:
        mine = np.flatnonzero(round == number)
        k = int(tagged[mine].sum())
        if k == 0:
            continue
        snapshot = Snapshot.load(run.snapshot_path(number))
        after = {}
        for name, scores in rankings.items():
            weights = trained_weights(snapshot)
            weights[torch.from_numpy(np.argsort(-scores[mine], kind="stable")[:k].copy())] = 0
            after[name] = behaviour.log_prob(snapshot.replay("repack", weights).policy, snapshot.records)
        for name, values in gained.items():
            values.append(after[name] - after["random"])
    return {name: float(np.mean(values)) if values else None for name, values in gained.items()}


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
