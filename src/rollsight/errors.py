"""The exceptions that users meet."""

from __future__ import annotations

from typing import Any


class RollsightError(ValueError):
    """Something the user can fix. The message is one sentence: what was wrong, the value, what to do."""


class OptionError(RollsightError):
    """A setting is wrong, or another one would help: `drop=2.0` in Python, `--drop 2.0` on the command line.

    sentence: with `{drop}` where the setting stands; options: the settings by name, with the value to show.
    """

    def __init__(self, sentence: str, **options: Any) -> None:
        self._sentence, self._options = sentence, options
        super().__init__(self._with({name: f"{name}={value!r}" for name, value in options.items()}))

    def on_command_line(self) -> str:
        """The sentence with the settings as command-line options."""
        return self._with(
            {
                name: f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                for name, value in self._options.items()
            }
        )

    def _with(self, spelt: dict[str, str]) -> str:
        sentence = self._sentence
        for name, text in spelt.items():  # not str.format: a path in the sentence may hold braces
            sentence = sentence.replace(f"{{{name}}}", text)
        return sentence


class MissingExtra(RollsightError, ImportError):
    """A package is not installed that comes with one of rollsight's extras.

    what: what needs it, as the beginning of a sentence; package: its name; extra: what to install.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        message = f"{what} needs the package {package}: pip install 'rollsight[{extra}]'"
        ImportError.__init__(self, message, name=package)


class Diverged(RollsightError):
    """Training reached parameters, or scores by them, that are not finite, and cannot go on."""

    @classmethod
    def in_round(cls, round: int) -> Diverged:
        """In the update of this round."""
        return cls(
            f"training diverged: the update of round {round} left parameters that are not finite; lower the learning "
            "rate or clip the gradient."
        )
