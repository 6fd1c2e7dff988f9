"""Scores of language models' completions: every backend against the loop, one pass against two, precision, memory."""

import pytest
import torch

pytest.importorskip("peft")

import language_zoo as lz
import zoo
from torch import nn
from torch.utils.checkpoint import checkpoint

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg
from rollsight.scoring import Forward, one_pass
from rollsight.scoring.ranks import spearman


def targets(case):
    held_out = lz.completions(case.policy, 4, seed=7)
    return [tg.Return(), tg.Sequence(), tg.Reward(), tg.Objective(), tg.Sequence(held_out), tg.Reward(held_out)]


def errors(case, target, objective, **options):
    """Of values and tokens, relative to the loop's largest."""
    expected = rs.score_records(case.policy, case.records, target, objective, backend="oracle")
    scores = rs.score_records(case.policy, case.records, target, objective, **options)
    tokens = 0.0 if scores.tokens is None else zoo.relative_error(scores.tokens, expected.tokens)
    return scores, zoo.relative_error(scores.values, expected.values), tokens


# --- exactness


@pytest.mark.parametrize("name", lz.MODELS)
def test_every_backend_equals_the_loop(name):
    """sdpa; LoRA and full fine-tuning, tied embeddings, left padding, an empty completion, ratios off 1."""
    case = lz.language(name)
    for target in targets(case)[:: 1 if name == "llama-lora" else 4]:
        auto, error, _ = errors(case, target, ob.PPO())
        assert (auto.backend, auto.tokens) == ("layerwise", None)
        assert error < 1e-5, target.name
        for backend in ("jvp", "double_backward"):
            scores, error, of_tokens = errors(case, target, ob.PPO(), backend=backend)
            assert max(error, of_tokens) < 1e-5, (target.name, backend)
            assert scores.tokens.shape == case.records.valid.shape
            assert torch.allclose(scores.tokens.sum(1), scores.values, atol=1e-6)
            assert float(scores.tokens[~case.records.valid].abs().sum()) == 0
        assert float(auto.values[3]) == 0, "the empty completion"


def test_tokens_sequences_and_groups_come_from_one_pass():
    case = lz.language("llama-lora")
    scores = rs.score_records(case.policy, case.records, tg.Reward(), backend="jvp")
    assert torch.allclose(scores.sum_by("group"), scores.tokens.sum(1).view(3, 2).sum(1))
    selection = rs.selection.DropNegative(1.0, unit="group")(scores)
    dropped = {int(i) // 2 for i in selection.dropped}
    assert dropped == {g for g, total in enumerate(scores.sum_by("group").tolist()) if total < 0}


def test_a_weight_is_named_that_is_also_used_outside_its_layer():
    case = lz.language("llama-lora")

    def evaluate(module, obs, actions):
        e = case.policy.evaluate(module, obs, actions)
        adapter = next(p for name, p in module.named_parameters() if "lora_B" in name)
        return e._replace(log_prob=e.log_prob + adapter.square().sum())

    policy = rs.Policy(case.policy.module, evaluate)
    for chunk_size in (None, 4):
        with pytest.raises(rs.RollsightError, match=r"lora_B\.default\.weight'.*used outside its layer"):
            rs.score_records(policy, case.records, tg.Sequence(), backend="layerwise", chunk_size=chunk_size)
        assert rs.score_records(policy, case.records, tg.Sequence(), chunk_size=chunk_size).backend == "jvp"


def test_activation_checkpointing_changes_nothing():
    """Non-reentrant, active while scoring: the layers are called again in the backward."""
    case = lz.language("llama-lora-all")

    def evaluate(module, obs, actions):
        log_prob = checkpoint(lambda: case.policy.evaluate(module, obs, actions).log_prob, use_reentrant=False)
        return rs.Evaluation(log_prob)

    for chunk_size in (None, 4):
        expected = rs.score_records(case.policy, case.records, chunk_size=chunk_size).values
        policy = rs.Policy(case.policy.module, evaluate)
        scores = rs.score_records(policy, case.records, backend="layerwise", chunk_size=chunk_size)
        assert zoo.relative_error(scores.values, expected) < 1e-6


def test_a_model_set_to_checkpoint_while_it_trains_is_scored_and_left_so():
    case = lz.language("llama-lora")
    expected = rs.score_records(case.policy, case.records).values
    model = case.policy.module
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert zoo.relative_error(rs.score_records(case.policy, case.records).values, expected) < 1e-6
    assert model.training
    assert model.is_gradient_checkpointing


def test_lora_dropout_is_off_while_scoring():
    case = lz.language("gpt2-lora")
    expected = rs.score_records(case.policy, case.records).values
    case.policy.module.train()
    dropouts = [part for part in case.policy.module.modules() if isinstance(part, nn.Dropout) and part.p > 0]
    assert dropouts
    for backend in ("layerwise", "jvp"):
        scores = rs.score_records(case.policy, case.records, backend=backend).values
        assert zoo.relative_error(scores, expected) < 1e-5
    assert all(part.training for part in dropouts)


# --- bfloat16


@pytest.mark.parametrize("name", ["llama-lora-all", "llama-tied"])
def test_bfloat16_ranks_as_float32_does(name):
    """A bfloat16 base under float32 adapters, and full fine-tuning in bfloat16, against the same weights in float32.
    (On the policy: near the clip, rounding puts a token on either side of it.)"""
    case = lz.language(name)
    halved = [p for p in case.policy.module.parameters() if name == "llama-tied" or not p.requires_grad]
    for parameter in halved:
        parameter.data = parameter.data.bfloat16().float()
    case = lz.Language(case.policy, lz.completions(case.policy, 32, seed=1, shift=0.0))
    expected = rs.score_records(case.policy, case.records, tg.Sequence(), backend="oracle").values
    for parameter in halved:
        parameter.data = parameter.data.bfloat16()
    for backend in ("layerwise", "jvp"):
        scores = rs.score_records(case.policy, case.records, tg.Sequence(), backend=backend).values
        assert scores.dtype == torch.float32
        assert spearman(scores, expected) > 0.99, backend
        assert zoo.relative_error(scores, expected) < 0.1, backend


def test_directions_are_summed_in_float32():
    """256 equal chunks: their bfloat16 sum would stall long before."""
    from rollsight.scoring.gradients import gradient

    policy = rs.Policy(nn.Linear(1, 1, bias=False).bfloat16(), lambda m, x, a: rs.Evaluation(m(x)[:, 0].float()))
    records = rs.Records(torch.ones(512, 1, dtype=torch.bfloat16), torch.zeros(512), torch.zeros(512), torch.ones(512))
    direction = gradient(policy, records, lambda e, r: e.log_prob, 1, chunk_size=1)
    assert float(direction["weight"]) == 512
    assert direction["weight"].dtype == torch.float32


# --- one pass


class Counted:
    """A policy that notes the records of each forward, and how many backwards each has."""

    def __init__(self, policy):
        self.forwards, self.backwards = [], []
        self.policy = rs.Policy(policy.module, lambda *arguments: self._noted(policy.evaluate(*arguments)))

    def _noted(self, evaluation):
        if evaluation.log_prob.requires_grad:
            own = len(self.forwards)
            self.forwards.append(len(evaluation.log_prob))
            self.backwards.append(0)
            evaluation.log_prob.register_hook(lambda _: self._pulled(own))
        return evaluation

    def _pulled(self, forward):
        self.backwards[forward] += 1


@pytest.mark.parametrize("chunk_size", [6, 2])
@pytest.mark.parametrize(
    ("per_token", "shift", "target", "objective", "backwards"),
    [
        (False, 0.0, tg.Sequence(), ob.PPO(), 1),
        (False, 0.0, tg.Return(), ob.PPO("raw"), 1),
        (False, 0.0, tg.Reward(), ob.PPO(), 1),
        (False, 0.1, tg.Objective(), ob.PPO(), 1),
        (True, 0.0, tg.Return(), ob.PPO("raw"), 1),
        (True, 0.1, tg.Objective(), ob.PPO(), 1),
        (False, 0.1, tg.Sequence(), ob.PPO(), 2),
        (True, 0.0, tg.Sequence(), ob.PPO(), 2),
        (True, 0.0, tg.Return(), ob.PPO(), 2),
        (False, 0.0, tg.Sequence(), ob.PPO(entropy=0.1), 1),  # estimated by -log pi
    ],
)
def test_one_forward_gives_direction_and_scores(per_token, shift, target, objective, backwards, chunk_size):
    """One backward is enough where target and loss pull a sequence's tokens alike."""
    case = lz.language("llama-lora")
    records = lz.completions(case.policy, 6, 3, shift=shift, empty=False)
    records = records if per_token else records.with_advantages(torch.randn(6))
    expected = rs.score_records(case.policy, records, target, objective, backend="oracle").values
    rs.score_records(case.policy, records, target, objective)  # the first call looks at the module, with one record
    counted = Counted(case.policy)
    scores = rs.score_records(counted.policy, records, target, objective, backend="layerwise", chunk_size=chunk_size)
    assert counted.forwards == [chunk_size] * (6 // chunk_size)
    assert counted.backwards == [backwards] * (6 // chunk_size)
    assert zoo.relative_error(scores.values, expected) < 1e-5


def test_rows_without_a_pull_on_the_target_are_scored_in_one_pass():
    """A sequence of advantage 0: normalisation makes it another one in the loss."""
    case = lz.language("llama-lora")
    advantages = torch.randn(6)
    advantages[1] = 0
    records = lz.completions(case.policy, 6, 3, shift=0.0, empty=False).with_advantages(advantages)
    expected = rs.score_records(case.policy, records, tg.Sequence(), backend="oracle").values
    rs.score_records(case.policy, records)  # the first call looks at the module, with one record
    for chunk_size in (6, 2):
        counted = Counted(case.policy)
        scores = rs.score_records(counted.policy, records, tg.Sequence(), backend="layerwise", chunk_size=chunk_size)
        assert zoo.relative_error(scores.values, expected) < 1e-5
        assert counted.backwards == [1] * (6 // chunk_size)
    assert abs(float(expected[1])) > 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize("chunk_size", [6, 2])
def test_sequences_of_another_length_need_no_second_look(chunk_size):
    case = lz.language("llama-lora")
    rs.score_records(case.policy, case.records)
    longer = case.records.take(case.records.valid_rows.nonzero().flatten())
    shorter = rs.Records(
        {name: column[:, 1:] for name, column in longer.obs.items()},
        longer.actions,
        longer.log_probs,
        longer.advantages,
        valid=longer.valid,
    )
    expected = rs.score_records(case.policy, shorter, backend="oracle").values
    counted = Counted(case.policy)
    scores = rs.score_records(counted.policy, shorter, backend="layerwise", chunk_size=chunk_size)
    assert counted.forwards == [len(part) for part in torch.arange(len(shorter)).split(chunk_size)]
    assert zoo.relative_error(scores.values, expected) < 1e-5


@pytest.mark.parametrize("sizes", [[6], [2, 4]])
@pytest.mark.parametrize("per_token", [False, True])
def test_a_forward_that_is_there_is_not_made_again(per_token, sizes):
    case = lz.language("llama-lora")
    records = lz.completions(case.policy, 6, 3, shift=0.0, empty=False)
    records = records if per_token else records.with_advantages(torch.randn(6))
    expected = rs.score_records(case.policy, records, tg.Sequence(), backend="oracle").values
    rs.score_records(case.policy, records)  # the first call looks at the module, with one record
    counted = Counted(case.policy)
    policy = counted.policy
    forward = Forward(policy)
    parts = [forward.extend(records.take(rows)) for rows in torch.arange(6).split(sizes)]
    assert torch.equal(torch.cat([part.log_prob for part in parts]), records.log_probs)
    assert not any(part.log_prob.requires_grad for part in parts)
    scores = rs.score_records(policy, records, tg.Sequence(), forward=forward)
    assert counted.forwards == sizes
    assert zoo.relative_error(scores.values, expected) < 1e-5
    with pytest.raises(rs.RollsightError, match="was used already"):
        rs.score_records(policy, records, tg.Sequence(), forward=forward)


def test_a_forward_of_something_else_is_refused():
    case, other = lz.language("llama-lora"), lz.language("llama-lora")
    records = lz.completions(case.policy, 6, 3, shift=0.0, empty=False)
    forward = Forward(case.policy)
    forward.extend(records.take(slice(0, 4)))
    with pytest.raises(rs.RollsightError, match="of 4 records and the buffer has 6"):
        rs.score_records(case.policy, records, forward=forward)
    forward.extend(records.take(slice(4, 6)))
    with pytest.raises(rs.RollsightError, match="another one"):
        rs.score_records(other.policy, records, forward=forward)
    with torch.no_grad():
        next(iter(case.policy.trainable().values())).mul_(1.5)
    with pytest.raises(rs.RollsightError, match="trained since"):
        rs.score_records(case.policy, records, forward=forward)


def test_a_forward_plays_no_part_where_rows_are_left_out():
    case = lz.language("llama-lora")
    records = lz.completions(case.policy, 6, 3, shift=0.0, empty=True)
    assert not records.valid_rows.all()
    forward = Forward(case.policy)
    forward.extend(records)
    expected = rs.score_records(case.policy, records)
    assert torch.equal(rs.score_records(case.policy, records, forward=forward).values, expected.values)


@pytest.mark.parametrize("name", ["llama-lora", "gpt2"])
def test_where_the_gradients_do_not_fit_two_passes_give_the_same(name, monkeypatch):
    """llama-lora: too many; gpt2: layers other than Linear, whose records' gradients are not formed."""
    case = lz.language(name)
    records = case.records.with_advantages(torch.randn(6))
    expected = rs.score_records(case.policy, records, tg.Sequence(), backend="oracle").values
    rs.score_records(case.policy, records)  # the first call looks at the module, with one record
    monkeypatch.setattr(one_pass, "MOST_GRADIENTS", 1)
    counted = Counted(case.policy)
    scores = rs.score_records(counted.policy, records, tg.Sequence(), backend="layerwise", chunk_size=2)
    chunks = [len(part) for part in torch.arange(int(records.valid_rows.sum())).split(2)]
    assert counted.forwards == 2 * chunks
    assert zoo.relative_error(scores.values, expected) < 1e-5


# --- second moments


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("per_token", [False, True])
def test_second_moments_divide_the_direction(kind, per_token):
    case = lz.language("llama-lora", dtype=torch.float64)
    records = lz.completions(case.policy, 6, 3, shift=0.0)
    records = records if per_token else records.with_advantages(torch.randn(6))
    optimizer = kind(case.policy.trainable().values(), lr=1e-3)
    case.policy(records).log_prob.sum().backward()
    optimizer.step()
    expected = rs.score_records(case.policy, records, tg.Sequence(), backend="oracle", optimizer=optimizer).values
    plain = rs.score_records(case.policy, records, tg.Sequence()).values
    for backend, chunk_size in (("layerwise", None), ("layerwise", 2), ("jvp", None)):
        scores = rs.score_records(
            case.policy, records, tg.Sequence(), backend=backend, optimizer=optimizer, chunk_size=chunk_size
        )
        assert zoo.relative_error(scores.values, expected) < 1e-5
        assert (zoo.relative_error(scores.values, plain) < 1e-5) == (kind is torch.optim.SGD)


# --- defaults


def test_the_default_chunk_counts_the_prompts():
    from rollsight.scoring.problem import default_chunk_size

    records = lz.language("llama").records
    assert default_chunk_size(records) == 1024 // (lz.PROMPT + lz.COMPLETION)
