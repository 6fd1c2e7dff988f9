"""Could full fine-tuning be scored in its own backward too? What two ways cost, and how well they rank.

    python benchmarks/full_tuning.py [--model FOLDER] [--records 16] [--seeds 3]

SmolLM2-135M, every parameter trained, float32, one micro-batch of completions of 24 tokens; the score is the inner
product of a completion's own gradient with that of all of them. n x P does not fit there, so from the inputs x and
output gradients g of every linear layer (the tied head among them, embeddings and norms not):

    pairs:    <G_i, G_j> = sum over layers and tokens s, t of <x_is, x_jt> <g_is, g_jt>, for all pairs
    sketches: k x k numbers of a layer, (S_out g_i)' (S_in x_i), with random S

Spearman's correlation is with the exact scores of all parameters. One thread, CPU time of this process.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from language_models import CACHE, as_records, load, sample
from torch import Tensor, nn

import rollsight as rs
from rollsight.language import Completions
from rollsight.scoring.ranks import spearman

OBJECTIVE = rs.objectives.GRPO("dapo", on_policy=True)
Captured = list[tuple[Tensor, Tensor]]


def trained(policy: rs.Policy, records: rs.Records) -> None:
    """A forward and backward of training."""
    OBJECTIVE.terms(policy(records), records).sum().backward()
    policy.module.zero_grad()


def captured(policy: rs.Policy, records: rs.Records) -> Captured:
    """The inputs (n, T, i) and output gradients (n, T, o) of every linear layer."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda g: calls.append((args[0].detach(), g)))

    handles = [m.register_forward_hook(hook) for m in policy.module.modules() if isinstance(m, nn.Linear)]
    trained(policy, records)
    for handle in handles:
        handle.remove()
    return calls


def by_pairs(calls: Captured) -> Tensor:
    """(n,) sum_j <G_i, G_j>."""
    total: Tensor | float = 0.0
    for x, g in calls:
        n, t, _ = x.shape
        inputs, outputs = (flat @ flat.T for flat in (x.flatten(0, 1), g[:, -t:].flatten(0, 1)))
        total = total + (inputs * outputs).view(n, t, n * t).sum((1, 2))
    return torch.as_tensor(total)


def by_sketches(calls: Captured, k: int, seed: int) -> Tensor:
    """(n,) the same between sketches of k x k numbers a layer."""
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | float = 0.0
    for x, g in calls:
        small_x, small_g = (part @ torch.randn(part.shape[-1], k, generator=generator) / k**0.5 for part in (x, g))
        sketch = torch.einsum("nto,nti->noi", small_g, small_x).flatten(1)
        total = total + sketch @ sketch.sum(0)
    return torch.as_tensor(total)


def timed(call: Any, *args: Any) -> tuple[float, Any]:
    """CPU seconds, and the result."""
    started = time.process_time()
    result = call(*args)
    return time.process_time() - started, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CACHE)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = load(arguments.model)
    policy = rs.Policy(model.eval(), Completions())
    records = as_records(policy, sample(tokenizer, model, arguments.records, 0))
    trained(policy, records)
    plain = statistics.median(timed(trained, policy, records)[0] for _ in range(3))
    exact = rs.score_records(policy, records, rs.targets.Objective(OBJECTIVE), OBJECTIVE).values
    calls = captured(policy, records)
    held = sum(x.numel() + g.numel() for x, g in calls) * 4 / 2**20
    own = arguments.records * sum(p.numel() for p in model.parameters()) * 4 / 2**30
    print(f"forward + backward {plain:.1f} s; inputs and output gradients of {len(calls)} layers: {held:.0f} MiB")
    print(f"n x P would be {own:.1f} GiB")
    seconds, values = timed(by_pairs, calls)
    print(f"| pairs | {seconds / plain:.2f} x training | rank correlation {spearman(values, exact):.4f} |")
    for k in (4, 8, 16, 32):
        found = [timed(by_sketches, calls, k, seed) for seed in range(arguments.seeds)]
        ranks = ", ".join(f"{spearman(values, exact):.3f}" for _, values in found)
        seconds = statistics.median(s for s, _ in found)
        print(f"| sketches, k = {k} | {seconds / plain:.2f} x training | {ranks} |", flush=True)


if __name__ == "__main__":
    main()
