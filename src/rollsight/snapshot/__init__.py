"""The frozen round: taken, kept in a file that is data, replayed and traced anywhere.

A file holds tensors (safetensors) and JSON. A policy of Stable-Baselines3, sb3-contrib or Rollsight is rebuilt from its
class and arguments. Only where that cannot be done (a class of the user's own, say) is there a pickle among the
tensors, which is loaded if this user's key signed it when it was written, or if the caller says that it is trusted.
"""

from rollsight.snapshot.language import LanguageRound
from rollsight.snapshot.signing import trust_folder
from rollsight.snapshot.snapshot import Replay, Snapshot

__all__ = ["LanguageRound", "Replay", "Snapshot", "trust_folder"]
