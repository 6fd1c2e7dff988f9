"""How a behaviour forms over rounds: which records taught it, and how (Hu et al. 2025, section 3).

For one state-action pair, round by round: the scores of all records for `f_action` = log pi(a given s), pi itself, the
top records, and the roughness of the influences over a similarity graph. The paper sees three phases: *association* of
action and advantage whatever the state (rough), *clustering* of the top records in similar states (roughness falls),
*saturation* (influences near zero, smooth). They are marked only where a change-point test supports them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollsight import targets
from rollsight.analysis.phases.change_points import SHORTEST, find_changes
from rollsight.analysis.phases.similarity import embed, permuted_roughness, roughness, similarity_graph
from rollsight.arrays import Floats, Ints
from rollsight.policy import Policy
from rollsight.records import Records, Rows, take_rows
from rollsight.scoring import score_records
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, stream

NAMES = ("association", "clustering", "saturation")
_LARGEST_SHOWN = 256  # numbers of an observation that results carry along
_BACKGROUND = 200


@dataclass(frozen=True, eq=False)
class Formation:
    """The behaviour in one round, before its update. Influences are scores for log pi(a given s).

    round: its number.
    log_prob: log pi(a given s) of the policy that filled the buffer (a log density for continuous actions).
    influence: mean magnitude over the valid records.
    positive: number of records with a positive influence.
    roughness: of the positive influences; None for fewer than 3 records.
    null: 95 % band of the roughness of permuted influences; None likewise.
    consistency: share of the top records with the behaviour's action and a positive advantage, or another action and a
        negative one. None for continuous actions.
    consistency_all: the same of all valid records.
    top: the records with the highest influence, best first.
    places: (k, 2) where the top records lie in the map of embeddings (first two principal components).
    background: (S, 2) a sample of the round's records in the same map.
    """

    round: int
    log_prob: float
    influence: float
    positive: int
    roughness: float | None
    null: tuple[float, float] | None
    consistency: float | None
    consistency_all: float | None
    top: list[dict[str, Any]]
    places: Floats
    background: Floats


@dataclass(frozen=True)
class PhaseChange:
    """Something changes before this round.

    round: the first round after the change.
    p: p-value of the permutation test on roughness and log pi together that found it.
    p_roughness: p-value of roughness alone, for a change at this very round.
    p_log_prob: p-value of log pi alone, likewise.
    """

    round: int
    p: float
    p_roughness: float
    p_log_prob: float


@dataclass(frozen=True)
class Phase:
    """Rounds between two changes.

    name: a phase of the paper's where the data show it, else a segment.
    first: first round.
    last: last round.
    """

    name: str
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Development:
    """The behaviour over all rounds.

    rounds: the behaviour in each of them.
    final_log_prob: log pi(a given s) after the last round.
    place: (2,) the behaviour's own state in the map.
    embedding: the layer of the policy after the last round whose input is used.
    target: what the scores explain.
    normalisation: how advantages are normalised in the scores.
    neighbours: of each record in the graph that roughness is computed on.
    changes: rounds before which something changes.
    phases: the rounds between them.
    verdict: one sentence on what the change-point test supports.
    """

    rounds: list[Formation]
    final_log_prob: float
    place: Floats
    embedding: str
    target: str
    normalisation: str
    neighbours: int
    changes: list[PhaseChange]
    phases: list[Phase]
    verdict: str


def development(
    snapshots: Iterable[Snapshot],
    final: Policy,
    obs: Rows,
    action: Rows,
    *,
    top: int = 10,
    neighbours: int = 20,
    permutations: int = 200,
    seed: int = 0,
) -> Development:
    """Follow one behaviour through the rounds of these snapshots, ascending.

    obs, action: the state-action pair, as in the records, with leading 1. final: the policy after the last round, which
    embeds all records. neighbours: u of the similarity graph; permutations: of the roughness's null.
    """
    target = targets.Action(obs, action)
    rounds: list[Formation] = []
    normalisation, layer = "", ""
    for snapshot in snapshots:
        embeddings, layer = embed(final, snapshot.records)
        normalisation = snapshot.rule.policy_term().normalisation
        rounds.append(_formation(snapshot, target, embeddings, top, neighbours, permutations, seed))
    own = target.measured_on(snapshot.records)
    project = _principal_plane(np.concatenate([one.background for one in rounds]))
    rounds = [replace(one, places=project(one.places), background=project(one.background)) for one in rounds]
    with torch.no_grad():
        final_log_prob = float(final(own).log_prob)
    changes, phases, verdict = mark_phases(rounds, seed)
    return Development(
        rounds,
        final_log_prob,
        project(embed(final, own)[0])[0],
        layer,
        "log pi(a given s)",
        normalisation,
        neighbours,
        changes,
        phases,
        verdict,
    )


def mark_phases(rounds: Sequence[Formation], seed: int = 0) -> tuple[list[PhaseChange], list[Phase], str]:
    """Changes of (roughness, log pi) over the rounds, the phases between them, and a verdict in one sentence.

    The paper's names are given where two changes are supported, roughness is on average highest in the first segment,
    log pi rises from the first to the last, and influence is smallest in the last.
    """
    known = [one for one in rounds if one.roughness is not None]
    if len(known) < 2 * SHORTEST:
        return [], [], f"{len(known)} rounds are too few for a change-point test, which needs {2 * SHORTEST}"
    series = np.array([[one.roughness, one.log_prob] for one in known], np.float64)
    found = find_changes(series, seed=seed)
    changes = [PhaseChange(known[change.at].round, change.p, *change.columns) for change in found]
    if not found:
        return changes, [], "no change of roughness and log pi is supported (p > 0.05): no phases are marked"
    edges = [0, *(change.at for change in found), len(known)]
    spans = list(pairwise(edges))
    means = [series[low:high].mean(0) for low, high in spans]
    influence = [float(np.mean([one.influence for one in known[low:high]])) for low, high in spans]
    names: Sequence[str] = [f"segment {number}" for number in range(1, len(spans) + 1)]
    where = " and ".join(str(change.round) for change in changes)
    if len(found) < 2:
        verdict = f"one change is supported, at round {where}, so the paper's three phases are not"
    elif means[0][0] > max(means[1][0], means[2][0]) and means[2][1] > means[0][1] and influence[2] == min(influence):
        names, verdict = NAMES, f"three phases are supported, with changes at rounds {where}"
    else:
        verdict = f"two changes are supported, at rounds {where}, but not the paper's course"
    series_by_name = ("roughness", [m[0] for m in means]), ("log pi", [m[1] for m in means]), ("influence", influence)
    course = [f"{name} {' to '.join(f'{value:.3g}' for value in values)}" for name, values in series_by_name]
    verdict += f" (means: {', '.join(course)})"
    phases = [
        Phase(name, known[low].round, known[high - 1].round) for name, (low, high) in zip(names, spans, strict=True)
    ]
    return changes, phases, verdict


def consistent(actions: Rows, advantages: Tensor, action: Rows) -> Tensor | None:
    """(N,) whether a record has this action and a positive advantage, or another action and a negative one; None for
    continuous actions, of which no two are the same, and for dicts of them."""
    if not isinstance(actions, Tensor) or not isinstance(action, Tensor):
        return None
    if actions.is_floating_point() and bool((actions != actions.round()).any()):
        return None
    same = (actions.reshape(len(actions), -1) == action.reshape(1, -1)).all(1)
    return torch.where(same, advantages > 0, advantages < 0)


def _formation(
    snapshot: Snapshot,
    target: targets.Action,
    embeddings: Floats,
    top: int,
    neighbours: int,
    permutations: int,
    seed: int,
) -> Formation:
    """The round's formation; its places are still embeddings (., D)."""
    records, policy = snapshot.records, snapshot.policy
    objective = snapshot.rule.policy_term()
    scores = score_records(policy, records, target, objective).values.detach()
    with torch.no_grad():
        log_prob = float(policy(target.measured_on(records)).log_prob)
    influence = np.asarray(scores.cpu().numpy(), np.float64)
    valid = records.valid_rows.cpu().numpy()
    positive = np.flatnonzero(influence > 0)
    rough: float | None = None
    null: tuple[float, float] | None = None
    if len(positive) >= 3:
        graph = similarity_graph(embeddings[positive], neighbours)
        rough = roughness(influence[positive], graph)
        key = (seed, snapshot.round, Purpose.SHUFFLED_INFLUENCE)
        permuted = permuted_roughness(influence[positive], graph, permutations, key)
        null = (float(np.quantile(permuted, 0.025)), float(np.quantile(permuted, 0.975)))
    best = positive[np.argsort(-influence[positive], kind="stable")[:top]]
    # The advantages as the update sees them: normalisation moves the sign.
    advantages = objective.prepare(records).advantages
    agrees = consistent(records.actions, advantages, target.actions)
    share = None if agrees is None or not len(best) else float(agrees[torch.from_numpy(best)].float().mean())
    share_all = None if agrees is None else float(agrees[records.valid_rows].float().mean())
    rng = stream(seed, snapshot.round, Purpose.BACKGROUND)
    sample = np.sort(rng.permutation(np.flatnonzero(valid))[:_BACKGROUND])
    return Formation(
        snapshot.round,
        log_prob,
        float(np.abs(influence[valid]).mean()),
        len(positive),
        rough,
        null,
        share,
        share_all,
        _rows(records, advantages, influence, best),
        embeddings[best],
        embeddings[sample],
    )


def _rows(records: Records, advantages: Tensor, influence: Floats, chosen: Ints) -> list[dict[str, Any]]:
    """The chosen records as plain data; large observations are left out."""
    rows = []
    for rank, index in enumerate(chosen.tolist(), 1):
        row: dict[str, Any] = {"rank": rank}
        row |= {name: int(ids[index]) for name, ids in records.ids.items()}
        for name, column in (("obs", records.obs), ("action", records.actions)):
            one = take_rows(column, slice(index, index + 1))
            parts = {name: one} if isinstance(one, Tensor) else {f"{name}.{key}": part for key, part in one.items()}
            row |= {key: part[0].tolist() for key, part in parts.items() if part.numel() <= _LARGEST_SHOWN}
        rows.append({**row, "advantage": float(advantages[index]), "influence": float(influence[index])})
    return rows


def _principal_plane(points: Floats) -> Callable[[Floats], Floats]:
    """The map (., D) -> (., 2) onto the first two principal components of the points (n, D)."""
    centre = points.mean(0)
    _, _, components = np.linalg.svd(points - centre, full_matrices=False)
    plane = np.zeros((points.shape[1], 2))
    plane[:, : len(components[:2])] = components[:2].T

    def project(embeddings: Floats) -> Floats:
        return np.asarray((embeddings - centre) @ plane, np.float64)

    return project
