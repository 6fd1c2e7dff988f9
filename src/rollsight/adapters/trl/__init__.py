"""TRL: `attach(trainer, drop=0.5)` before `trainer.train()`, for `GRPOTrainer` and `RLOOTrainer`."""

try:
    import trl  # noqa: F401
except ImportError as error:
    raise ImportError("rollsight.adapters.trl needs TRL: pip install 'rollsight[llm]'") from error

from rollsight.adapters.trl.attachment import Attachment, attach

__all__ = ["Attachment", "attach"]
