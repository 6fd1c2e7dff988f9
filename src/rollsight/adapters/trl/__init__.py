"""TRL: `attach(trainer, drop=0.5)` before `trainer.train()`, for `GRPOTrainer` and `RLOOTrainer`."""

from rollsight.errors import MissingExtra

try:
    import trl  # noqa: F401
except ImportError as error:
    raise MissingExtra("rollsight.adapters.trl", "trl", "llm") from error

from rollsight.adapters.trl.attachment import Attachment, attach

__all__ = ["Attachment", "attach"]
