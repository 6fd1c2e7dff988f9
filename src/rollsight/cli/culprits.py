"""`rollsight culprits`: which rollouts taught this behaviour?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.progress import progress_bar, use_one_thread
from rollsight.cli.record_lists import parse_record_name, read_record_list
from rollsight.cli.trust import trust_run
from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.analysis.culprits import Culprits


def culprits(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    behaviour: Annotated[str | None, tyro.conf.arg(metavar="SQL", help_behavior_hint="")] = None,
    record: Annotated[str | None, tyro.conf.arg(metavar="ROUND:ENV:STEP", help_behavior_hint="")] = None,
    records: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    by: tuple[str, ...] = ("env", "episode"),
    top: int = 10,
    check: bool = True,
    without: str = "record",
    share: float = 0.1,
    rounds: int = 10,
    draws: int = 3,
    seed: int = 0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None,
    overwrite: bool = False,
    json: bool = False,
    trust: bool = False,
) -> None:
    """Find the rollouts that taught a behaviour: actions in states, as records of the run show them.

    - Every record of every round with a snapshot is scored for the behaviour's mean
      log-probability, and the influences are gathered by environment, episode, or
      any column of the records. Dropped records taught nothing.
    - The check replays rounds without the culprits and without as many random
      records (drop mode: repack; counterfactual: replay), and says whether the
      behaviour is less probable.

    The run should be trained with --snapshots all. Finished rounds are kept, next to
    the run: an interrupted call goes on, and rollsight view shows the result.

    Example: rollsight culprits runs/lander --behaviour "select round, env, step from records where action = 2"

    Args:
        run: The run folder.
        behaviour: A query that selects the records that show the behaviour.
        record: Instead, the state and action of this record.
        records: Instead, those of the records in this list (.csv, .parquet, .json, or lines ROUND:ENV:STEP).
        by: Gather by these: columns of the records, such as env, episode, group, round, action.
        top: How many groups and records to show.
        check: Replay rounds without the culprits; --no-check scores only.
        without: What the check leaves out: record (the top share of each round), or a column (its top group).
        share: Of each round's records that the check leaves out as culprits.
        rounds: How many rounds the check replays, those with the most positive influence.
        draws: Of as many random records, a replay each.
        seed: Of the draws.
        out: Folder for result.json.
        overwrite: Replace a file that is there.
        json: Print JSON instead of tables.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
    """
    trust_run(run, trust)
    if sum(one is not None for one in (behaviour, record, records)) != 1:
        raise RollsightError("name one behaviour: --behaviour SQL, --record ROUND:ENV:STEP or --records FILE")
    if out is not None:
        output.check_free([out / "result.json"], overwrite=overwrite)
    opened = runs.open(run)

    from rollsight.analysis.culprits import Settings, culprits_of, of_query, of_records
    from rollsight.analysis.culprits.behaviour import check_has_snapshots
    from rollsight.analysis.culprits.groups import check_columns

    check_has_snapshots(opened)
    settings = Settings(by, top, check, without, share, rounds, draws, seed).checked()
    check_columns(opened, [*by, without])
    use_one_thread()
    if behaviour is not None:
        explained = of_query(opened, behaviour)
    elif record is not None:
        number, *place = parse_record_name(record)
        explained = of_records(opened, {number: [(place[0], place[1])]})
    else:
        assert records is not None
        explained = of_records(opened, read_record_list(records), name=f"the records in {records}")
    console = output.console(stderr=json)
    with progress_bar(console) as progress:
        task = progress.add_task("rounds and replays", total=None)
        result = culprits_of(
            opened, explained, settings, lambda done, total: progress.update(task, completed=done, total=total)
        )
    printed = result.as_json() | {"run": str(run)}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        output.write_json(out / "result.json", printed)
    if json:
        output.print_json(printed)
        return
    show(result, console)


def show(result: Culprits, console: Console) -> None:
    """Print when the behaviour was learnt, the culprits, and the verdict."""
    drawn = f", {result.pairs} of them drawn" if result.pairs < result.found else ""
    console.print(
        f"behaviour: {result.behaviour} ({result.found} record{'s' * (result.found > 1)}{drawn})",
        style="bold",
        soft_wrap=True,
    )
    heading = ["round", "pi(a|s)", "change of log pi", "influence", "positive", "negative", "records"]
    rows: list[list[Any]] = [
        [
            one.round,
            math.exp(min(one.before, 700.0)),
            None if one.after is None else one.after - one.before,
            one.predicted,
            one.positive,
            one.negative,
            one.records,
        ]
        for one in result.rounds
    ]
    console.print(output.table(heading, rows, title="When it was learnt"))
    for name, groups in result.groups.items():
        heading = [name, "influence", "positive", "negative", "share of positive", "share of records"]
        rows = [
            [one.value, one.influence, one.positive, one.negative, f"{one.share:.1%}", f"{one.share_of_records:.1%}"]
            for one in groups
        ]
        console.print(output.table(heading, rows, title=f"By {name}"))
    names = [name for name in ("action", "reward", "advantage") if result.records and name in result.records[0]]
    rows = [
        [
            f"{one['round']}:{one.get('env', '-')}:{one.get('step', '-')}",
            *(one[name] for name in names),
            one["influence"],
            f"{one['share']:.2%}",
        ]
        for one in result.records
    ]
    console.print(output.table(["record", *names, "influence", "share of positive"], rows, title="Top records"))
    if result.check is not None:
        console.print(result.check.verdict, style="bold", soft_wrap=True)
        console.print("drop mode: repack; counterfactual: replay", style="dim")
    elif result.note:
        console.print(f"not checked: {result.note}", soft_wrap=True)
    console.print(
        "pi(a|s): before the update, the geometric mean over the behaviour's records; influence: sums of scores of the "
        "records that were trained on, in nats per unit of a record's weight",
        soft_wrap=True,
        style="dim",
    )
