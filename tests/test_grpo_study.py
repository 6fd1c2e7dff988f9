"""`rollsight study grpo`: problems and their verifier, accuracy by sampling, arms, and a study that goes on where it
was."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="the study needs TRL (pip install 'rollsight[llm]')")
pytest.importorskip("reasoning_gym", reason="the study needs reasoning-gym")

from rollsight import RollsightError, cli, runs
from rollsight.scoring import Scores
from rollsight.studies import store
from rollsight.studies.cells import KEYS
from rollsight.studies.curves import Curve
from rollsight.studies.grpo import miniature, problems
from rollsight.studies.grpo.arms import KINDS, GRPOArm
from rollsight.studies.grpo.cell import Cell
from rollsight.studies.grpo.problems import Problem, Problems
from rollsight.studies.grpo.results import read_results
from rollsight.studies.grpo.settings import PHASES, Settings, Task
from rollsight.studies.grpo.training import train
from rollsight.studies.settings import keep_settings
from rollsight.training.language import models

torch.set_num_threads(1)
arm_of = GRPOArm.of
SMALL = Settings("miniature", "products", held_out=8, evaluation=20, rounds=2, evaluate_every=1, lr=3e-3)


# --- problems


@pytest.mark.parametrize(("task", "count"), [("products", 100), ("sums", 200)])
def test_all_problems_are_split_and_their_answers_are_right(task: Task, count: int) -> None:
    drawn = problems.draw(task, 2, 10, 20, seed=3)
    parts = [drawn.shots, drawn.training, drawn.held_out, drawn.evaluation]
    assert [len(part) for part in parts] == [2, count - 32, 10, 20]
    everyone = [one for part in parts for one in part]
    assert len(set(everyone)) == count
    assert all(eval(one.expression) == int(one.answer) for one in everyone)
    assert problems.draw(task, 2, 10, 20, seed=3) == drawn
    other = problems.draw(task, 2, 10, 20, seed=4)
    assert other.shots == drawn.shots
    assert other.evaluation != drawn.evaluation


def test_a_prompt_shows_solved_problems_first() -> None:
    drawn = Problems([Problem("1 + 3", "4"), Problem("2 - 5", "-3")], [], [], [])
    assert drawn.prompt(Problem("7 + 8", "15")) == "1 + 3 = 4\n2 - 5 = -3\n7 + 8 = "


@pytest.mark.parametrize(
    ("completion", "right"),
    [("15\n", True), (" 15", True), ("so 15, not 3", True), ("-15\n", False), ("1", False), ("153", False),
     ("5\n15", False), ("", False), ("x", False)],
)  # fmt: skip
def test_the_first_number_must_be_the_answer(completion: str, right: bool) -> None:
    assert problems.is_right(completion, "15") is right


def test_too_few_problems_are_said() -> None:
    with pytest.raises(RollsightError, match="products has 100 problems, of which 2 shots, 50 held-out and 48"):
        problems.draw("products", 2, 50, 48, 0)


def test_accuracy_is_what_sampling_gives() -> None:
    drawn = problems.draw("products", 1, 0, 20, 0)
    made = miniature.taught("products", 1)
    found = problems.measure(made.model, made.tokenizer, drawn)
    texts = [drawn.prompt(one) for one in drawn.evaluation]
    inputs = made.tokenizer(texts, return_tensors="pt", padding=True)
    ends = [made.tokenizer.eos_token_id, made.tokenizer("\n", add_special_tokens=False).input_ids[-1]]
    start = inputs["input_ids"].shape[1]

    def rate(**how: object) -> float:
        out = made.model.generate(**inputs, max_new_tokens=3, eos_token_id=ends, pad_token_id=0, **how)
        written = made.tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)
        n = len(written) // len(texts)
        answers = [one.answer for one in drawn.evaluation for _ in range(n)]
        return sum(map(problems.is_right, written, answers)) / len(written)

    torch.manual_seed(0)
    assert found.greedy == pytest.approx(rate(do_sample=False))
    # 20 x 100 samples: four standard errors, and the few right answers that start with something else.
    assert found.accuracy == pytest.approx(rate(do_sample=True, num_return_sequences=100), abs=0.04)
    assert 0.2 < found.accuracy < 0.7
    untaught = models.miniature()
    assert problems.measure(untaught.model, untaught.tokenizer, drawn).accuracy < 0.1


# --- arms


@pytest.mark.parametrize("text", [*KINDS, "iif:0.5", "dtv-loo:0.25@lr=0.0005", "grpo@lr=0.01"])
def test_arms_are_written_as_they_are_read(text: str) -> None:
    assert str(arm_of(text)) == text


@pytest.mark.parametrize(
    ("text", "named"), [("ppo", "'ppo' is unknown; choose from grpo"), ("grpo:0.5", "grpo takes no p"),
                        ("iif:2", "above 0"), ("iif@clip=1", "there are lr=X")]
)  # fmt: skip
def test_arms_that_are_none(text: str, named: str) -> None:
    with pytest.raises(RollsightError, match=named):
        arm_of(text)


def test_random_arms_drop_as_many_of_the_same_units() -> None:
    values = torch.tensor([-1.0, 2, -3, 1, -1, -1, 4, 4])
    scores = Scores(values, ids={"group": torch.arange(8) // 2, "round": torch.zeros(8, dtype=torch.long)})
    for kind, units, dropped in (("iif", "record", 4), ("iif-group", "group", 4), ("dtv-loo", "record", 4)):
        chosen, random = (GRPOArm(name).rule(1)(scores) for name in (kind, f"random-{kind}"))
        assert GRPOArm(kind).unit == GRPOArm(f"random-{kind}").unit == units
        assert len(chosen.dropped) == len(random.dropped) == dropped
        assert set(chosen.dropped.tolist()) != set(random.dropped.tolist())


def test_every_scored_arm_goes_by_scores_of_its_own(tmp_path: Path) -> None:
    stored = {}
    for kind in ("iif", "iif-held-out", "dtv-loo"):
        rows = train(arm_of(kind), SMALL, 0, tmp_path / kind, lambda *_: None)
        records = runs.open(tmp_path / kind).records(1).to_pydict()
        name = next(name for name in records if name.startswith("score_"))
        stored[kind] = records[name]
        assert [score >= 0 or not kept for score, kept in zip(records[name], records["kept"], strict=True)]
        assert sum(records["kept"]) == sum(score >= 0 for score in records[name])
        assert {row["round"] for row in rows} == {0, 1, 2}
        assert rows[1]["kept"] == pytest.approx(sum(records["kept"]) / 24)
        assert rows[-1]["score_s"] > 0
    # Less each completion's own part, which is not negative where loss and target agree.
    assert sum(score < 0 for score in stored["dtv-loo"]) >= sum(score < 0 for score in stored["iif"])
    assert stored["iif"] != stored["iif-held-out"]


# --- the study


def arguments(out: Path, *more: str) -> list[str]:
    return [
        "study", "grpo", "--arms", "grpo,iif-held-out", "--seeds", "1", "--rounds", "2", "--task", "products",
        "--model", "miniature", "--held-out", "8", "--evaluation", "20", "--evaluate-every", "1", "--lr", "0.003",
        "--processes", "1", "--out", str(out), *more,
    ]  # fmt: skip


def test_a_study_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    out = tmp_path / "study"
    keep_settings(out, SMALL, "grpo")
    cell = Cell(arm_of("grpo"), 0, SMALL, out)
    store.add(out, KEYS, cell.key, cell.run(lambda *_: None))
    first = store.stored(out, KEYS)["grpo", 0]
    capsys.readouterr()
    assert cli.main(arguments(out)) == 0
    shown = capsys.readouterr().out
    assert "2 runs, 1 of them done" in shown
    assert "| `iif-held-out` | 1 |" in shown
    curves = store.stored(out, KEYS)
    assert all(np.array_equal(curves["grpo", 0][name], column, equal_nan=True) for name, column in first.items())
    files = {"curves.parquet", "settings.json", "results.md", "results.csv", "completions.md", "curves.png"}
    files.add("index.html")
    assert {path.name for path in out.iterdir()} - {".lock"} == {"grpo", "iif-held-out", *files}
    plain, held_out = read_results(out).arms
    found = Curve.of(curves["iif-held-out", 0], PHASES)
    assert found["round"].tolist() == [0, 1, 2]
    assert found["accuracy"][0] == plain.curves[0]["accuracy"][0]
    difference = held_out.measures["final_accuracy"].difference
    assert difference is not None
    assert difference.value == pytest.approx(found["accuracy"][2] - plain.curves[0]["accuracy"][2])
    assert plain.mean("kept") == 1
    assert held_out.mean("kept") < 1
    assert plain.seconds("score") == 0 < held_out.seconds("score")
    with (out / "results.csv").open() as file:
        rows = {(row["arm"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(rows["iif-held-out", "area_accuracy"]["value"]) == pytest.approx(found["accuracy"][1:].mean(), 1e-3)
    assert "seed 0, round 2: lowest scores (held_out)" in (out / "completions.md").read_text()
    capsys.readouterr()
    assert cli.main(arguments(out, "--against", "iif-held-out")) == 0
    assert "the difference to `iif-held-out`, paired by seed" in capsys.readouterr().out
    for more, said in {
        ("--lr", "0.5"): "was started with lr 0.003, not 0.5",
        ("--generations", "1"): "--generations 1 is not possible: give at least 2",
        ("--evaluation", "99"): "leave none to train on",
        ("--only-report", "--show-round", "7"): "has no round 7",
        ("--arms", "ppo"): "'ppo' is unknown",
    }.items():
        assert cli.main(arguments(out, *more)) == 1
        assert said in capsys.readouterr().err
    settings = out / "settings.json"
    for text, said in {'{"reward": "profanity"}': "holds another study", "{": "holds no study"}.items():
        settings.write_text(text)
        assert cli.main(arguments(out, "--only-report")) == 1
        assert said in capsys.readouterr().err
    assert cli.main(["study", "grpo", "--only-report", "--out", str(tmp_path / "none")]) == 1
    assert "holds no study" in capsys.readouterr().err
