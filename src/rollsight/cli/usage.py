"""Help on all commands, and what was meant where a command or an option is misspelt."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

_LEFT = 20  # columns of a command's name in the help


def overview(commands: Mapping[str, str]) -> str:
    """The help of `rollsight` itself, as wide as the terminal. commands: summaries by name."""
    width = max(shutil.get_terminal_size((80, 24)).columns - 1, 40)
    lines = ["usage: rollsight COMMAND [OPTIONS]", ""]
    lines += textwrap.wrap("See which rollouts shaped your policy, and train on the ones that help.", width)
    lines += ["", "commands:"]
    for name, summary in commands.items():
        first, rest = f"  {name:<{_LEFT - 3}} ", " " * _LEFT
        lines += textwrap.wrap(summary, width, initial_indent=first, subsequent_indent=rest)
    lines += ["", "rollsight COMMAND --help shows a command's options, rollsight --version the version."]
    return "\n".join(lines)


def unknown_command(arguments: Sequence[str], commands: Iterable[str]) -> str | None:
    """What is wrong with the words before the options where they name no command; None where they do.

    `study ENV` and `study paper` are commands: a word after `study` that is nearly one of the latter is one misspelt,
    unless it is written as environments are, with a version, a module or a name space.
    """
    names = list(commands)
    words = list(arguments[:2])
    both = " ".join(words)
    if both in names:
        return None
    if words[0] in names:
        seconds = {name.split()[1]: name for name in names if name.startswith(f"{words[0]} ")}
        second = "" if len(words) < 2 or words[1].startswith("-") else words[1]
        if any(mark in second for mark in (":", "/", "-v")) or not (near := _near(second, seconds)):
            return None
        return f"{words[0]!r} has no {second!r}: did you mean {_listed(seconds[one] for one in near)}?"
    near = list(dict.fromkeys([*_near(both, names), *_near(words[0], names)]))[:3]
    if near:
        return f"there is no command {words[0]!r}: did you mean {_listed(near)}?"
    return f"there is no command {words[0]!r}: rollsight --help lists them"


def unknown_option(arguments: Sequence[str], known: Iterable[str], command: str) -> str | None:
    """What is wrong with the first option that a command does not have; None where it has all."""
    known = [name for name in known if name.startswith("--")]
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"]
    for option in given:
        spelt = option.replace("_", "-")
        if spelt not in known:
            near = _near(spelt, known)
            advice = f"did you mean {_listed(near)}?" if near else f"rollsight {command} --help lists its options"
            return f"{command} has no option {option}: {advice}"
    return None


def _near(word: str, names: Iterable[str]) -> list[str]:
    """Up to three names that begin with the word, or look like it; dashes in front make nothing alike."""
    bare = {name.lstrip("-"): name for name in names}
    word = word.lstrip("-").lower()
    began = [name for name in bare if len(word) > 1 and name.startswith(word)]
    alike = difflib.get_close_matches(word, bare, n=3, cutoff=0.6)
    return [bare[name] for name in dict.fromkeys([*began, *alike])][:3]


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
