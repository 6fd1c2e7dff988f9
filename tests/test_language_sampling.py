"""Completions are drawn from the distribution that is scored, each from a random stream of its own."""

import copy
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")

from language_trainer import PROMPTS, options, vowels
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

import rollsight as rs
from rollsight import language
from rollsight.errors import OptionError
from rollsight.training.language import models, ppo, sampling
from rollsight.training.language.policy import ActorCritic
from rollsight.training.language.settings import Sampling

SAMPLINGS = {
    "plain": Sampling(),
    "colder": Sampling(temperature=0.7),
    "hotter": Sampling(temperature=1.6),
    "top-k": Sampling(top_k=5),
    "top-p": Sampling(top_p=0.8),
    "all": Sampling(temperature=0.8, top_p=0.9, top_k=20),
}
# What instruct models ship, and the rest of what changes a distribution.
INTERFERING = {
    "repetition_penalty": 2.5,
    "min_new_tokens": 6,
    "suppress_tokens": [5, 9, 40],
    "no_repeat_ngram_size": 2,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "typical_p": 0.5,
    "min_p": 0.1,
    "bad_words_ids": [[12]],
    "forced_eos_token_id": 0,
    "renormalize_logits": True,
    "sequence_bias": [[[3], -9.0]],
    "num_beams": 2,
}


def policy(sampled=None, **entries):
    loaded = models.miniature()
    for name, value in entries.items():
        setattr(loaded.model.generation_config, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ActorCritic(loaded, 2, 0, sampled)


def trainer(sampled=None, **changed):
    return ppo.LanguagePPO(policy(sampled), PROMPTS, vowels, options(**changed), 0)


def surprise(before, records):
    """-log p - H of every sampled token, under the policy that wrote them."""
    evaluate = language.Completions(before.sampling.temperature, entropy=True)
    with torch.no_grad():
        found = rs.Policy(before.language_model, evaluate)(records)
    torch.testing.assert_close(found.log_prob[records.valid], records.log_probs[records.valid], atol=1e-5, rtol=1e-5)
    return -(found.log_prob + found.entropy)[records.valid].double()


# --- the distribution


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_samples_log_probabilities_are_those_of_its_distribution(name):
    acting = policy(SAMPLINGS[name], **INTERFERING)
    before = copy.deepcopy(acting)
    asked = options(prompts_per_round=200, max_new_tokens=12, micro_batch=100, minibatch=100, epochs=1, target="none")
    rollout = ppo.LanguagePPO(acting, PROMPTS, vowels, asked, 0).train_round()[0]
    excess = surprise(before, rollout.records)
    assert abs(float(excess.mean())) < 3 * float(excess.std()) / len(excess) ** 0.5
    if not acting.sampling.truncated:  # else no text may end early anyway
        assert int((rollout.records.valid.sum(1) < 6).sum()) > 0  # min_new_tokens is not obeyed
    assert len(set(rollout.texts)) > 100


def test_a_repetition_penalty_is_not_sampled_with():
    """Long completions, in which characters come again."""
    acting = policy(repetition_penalty=1.5)
    before = copy.deepcopy(acting)
    asked = options(prompts_per_round=300, max_new_tokens=24, micro_batch=100, minibatch=100, epochs=1, target="none")
    excess = surprise(before, ppo.LanguagePPO(acting, PROMPTS, vowels, asked, 0).train_round()[0].records)
    assert abs(float(excess.mean())) < 3 * float(excess.std()) / len(excess) ** 0.5  # with it, 6.6


@pytest.mark.parametrize("name", ["colder", "top-p", "all"])
def test_held_out_completions_are_of_the_same_distribution(name):
    ours = ppo.LanguagePPO(policy(SAMPLINGS[name], **INTERFERING), PROMPTS, vowels, options(max_new_tokens=12), 0)
    asked = PROMPTS * (2 if ours.policy.sampling.truncated else 12)
    _, _, lengths, kl = ours.sample(asked)
    assert bool((kl == 0).all())  # the policy is the reference still
    assert ours.policy.sampling.truncated or bool((lengths < 6).any())
    ours.train_round()
    assert bool((ours.sample(PROMPTS)[3] != 0).any())


@pytest.mark.parametrize("name", ["top-k", "top-p", "all"])
def test_the_support_is_what_transformers_would_keep(name):
    chosen = SAMPLINGS[name]
    logits = torch.randn(7, 97) * 3
    theirs = LogitsProcessorList()
    if chosen.top_k:
        theirs.append(TopKLogitsWarper(chosen.top_k))
    if chosen.top_p < 1:
        theirs.append(TopPLogitsWarper(chosen.top_p))
    kept = sampling.support(logits, chosen)
    assert torch.equal(kept, theirs(None, logits.clone()) > -torch.inf)
    packed = language.pack_support(kept)
    assert packed.shape == (7, 13)
    inside = language.within_support(logits, packed).log_softmax(-1)
    torch.testing.assert_close(inside[kept], logits.masked_fill(~kept, -torch.inf).log_softmax(-1)[kept])
    assert float(inside.exp()[~kept].sum()) == 0


def test_a_token_without_probability_is_never_sampled():
    logits = torch.full((1, 6), -torch.inf)
    logits[0, [2, 4]] = 0.0
    for draw in (1e-17, 0.25, 0.5, 0.500001, 1.0):
        chosen = sampling.Sampler(Sampling(), [(0,)], width=0, length=1)
        chosen._draws[:] = draw
        token = int(chosen(torch.zeros(1, 0), logits).argmax())
        assert token == (2 if draw <= 0.5 else 4)


def test_scores_within_a_support_are_exact():
    ours = trainer(SAMPLINGS["all"], prompts_per_round=6)
    ours.train_round()
    found = []
    original = ppo.score_records
    try:
        ppo.score_records = lambda *given, **named: found.append((given, named)) or original(*given, **named)
        before = copy.deepcopy(ours.policy)
        ours.train_round()
    finally:
        ppo.score_records = original
    (_, records, target, objective), _ = found[0]
    assert "support" in records.obs
    slow = rs.score_records(before.actor, records, target, objective, backend="oracle").values
    for backend in ("layerwise", "double_backward"):
        fast = rs.score_records(before.actor, records, target, objective, backend=backend).values
        torch.testing.assert_close(fast, slow, atol=1e-5 * float(slow.abs().max()), rtol=0)
    unmasked = dict(records.obs)
    del unmasked["support"]
    without = rs.Records(unmasked, records.actions, records.log_probs, records.advantages, valid=records.valid)
    other = rs.score_records(before.actor, without, target, objective, backend="oracle").values
    assert float((other - slow).abs().max()) > 1e-2 * float(slow.abs().max())


def test_ratios_start_at_one_within_the_support():
    ours = trainer(SAMPLINGS["top-p"], epochs=1, minibatch=8, target="none")
    for _ in range(2):
        statistics = ours.train_round()[1].statistics
    assert abs(statistics["approx_kl"]) < 1e-6  # one step, taken where the completions were sampled
    assert statistics["clip_fraction"] == 0


def test_what_is_set_aside_is_said_once_by_name():
    loaded = models.miniature()
    for name, value in {"repetition_penalty": 1.1, "min_new_tokens": 6, "top_k": 0, "temperature": 1.0}.items():
        setattr(loaded.model.generation_config, name, value)
    with pytest.warns(UserWarning, match=r"sets .*not applied") as caught:
        ActorCritic(loaded, 2, 0).generate(["Hello"], 3, 0)
    (text,) = [str(one.message) for one in caught if "generation_config" in str(one.message)]
    assert "repetition_penalty=1.1" in text
    assert "min_new_tokens=6" in text
    assert "top_k=" not in text
    assert loaded.model.generation_config.repetition_penalty == 1.1  # the user's model is left as it was
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ActorCritic(models.miniature(), 2, 0)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"temperature": 0}, "temperature=0"), ({"top_p": 0.0}, "top_p=0.0 is not a probability"),
     ({"top_p": 1.5}, "top_p=1.5"), ({"top_k": -1}, "top_k=-1"), ({"temperature": float("nan")}, "temperature=nan")],
)  # fmt: skip
def test_samplings_that_make_no_sense(changed, sentence):
    with pytest.raises(OptionError, match=sentence):
        Sampling(**changed)


# --- random streams


@pytest.mark.parametrize("name", ["plain", "all"])
def test_the_micro_batch_changes_no_completion(name):
    found = []
    for size in (3, 16):
        ours = trainer(SAMPLINGS[name], micro_batch=size, prompts_per_round=16, epochs=1, max_new_tokens=8)
        evaluated = ours.sample(PROMPTS)[0]
        rollouts = [ours.train_round()[0] for _ in range(2)]
        found.append((evaluated, rollouts))
    for evaluated, rollouts in found[1:]:
        assert evaluated == found[0][0]
        for mine, first in zip(rollouts, found[0][1], strict=True):
            assert mine.texts == first.texts
            torch.testing.assert_close(mine.records.log_probs, first.records.log_probs, atol=1e-4, rtol=0)


def test_a_completion_does_not_depend_on_the_others_of_its_batch():
    acting = policy()
    together = acting.generate(list(PROMPTS), 8, (3, 1, 0))
    for i, prompt in enumerate(PROMPTS):
        alone = acting.generate([prompt], 8, (3, 1, i))
        n = int(alone[3].sum())
        assert torch.equal(alone[2][0, :n], together[2][i, :n])
        assert int(together[3][i].sum()) == n
    repeated = acting.generate([PROMPTS[0]] * 8, 8, 5)[2]
    assert len({tuple(row.tolist()) for row in repeated}) == 8


def test_sampling_leaves_global_random_streams_alone():
    acting = policy(SAMPLINGS["all"])
    torch.manual_seed(4)
    np.random.seed(4)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(4)
    np.random.seed(4)
    acting.generate(list(PROMPTS), 5, 0)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
