"""The `rollsight` command line: one file per command, imported only when it is asked for."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from rollsight.cli.warning_lines import warnings_as_lines
from rollsight.errors import OptionError, RollsightError

# Name and summary of each command. The command `x y` is the function `x_y` in `rollsight.cli.x_y`; its typed arguments
# and docstring are its options and help.
COMMANDS = {
    "train": "Train an agent with PPO or A2C and score, filter and record its rollouts.",
    "rlhf": "Train a language model with PPO and score, filter and record its completions.",
    "study": "Train several ways with the same seeds and compare: plain, filtered, random drop.",
    "study paper": "Run the paper's experiments and their controls: curves, tables, figures.",
    "study directions": "Hold the arms' updates against fresh records: which way they go, how far, what they gain.",
    "study rlhf": "Run the language-model experiments and their controls: tables, figures, examples.",
    "study grpo": "Run a verifiable-reward task with GRPO, filtered and not: tables, figures, examples.",
    "top": "Show the records of a round that helped a target most, or hurt it most.",
    "intervene": "Replay rounds without some of their records and compare the policies they end in.",
    "fidelity": "Check the scores of a round against real retraining, beside a ceiling and a null band.",
    "diagnose": "Find out why the bottom records of a round hurt: their advantages against Monte-Carlo ones.",
    "phases": "Follow how one behaviour formed, round by round.",
    "compare": "Compare runs: final return and area under the learning curve, with intervals.",
    "sql": "Query a run's records, rounds and evaluations with SQL.",
    "check": "Verify the files of runs: what is damaged, missing or foreign.",
    "export": "Write a run's records, rounds or evaluations to a CSV, Parquet or JSON file.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 for an error the user can mend, 130 when interrupted.

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
    import tyro

    for words in (2, 1):
        if (name := " ".join(arguments[:words])) in COMMANDS:
            module = name.replace(" ", "_")
            command = getattr(importlib.import_module(f"rollsight.cli.{module}"), module)
            tyro.cli(
                command,
                prog=f"rollsight {name}",
                args=arguments[words:],
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
            return
    # Help and usage errors need the summaries only, not the commands and what they import.
    tyro.extras.subcommand_cli_from_dict(
        {name: _summary_only(summary) for name, summary in COMMANDS.items()},
        prog="rollsight",
        description="See which rollouts shaped your policy, and train on the ones that help.",
        args=arguments or ["--help"],
    )


def _summary_only(summary: str) -> Callable[[], None]:
    def command() -> None: ...

    command.__doc__ = summary
    return command


def _fail(sentence: str) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 1
