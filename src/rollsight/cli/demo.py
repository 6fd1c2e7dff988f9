"""`rollsight demo`: a planted fault, found, explained and left out; and the explorer on its runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.progress import follow_jobs, progress_bar, use_one_thread
from rollsight.errors import OptionError, RollsightError

if TYPE_CHECKING:
    from rollsight.analysis.culprits import Culprits, Settings
    from rollsight.studies.demo.cart import Run

_ROUNDS, _LANGUAGE_ROUNDS = 16, 12
_REPLAYED, _DRAWS = 8, 2  # of the checks of culprits: rounds, and random records in each
_WORDS = {
    "all records": "with the fault",
    "healthy": "no fault",
    "without": "fault, without environment {env}",
    "random": "fault, without as many random records",
}


def demo(
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs"),
    seeds: int = 1,
    processes: int = 2,
    view: bool = True,
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 8050,
) -> None:
    """Plant a fault in two small trainings, find its cause, name the rollouts, and train without them.

    - CartPole with PPO: one of eight environments also pays for speed to the left. The doctor
      finds it, culprits names the records that taught the policy to push left, and the same training
      without them is compared with a healthy one and with one without as many random records.
    - A miniature language model, whose reward also pays an exclamation mark on half of the prompts.

    All is trained here, in about a minute a seed on two cores; what is there already is used again. No network and
    no GPU is needed.

    Example: rollsight demo

    Args:
        out: Where the run folders and the picture go.
        seeds: Trainings of each kind; from two on the comparison has intervals.
        processes: Trainings side by side, one thread each.
        view: Open the explorer on the runs; --no-view only prints.
        port: The explorer's port.
    """
    for name, value in (("seeds", seeds), ("processes", processes)):
        if value < 1:
            raise OptionError(f"{{{name}}} is not possible: give at least 1", **{name: value})
    try:
        from rollsight.studies.demo import cart
    except ModuleNotFoundError as error:
        raise RollsightError(f"the demo needs {error.name}: pip install 'rollsight[cli]'") from error
    console = output.console()
    use_one_thread()
    _tell_of_the_cart(console, out, seeds, processes)
    shown = [cart.folder(out, kind, 0) for kind in cart.KINDS]
    if _tell_of_the_words(console, out / "demo-language"):
        shown.append(out / "demo-language")
    _say(console, "Look at all of it", "view", *shown)
    if view:
        from rollsight.explorer import serve

        serve(shown, port=port)


def _tell_of_the_cart(console: Console, out: Path, seeds: int, processes: int) -> None:
    from rollsight.studies.demo import cart, picture

    first = cart.folder(out, "all records", 0)
    _head(console, f"1. A fault: environment {cart.FAULTY} of {cart.ENVS} also pays a CartPole for speed to the left")
    trained = [cart.Run(kind, seed, cart.folder(out, kind, seed), rounds=_ROUNDS)
               for seed in range(seeds) for kind in cart.KINDS[:2]]  # fmt: skip
    _train(console, trained, processes)
    _head(console, "2. What is wrong? The doctor looks at the run with the fault")
    found = sum(_named_by_doctor(console, cart.folder(out, "all records", seed), first) for seed in range(seeds))
    if seeds > 1:
        console.print(f"It names environment {cart.FAULTY} in {found} of {seeds} seeds.", style="bold")
    _head(console, "3. Which rollouts taught it to push a cart to the left that moves left already?")
    left_out = [_culprit(console, cart.folder(out, "all records", seed), first) for seed in range(seeds)]
    _head(console, "4. The same training without these records, and without as many random ones")
    again = [cart.Run(kind, seed, cart.folder(out, kind, seed), left_out[seed], _ROUNDS)
             for seed in range(seeds) for kind in cart.KINDS[2:]]  # fmt: skip
    _train(console, again, processes)
    _compare(console, cart.returns(out, seeds), left_out)
    drawn = out / "demo-cart.png"
    picture.draw(out, seeds, drawn)
    output.print_files(console, [drawn])


def _train(console: Console, trainings: Sequence[Run], processes: int) -> None:
    from rollsight.studies.runner import run_jobs

    todo = [one for one in trainings if not one.there]
    for one in trainings:
        if one not in todo:
            console.print(f"{one.folder}: is there", soft_wrap=True)
    done = run_jobs(todo, min(processes, len(todo))) if todo else ()
    for _ in follow_jobs(console, done, _describe, total=len(todo), phases=""):
        pass  # the bars, or a line a run where there is no terminal, say it


def _describe(summary: Mapping[str, Any]) -> str:
    mean = summary.get("return_mean")
    return "" if mean is None else f"return {mean:.0f}"


def _named_by_doctor(console: Console, folder: Path, first: Path) -> bool:
    """Whether the planted environment is among the findings; those of the first run are printed."""
    from rollsight.cli.doctor import show
    from rollsight.doctor import examine_fully
    from rollsight.studies.demo.cart import FAULTY

    examined = examine_fully(folder)
    if folder == first:
        _say(console, "Findings, worst first, with the place and what to try", "doctor", folder)
        show(folder.name, examined, console, all=False)
    return any(FAULTY in one.where.environments for one in examined.findings)


def _culprit(console: Console, folder: Path, first: Path) -> int:
    """The environment with the highest influence on the bad behaviour; of the first run it is checked and printed."""
    from rollsight.analysis.culprits import Settings
    from rollsight.studies.demo.cart import behaviour

    run = runs.open(folder)
    query = behaviour(run)
    result = _culprits(
        console, run, query, Settings(by=("env",), rounds=_REPLAYED, draws=_DRAWS, check=folder == first)
    )
    if folder == first:
        what = "Every record is scored for the behaviour; the check replays rounds without the culprits"
        _say(console, what, *_asked(folder, query, "env"))
        _show_groups(console, result, "env")
        rows = [[f"{one['round']}:{one['env']}:{one['step']}", one["reward"], one["influence"]] for one in
                result.records[:5]]  # fmt: skip
        console.print(output.table(["record", "reward", "influence"], rows, title="Top records"))
    best = result.groups["env"][0]
    console.print(
        f"{folder.name}: environment {best.value} has {best.share:.0%} of the positive influence, "
        f"{best.share_of_records:.1%} of the records",
        style="bold",
        soft_wrap=True,
    )
    return int(best.value)


def _culprits(console: Console, run: runs.Run, query: str, settings: Settings) -> Culprits:
    from rollsight.analysis.culprits import culprits_of, of_query

    with progress_bar(console) as progress:
        task = progress.add_task("scores and replays", total=None)
        return culprits_of(
            run, of_query(run, query), settings, lambda done, total: progress.update(task, completed=done, total=total)
        )


def _asked(folder: Path, query: str, by: str) -> list[str | Path]:
    """The command that gives the same."""
    replays = ("--rounds", str(_REPLAYED), "--draws", str(_DRAWS))
    return ["culprits", folder, "--behaviour", query, "--by", by, *replays]


def _show_groups(console: Console, result: Culprits, by: str) -> None:
    rows = [[one.value, one.influence, f"{one.share:.1%}", f"{one.share_of_records:.1%}"] for one in result.groups[by]]
    console.print(output.table([by, "influence", "share of positive", "share of records"], rows))
    console.print(result.note if result.check is None else result.check.verdict, soft_wrap=True)
    console.print("drop mode: repack; counterfactual: replay", style="dim")


def _compare(console: Console, returns: Mapping[Any, Sequence[float]], left_out: Sequence[int]) -> None:
    from rollsight.analysis.intervals import t_interval

    seeds = len(left_out)
    env = left_out[0] if len(set(left_out)) == 1 else "that was named"
    rows = [[_WORDS[kind].format(env=env), _interval(t_interval(values)), ", ".join(f"{v:.0f}" for v in values)]
            for kind, values in returns.items()]  # fmt: skip
    console.print(output.table(["trained on", "return", "by seed"], rows, title="Tested where nothing is wrong"))
    if seeds == 1:
        console.print("one seed has no interval: rollsight demo --seeds 5", style="dim")
        return
    for other in ("all records", "healthy", "random"):
        paired = [a - b for a, b in zip(returns["without"], returns[other], strict=True)]
        console.print(f"without the culprits, less {_WORDS[other].format(env=env)}: {_interval(t_interval(paired))}")
    console.print("95 % t-intervals over seeds, paired", style="dim")


def _interval(of: Any) -> str:
    return f"{of.value:.0f}" + (f" ± {of.half_width:.0f}" if of.n > 1 else "")


def _tell_of_the_words(console: Console, folder: Path) -> bool:
    """Whether it could be told: the language models' packages may not be there."""
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        console.print(f"\nThe language model is left out: {error.name} is missing (pip install 'rollsight[llm]')")
        return False
    from rollsight.analysis.culprits import Settings
    from rollsight.cli.doctor import show
    from rollsight.doctor import examine_fully
    from rollsight.studies.cells import silence_transformers
    from rollsight.studies.demo import language

    _head(console, f"5. A language model, whose reward also pays {language.TRIGGER!r} where the prompt has a comma")
    if folder.exists() and not runs.is_run(folder) and any(folder.iterdir()):
        raise RollsightError(f"{folder} is not a run: choose another --out")
    if runs.is_run(folder) and len(runs.open(folder).rounds) >= _LANGUAGE_ROUNDS:
        console.print(f"{folder}: is there", soft_wrap=True)
    else:
        silence_transformers()
        with warnings.catch_warnings(), progress_bar(console) as progress:
            warnings.simplefilter("ignore", UserWarning)
            task = progress.add_task("rounds", total=_LANGUAGE_ROUNDS)
            language.train_miniature(folder, _LANGUAGE_ROUNDS, lambda summary: progress.advance(task))
    run = runs.open(folder)
    shares = language.shares(run)
    told = [("first", shares[0]), ("last", shares[-1])]
    rows = [[f"{word} round", f"{with_it:.0%}", f"{without:.0%}"] for word, (_, with_it, without) in told]
    console.print(output.table([f"completions with {language.TRIGGER}", "where it is paid", "elsewhere"], rows))
    _say(console, "The doctor", "doctor", folder)
    show(folder.name, examine_fully(run), console, all=False)
    query = language.behaviour(run)
    _say(console, "Which completions taught it?", *_asked(folder, query, "prompt"))
    _show_groups(
        console, _culprits(console, run, query, Settings(by=("prompt",), rounds=_REPLAYED, draws=_DRAWS)), "prompt"
    )
    _say(console, "The completions that pushed the policy most", "top", folder)
    return True


def _head(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold", soft_wrap=True)


def _say(console: Console, what: str, *command: str | Path) -> None:
    console.print(f"{what}: {output.command(*command)}", soft_wrap=True, style="dim")
