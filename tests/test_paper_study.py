"""`rollsight study paper`: arms as text, the measures of the paper, and a study that goes on where it was."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")

from rollsight import RollsightError, cli
from rollsight.studies import metrics, plots, store
from rollsight.studies.curves import Curve
from rollsight.studies.paper import figures, tables
from rollsight.studies.paper.cell import Cell, Evaluations, lost_rows
from rollsight.studies.paper.results import KEYS, read_results
from rollsight.studies.paper.study import Settings, cells_of
from rollsight.studies.ppo_arms import KINDS, PPOArm
from rollsight.studies.ray_cluster import run_on_ray
from rollsight.training.paper import paper, settings_for

LAKE = "FrozenLake-v1"
arm_of = PPOArm.of


def curve(returns: list[float], seconds: list[float] | None = None, every: int = 1) -> Curve:
    rounds = every * np.arange(1.0, len(returns) + 1)
    return Curve({"round": rounds, "return": np.array(returns), "seconds": np.array(seconds or rounds, float)})


@pytest.mark.parametrize(
    "text", ["ppo", "iif:0.25", "iif:0.125@optimizer=adam,lr=0.001,clip=off,envs=8", "dtv-loo@clip=1"]
)
def test_arms_are_written_as_they_are_read(text: str) -> None:
    assert str(arm_of(text)) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("iff", "'iff' is unknown; choose from ppo"),
        ("ppo:0.5", "ppo takes no p"),
        ("iif:2", "p is 2; give a number above 0"),
        ("iif:half", "half"),
        ("iif@lr=-1", "lr=-1 is not an option"),
        ("iif@momentum=0.9", "momentum=0.9 is not an option"),
        ("iif@optimizer=rmsprop", "optimizer=rmsprop"),
    ],
)
def test_arms_that_are_none(text: str, named: str) -> None:
    with pytest.raises(RollsightError, match=named):
        arm_of(text)


def test_what_is_not_given_is_the_papers() -> None:
    cells = cells_of(
        [LAKE],
        [arm_of("iif"), arm_of("iif:0.5"), arm_of("iif:0.5@lr=0.005"), arm_of("iif@lr=0.1")],
        [4],
        Settings(),
    )
    assert [cell.key for cell in cells] == [(LAKE, "iif:0.5", 4), (LAKE, "iif:0.5@lr=0.1", 4)]
    assert (cells[0].rounds, cells[0].evaluations) == (50, Evaluations(1000, 1))
    assert settings_for(LAKE).reported["sgd"]["se_ave"] == [33.7, 3.4]
    assert list(paper())[-1] == "BipedalWalker-v3"


def test_another_optimiser_has_its_own_rate() -> None:
    lake, walker = settings_for(LAKE), settings_for("BipedalWalker-v3")
    assert arm_of("iif@optimizer=adam").named(lake) == arm_of("iif@optimizer=adam,lr=0.0003").named(lake)
    assert arm_of("ppo@optimizer=adam").resolved(walker).lr == walker.lr == 3e-4
    assert arm_of("ppo@optimizer=sgd").resolved(walker).lr == arm_of("ppo").resolved(lake).lr == 5e-3


def test_every_kind_of_arm_can_be_made() -> None:
    settings = settings_for(LAKE)
    for kind in KINDS:
        assert callable(arm_of(f"{kind}@optimizer=adam").resolved(settings).training(seed=0))
    with pytest.raises(RollsightError, match="would be iif"):
        arm_of("preconditioned:0.25").resolved(settings)


def test_the_papers_measures_by_hand() -> None:
    standard = curve([1, 3, 2, 5, 5])  # levels 1, 3, 5 in rounds 1, 2, 4
    other = curve([3, 3, 5, 5, 5], [2, 4, 6, 8, 10])  # in rounds 1, 1, 3
    found = metrics.reduction(standard, other)
    assert found.se_ave == pytest.approx((0 + 1 / 2 + 1 / 4) / 3)
    assert found.se_peak == pytest.approx(1 / 4)
    assert found.rt_paper == pytest.approx(1 - 6 / 5)
    assert found.rt_peak == pytest.approx(1 - 6 / 4)
    assert found.unreached == 0


def test_levels_that_are_never_reached_count_as_one_round_late() -> None:
    found = metrics.reduction(curve([1, 2, 3, 4]), curve([1, 2, 2, 2]))
    assert found.se_ave == pytest.approx((0 + 0 + (1 - 5 / 3) + (1 - 5 / 4)) / 4)
    assert found.se_peak == pytest.approx(1 - 5 / 4)
    assert found.unreached == 0.5
    assert found.rt_paper == pytest.approx(1 - 5 / 4)
    sparse = metrics.reduction(curve([1, 2], every=10), curve([0, 1], every=10))
    assert sparse.se_ave == pytest.approx(((1 - 20 / 10) + (1 - 21 / 20)) / 2)


@pytest.mark.filterwarnings("error")
def test_a_standard_that_diverged_at_once_saves_no_time() -> None:
    lost, other = curve([1, 1, 1], [0, 0, 0]), curve([1, 2, 3])
    assert np.isnan(metrics.reduction(lost, other).rt_peak)
    alone, both = metrics.contrast([lost], [other]), metrics.contrast([lost, other], [other, other])
    assert np.isnan(alone.pairs["rt_peak"].value)
    assert alone.pairs["se_peak"].value == 0
    assert both.pairs["rt_peak"].value == 0  # of the pair that has a time
    null = metrics.null_of([lost] * 4)
    assert null is not None
    assert np.isnan(null.pairs["rt_paper"][0])


def test_the_null_of_equal_arms_is_wide_and_an_arm_is_judged_on_common_seeds() -> None:
    rng = np.random.default_rng(0)
    runs = [curve((np.arange(20) + rng.normal(0, 4, 20)).tolist()) for _ in range(8)]
    null = metrics.null_of(runs)
    assert null is not None
    assert null.pairs["se_ave"][0] < 0 < null.pairs["se_ave"][1]
    assert metrics.null_of(runs[:3]) is None
    same = metrics.contrast(runs, runs)
    assert same.pairs["se_ave"].value == same.final.value == 0
    assert same.probability.value == 0.5
    better = [curve((one["return"] + 5).tolist()) for one in runs]
    found = metrics.contrast(runs, better)
    assert found.final.value == pytest.approx(5)
    assert found.final.half_width == pytest.approx(0, abs=1e-9)
    assert found.mean_curve["se_ave"].value > 0.1
    assert found.probability.value > 0.7
    assert metrics.summarise(runs).final_iqm.low < metrics.summarise(runs).final_iqm.value


def study(out: Path, *more: str) -> list[str]:
    return ["study", "paper", "--envs", LAKE, "--budget", "quick", "--out", str(out), *more]


def test_a_study_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert cli.main(study(out, "--seeds", "1", "--arms", "ppo,iif", "--processes", "2")) == 0
    assert "2 runs, 0 of them done" in capsys.readouterr().out
    kept = store.stored(out, KEYS)
    assert list(kept) == [(LAKE, "iif:0.5", 0), (LAKE, "ppo", 0)]
    assert cli.main(study(out, "--seeds", "1", "--arms", "ppo", "iif", "random")) == 0
    shown = capsys.readouterr().out
    assert "3 runs, 2 of them done" in shown
    assert "| `random:0.5` | 1 |" in shown
    now = store.stored(out, KEYS)
    assert list(now) == [(LAKE, "iif:0.5", 0), (LAKE, "ppo", 0), (LAKE, "random:0.5", 0)]
    for key, columns in kept.items():
        assert all(np.array_equal(now[key][name], column, equal_nan=True) for name, column in columns.items())
    names = {path.name for path in out.iterdir() if path.name != ".lock"}
    assert names == {"curves.parquet", "settings.json", "results.md", "results.csv", "index.html", f"{LAKE}.png",
                     f"{LAKE}-arms.png"}  # fmt: skip
    assert cli.main(["study", "paper", "--envs", LAKE, "--out", str(out)]) == 1
    assert "was started with budget quick, not full" in capsys.readouterr().err
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {"ppo", "iif:0.5", "random:0.5"}
    written = (out / "results.csv").read_bytes()
    assert cli.main(["study", "paper", "--out", str(out), "--against", "iif"]) == 0
    assert "| `random:0.5` | `iif:0.5` |" in capsys.readouterr().out
    assert cli.main(["study", "paper", "--out", str(out), "--against", "dtv"]) == 1
    assert "nothing to compare with dtv" in capsys.readouterr().err
    assert (out / "results.csv").read_bytes() == written
    lake = read_results(out)[0]
    plain, iif, random = lake.arms
    assert plain.mean("kept") == 1
    assert iif.mean("kept") < 1
    assert iif.mean("steps") < plain.mean("steps")
    assert random.seconds("score") == 0 < iif.seconds("score")
    assert plain.curves[0]["round"].tolist() == list(range(2, 21, 2))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--envs", "CartPole-v1"], "CartPole-v1 is not in the paper's study"),
        (["--seeds", "0"], "--seeds 0 is not possible"),
        (["--arms", "iif@lr"], "'iif@lr' is not a valid arm"),
        (["--only-report"], "holds no curves"),
        (["--against", "iif"], "holds no curves"),
    ],
)
def test_bad_input(arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "paper", "--out", str(tmp_path / "study"), *arguments]) == 1
    assert named in capsys.readouterr().err


def test_curves_of_different_schedules_are_not_mixed(tmp_path: Path) -> None:
    for arm, every in (("ppo", 1), ("iif:0.5", 2)):
        rows = [{"round": r, "return": 0.5, "collect_s": 1, "score_s": 1, "train_s": 1} for r in range(every, 5, every)]
        store.add(tmp_path, KEYS, (LAKE, arm, 0), rows)
    with pytest.raises(RollsightError, match="2 different schedules"):
        read_results(tmp_path)


def test_a_ray_cluster_gives_the_same_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray (pip install 'rollsight[ray]')")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    cell = Cell(LAKE, arm_of("iif:0.5"), 3, 2, Evaluations(4, 1))
    (event,) = run_on_ray([cell], "local")
    assert (event.job, event.finished) == (cell, True)
    names = ("round", "return", "kept", "steps", "update_norm")
    there, here = ([[row[name] for name in names] for row in rows] for rows in (event.result, cell.run(_silent)))
    assert len(there) == 3
    assert there == here


def _silent(rounds: float, summary: Any) -> None: ...


@pytest.mark.parametrize("kind", ["ppo", "rescored"])  # the latter diverges between two epochs, where it scores
def test_a_run_that_diverges_counts_with_its_lowest_return(kind: str, tmp_path: Path) -> None:
    cell = Cell(LAKE, arm_of(f"{kind}@lr=1e30,clip=off"), 0, 6, Evaluations(20, 2))
    store.add(tmp_path, KEYS, cell.key, cell.run(lambda *_: None))
    found = store.stored(tmp_path, KEYS)[cell.key]
    assert found["round"].tolist() == [0, 2, 4, 6]
    assert np.isnan(found["update_norm"][1:]).all()
    assert set(found["return"][1:]) == {found["return"][0]}
    (result,) = read_results(tmp_path)
    assert [one.diverged for one in result.arms] == [1]
    assert "| 1, 1 diverged |" in tables.markdown([result])


def write_arm(out: Path, arm: str, *finals: float, collect_s: float = 1) -> None:
    """A curve for each final return."""
    phases = {"collect_s": collect_s, "score_s": 0, "train_s": 1, "evaluate_s": 1, "update_norm": 1, "kept": 1}
    phases |= dict.fromkeys(("steps", "kl", "gradient_ratio", "split_half", "split_half_permuted"), 1)
    for seed, final in enumerate(finals):
        rows = [{"round": i, "return": final * i / 10, **phases} for i in range(11)]
        store.add(out, KEYS, (LAKE, str(arm_of(arm)), seed), rows)


def test_arms_that_were_timed_on_another_machine_have_no_rt(tmp_path: Path) -> None:
    for arm, collect_s in (("ppo", 2), ("iif:0.5", 2.4), ("random:0.5", 1)):
        write_arm(tmp_path, arm, 1, 2, collect_s=collect_s)
    (result,) = read_results(tmp_path)
    known = {str(one.arm): one.contrast for one in result.arms if one.contrast}
    assert np.isfinite(known["iif:0.5"].mean_curve["rt_paper"].value)
    other = known["random:0.5"]
    for found in (other.pairs, other.mean_curve):
        assert np.isnan([found["rt_paper"].value, found["rt_peak"].value]).all()
    assert np.isfinite(other.mean_curve["se_peak"].value)
    assert "nan" not in tables.markdown([result])
    assert figures.draw_comparisons(result, tmp_path / "arms.png") is not None
    figures.write([result], tmp_path / "index.html")


def test_sweeps_are_drawn_where_a_setting_takes_three_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arm in ("ppo", "ppo@clip=off", "iif:0.25", "iif:0.5", "random:0.5", "crossfit:0.5@clip=off"):
        write_arm(tmp_path, arm, 1, 2)
    assert figures.draw_sweeps(read_results(tmp_path), tmp_path / "sweeps.png") is None
    assert not (tmp_path / "sweeps.png").exists()
    write_arm(tmp_path, "iif:0.125", 3, 4)
    for lr in ("0.1", "0.001"):
        write_arm(tmp_path, f"ppo@lr={lr}", 5, 7)
    (result,) = read_results(tmp_path)
    final, area, by_rate, _ = figures.sweeps(result)
    assert [line.name for line in final.lines] == ["ppo", "iif"]
    assert final.lines[0].x.tolist() == [0.125, 0.5]
    assert final.lines[1].x.tolist() == [0.125, 0.25, 0.5]
    assert final.lines[1].mean.tolist() == pytest.approx([3.5, 1.5, 1.5])
    assert area.lines[1].mean.tolist() == pytest.approx([3.5 * 0.55, 1.5 * 0.55, 1.5 * 0.55])
    (line,) = by_rate.lines
    assert line.x.tolist() == [0.001, settings_for(LAKE).lr, 0.1]
    assert line.mean.tolist() == pytest.approx([6, 1.5, 6])
    assert figures.draw_sweeps([result], tmp_path / "sweeps.png") == tmp_path / "sweeps.png"
    drawn = list[Any]()
    monkeypatch.setattr(figures.plots, "draw", lambda panels, *_: drawn.extend(panels))
    figures.draw_curves(result, tmp_path / "curves.png")
    shown = {line.name.partition(" ")[0] for line in drawn[0].lines}
    assert shown == {"ppo", "iif:0.5", "random:0.5"}
    assert "learning rate" in figures.write([result], tmp_path / "index.html").read_text("utf-8")


def test_a_sweep_of_another_optimizers_rates_names_no_rate(tmp_path: Path) -> None:
    for lr in ("0.0003", "0.001", "0.003"):
        write_arm(tmp_path, f"ppo@optimizer=adam,lr={lr}", 1, 2)
    (result,) = read_results(tmp_path)
    final, _ = figures.sweeps(result)
    assert final.title == f"{LAKE}, optimizer=adam: final by learning rate"


def test_curves_have_a_panel_for_each_set_of_options_and_one_for_the_other_arms(tmp_path: Path) -> None:
    for arm in ("ppo", "iif:0.5", "dtv", "rescored:0.5", "ppo@clip=off", "iif:0.5@clip=off", "crossfit:0.5@lr=0.1"):
        write_arm(tmp_path, arm, 1, 2)
    (result,) = read_results(tmp_path)
    drawn = {axes.title: [line.name.split()[0] for line in axes.lines] for axes in figures.panels(result)}
    assert drawn == {
        LAKE: ["ppo", "iif:0.5"],
        f"{LAKE}: other arms": ["ppo", "dtv", "rescored:0.5"],
        f"{LAKE}, clip=off": ["ppo", "iif:0.5"],
        f"{LAKE}, lr=0.1: other arms": ["crossfit:0.5"],
    }


def test_a_plot_shows_every_mean_and_not_all_of_a_band() -> None:
    def axes(*halves: float) -> plots.Axes:
        x = np.arange(2.0)
        return plots.Axes("", "", [plots.Line("", "", x, np.array([0.0, 10.0]), np.array([h, h])) for h in halves])

    assert axes(0).limits == pytest.approx((-0.4, 10.4))
    assert axes(0, 2).limits == pytest.approx((-2 - 0.56, 12 + 0.56))
    assert axes(2, 2, 100).limits == pytest.approx((-5 - 0.8, 15 + 0.8))
    assert axes(4, 4, 100).limits == pytest.approx((-6 - 0.88, 16 + 0.88))
    still = plots.Line("", "", np.arange(2.0), np.ones(2), np.zeros(2))
    assert plots.Axes("", "", [still]).limits is None
    late = plots.Line("", "", np.arange(3.0), np.array([np.nan, 0.0, 10.0]), np.zeros(3))
    assert plots.Axes("", "", [late]).limits == pytest.approx((-0.4, 10.4))
    never = plots.Line("", "", np.arange(2.0), np.full(2, np.nan), np.zeros(2))
    assert plots.Axes("", "", [never]).limits is None


def test_arms_are_compared_in_a_row_for_each_set_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = list[Any]()
    monkeypatch.setattr(figures.interval_plots, "save_figure", lambda figure, path: saved.append(figure) or path)
    write_arm(tmp_path, "ppo", 1, 2)
    write_arm(tmp_path, "ppo@clip=off", 4, 6)
    assert figures.draw_comparisons(read_results(tmp_path)[0], tmp_path / "arms.png") is None
    for arm in ("iif:0.5", "random:0.5", "iif:0.5@clip=off"):
        write_arm(tmp_path, arm, 3, 3)
    figures.draw_comparisons(read_results(tmp_path)[0], tmp_path / "arms.png")
    first, *_ = saved[0].axes[:5]
    assert [text.get_text() for text in first.get_yticklabels()] == ["iif:0.5 (2)", "random:0.5 (2)"]
    assert first.lines[2].get_xdata() == pytest.approx([1.5])  # the mean of 3 - 1 and 3 - 2
    assert len(saved[0].axes) == 2 * 5
    assert saved[0].axes[5].lines[2].get_xdata() == pytest.approx([-2.0])
    pages = list[Any]()
    monkeypatch.setattr(figures.plots, "write_page", lambda path, title, lead, panels: pages.extend(panels))
    figures.write(read_results(tmp_path), tmp_path / "index.html")
    assert [panel.name for panel in pages] == [f"plot{place}" for place in range(len(pages))]
    clipped, free = (panel for panel in pages if "against PPO" in panel.heading)
    assert free.heading == f"{LAKE}, clip=off: arms against PPO"
    drawn = [trace for trace in clipped.figure.data if trace.mode == "markers" and trace.xaxis == "x"]
    assert drawn[0].x == pytest.approx([1.5, 1.5])
    assert drawn[0].y == ("iif:0.5 (2)", "random:0.5 (2)")
    saved_share = [trace for trace in clipped.figure.data if trace.marker.symbol == "star" and trace.xaxis == "x3"]
    assert [trace.x[0] for trace in saved_share] == [settings_for(LAKE).reported["sgd"]["se_ave"][0]]  # IIF's alone


def test_a_diverged_run_is_filled_up_with_the_lowest_not_the_last() -> None:
    rows = [{"round": i, "return": value, "kept": 1.0, "train_s": float(i)} for i, value in enumerate((2.0, -3.0, 1.0))]
    lost = list(lost_rows(rows, range(3, 5)))
    assert [(row["round"], row["return"], row["kept"], row["train_s"]) for row in lost] == [
        (3, -3.0, None, 2.0),
        (4, -3.0, None, 2.0),
    ]
