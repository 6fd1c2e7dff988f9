"""`rollsight phases`: how did this behaviour form over the rounds?"""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.progress import progress_bar, use_one_thread
from rollsight.cli.record_lists import parse_record_name
from rollsight.cli.top import find_record
from rollsight.errors import RollsightError
from rollsight.runs import Run

if TYPE_CHECKING:
    from rollsight.analysis.phases.formation import Development, Formation
    from rollsight.records import Records, Rows
    from rollsight.snapshot import Snapshot

_SHADES = ("#f3d9b1", "#cfe3f5", "#d9ead3")
_MAPS = 4


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
    json: bool = False,
) -> None:
    """Follow one behaviour, an action in a state, through every round that has a snapshot.

    - pi(a given s), and the records that made it likelier, round by round.
    - Roughness: how unevenly influence lies over similar records (0: smooth), beside
      the band it has when influences are dealt out at random.
    - The paper's three phases (action-advantage association, clustering of similar
      states, saturation), where a change-point test supports them.

    The run should be trained with --snapshots all.

    Example: rollsight phases runs/acrobot --record 40:0:12 --figure phases.png

    Args:
        run: The run folder.
        obs: The state, as JSON: a list of numbers, or one number.
        action: The action, as JSON.
        record: Instead, the state and action of this record.
        top: How many top records to show per round.
        neighbours: Nearest neighbours in the similarity graph.
        permutations: Of the influences, for the band.
        seed: Of the permutations.
        out: Folder for result.json and phases.png.
        figure: Draw the development (.png, .pdf or .svg).
        json: Print JSON instead of a table.
    """
    for name, value, least in (
        ("top", top, 1),
        ("neighbours", neighbours, 1),
        ("permutations", permutations, 40),
        ("seed", seed, 0),
    ):
        if value < least:
            raise RollsightError(f"--{name} is {value}: give at least {least}")
    if figure is not None:
        output.check_figure(figure)
    if (record is None) == (obs is None or action is None) or (record is not None and (obs or action)):
        raise RollsightError("name one behaviour: either --obs and --action, or --record ROUND:ENV:STEP")
    opened = runs.open(run)
    if not opened.snapshot_rounds:
        raise RollsightError(f"{opened.path} has no snapshots, which the scores need: train with --snapshots all")

    from rollsight.analysis.phases.formation import development
    from rollsight.snapshot import Snapshot

    use_one_thread()
    console = Console(stderr=True) if json else output.console()
    last = Snapshot.load(opened.snapshot_path(opened.snapshot_rounds[-1]))
    if record is not None:
        behaviour = _behaviour_of(opened, record)
    else:
        assert obs is not None
        assert action is not None
        behaviour = _entry(last.records, "obs", obs), _entry(last.records, "actions", action)

    def snapshots() -> Iterator[Snapshot]:
        numbers = opened.snapshot_rounds
        with progress_bar(console) as progress:
            for number in progress.track(numbers, description="rounds"):
                yield Snapshot.load(opened.snapshot_path(number))

    result = development(
        snapshots(),
        last.replay().policy,
        *behaviour,
        top=top,
        neighbours=neighbours,
        permutations=permutations,
        seed=seed,
    )
    explained = {name: _plain(rows) for name, rows in zip(("obs", "action"), behaviour, strict=True)}
    whole = {"run": str(run), "explained": {"record": record, **explained}, "embedded_by_policy_after": last.round}
    printed = {**whole, **runs.jsonable(result)}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        output.write_json(out / "result.json", printed)
    title = f"{opened.name}: action {output.cell(explained['action'])} in {record or output.cell(explained['obs'])}"
    for path in (figure, None if out is None else out / "phases.png"):
        if path is not None:
            draw(result, title, path)
    if json:
        output.print_json(printed)
        return
    show(result, title, last.round, console)
    if figure is not None or out is not None:
        console.print(f"figure: {figure or (out and out / 'phases.png')}", soft_wrap=True)


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


def draw(result: Development, title: str, path: Path) -> None:
    """Draw pi, roughness with its band, the phases, and where the top records lie in four of the rounds.

    Raises:
        RollsightError: the file cannot be written.
    """
    import numpy as np
    from matplotlib.figure import Figure  # a second to import; not pyplot: no window, no global state

    numbers = [one.round for one in result.rounds]
    figure = Figure(figsize=(9.6, 8.2), layout="constrained")
    grid = figure.add_gridspec(3, _MAPS, height_ratios=[1, 1, 1.15])
    likely, rough = figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, :])
    likely.plot(numbers, np.exp([one.log_prob for one in result.rounds]), color="#1f77b4", marker=".")
    likely.set(ylabel="pi(a|s)")
    likely.margins(y=0.15)  # room for the phases' names
    likely.set_title(title, fontsize=11)
    shown = [one for one in result.rounds if one.roughness is not None and one.null is not None]
    where = [one.round for one in shown]
    low, high = ([one.null[end] for one in shown if one.null is not None] for end in (0, 1))
    rough.fill_between(where, low, high, color="#999999", alpha=0.35, linewidth=0, label="influences permuted, 95 %")
    rough.plot(where, [float(one.roughness or 0) for one in shown], color="#b2182b", marker=".", label="roughness")
    rough.set(xlabel="round", ylabel="roughness")
    rough.set_ylim(bottom=0)
    rough.legend(frameon=False, fontsize=8)
    for axes in (likely, rough):
        for phase, shade in zip(result.phases, _SHADES, strict=False):
            axes.axvspan(phase.first - 0.5, phase.last + 0.5, color=shade, alpha=0.6, linewidth=0, zorder=0)
        axes.grid(alpha=0.3)
        axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    for phase in result.phases:
        middle = (phase.first + phase.last) / 2
        likely.annotate(phase.name, (middle, 0.97), xycoords=likely.get_xaxis_transform(), ha="center", va="top")
    if not result.phases:
        likely.annotate(
            "no phases supported", (0.5, 0.97), xycoords="axes fraction", ha="center", va="top", color="gray"
        )
    every = np.concatenate([one.background for one in result.rounds] + [one.places for one in result.rounds])
    span = np.stack([every.min(0), every.max(0)])
    margin = 0.05 * (span[1] - span[0]) + 1e-9
    for column, one in enumerate(_spread(result.rounds)):
        axes = figure.add_subplot(grid[2, column])
        axes.scatter(one.background[:, 0], one.background[:, 1], s=4, color="#bbbbbb", linewidths=0)
        axes.scatter(one.places[:, 0], one.places[:, 1], s=20, color="#b2182b", alpha=0.8, linewidths=0)
        star: dict[str, Any] = {"marker": "*", "color": "#1f77b4", "edgecolors": "white", "linewidths": 0.6}
        axes.scatter(result.place[0], result.place[1], s=90, **star)
        axes.set(
            xlim=(span[0, 0] - margin[0], span[1, 0] + margin[0]), ylim=(span[0, 1] - margin[1], span[1, 1] + margin[1])
        )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"round {one.round}", fontsize=9)
        if column == 0:
            axes.set_ylabel("states, first two PCs\nof the embedding", fontsize=8)
            axes.set_xlabel("red: top records, star: the behaviour, grey: sample", fontsize=7, loc="left")
    output.save_figure(figure, path)


def _spread(rounds: list[Formation]) -> list[Formation]:
    """Up to four rounds, from the first to the last."""
    import numpy as np

    places = np.unique(np.linspace(0, len(rounds) - 1, _MAPS).round().astype(int))
    return [rounds[place] for place in places]


def _behaviour_of(run: Run, text: str) -> tuple[Rows, Rows]:
    """State and action of a record, from its round's snapshot: the run's table may lack large observations."""
    from rollsight.records import take_rows
    from rollsight.snapshot import Snapshot

    number, env, step = parse_record_name(text)
    if number not in run.rounds:
        raise RollsightError(
            f"--record {text}: {run.path} has no round {number}, its rounds are {runs.spell(run.rounds)}"
        )
    path = run.snapshot_path(number)
    find_record(run.records(number), number, env, step)  # complains where there is none
    records = Snapshot.load(path).records
    row = ((records.ids["env"] == env) & (records.ids["step"] == step)).nonzero()[0]
    return take_rows(records.obs, row), take_rows(records.actions, row)


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
        raise RollsightError(f"{option} {text} is no list of numbers: write JSON such as [0.1, -0.2]") from error
    if number.numel() != column[0].numel() or (number.dim() > 1 and tuple(number.shape) != shape):
        raise RollsightError(
            f"{option} has shape {tuple(number.shape)} and the run's have {shape}: give as many numbers"
        )
    if not column.is_floating_point() and bool((number != number.round()).any()):
        raise RollsightError(f"{option} {text} must be whole numbers here")
    return number.reshape(1, *shape).to(column.dtype)


def _plain(rows: Any) -> Any:
    return {key: part[0].tolist() for key, part in rows.items()} if isinstance(rows, dict) else rows[0].tolist()
