"""How far from exact is leaving completions out of TRL's loss? The table of docs/trl.md.

    python benchmarks/trl_parity.py [--seeds 3]

Relative difference between the gradient without 3 of 8 rows, left out by `attach`, and the gradient of a batch that
never had them; the largest over seeds. Trainers and measure are those of tests/test_trl.py.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from trl_zoo import LOSSES, lora, parity, trainer

ONE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
COLUMNS: dict[str, Any] = {
    "beta = 0": dict,
    "beta = 0.1, LoRA": lambda: {"beta": 0.1, "lora": lora()},
    "the same, sequence-level ratios": lambda: {
        "beta": 0.1,
        "lora": lora(),
        "importance_sampling_level": "sequence",
    },
}
ROWS: dict[str, dict[str, Any]] = {
    **{loss: {"loss_type": loss} for loss in LOSSES},
    "RLOO": {"algorithm": "rloo"},
    "bnpo, one micro-batch": {"loss_type": "bnpo", **ONE},
    "bnpo, two of unequal length": {"loss_type": "bnpo"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    warnings.filterwarnings("ignore")
    print(f"| loss | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}", flush=True)
    for name, row in ROWS.items():
        cells = [measured(row, changes(), seeds) for changes in COLUMNS.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measured(row: dict[str, Any], changes: dict[str, Any], seeds: range) -> str:
    """Empty where TRL has no such combination."""
    sequences = "importance_sampling_level" in changes
    if sequences and (row.get("algorithm") == "rloo" or row.get("loss_type") == "vespo"):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        found = [parity(trainer(folder, num_iterations=2, seed=seed, **row, **changes), (0, 3, 6)) for seed in seeds]
    return f"{max(found):.1e}"


if __name__ == "__main__":
    main()
