"""How smoothly an influence varies over similar records: embeddings, similarity graph, roughness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rollsight.arrays import Floats, Ints
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring.modes import scoring_mode
from rollsight.scoring.problem import default_chunk_size
from rollsight.streams import stream

_AT_ONCE = 2**22  # numbers held at once while influences are permuted


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph over N records.

    edges: (E, 2) row numbers, first < second.
    weights: (E,) in [0, 1].
    """

    edges: Ints
    weights: Floats


def embed(policy: Policy, records: Records) -> tuple[Floats, str]:
    """(N, D) embeddings of the records' observations, and the name of the layer whose input they are.

    It is the last `nn.Linear` that the log-probabilities depend on, the one that makes the action's logits or means
    (`action_net` in Stable-Baselines3); its input are the activations of the last hidden layer.

    Raises:
        RollsightError: the policy has no such layer, or its input is not one row per record.
    """
    names: dict[nn.Module, str] = {
        module: name for name, module in policy.module.named_modules() if isinstance(module, nn.Linear)
    }
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        calls.append((module, inputs[0], result))

    handles = [module.register_forward_hook(note) for module in names]
    size, parts, name = default_chunk_size(records), [], ""
    try:
        with scoring_mode(policy.module):
            for start in range(0, len(records), size):
                calls.clear()
                log_prob = policy(records.take(slice(start, start + size))).log_prob
                results = [result for _, _, result in calls]
                slopes = torch.autograd.grad(log_prob.sum(), results, allow_unused=True) if results else ()
                used = [call for call, slope in zip(calls, slopes, strict=True) if slope is not None]
                if not used:
                    raise RollsightError(
                        f"the log-probabilities of {type(policy.module).__name__} depend on no nn.Linear layer, whose "
                        "input could serve as the records' embedding"
                    )
                module, inputs, _ = used[-1]
                name = names[module]
                parts.append(inputs.detach())
    finally:
        for handle in handles:
            handle.remove()
    embeddings = torch.cat(parts)
    if embeddings.dim() != 2 or len(embeddings) != len(records):
        raise RollsightError(
            f"the input of layer {name!r} has shape {tuple(embeddings.shape)} for {len(records)} records, and must be "
            "one row for each to serve as their embedding"
        )
    return np.asarray(embeddings.cpu().numpy(), np.float64), name


def similarity_graph(embeddings: Floats, neighbours: int = 20) -> Graph:
    """The graph in which each of the (N, D) embeddings is joined with its nearest neighbours, both ways.

    w_ij = exp(-|e_i - e_j|^2 / sigma^2) with sigma the median distance over the graph's edges (Hu et al. 2025, section
    3). Where more than half of the edges join equal embeddings, sigma is 0 and w its limit: 1 for equal ones, else 0.
    """
    from sklearn.neighbors import NearestNeighbors  # here: a second to import

    count = min(neighbours, len(embeddings) - 1)
    if count < 1:
        raise RollsightError(
            f"a similarity graph needs at least 2 records and 1 neighbour, not {len(embeddings)} records"
        )
    found = NearestNeighbors(n_neighbors=count).fit(embeddings).kneighbors(return_distance=False)
    pairs = np.stack([np.repeat(np.arange(len(found)), count), found.reshape(-1)], 1)
    edges = np.unique(np.sort(pairs, axis=1), axis=0)
    # Not the search's own distances: it may compute them by a faster formula that is not exactly 0 for equal rows.
    distances = np.linalg.norm(embeddings[edges[:, 0]] - embeddings[edges[:, 1]], axis=1)
    sigma = float(np.median(distances))
    weights = np.exp(-((distances / sigma) ** 2)) if sigma > 0 else (distances == 0).astype(np.float64)
    return Graph(edges, weights)


def roughness(influence: Floats, graph: Graph) -> float:
    """sum w_ij (I_i - I_j)^2 / sum w_ij over the edges, with the influence (N,) divided by its largest magnitude
    (Hu et al. 2025, section 3). 0 where it is constant."""
    return float(_roughness(influence[None], graph)[0])


def permuted_roughness(influence: Floats, graph: Graph, permutations: int, key: tuple[int, ...]) -> Floats:
    """(permutations,) roughness of the same influences dealt out to the records at random: the null of no structure."""
    rng = stream(*key)
    at_once = max(1, _AT_ONCE // max(len(graph.edges), 1))
    blocks = [min(at_once, permutations - start) for start in range(0, permutations, at_once)]
    return np.concatenate([_roughness(rng.permuted(np.tile(influence, (size, 1)), axis=1), graph) for size in blocks])


def _roughness(influences: Floats, graph: Graph) -> Floats:
    """(B,) roughness of each row of (B, N)."""
    scaled = influences / np.abs(influences).max(axis=1, keepdims=True)
    first, second = graph.edges.T
    rough: Floats = ((scaled[:, first] - scaled[:, second]) ** 2 @ graph.weights) / graph.weights.sum()
    return rough
