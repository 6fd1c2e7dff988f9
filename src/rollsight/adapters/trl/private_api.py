"""The parts of TRL that the adapter stands on, private ones among them, pinned by their source."""

from __future__ import annotations

import hashlib
import inspect

import trl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from rollsight.errors import RollsightError

VERSION = "1.16.0"  # what the adapter was written against and is tested with

HOSTS: dict[str, type] = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}

# What is relied on -> the first digits of its source's SHA-256. Generation is wrapped (it runs once per generation
# batch, before the batch is shuffled and split), so are the rewards (what is logged of them is by name, and names may
# repeat) and the loss (the rest of the reductions' arithmetic is there); the other methods decide when they run and
# what becomes of metrics and columns.
PINNED = {
    "grpo": {
        "_prepare_inputs": "f824e7fb0714",
        "_generate_and_score_completions": "1fa48922792d",
        "_calculate_rewards": "736ae29b0838",
        "_get_per_token_logps_and_entropies": "ea73c3909275",
        "_compute_loss": "80295546bbdb",
        "log": "1e7772819cc8",
    },
    "rloo": {
        "_prepare_inputs": "f824e7fb0714",
        "_generate_and_score_completions": "93ebbf5e70d3",
        "_calculate_rewards": "81ef76d93756",
        "_get_per_token_logps_and_entropies": "ea73c3909275",
        "_compute_loss": "c1f9fa0cd5a6",
        "log": "98f8965a57ed",
    },
}


def fingerprint(algorithm: str, method: str) -> str:
    """The first digits of the SHA-256 of the method's source in the installed TRL."""
    source = inspect.getsource(getattr(HOSTS[algorithm], method))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def algorithm_of(trainer: object) -> str:
    """ "grpo" or "rloo". Raises `RollsightError` for other trainers, and for a TRL whose private methods are not those
    that are pinned."""
    algorithm = next((name for name, host in HOSTS.items() if isinstance(trainer, host)), None)
    if algorithm is None:
        raise RollsightError(
            f"attach: the trainer is a {type(trainer).__name__}; give a trl.GRPOTrainer or trl.RLOOTrainer."
        )
    host = HOSTS[algorithm]
    for method, pinned in PINNED[algorithm].items():
        if not hasattr(host, method) or fingerprint(algorithm, method) != pinned:
            raise RollsightError(
                f"TRL {trl.__version__} has another {host.__name__}.{method} than TRL {VERSION}, which this adapter "
                f"was written for: pip install trl=={VERSION}."
            )
    if getattr(type(trainer), "_compute_loss") is not getattr(host, "_compute_loss"):  # noqa: B009
        raise RollsightError(
            f"{type(trainer).__name__} has a loss of its own, for which leaving completions out is not the same as "
            f"training without them; use {host.__name__}."
        )
    return algorithm
