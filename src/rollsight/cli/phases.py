"""`rollsight phases`: how did this behaviour form over the rounds?"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.analysis.drawing import check_figure
from rollsight.cli import output
from rollsight.cli.progress import progress_bar, use_one_thread
from rollsight.cli.record_lists import parse_record_name
from rollsight.cli.replayable import check_snapshots
from rollsight.cli.top import find_record
from rollsight.cli.trust import trust_run
from rollsight.errors import RollsightError
from rollsight.runs import Run

if TYPE_CHECKING:
    from rollsight.analysis.phases.formation import Development
    from rollsight.records import Records, Rows


def phases(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    obs: Annotated[str | None, tyro.conf.arg(metavar="[X,X,...]", help_behavior_hint="")] = None,
    action: Annotated[str | None, tyro.conf.arg(metavar="A", help_behavior_hint="")] = None,
    record: Annotated[str | None, tyro.conf.arg(metavar="ROUND:ENV:STEP", help_behavior_hint="")] = None,
    top: int = 10,
    neighbours: int = 20,
    permutations: int = 200,
    seed: int = 0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None,
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    overwrite: bool = False,
    json: bool = False,
    trust: bool = False,
) -> None:
    """Follow one behaviour, an action in a state, through every round that has a snapshot.

    - pi(a given s), and the records that made it likelier, round by round.
    - Roughness: how unevenly influence lies over similar records (0: smooth), and
      the band it has when influences are dealt out at random.
    - The paper's three phases (action-advantage association, clustering of similar
      states, saturation), where a change-point test supports them.

    The run should be trained with --snapshots all.

    Example: rollsight phases runs/acrobot --record 40:0:12 --figure phases.html

    Args:
        run: The run folder.
        obs: The state, as JSON: a list of numbers, or one number.
        action: The action, as JSON.
        record: Instead, the state and action of this record.
        top: How many top records to show per round.
        neighbours: Nearest neighbours in the similarity graph.
        permutations: Of the influences, for the band.
        seed: Of the permutations.
        out: Folder for result.json, phases.png and phases.html.
        figure: Draw the development (.png, .pdf, .svg; interactive: .html).
        overwrite: Replace files that are there.
        json: Print JSON instead of a table.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
    """
    trust_run(run, trust)
    for name, value, least in (
        ("top", top, 1),
        ("neighbours", neighbours, 1),
        ("permutations", permutations, 40),
        ("seed", seed, 0),
    ):
        if value < least:
            raise RollsightError(f"--{name} is {value}: give at least {least}")
    if figure is not None:
        check_figure(figure)
    files = output.figure_files(figure, out, "phases")
    output.check_free([*files, *([] if out is None else [out / "result.json"])], overwrite=overwrite)
    if (record is None) == (obs is None or action is None) or (record is not None and (obs or action)):
        raise RollsightError("name one behaviour: either --obs and --action, or --record ROUND:ENV:STEP")
    opened = runs.open(run)
    check_snapshots(opened, "the scores need")

    from rollsight.analysis.phases.draw import draw
    from rollsight.analysis.phases.of_run import as_json, behaviour_of, development_of
    from rollsight.snapshot import Snapshot

    use_one_thread()
    console = output.console(stderr=json)
    if record is not None:
        behaviour = behaviour_of(opened, *_existing(opened, record))
    else:
        assert obs is not None
        assert action is not None
        records = Snapshot.load(opened.snapshot_path(opened.snapshot_rounds[-1])).records
        behaviour = _entry(records, "obs", obs), _entry(records, "actions", action)
    with progress_bar(console) as progress:
        task = progress.add_task("rounds", total=None)
        result = development_of(
            opened,
            *behaviour,
            lambda done, total: progress.update(task, completed=done, total=total),
            top=top,
            neighbours=neighbours,
            permutations=permutations,
            seed=seed,
        )
    printed = as_json(opened, result, record, *behaviour) | {"run": str(run)}
    explained, last = printed["explained"], printed["embedded_by_policy_after"]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        output.write_json(out / "result.json", printed)
    title = f"{opened.name}: action {output.cell(explained['action'])} in {record or output.cell(explained['obs'])}"
    for path in files:
        draw(result, title, path)
    if json:
        output.print_json(printed)
        return
    show(result, title, last, console)
    output.print_files(console, files)


def show(result: Development, title: str, last: int, console: Console) -> None:
    """Print a row per round, then what the phases are."""
    import math

    names = {number: one.name for one in result.phases for number in range(one.first, one.last + 1)}
    rows = []
    for one in result.rounds:
        best = ", ".join(f"{row.get('env', '-')}:{row.get('step', '-')}" for row in one.top[:3])
        band = "-" if one.null is None else f"{one.null[0]:.3f} to {one.null[1]:.3f}"
        consistency = None if one.consistency is None else f"{one.consistency:.0%} ({one.consistency_all:.0%})"
        likely = math.exp(one.log_prob)
        rows.append([one.round, likely, one.roughness, band, one.influence, consistency, best, names.get(one.round)])
    heading = ["round", "pi(a|s)", "roughness", "at random", "influence", "consistent (all)", "top records", "phase"]
    console.print(output.table(heading, rows, title=title))
    console.print(f"after round {last}: pi(a|s) = {math.exp(result.final_log_prob):.4g}")
    console.print(result.verdict, style="bold", soft_wrap=True)
    for change in result.changes:
        console.print(
            f"change at round {change.round}: p = {change.p:.3f} (roughness alone {change.p_roughness:.3f}, log pi "
            f"alone {change.p_log_prob:.3f}; the test takes rounds as exchangeable, so a drift counts as a change)",
            soft_wrap=True,
        )
    console.print(
        f"influence: mean magnitude of the scores for {result.target}, normalisation: {result.normalisation}; "
        f"consistent: top records with the action and a positive advantage, or another action and a negative one; "
        f"roughness over {result.neighbours} nearest neighbours among records of positive influence; embedding: input "
        f"of {result.embedding} after round {last}",
        soft_wrap=True,
    )


def _existing(run: Run, text: str) -> tuple[int, int, int]:
    """Round, environment and step of a record that the run has."""
    number, env, step = parse_record_name(text)
    if number not in run.rounds:
        raise RollsightError(
            f"--record {text}: {run.path} has no round {number}, its rounds are {runs.spell(run.rounds)}"
        )
    run.snapshot_path(number)  # complains where there is none
    find_record(run.records(number), number, env, step)  # likewise
    return number, env, step


def _entry(records: Records, name: str, text: str) -> Rows:
    """An observation or action as the records have it, with leading 1, from its JSON; a flat list is shaped."""
    import torch
    from torch import Tensor

    option = "--obs" if name == "obs" else "--action"
    column = getattr(records, name)
    if not isinstance(column, Tensor):
        raise RollsightError(f"{option} cannot be given here, where it has the parts {', '.join(column)}: use --record")
    shape = tuple(column.shape[1:])
    try:
        value = torch.tensor(
            json_module.loads(text if text.lstrip().startswith("[") or "," not in text else f"[{text}]")
        )
        number = value.to(torch.float64)
    except (ValueError, TypeError, RuntimeError) as error:
        raise RollsightError(f"{option} {text} is not a list of numbers: write JSON such as [0.1, -0.2]") from error
    if number.numel() != column[0].numel() or (number.dim() > 1 and tuple(number.shape) != shape):
        raise RollsightError(
            f"{option} has shape {tuple(number.shape)} and the run's have {shape}: give numbers in that shape"
        )
    if not column.is_floating_point() and bool((number != number.round()).any()):
        raise RollsightError(f"{option} {text} must be whole numbers here")
    return number.reshape(1, *shape).to(column.dtype)
