"""`rollsight culprits`: which rollouts taught this behaviour?"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.progress import progress_bar, use_one_thread
from rollsight.cli.record_lists import parse_record_name, read_record_list
from rollsight.cli.trust import trust_run
from rollsight.errors import OptionError, RollsightError

if TYPE_CHECKING:
    from rollsight.analysis.culprits import Culprits
    from rollsight.analysis.culprits.scores import AnyBehaviour


def culprits(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    behaviour: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SQL", help_behavior_hint="")
    ] = (),
    record: Annotated[str | None, tyro.conf.arg(metavar="ROUND:ENV:STEP", help_behavior_hint="")] = None,
    records: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    pairs: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None,
    by: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(help_behavior_hint="(default: env episode, of completions prompt round)")
    ] = None,
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
    """Find the rollouts that taught a behaviour: actions in states, or completions of prompts.

    - Every record of every frozen round is scored for the behaviour's mean
      log-probability, and the influences are gathered by environment, episode,
      prompt, or any column of the records. Dropped records taught nothing.
    - The check replays rounds without the culprits and without as many random
      records (drop mode: repack; counterfactual: replay), and says whether the
      behaviour is less probable.

    The run should be trained with --snapshots all. Finished rounds are kept, next to
    the run: an interrupted call goes on, and rollsight view shows the result.

    Examples: rollsight culprits runs/lander --behaviour "select round, env, step from records where action = 2";
    rollsight culprits runs/detox --behaviour "select round, episode from records where contains(completion, '!')"

    Args:
        run: The run folder.
        behaviour: A query that selects the records that show the behaviour; give several for several behaviours.
        record: Instead, the state and action of this record, or the completion ROUND:EPISODE.
        records: Instead, those of the records in this list (.csv, .parquet, .json, or lines ROUND:ENV:STEP).
        pairs: Instead, the prompts and completions in this file (JSON or JSON Lines with prompt and completion).
        model: The base model of a language model's run, where it is not where the run says.
        by: Gather by these: columns of the records, such as env, episode, prompt, group, round, action.
        top: How many groups and records to show.
        check: Replay rounds without the culprits; --no-check scores only.
        without: What the check leaves out: record (the top share of each round), or a column (its top group).
        share: Of each round's records that the check leaves out as culprits.
        rounds: How many rounds the check replays, those with the most positive influence.
        draws: Of as many random records, a replay each.
        seed: Of the draws.
        out: Folder for result.json, a list where there are several behaviours.
        overwrite: Replace a file that is there.
        json: Print JSON instead of tables.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
    """
    trust_run(run, trust)
    if sum(bool(one) for one in (behaviour, record, records, pairs)) != 1:
        raise RollsightError(
            "name one behaviour: --behaviour SQL, --record ROUND:ENV:STEP, --records FILE or --pairs FILE"
        )
    if out is not None:
        output.check_free([out / "result.json"], overwrite=overwrite)
    opened = runs.open(run)

    from rollsight.analysis.culprits import Settings, culprits_of, score_rounds
    from rollsight.analysis.culprits.frozen import check_has_rounds
    from rollsight.analysis.culprits.groups import check_columns

    check_has_rounds(opened)
    settings = Settings(by, top, check, without, share, rounds, draws, seed).checked()
    check_columns(opened, [*(by or ()), without])
    use_one_thread()
    explained = _explained(opened, behaviour, record, records, pairs, model)
    console = output.console(stderr=json)
    with progress_bar(console) as progress:
        task = progress.add_task("rounds", total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if len(explained) > 1:
            score_rounds(opened, explained, report)  # each round is loaded once, and kept for the calls below
        results = [culprits_of(opened, one, settings, report) for one in explained]
    printed: Any = [result.as_json() | {"run": str(run)} for result in results]
    printed = printed if len(printed) > 1 else printed[0]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        output.write_json(out / "result.json", printed)
    if json:
        output.print_json(printed)
        return
    for result in results:
        show(result, console)


def _explained(
    run: runs.Run,
    behaviour: tuple[str, ...],
    record: str | None,
    records: Path | None,
    pairs: Path | None,
    model: str | None,
) -> Sequence[AnyBehaviour]:
    """The behaviours that were asked for."""
    from rollsight.analysis.culprits import of_completions, of_pairs, of_query, of_records, read_pairs

    language = runs.is_language(run.metadata)
    if model is not None and not language:
        raise OptionError("{model} is for runs of language models: leave it out", model=model)
    if behaviour:
        return [of_query(run, query, model=model) for query in behaviour]
    if pairs is not None:
        if not language:
            raise RollsightError("--pairs are for runs of language models: name records with --behaviour or --records")
        return [of_pairs(run, read_pairs(pairs), name=f"the pairs in {pairs}", model=model)]
    if language:
        place = re.fullmatch(r"(\d+):(\d+)", record or "")
        if place is None:
            raise RollsightError(
                f"{records or record} names no completion: give --record ROUND:EPISODE, --behaviour SQL or --pairs FILE"
            )
        return [of_completions(run, [(int(place[1]), int(place[2]))], model=model)]
    if record is not None:
        number, *where = parse_record_name(record)
        return [of_records(run, {number: [(where[0], where[1])]})]
    assert records is not None
    return [of_records(run, read_record_list(records), name=f"the records in {records}")]


def show(result: Culprits, console: Console) -> None:
    """Print when the behaviour was learnt, the culprits, and the verdict."""
    texts = any("completion" in one for one in result.records)
    drawn = f", {result.pairs} of them drawn" if result.pairs < result.found else ""
    what = "completion" if texts else "record"
    console.print(
        f"behaviour: {result.behaviour} ({result.found} {what}{'s' * (result.found > 1)}{drawn})",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    probability = "log p(y|x)" if texts else "pi(a|s)"
    heading = ["round", probability, "change of log p" if texts else "change of log pi"]
    heading += ["influence", "positive", "negative", "records"]
    rows: list[list[Any]] = [
        [
            one.round,
            one.before if texts else math.exp(min(one.before, 700.0)),
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
    console.print(_top_texts(result) if texts else _top_records(result))
    if result.check is not None:
        console.print(result.check.verdict, style="bold", soft_wrap=True)
        console.print("drop mode: repack; counterfactual: replay", style="dim")
    elif result.note:
        console.print(f"not checked: {result.note}", soft_wrap=True)
    mean = (
        "log p(y|x): before the update, the mean over the behaviour's completions, in nats"
        if texts
        else "pi(a|s): before the update, the geometric mean over the behaviour's records"
    )
    console.print(
        f"{mean}; influence: sums of scores of the records that were trained on, in nats per unit of a record's weight",
        soft_wrap=True,
        style="dim",
    )


def _top_records(result: Culprits) -> Any:
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
    return output.table(["record", *names, "influence", "share of positive"], rows, title="Top records")


def _top_texts(result: Culprits) -> Any:
    rows = [
        [
            f"{one['round']}:{one['episode']}",
            one["influence"],
            f"{one['share']:.2%}",
            one.get("reward"),
            one["prompt"],
            one["completion"],
        ]
        for one in result.records
    ]
    heading = ["record", "influence", "share", "reward", "prompt", "completion"]
    return output.text_table(heading, rows, title="Top records")
