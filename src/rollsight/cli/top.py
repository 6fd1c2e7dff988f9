"""`rollsight top`: the records that a behaviour owes most to."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from rollsight import runs
from rollsight.arrays import Floats
from rollsight.cli import output, shown_records
from rollsight.cli.replayable import check_snapshots
from rollsight.cli.trust import trust_run
from rollsight.errors import RollsightError
from rollsight.escaping import visible
from rollsight.runs import Run
from rollsight.runs.ranking import scored_round


def top(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    round: Annotated[
        int | None, tyro.conf.arg(metavar="K", help_behavior_hint="(default: the last that has scores)")
    ] = None,
    target: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="{return,sequence,reward,objective,action}", help_behavior_hint="(default: the run's first)"
        ),
    ] = None,
    record: Annotated[str | None, tyro.conf.arg(metavar="ENV:STEP", help_behavior_hint="")] = None,
    bottom: bool = False,
    n: int = 10,
    full: bool = False,
    json: bool = False,
    trust: bool = False,
) -> None:
    """Show the records of one round with the highest scores: those that helped the target most.

    - A line each, as wide as the terminal (or COLUMNS); texts are cut in the middle,
      of conversations the roles are shown.
    - A run stores scores of the targets that it was trained with, `return` or `sequence`
      by default.
    - Scores of `action` say why the policy acts as it does in one state: name the
      record with --record, in a round that has a snapshot.

    Example: rollsight top runs/lander --target action --record 0:12

    Args:
        run: The run folder.
        round: The round to look at.
        target: What the scores explain, one that the run stores, or action.
        record: The record whose action is explained, for --target action.
        bottom: The lowest scores instead of the highest.
        n: How many records.
        full: Show all of each record, one below the other: whole texts, each message of a
            conversation on lines of its own.
        json: Print JSON instead of a table.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
    """
    trust_run(run, trust)
    if n < 1:
        raise RollsightError(f"--n must be at least 1, not {n}")
    opened = runs.open(run)
    if record is not None and target not in (None, "action"):
        raise RollsightError(f"--record {record} explains an action and the target is {target!r}: add --target action")
    explained: dict[str, Any] | None = None
    if record is None:
        round, target = scored_round(opened, target, round)
        records = opened.records(round)
        scores = runs.column_as_floats(records, f"score_{target}")
    else:
        env, step = parse_record(record)
        round, target = snapshot_round(opened, round), "action"
        records = opened.records(round)
        explained = find_record(records, round, env, step)
        scores = action_scores(opened, round, env, step)
    ranked = runs.rank_records(records, scores, n, lowest=bottom)
    if json:
        result = {"run": str(run), "round": round, "target": target, "explained": explained, "records": ranked}
        output.print_json(result)
        return

    console = output.console()
    console.print(f"{visible(opened.name)}, round {round}, target {visible(target)}", style="bold")
    if explained is not None:
        seen = shown_records.observation(explained)
        console.print(f"explained: env {env}, step {step}: action {output.cell(explained['action'])} in state {seen}")
    negative = float(np.mean(scores[runs.scored_records(records, scores)] < 0)) if ranked else 0.0
    console.print(
        f"the {len(ranked)} of {records.num_rows} records that {'hurt' if bottom else 'helped'} most "
        f"({negative:.0%} of the scores are negative)"
    )
    show = shown_records.in_full if full else shown_records.lines
    show(console, ranked)


def snapshot_round(run: Run, round: int | None) -> int:
    """The given round, or the last one with a snapshot.

    Raises:
        RollsightError: the run has no snapshots.
    """
    check_snapshots(run, "scores of an action need")
    if round is not None:
        run.snapshot_path(round)  # names the rounds that have one
        return round
    return run.snapshot_rounds[-1]


def parse_record(text: str) -> tuple[int, int]:
    """ENV:STEP as two integers."""
    env, separator, step = text.partition(":")
    if not (separator and env.isdigit() and step.isdigit()):
        raise RollsightError(f"--record {text} names no record: write ENV:STEP, such as 0:12")
    return int(env), int(step)


def find_record(records: Any, round: int, env: int, step: int) -> dict[str, Any]:
    """The record of an environment's step, as a row of the stored table.

    Raises:
        RollsightError: there is none; the message gives the ranges.
    """
    envs, steps = records["env"].to_numpy(), records["step"].to_numpy()
    found = np.flatnonzero((envs == env) & (steps == step))
    if len(found) == 0:
        raise RollsightError(
            f"round {round} has no record {env}:{step}: env goes from {envs.min()} to {envs.max()}, "
            f"step from {steps.min()} to {steps.max()}"
        )
    row: dict[str, Any] = records.slice(int(found[0]), 1).to_pylist()[0]
    return row


def action_scores(run: Run, round: int, env: int, step: int) -> Floats:
    """How much each record of the round (N,) made the policy likelier to act as it did in that step.

    Computed from the round's snapshot, in the order of the stored records.
    """
    import rollsight as rs  # here: only these scores need torch
    from rollsight.records import take_rows
    from rollsight.snapshot import Snapshot

    snapshot = Snapshot.load(run.snapshot_path(round))
    records = snapshot.records
    row = ((records.ids["env"] == env) & (records.ids["step"] == step)).nonzero()[0]
    target = rs.targets.Action(take_rows(records.obs, row), take_rows(records.actions, row))
    scores = rs.score_records(snapshot.policy, records, target=target)
    return np.asarray(scores.values.detach().cpu().numpy(), np.float64)
