"""Causal language models as policies: log-probabilities, positions, padding, and what is refused."""

import pytest
import torch

pytest.importorskip("peft")

import language_zoo as lz
from peft import PromptTuningConfig, get_peft_model

import rollsight as rs
from rollsight.language import Completions, completion_records


def of_one(model, records, i, temperature):
    """Record i's token log-probabilities without any padding, by the model's whole logits."""
    tokens = records.obs["input_ids"][i][records.obs["attention_mask"][i].bool()]
    length = int(records.valid[i].sum())
    if not length:
        return torch.zeros(0)
    log_probs = (model(tokens[None]).logits[0] / temperature).log_softmax(-1)
    return log_probs[-length - 1 : -1].gather(1, tokens[-length:, None])[:, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", lz.MODELS)
def test_log_probabilities_are_those_of_the_models_own_logits_without_padding(name, attention):
    case = lz.language(name, attention=attention)
    policy, records = case.policy, case.records
    evaluation = rs.Policy(policy.module, Completions(temperature=0.7, entropy=True))(records)
    assert evaluation.log_prob.shape == evaluation.entropy.shape == records.valid.shape
    for i in range(len(records)):
        expected = of_one(policy.module, records, i, 0.7)
        assert torch.allclose(evaluation.log_prob[i, : len(expected)], expected, atol=2e-5), i


def test_the_whole_logits_give_the_same_bits():
    case = lz.language("llama-lora")
    obs, actions = case.records.obs, case.records.actions
    positions = (obs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    logits = case.policy.module(**obs, position_ids=positions).logits[:, lz.PROMPT - 1 : -1] / 0.9
    expected = logits.log_softmax(-1).gather(2, actions[..., None])[..., 0]
    assert torch.equal(case.policy(case.records).log_prob, expected)


def test_the_head_gets_no_strided_slice():
    case, seen = lz.language("llama"), []
    case.policy.module.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    case.policy(case.records)
    assert [tuple(x.shape) for x in seen] == [(6, lz.COMPLETION, 32)]
    assert seen[0].is_contiguous()


def test_entropies_are_of_the_tempered_distribution():
    case = lz.language("llama")
    evaluation = rs.Policy(case.policy.module, Completions(temperature=2.0, entropy=True))(case.records)
    logits = rs.language.completion_logits(case.policy.module, *case.records.obs.values(), lz.COMPLETION)
    expected = torch.distributions.Categorical(logits=logits / 2.0).entropy()
    assert torch.allclose(evaluation.entropy, expected, atol=1e-5)
    assert case.policy(case.records).entropy is None


def test_a_policy_in_float64_stays_in_float64():
    assert (
        lz.language("llama", dtype=torch.float64).policy(lz.language("llama").records).log_prob.dtype == torch.float64
    )


def test_records_of_completions():
    prompts, completions = torch.tensor([[0, 7], [8, 9]]), torch.tensor([[1, 2, 3], [4, 0, 0]])
    masks = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    ids = {"group": torch.tensor([5, 5])}
    records = completion_records(
        prompts, masks[0], completions, masks[1], torch.zeros(2, 3), torch.ones(2), rewards=[1.0, 2.0], ids=ids
    )
    assert records.obs["input_ids"].tolist() == [[0, 7, 1, 2, 3], [8, 9, 4, 0, 0]]
    assert records.obs["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert records.valid.tolist() == [[True] * 3, [True, False, False]]
    assert records.rewards.tolist() == [1.0, 2.0]
    assert records.ids["group"].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("prompt", "mask", "completion", "message"),
    [
        ((2, 3), (2, 4), (2, 5), r"prompts \(2, 3\) with mask \(2, 4\)"),
        ((3,), (3,), (2, 5), r"give \(N, P\) and \(N, T\)"),
        ((2, 0), (2, 0), (2, 5), "prompts have 0 and completions 5 columns"),
        ((2, 3), (2, 3), (2, 0), "prompts have 3 and completions 0 columns"),
        ((1, 3), (1, 3), (2, 5), "1 prompts and 2 completions"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(prompt, mask, completion, message):
    ones = [torch.ones(shape, dtype=torch.long) for shape in (prompt, mask, completion, completion)]
    with pytest.raises(rs.RollsightError, match=message):
        completion_records(*ones, torch.zeros(completion), torch.zeros(2))


def test_a_sequence_longer_than_the_context_is_an_error():
    case = lz.language("gpt2")
    with pytest.raises(rs.RollsightError, match="take 65 tokens but the model's context has 64"):
        rs.language.completion_logits(case.policy.module, *torch.ones(2, 1, 65, dtype=torch.long), 5)


def test_virtual_prompt_tokens_are_refused():
    model = get_peft_model(lz.llama(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(rs.RollsightError, match="virtual prompt tokens are not covered"):
        rs.Policy(model, Completions())(lz.language("llama").records)


def test_a_temperature_of_zero_is_an_error():
    with pytest.raises(rs.RollsightError, match=r"temperature is 0\.0"):
        Completions(0.0)
