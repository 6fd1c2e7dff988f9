"""The exceptions that users meet."""

from __future__ import annotations


class RollsightError(ValueError):
    """Something the user can mend. The message is one sentence: what was wrong, the value, what to do."""


class Diverged(RollsightError):
    """Training reached parameters, or scores by them, that are not finite, and cannot go on."""

    @classmethod
    def in_round(cls, round: int) -> Diverged:
        """In the update of this round."""
        return cls(
            f"training diverged: the update of round {round} left parameters that are not finite; lower the learning "
            "rate or clip the gradient."
        )
