"""TRL: scores from training's own backward are those of a pass of their own, and dropping by them is training without
the rows; nothing dropped is training without `attach`, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from trl_zoo import digits, dropping, gradient, lora, parameters, trainer

import rollsight as rs
from rollsight import runs
from rollsight.adapters.trl import attach
from rollsight.adapters.trl.in_backward import ROWS
from rollsight.adapters.trl.loss import KEPT, SCALE, leave_out
from rollsight.scoring.in_backward import RecordGradients
from rollsight.scoring.layers import Layers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


def made(folder: Any, algorithm: str = "grpo", **changes: Any) -> Any:
    """A trainer of an adapter that has moved off B = 0, where LoRA starts and A has no gradient."""
    trained = trainer(folder, algorithm, lora=changes.pop("adapter", None) or lora(), **{"max_steps": 1} | changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in trained.model.named_parameters():
            if "lora_B" in name:
                p.add_(0.05 * torch.randn_like(p))
    return trained


def watched(trained: Any, look: Callable[[Any, Any], None], **options: Any) -> Any:
    """Trains with scores from training itself; `look(attachment, window)` sees each step right after them."""
    attachment = attach(trained, scoring="in_backward", **options)
    finish = attachment._finish_in_backward

    def finished(window: Any) -> None:
        finish(window)
        look(attachment, window)

    attachment._finish_in_backward = finished
    trained.train()
    return attachment


def differences(trained: Any, attachment: Any, window: Any) -> dict[str, float]:
    """Of the scores to those of a pass of their own, at the same parameters and on the same completions."""
    found = {}
    for target in attachment._scoring.targets:
        expected = attachment._scoring.of(trained, window.found, target, attachment.round)
        assert expected.backend == "layerwise"
        assert expected.values.abs().max() > 0
        scores = attachment.scores[target.name]
        assert torch.equal(scores.valid, expected.valid)
        found[target.name] = float((scores.values - expected.values).abs().max() / expected.values.abs().max())
    return found


@pytest.mark.parametrize(
    ("algorithm", "changes", "options"),
    [
        ("grpo", {"loss_type": "grpo"}, {}),
        ("grpo", {"loss_type": "dapo", "temperature": 0.7, "mask_truncated_completions": True}, {}),
        ("grpo", {"loss_type": "sapo", "activation_checkpointing": True}, {}),
        ("grpo", {"loss_type": "vespo", "adapter": lora(bias="lora_only", target_modules=["q_proj", "up_proj"])}, {}),
        ("grpo", {"loss_type": "luspo", "importance_sampling_level": "sequence"}, {}),
        ("grpo", {"loss_type": "dr_grpo", "max_steps": 2}, {"precondition": True}),
        ("grpo", {"loss_type": "cispo"}, {"leave_self_out": True}),
        ("rloo", {}, {}),
    ],
    ids=["grpo", "dapo, truncated", "checkpointing", "biases", "sequence-level", "moments", "leave self out", "rloo"],
)
def test_scores_are_those_of_a_pass_of_their_own(tmp_path: Any, algorithm: str, changes: Any, options: Any) -> None:
    trained, found = made(tmp_path, algorithm, **changes), []
    attachment = watched(
        trained,
        lambda attachment, window: found.append(differences(trained, attachment, window)),
        target=["sequence", "return", "objective"],
        **options,
    )
    assert {scores.backend for scores in attachment.scores.values()} == {"in_backward"}
    assert attachment.round == len(found)
    # Without its own part a completion's score is a difference of larger numbers; a moment's root divides by small ones
    assert max(found[-1].values()) < (1e-5 if options else 1e-6)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "bnpo", "rloo"])
def test_the_step_takes_the_gradient_of_the_kept(tmp_path: Any, loss: str) -> None:
    """That of TRL's loss over micro-batches that leave the rows out before the forward."""
    algorithm = "rloo" if loss == "rloo" else "grpo"
    trained = made(tmp_path, algorithm, **({} if loss == "rloo" else {"loss_type": loss}))
    compared: list[float] = []

    def look(attachment: Any, window: Any) -> None:
        found = torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.grad is not None])
        kept = attachment._kept(window.found)
        assert (~kept).nonzero().flatten().tolist() == [1, 2, 5]
        marked = leave_out(window.batch, kept, window.tokens, window.found.own, loss)
        shared = {name: marked[name] for name in (SCALE, "num_items_in_batch") if name in marked}
        micro = [{**batch, KEPT: kept[batch[ROWS]], **shared} for batch in trained._buffered_inputs]
        expected = gradient(trained, micro)
        trained.model.zero_grad()
        compared.append(float((found - expected).norm() / expected.norm()))

    watched(trained, look, selection=dropping(1, 2, 5))
    assert len(compared) == 1
    assert compared[0] < 1e-6


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_nothing_dropped_is_plain_trl_bit_by_bit(tmp_path: Any, algorithm: str) -> None:
    stock = made(tmp_path / "stock", algorithm, max_steps=3)
    stock.train()
    scored = made(tmp_path / "scored", algorithm, max_steps=3)
    start = parameters(scored)
    attachment = attach(scored, scoring="in_backward", drop=0.0)
    scored.train()
    assert attachment.round == 3
    assert attachment.scores["sequence"].backend == "in_backward"
    assert not torch.equal(parameters(scored), start)
    assert torch.equal(parameters(scored), parameters(stock))
    norms = [[line["grad_norm"] for line in one.state.log_history if "grad_norm" in line] for one in (stock, scored)]
    assert norms[0] == norms[1]


def test_mixed_precision_with_checkpointing(tmp_path: Any) -> None:
    """TRL's defaults: the same training, bit by bit, and completions ranked as by a pass of their own."""
    changes = {"per_device_train_batch_size": 16, "bf16": True, "activation_checkpointing": True}
    stock = made(tmp_path / "stock", **changes)
    stock.train()
    scored = made(tmp_path / "scored", **changes)
    ranks: list[torch.Tensor] = []

    def look(attachment: Any, window: Any) -> None:
        passed = attachment._scoring.of(scored, window.found, attachment._scoring.targets[0], 1)
        ranks.extend(one.values.argsort().argsort().double() for one in (attachment.scores["sequence"], passed))

    attachment = watched(scored, look)
    assert attachment.scores["sequence"].backend == "in_backward"
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.99
    assert torch.equal(parameters(scored), parameters(stock))


def test_dropping_by_scores_trains_as_a_drop_before_training(tmp_path: Any) -> None:
    """24 completions in 3 micro-batches, through clipping and optimiser, round after round."""
    changes = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.1}
    options = {"drop": 0.5, "leave_self_out": True}
    ends, dropped = [], []
    for way in ("in_backward", "own_pass"):
        trained = made(tmp_path / way, max_steps=3, max_grad_norm=0.5, **changes)
        attachment = attach(trained, scoring=way, **options)
        trained.train()
        ends.append(parameters(trained))
        dropped.append(attachment.selection.dropped.tolist())
        assert [line["influence/kept_frac"] < 1 for line in trained.state.log_history[:3]] == [True] * 3
    assert dropped[0] == dropped[1]
    assert (ends[0] - ends[1]).abs().max() < 1e-6


def test_a_dropped_completion_cannot_change_the_step(tmp_path: Any) -> None:
    """Not even one whose gradient is infinite."""
    layers = Layers(rs.Policy(made(tmp_path).model, rs.language.Completions()))
    gradients = RecordGradients(layers, 3)
    gradients.begin(torch.tensor([2, 0, 1]))
    for own in gradients._own.values():
        own.normal_()
    expected = gradients.weighted_sum(torch.tensor([1.0, 0.0, 2.0]))
    for own in gradients._own.values():
        own[2] = torch.inf  # of record 1
    found = gradients.weighted_sum(torch.tensor([1.0, 0.0, 2.0]))
    assert all(torch.allclose(found[name], g) for name, g in expected.items())


def test_a_target_that_pulls_where_training_does_not_takes_its_own_pass(tmp_path: Any) -> None:
    """The rewards of a group that are all alike give no advantage, and yet they have their place among all rewards."""

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [9.0] * 4 + digits(completions[4:])

    attachment = watched(made(tmp_path, reward=reward), lambda *_: None, target=["sequence", "reward"])
    assert [scores.backend for scores in attachment.scores.values()] == ["in_backward", "layerwise"]


def test_completions_without_a_reward_score_zero(tmp_path: Any) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float("nan"), *digits(completions[1:])]

    scores = watched(made(tmp_path, reward=reward), lambda *_: None).scores["sequence"]
    assert scores.backend == "in_backward"
    assert scores.valid.tolist() == [False] + [True] * 7
    assert float(scores.values[0]) == 0


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(tmp_path_factory.mktemp("untrained"))


@pytest.mark.parametrize(
    ("change", "options", "why"),
    [
        (("num_iterations", 2), {}, "a generation batch has 2 iterations"),
        (("args.steps_per_generation", 4), {}, "a generation batch has 4 micro-batches"),
        (("beta", 0.1), {}, r"the KL term \(beta=0.1\)"),
        (("_entropy_bonus_enabled", True), {}, "the entropy bonus"),
        (("top_entropy_quantile", 0.5), {}, "top_entropy_quantile leaves tokens out"),
        (("args.fp16", True), {}, "fp16=True"),
        (None, {"cross_fit": True}, "cross_fit=True"),
        (None, {"backend": "jvp"}, "backend='jvp'"),
        (None, {"gradient_bytes": 1000}, r"the gradients of 8 completions take .* MiB \(gradient_bytes=1000\)"),
    ],
)
def test_where_it_does_not_apply_there_is_a_pass_of_its_own(
    untrained: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, change: Any, options: Any, why: str
) -> None:
    if change is not None:
        place, _, name = change[0].rpartition(".")
        monkeypatch.setattr(untrained.args if place else untrained, name, change[1])
    with pytest.raises(rs.RollsightError, match=rf"scoring='in_backward' does not apply: {why}.*; use scoring='auto'"):
        attach(untrained, scoring="in_backward", **options)
    with caplog.at_level("INFO", logger="rollsight"):
        attachment = attach(untrained, **options)
    attachment.detach()
    assert len(caplog.records) == 1
    assert "scored in a pass of their own" in caplog.text
    assert attachment._described["scoring"] == "own_pass"


def test_parameters_outside_linear_layers_and_wrong_options(tmp_path: Any, untrained: Any) -> None:
    for adapter in (None, lora(use_dora=True)):
        with pytest.raises(rs.RollsightError, match="parameters outside linear layers are trained"):
            attach(trainer(tmp_path, lora=adapter), scoring="in_backward")
    with pytest.raises(rs.RollsightError, match="scoring='fast' is unknown; give auto, in_backward, own_pass"):
        attach(untrained, scoring="fast")
    with pytest.raises(rs.RollsightError, match="gradient_bytes=-1 is not a number of bytes"):
        attach(untrained, gradient_bytes=-1)


def test_it_is_the_default_for_an_adapter_and_leaves_nothing_behind(tmp_path: Any) -> None:
    trained = made(tmp_path / "out")
    trained.train()
    before = set(vars(trained))
    attachment = attach(trained, run=tmp_path / "run")
    trained.args.max_steps = 2
    trained.train()
    attachment.detach()
    assert attachment.scores["sequence"].backend == "in_backward"
    assert set(vars(trained)) == before
    assert not any(module._forward_hooks for module in trained.model.modules())
    run = runs.open(tmp_path / "run")
    assert run.metadata["scoring"] == "in_backward"
    assert run.records(2)["score_sequence"].null_count == 0


def test_a_gradient_that_something_else_changes_is_seen_and_training_goes_on(tmp_path: Any) -> None:
    trained = made(tmp_path, max_steps=3)
    attachment = attach(trained, selection=dropping(0, 1), scoring="in_backward")
    [p for p in trained.model.parameters() if p.requires_grad][-1].register_hook(lambda g: 2 * g)
    with pytest.warns(UserWarning, match=r"round 1: no gradients in training's backward.*do not add up to"):
        trained.train()
    assert attachment.round == 3
    assert [line["influence/kept_frac"] for line in trained.state.log_history[:3]] == [1, 0.75, 0.75]
    assert attachment.scores["sequence"].backend != "in_backward"


def test_what_fails_in_the_capture_stops_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = made(tmp_path / "stock", max_steps=2)
    stock.train()
    trained = made(tmp_path / "scored", max_steps=2)
    attachment = attach(trained, scoring="in_backward")
    monkeypatch.setattr(RecordGradients, "_add", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"round 1: no gradients in training's backward.*ZeroDivisionError"):
        trained.train()
    assert torch.equal(parameters(trained), parameters(stock))
    assert attachment.scores["sequence"].backend == "layerwise"


def test_without_the_memory_there_is_a_pass_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = made(tmp_path, max_steps=2)
    attachment = attach(trained, scoring="in_backward", selection=dropping(0, 1))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no 2 GiB left")

    monkeypatch.setattr(RecordGradients, "__init__", full)
    with pytest.warns(UserWarning, match=r"round 1: no memory for gradients .* pass of their own \(OutOfMemoryError"):
        trained.train()
    assert [line["influence/kept_frac"] for line in trained.state.log_history[:2]] == [0.75, 0.75]
    assert attachment.scores["sequence"].backend == "layerwise"
