"""The `rollsight` command line: one file per command, imported only when it is asked for."""

import contextlib
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rollsight import __version__
from rollsight.cli import usage
from rollsight.cli.warning_lines import warnings_as_lines
from rollsight.errors import OptionError, RollsightError
from rollsight.escaping import visible

# Name and summary of each command. The command `x y` is the function `x_y` in `rollsight.cli.x_y`; its typed arguments
# and docstring are its options and help.
COMMANDS = {
    "train": "Train an agent with PPO or A2C and score, filter and record its rollouts.",
    "rlhf": "Train a language model with PPO and score, filter and record its completions.",
    "study": "Train several ways with the same seeds and compare: plain, filtered, random drop.",
    "study paper": "Run the paper's experiments and their controls: curves, tables, figures.",
    "study directions": "Measure the arms' updates on fresh records: which way they go, how far, what they gain.",
    "study rlhf": "Run the language-model experiments and their controls: tables, figures, examples.",
    "study grpo": "Run a verifiable-reward task with GRPO, filtered and not: tables, figures, examples.",
    "study doctor": "Plant faults in training runs and measure how often the doctor finds them.",
    "study replay": "Draw replayed transitions by influence, TD error or at random; plant corrupt ones and find them.",
    "study culprits": "Plant causes of a behaviour and measure how well influence finds their records.",
    "doctor": "Say what is wrong with a run: the cause, the place, and what to try.",
    "view": "Look at runs in a browser: curves, rounds, records, trust.",
    "demo": "Plant a fault in two small trainings, find its cause, and train without it.",
    "report": "Write what there is to see of a run into one HTML file.",
    "top": "Show the records of a round that helped a target most, or hurt it most.",
    "intervene": "Replay rounds without some of their records and compare the policies they end in.",
    "fidelity": "Check the scores of a round against real retraining, with a ceiling and a null band.",
    "diagnose": "Find out why the bottom records of a round hurt: their advantages against Monte-Carlo ones.",
    "phases": "Follow how one behaviour formed, round by round.",
    "culprits": "Find the rollouts that taught a behaviour, and check them by replays without them.",
    "compare": "Compare runs: final return and area under the learning curve, with intervals.",
    "sql": "Query a run's records, rounds and evaluations with SQL.",
    "check": "Verify the files of runs: what is damaged, missing or foreign.",
    "export": "Write a run's records, rounds or evaluations to a CSV, Parquet or JSON file.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 for an error the user can fix, 130 when interrupted.

    Mistakes in the usage itself (an unknown option) leave through `SystemExit(2)`, as argument parsers do.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with warnings_as_lines():
            _dispatch(list(arguments))
        sys.stdout.flush()  # here, where a reader that went away can still be handled
    except BrokenPipeError:
        # `rollsight sql ... | head`: the reader has what it wanted. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OptionError as error:
        return _fail(error.on_command_line())
    except RollsightError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "rollsight":
            raise  # not a missing package, but a mistake of ours
        return _fail(f"this needs the package {error.name}, which is not installed: pip install 'rollsight[cli]'")
    except OSError as error:
        return _fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage.overview(COMMANDS))
        raise SystemExit(0)
    if arguments[0] == "--version":
        print(f"rollsight {__version__}")
        raise SystemExit(0)
    if (mistake := usage.unknown_command(arguments, COMMANDS)) is not None:
        raise SystemExit(_fail(mistake, code=2))
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name = " ".join(arguments[:words])
    module = name.replace(" ", "_")
    command = getattr(importlib.import_module(f"rollsight.cli.{module}"), module)
    _parsed(command, name, arguments[words:])()


def _parsed(command: Callable[..., None], name: str, arguments: list[str]) -> Callable[[], None]:
    """The command with its options, still to be called. What the parser complains of is escaped: it repeats what it was
    given, which may be the names of files."""
    import tyro

    from rollsight.cli.options import REGISTRY

    @functools.wraps(command)
    def bind(*values: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *values, **options)

    how: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff,), "registry": REGISTRY}
    complaint = ""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            bound: Callable[[], None] = tyro.cli(bind, prog=f"rollsight {name}", args=arguments, **how)
        except SystemExit as leaving:
            if leaving.code != 2:
                raise
            bound = functools.partial(sys.exit, 2)
            parser: Any = tyro.extras.get_parser(command, **how)
            mistake = usage.unknown_option(arguments, parser._option_string_actions, name)
            complaint = said.getvalue() if mistake is None else f"error: {mistake}\n"
    if complaint:
        print(visible(complaint, lines=True), end="", file=sys.stderr)
    return bound


def _fail(sentence: str, code: int = 1) -> int:
    print(f"error: {visible(' '.join(sentence.split()))}", file=sys.stderr)
    return code
