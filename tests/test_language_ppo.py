"""PPO for language models: the update and the selection."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

from language_trainer import assert_same, parameters, trainer

from rollsight import distributed, language
from rollsight.errors import RollsightError
from rollsight.scoring import Scores
from rollsight.training.language import ppo, terms

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
    ours.step(records, torch.arange(len(records)))
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
        loss = sum(term.sum() for term in terms.losses(evaluation, part, ours.options))
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


@pytest.mark.parametrize("target", ["sequence", "return"])
def test_a_shared_forward_changes_nothing_but_the_work(target, monkeypatch):
    made = []
    evaluate = language.Completions.__call__
    monkeypatch.setattr(language.Completions, "__call__", lambda *given: made.append(1) or evaluate(*given))
    counts, ended = [], []
    for share in (False, True):
        ours = trainer(target=target, share_forward=share)
        ours.train_round()  # the first round looks at the module, with one record
        made.clear()
        ours.train_round()
        counts.append(len(made))
        ended.append(parameters(ours))
        assert ours._forward is None
    assert counts[0] - counts[1] == 2  # 8 completions in micro-batches of 4
    for name in ended[0]:
        torch.testing.assert_close(ended[1][name], ended[0][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changed", [{"target": None}, {"cross_fit": True}, {"rescore": "minibatch"}])
def test_a_forward_is_shared_only_where_it_can_be(changed):
    with pytest.raises(RollsightError, match="nothing to share"):
        trainer(share_forward=True, **changed)


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
        rollout = ours.collect()
        records = rollout.records
        if spoil:
            changed = {
                name: getattr(records, name).clone() for name in ("advantages", "returns", "actions", "log_probs")
            }
            for column in changed.values():
                column[gone] = 17
            records = replace(records, **changed)
        update = ours.optimise(replace(rollout, records=records))
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
    assert distributed.size() == 2
    torch.distributed.destroy_process_group()
