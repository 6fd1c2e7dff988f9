"""`rollsight top`: the records that a behaviour owes most to."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.trust import trust_run
from rollsight.errors import RollsightError
from rollsight.runs import Run

_HEADINGS = {  # column: what the table calls it, in few characters
    "rank": "#",
    "env": "env",
    "step": "step",
    "episode": "episode",
    "episode_step": "its step",
    "obs": "obs",
    "action": "action",
    "reward": "reward",
    "advantage": "advantage",
    "score": "score",
    "kept": "kept",
}
_TEXTS = ("rank", "prompt", "completion", "reward", "kl", "score", "kept")  # of a language model's run
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def top(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    round: Annotated[
        int | None, tyro.conf.arg(metavar="K", help_behavior_hint="(default: the last that has scores)")
    ] = None,
    target: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(default: return, or the target of a language model's run)")
    ] = None,
    record: Annotated[str | None, tyro.conf.arg(metavar="ENV:STEP", help_behavior_hint="")] = None,
    bottom: bool = False,
    n: int = 10,
    json: bool = False,
    trust: bool = False,
) -> None:
    """Show the records of one round with the highest scores: those that helped the target most.

    - Scores of `return` are stored with every scored round.
    - Scores of `action` say why the policy acts as it does in one state: name the
      record with --record, in a round that has a snapshot.

    Example: rollsight top runs/lander --target action --record 0:12

    Args:
        run: The run folder.
        round: The round to look at.
        target: What the scores explain.
        record: The record whose action is explained, for --target action.
        bottom: The lowest scores instead of the highest.
        n: How many records.
        json: Print JSON instead of a table.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
    """
    trust_run(run, trust)
    if n < 1:
        raise RollsightError(f"--n must be at least 1, not {n}")
    opened = runs.open(run)
    target = target or default_target(opened)
    if record is not None and target != "action":
        raise RollsightError(f"--record {record} explains an action and the target is {target!r}: add --target action")
    explained: dict[str, Any] | None = None
    if record is None:
        round = scored_round(opened, target, round)
        records = opened.records(round)
        scores = runs.column_as_floats(records, f"score_{target}")
    else:
        env, step = parse_record(record)
        round = snapshot_round(opened, round)
        records = opened.records(round)
        explained = find_record(records, round, env, step)
        scores = action_scores(opened, round, env, step)
    ranked = runs.rank_records(records, scores, n, lowest=bottom)
    if json:
        result = {"run": str(run), "round": round, "target": target, "explained": explained, "records": ranked}
        output.print_json(result)
        return

    console = output.console()
    console.print(f"{opened.name}, round {round}, target {target}", style="bold")
    if explained is not None:
        seen = output.cell(explained.get("obs"))
        console.print(f"explained: env {env}, step {step}: action {output.cell(explained['action'])} in state {seen}")
    negative = float(np.mean(scores[runs.scored_records(records, scores)] < 0)) if ranked else 0.0
    console.print(
        f"the {len(ranked)} of {records.num_rows} records that {'hurt' if bottom else 'helped'} most "
        f"({negative:.0%} of the scores are negative)"
    )
    if "completion" in records.column_names:
        console.print(output.text_table(_TEXTS, [[row.get(name) for name in _TEXTS] for row in ranked]))
        return
    rows = [[row.get(name) for name in _HEADINGS] for row in ranked]
    console.print(output.table(list(_HEADINGS.values()), rows))


def default_target(run: Run) -> str:
    """`return`, unless the run was scored for one other target."""
    options = (run.metadata.get("run_settings") or {}).get("options") or {}
    return options.get("target") or "return"


def scored_round(run: Run, target: str, round: int | None) -> int:
    """The given round, or the last one, with stored scores of the target.

    Raises:
        RollsightError: there is none; the message says which targets are stored.
    """
    hint = ", or explain one action with --record ENV:STEP" if target == "action" else ""
    if round is not None:
        stored = run.targets(round)
        if target not in stored:
            choices = f"choose from {', '.join(stored)}" if stored else "it was not scored, choose another round"
            raise RollsightError(f"round {round} of {run.path} stores no scores of {target!r}: {choices}{hint}")
        return round
    found: set[str] = set()
    for candidate in reversed(run.rounds):
        stored = run.targets(candidate)
        if target in stored:
            return candidate
        found.update(stored)
    choices = f"choose from {', '.join(sorted(found))}" if found else "no round is scored yet"
    raise RollsightError(f"{run.path} stores no scores of {target!r}: {choices}{hint}")


def snapshot_round(run: Run, round: int | None) -> int:
    """The given round, or the last one with a snapshot.

    Raises:
        RollsightError: the run has no snapshots.
    """
    if round is not None:
        run.snapshot_path(round)  # names the rounds that have one
        return round
    if not run.snapshot_rounds:
        raise RollsightError(f"{run.path} has no snapshots, which scores of an action need: train with --snapshots")
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


def action_scores(run: Run, round: int, env: int, step: int) -> FloatArray:
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
