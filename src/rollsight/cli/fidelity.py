"""`rollsight fidelity`: do the scores predict what training does?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.analysis.drawing import check_figure
from rollsight.cli import output
from rollsight.cli.progress import progress_bar, use_one_thread
from rollsight.cli.replayable import check_snapshots
from rollsight.cli.trust import trust_run
from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.analysis.fidelity.lds import Lds
    from rollsight.analysis.fidelity.measure import Fidelity


def fidelity(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    round: Annotated[int, tyro.conf.arg(metavar="K")],
    masks: int = 100,
    unit: str = "record",
    target: Literal["return", "objective"] = "return",
    returns: bool = False,
    seed: int = 0,
    env: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint="")] = None,
    json: bool = False,
    trust: bool = False,
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None,
    overwrite: bool = False,
) -> None:
    """Retrain a round on random halves of its records, and see whether the scores predict the outcomes.

    - LDS (linear datamodeling score): the rank correlation, over the halves, of the kept
      records' summed scores with the target after training on them; with what the best
      score could reach (the same halves in another minibatch order) and what a score
      without information gets.
    - Measured on a fresh buffer from the policy that started the round, which decides,
      and on the training buffer.
    - Also: small steps of the weights against first-order predictions, removal of the
      lowest and highest scores against random removal, and corrupted episodes.

    Example: rollsight fidelity runs/lander --round 10

    Args:
        run: The run folder.
        round: The round, one with a snapshot.
        masks: How many halves.
        unit: What the halves are made of: record, episode, or another identity that the
            records have, such as group; a hundred of them or more give a clear answer.
        target: What the scores explain.
        returns: Measure the return of every retrained policy too, on 16 common episodes.
        seed: Of the halves, the fresh buffer, the other order, the resampling.
        env: A function that returns a new environment, wrapped as in training, where the run's
            own cannot be made again; the run's vector wrappers go around it.
        json: Print JSON instead of tables.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
        figure: Draw the scores' LDS and removal curves (.png, .pdf, .svg; interactive: .html).
        out: Folder for the outcomes, result.json, fidelity.png and .html. When run again
            with the same settings it continues after the finished retraining.
        overwrite: Replace files that are there.
    """
    trust_run(run, trust)
    from rollsight.analysis.fidelity import FidelitySettings, measure_fidelity
    from rollsight.analysis.fidelity.draw import draw
    from rollsight.environments.trained import function_named

    if masks < 4 or seed < 0:
        raise RollsightError(f"--masks is {masks} and --seed {seed}: give at least 4 masks and a seed of 0 or more")
    if figure is not None:
        check_figure(figure)
    make_env = None if env is None else function_named(env)
    output.check_free([] if figure is None else [figure], overwrite=overwrite)
    started = out is not None and any(out.glob("outcomes-*.npz"))  # this command's own folder, which goes on
    inside = [] if out is None else [out / "result.json", *output.figure_files(None, out, "fidelity")]
    output.check_free(inside, overwrite=overwrite or started)
    check_snapshots(runs.open(run), "fidelity needs")
    use_one_thread()
    settings = FidelitySettings(run, round, masks, unit, target, returns, seed, out)
    console = output.console(stderr=json)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=None)
        result = measure_fidelity(
            settings,
            lambda doing, done, total: progress.update(task, description=doing, completed=done, total=total),
            make_env=make_env,
        )
    files = output.figure_files(figure, out, "fidelity")
    for path in files:
        draw(result, path)
    if out is not None:
        output.write_json(out / "result.json", as_json(result))
    if json:
        output.print_json(as_json(result))
        return
    show(run.resolve().name, result, console)
    output.print_files(console, files)


def as_json(result: Fidelity) -> dict[str, Any]:
    """The result, its default score's figures on the fresh buffer on top; the tables are in `outcomes`."""
    fresh = result.lds["fresh"]
    row = fresh.rows[result.reference]
    return {
        "lds": row.lds,
        "lds_low": row.low,
        "lds_high": row.high,
        "ceiling": fresh.ceiling,
        "null_low": fresh.null_low,
        "null_high": fresh.null_high,
        **{name: value for name, value in vars(result).items() if name != "lds"},
        "outcomes": result.lds,
    }


def show(name: str, result: Fidelity, console: Console) -> None:
    """Print the tables."""
    console.print(
        f"{name} ({result.env}), round {result.round}: {result.masks} random halves of {result.units} {result.unit}s",
        style="bold",
    )
    columns = ["score", "LDS fresh", "95 % interval", "LDS train", f"fresh, vs {result.reference}"]
    others = [outcome for outcome in result.lds if outcome not in ("fresh", "train")]
    columns += [f"LDS {outcome}" for outcome in others]
    fresh, train = result.lds["fresh"], result.lds["train"]
    rows: list[list[Any]] = []
    for score, row in fresh.rows.items():
        change = f"{row.difference:+.2f} [{row.difference_low:+.2f}, {row.difference_high:+.2f}]"
        more = [f"{result.lds[outcome].rows[score].lds:.2f}" for outcome in others]
        known = "" if score == result.reference else change
        rows.append([score, f"{row.lds:.2f}", _band(row.low, row.high), f"{train.rows[score].lds:.2f}", known, *more])
    tables = [fresh, train, *(result.lds[outcome] for outcome in others)]
    for label, cells in (("ceiling (another order)", _ceilings(tables)), ("null band", _nulls(tables))):
        interval = _band(fresh.ceiling_low, fresh.ceiling_high) if label.startswith("ceiling") else ""
        rows.append([label, cells[0], interval, cells[1], "", *cells[2:]])
    console.print(output.table(columns, rows))
    _show_steps(result, console)
    _show_removal(result, console)
    if result.faults:
        first = result.faults[0]
        title = f"\n{first.corrupted} of {first.episodes} episodes corrupted: AUROC of low episode scores"
        kinds = list(dict.fromkeys(one.fault for one in result.faults))
        found = {(one.fault, one.score): f"{one.auroc:.2f} ± {one.error:.2f}" for one in result.faults}
        names = dict.fromkeys(one.score for one in result.faults)
        console.print(output.table(["score", *kinds], [[s, *(found[k, s] for k in kinds)] for s in names], title=title))
    _show_trust(result, console)
    trust = result.trust
    console.print(
        f"\ntrust line: own share of the scores {trust.self_share:.2f}, split-half correlation {trust.split_half:.2f} "
        f"({trust.split_half_permuted:.2f} with permuted advantages), norm of the update {trust.update_norm:.3g}",
        soft_wrap=True,
    )
    for note in result.notes:
        console.print(note, soft_wrap=True)
    console.print(
        f"counterfactual: {result.counterfactual} (same buffer and advantages); semantic: {result.semantic}; target: "
        f"{result.target}; normalisation: {result.normalisation}; optimiser: {result.optimizer}; seed {result.seed}",
        soft_wrap=True,
    )


def _show_trust(result: Fidelity, console: Console) -> None:
    from rollsight.analysis.fidelity.trust import shown

    columns = ["round", "own share", "split half", "permuted", "gradient ratio", "update norm", "approx. KL", "steps"]
    rows = [list(vars(line).values()) for line in shown(result.trust_over_training)]
    console.print(output.table(columns, rows, title="\ntrust line over training"))


def _show_steps(result: Fidelity, console: Console) -> None:
    rows = [
        [one.prediction, one.eta, one.rank, one.slope, one.along_score, there.rank]
        for one, there in zip(result.steps["fresh"], result.steps["train"], strict=True)
    ]
    columns = ["predicted by", "eta", "rank", "slope", "along the scores", "rank, train"]
    title = "\nweights 1 + eta * direction: measured against predicted change of the target (fresh buffer)"
    console.print(output.table(columns, rows, title=title))


def _show_removal(result: Fidelity, console: Console) -> None:
    rows = [
        [f"{one.fraction:.0%}", one.lowest, one.random, _band(one.random_low, one.random_high, "+.2g"), one.highest]
        for one in result.removal["fresh"]
    ]
    columns = ["without", "lowest scores", "random", "range of random", "highest scores"]
    title = "\nchange of the target (fresh buffer) when a part of the units is left out"
    console.print(output.table(columns, rows, title=title))


def _band(low: float, high: float, form: str = ".2f") -> str:
    return f"[{low:{form}}, {high:{form}}]"


def _ceilings(tables: Sequence[Lds]) -> list[str]:
    return [f"{table.ceiling:.2f}" for table in tables]


def _nulls(tables: Sequence[Lds]) -> list[str]:
    return [_band(table.null_low, table.null_high) for table in tables]
