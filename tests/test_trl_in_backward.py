"""TRL: scores from training's own backward are those of a pass of their own, and dropping by them is training without
the rows; nothing dropped is training without `attach`, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from trl_zoo import LOSSES, dropping, lora, parameters, trainer

import rollsight as rs
from rollsight import runs
from rollsight.adapters.trl import attach
from rollsight.scoring.in_backward import RecordGradients
from rollsight.scoring.layers import Layers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
TARGETS = ["sequence", "return", "objective"]


def trained_with(folder: Any, way: str | None, algorithm: str = "grpo", *, options: Any = None, **changes: Any) -> Any:
    """A trainer after its steps, and its attachment."""
    trained = trainer(folder, algorithm, lora=changes.pop("adapter", None) or lora(), **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in trained.model.named_parameters():
            if "lora_B" in name:  # at B = 0, where LoRA starts, A has no gradient
                p.add_(0.05 * torch.randn_like(p))
    attachment = None if way is None else attach(trained, scoring=way, **{"target": TARGETS} | (options or {}))
    trained.train()
    return trained, attachment


def assert_same_scores(one: Any, other: Any, tolerance: float = 1e-6) -> None:
    assert one.scores.keys() == other.scores.keys()
    for name, scores in one.scores.items():
        expected = other.scores[name].values
        assert expected.abs().max() > 0
        assert (scores.values - expected).abs().max() < tolerance * expected.abs().max(), name


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [*(("grpo", {"loss_type": loss}) for loss in (*LOSSES, "bnpo")), ("rloo", {})],
    ids=[*LOSSES, "bnpo", "rloo"],
)
def test_scores_are_those_of_a_pass_of_their_own(tmp_path: Any, algorithm: str, changes: Any) -> None:
    once = {"max_steps": 1, **changes}
    _, captured = trained_with(tmp_path / "a", "in_backward", algorithm, **once)
    _, passed = trained_with(tmp_path / "b", "own_pass", algorithm, **once)
    assert {scores.backend for scores in captured.scores.values()} == {"in_backward"}
    assert_same_scores(captured, passed)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"activation_checkpointing": True}, {}),
        ({"mask_truncated_completions": True}, {}),
        ({"temperature": 0.7, "importance_sampling_level": "sequence"}, {}),
        ({"max_steps": 3}, {"precondition": True}),
        ({}, {"leave_self_out": True}),
        ({"adapter": lora(bias="lora_only", target_modules=["q_proj", "up_proj"])}, {}),
    ],
    ids=["checkpointing", "truncated", "sequence-level", "Adam's moments", "leave self out", "biases"],
)
def test_scores_under_these_settings_too(tmp_path: Any, changes: Any, options: Any) -> None:
    _, captured = trained_with(tmp_path / "a", "in_backward", options=options, **{"max_steps": 1} | changes)
    _, passed = trained_with(tmp_path / "b", "own_pass", options=options, **{"max_steps": 1} | changes)
    assert {scores.backend for scores in captured.scores.values()} == {"in_backward"}
    assert torch.equal(captured.scores["sequence"].valid, passed.scores["sequence"].valid)
    assert_same_scores(captured, passed, 1e-5 if options.get("precondition") else 1e-6)


def test_mixed_precision_and_checkpointing_rank_the_completions_alike(tmp_path: Any) -> None:
    changes = {"max_steps": 1, "per_device_train_batch_size": 16, "bf16": True, "activation_checkpointing": True}
    _, captured = trained_with(tmp_path / "a", "in_backward", **changes)
    _, passed = trained_with(tmp_path / "b", "own_pass", **changes)
    both = torch.stack([one.scores["sequence"].values.argsort().argsort().double() for one in (captured, passed)])
    assert captured.scores["sequence"].backend == "in_backward"
    assert torch.corrcoef(both)[0, 1] > 0.99


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"bf16": True, "activation_checkpointing": True, "gradient_accumulation_steps": 4}],
    ids=["float32", "bf16, checkpointing"],
)
def test_nothing_dropped_is_plain_trl_bit_by_bit(tmp_path: Any, algorithm: str, changes: Any) -> None:
    stock, _ = trained_with(tmp_path / "stock", None, algorithm, max_steps=3, **changes)
    scored, attachment = trained_with(
        tmp_path / "scored", "in_backward", algorithm, max_steps=3, options={"drop": 0.0}, **changes
    )
    assert attachment.round == 3
    assert attachment.scores["sequence"].backend == "in_backward"
    assert torch.equal(parameters(scored), parameters(stock))
    logged = [[one["grad_norm"] for one in done.state.log_history if "grad_norm" in one] for done in (stock, scored)]
    assert logged[0] == logged[1]


@pytest.mark.parametrize("loss", [*LOSSES, "rloo"])
def test_dropping_trains_as_without_the_rows(tmp_path: Any, loss: str) -> None:
    """As a drop before training, and as stock TRL on physically smaller batches, through clipping and optimiser."""
    rows = (1, 2, 5)
    algorithm = "rloo" if loss == "rloo" else "grpo"
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_grad_norm": 0.1}
    whole |= {"optim": "sgd", "learning_rate": 0.3} | ({} if loss == "rloo" else {"loss_type": loss})
    dropped = {"selection": dropping(*rows)}
    captured, attachment = trained_with(tmp_path / "a", "in_backward", algorithm, options=dropped, **whole)
    passed, _ = trained_with(tmp_path / "b", "own_pass", algorithm, options=dropped, **whole)
    assert attachment.scores["sequence"].backend == "in_backward"
    assert (parameters(captured) - parameters(passed)).abs().max() < 1e-6
    everything, _ = trained_with(tmp_path / "c", None, algorithm, **whole)
    assert (parameters(captured) - parameters(everything)).abs().max() > 1e-3


def test_dropping_over_micro_batches_and_by_scores(tmp_path: Any) -> None:
    """24 completions in 3 micro-batches; what goes is up to the scores."""
    changes = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 8, "optim": "sgd", "max_steps": 3}
    found = []
    for way in ("in_backward", "own_pass"):
        options = {"drop": 0.5, "target": "objective"}
        trained, attachment = trained_with(tmp_path / way, way, options=options, **changes)
        found.append((attachment.selection, parameters(trained), trained.state.log_history))
    (first, one, log), (second, other, _) = found
    assert len(first.dropped) > 1
    assert first.dropped.tolist() == second.dropped.tolist()
    assert (one - other).abs().max() < 1e-6
    assert [line["influence/kept_frac"] for line in log if "influence/kept_frac" in line][-1] < 1


def test_a_dropped_completion_cannot_change_the_step(tmp_path: Any) -> None:
    """Not even one whose gradient is infinite."""
    model = trainer(tmp_path, lora=lora()).model
    gradients = RecordGradients(Layers(rs.Policy(model, rs.language.Completions())), 3)
    gradients.begin(torch.tensor([2, 0, 1]))
    for own in gradients._own.values():
        own.normal_()
    expected = gradients.weighted_sum(torch.tensor([1.0, 0.0, 2.0]))
    for own in gradients._own.values():
        own[2] = torch.inf  # of record 1
    found = gradients.weighted_sum(torch.tensor([1.0, 0.0, 2.0]))
    assert all(torch.allclose(found[name], g) for name, g in expected.items())


def test_a_target_that_pulls_where_training_does_not_takes_its_own_pass(tmp_path: Any) -> None:
    """The rewards of a group that are all alike have no advantage, and yet their place among all rewards."""

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * 4 + [sum(c.isdigit() for c in text) + 0.1 * i for i, text in enumerate(completions[4:])]

    changes, options = {"reward": reward, "max_steps": 1}, {"target": ["sequence", "reward"]}
    _, captured = trained_with(tmp_path / "a", "in_backward", options=options, **changes)
    _, passed = trained_with(tmp_path / "b", "own_pass", options=options, **changes)
    assert [scores.backend for scores in captured.scores.values()] == ["in_backward", "layerwise"]
    assert_same_scores(captured, passed)


def test_completions_without_a_reward_score_zero(tmp_path: Any) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float("nan"), *(float(len(set(text))) for text in completions[1:])]

    _, attachment = trained_with(tmp_path, "in_backward", reward=reward, max_steps=1)
    scores = attachment.scores["sequence"]
    assert scores.backend == "in_backward"
    assert scores.valid.tolist() == [False] + [True] * 7
    assert float(scores.values[0]) == 0


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({"num_iterations": 2}, {}, "a generation batch has 2 iterations"),
        ({"steps_per_generation": 4, "per_device_train_batch_size": 2}, {}, "has 4 micro-batches"),
        ({"beta": 0.1}, {}, r"the KL term \(beta=0.1\)"),
        ({"entropy_coef": 0.1}, {}, "the entropy bonus"),
        ({"top_entropy_quantile": 0.5}, {}, "top_entropy_quantile leaves tokens out"),
        ({}, {"cross_fit": True}, "cross_fit=True"),
        ({}, {"backend": "jvp"}, "backend='jvp'"),
        ({}, {"gradient_bytes": 1000}, r"the gradients of 8 completions take 0 MiB \(gradient_bytes=1000\)"),
        ({"adapter": lora(use_dora=True)}, {}, "parameters outside linear layers"),
    ],
    ids=["iterations", "steps", "KL", "entropy", "quantile", "cross_fit", "jvp", "memory", "DoRA"],
)
def test_where_it_does_not_apply_there_is_a_pass_of_its_own(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, changes: Any, options: Any, why: str
) -> None:
    trained = trainer(tmp_path, lora=changes.pop("adapter", None) or lora(), **changes)
    with pytest.raises(rs.RollsightError, match=rf"scoring='in_backward' does not apply: {why}.*; use scoring='auto'"):
        attach(trained, scoring="in_backward", **options)
    with caplog.at_level("INFO", logger="rollsight"):
        attachment = attach(trained, **options)
    assert len(caplog.records) == 1
    assert "scored in a pass of their own" in caplog.text
    assert attachment._described["scoring"] == "own_pass"


def test_full_fine_tuning_and_wrong_options(tmp_path: Any) -> None:
    trained = trainer(tmp_path)
    with pytest.raises(rs.RollsightError, match="parameters outside linear layers are trained"):
        attach(trained, scoring="in_backward")
    with pytest.raises(rs.RollsightError, match="scoring='fast' is unknown; give auto, in_backward, own_pass"):
        attach(trained, scoring="fast")
    with pytest.raises(rs.RollsightError, match="gradient_bytes=-1 is not a number of bytes"):
        attach(trained, gradient_bytes=-1)


def test_it_is_the_default_for_an_adapter_and_leaves_nothing_behind(tmp_path: Any) -> None:
    trained = trainer(tmp_path, lora=lora())
    before = dict(vars(trained))
    attachment = attach(trained, run=tmp_path / "run")
    trained.train()
    assert attachment.scores["sequence"].backend == "in_backward"
    attachment.detach()
    assert not any(module._forward_hooks for module in trained.model.modules())
    assert {name for name in vars(trained).keys() - before.keys() if not name.startswith("_")} <= {"callback_handler"}
    assert runs.open(tmp_path / "run").metadata["scoring"] == "in_backward"
    assert runs.open(tmp_path / "run").records(2)["score_sequence"].null_count == 0


def test_a_gradient_that_something_else_changes_is_seen_and_training_goes_on(tmp_path: Any) -> None:
    def doubled(folder: Any, way: str | None) -> Any:
        trained = trainer(tmp_path / folder, lora=lora(), max_steps=3)
        last = [p for p in trained.model.parameters() if p.requires_grad][-1]
        attachment = None if way is None else attach(trained, selection=dropping(0, 1), scoring=way)
        last.register_hook(lambda g: 2 * g)
        return trained, attachment

    trained, attachment = doubled("a", "in_backward")
    kept: list[Any] = []
    record = attachment._report
    attachment._report = lambda found, rows, seconds: (kept.append(int(rows.sum())), record(found, rows, seconds))
    with pytest.warns(UserWarning, match=r"round 1: no gradients in training's backward.*do not add up to"):
        trained.train()
    assert kept == [8, 6, 6]
    assert attachment.round == 3
    assert attachment.scores["sequence"].backend != "in_backward"


def test_what_fails_in_the_capture_stops_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, _ = trained_with(tmp_path / "stock", None)
    monkeypatch.setattr(RecordGradients, "_add", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"round 1: no gradients in training's backward.*ZeroDivisionError"):
        trained, attachment = trained_with(tmp_path / "a", "in_backward", options={"drop": 0.0})
    assert torch.equal(parameters(trained), parameters(stock))
    assert attachment.scores["sequence"].backend == "layerwise"
