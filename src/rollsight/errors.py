"""The one exception that users meet."""


class RollsightError(ValueError):
    """Something the user can mend. The message is one sentence: what was wrong, the value, what to do."""
