"""TRL: what is dropped, where it shows, and what is refused; the trainer comes back as it was."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl")

import pandas as pd  # noqa: E402
from torch import Tensor  # noqa: E402
from trl_zoo import digits, dropping, generation, lora, parameters, shifted, trainer  # noqa: E402

import rollsight as rs  # noqa: E402
from rollsight import runs  # noqa: E402
from rollsight.adapters.trl import attach, private_api  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class FirstCompletions(rs.targets.Sequence):
    """Of the first two completions only, so that about half of the others pull against it."""

    def measured_on(self, records: rs.Records) -> rs.Records:
        return records.take(slice(0, 2))


def test_drop_leaves_out_the_lowest_negative_completions(tmp_path: Any) -> None:
    trained = trainer(tmp_path, per_device_train_batch_size=16)
    attachment = attach(trained, drop=0.5, target=FirstCompletions())
    whole, micro = generation(trained)
    scores = attachment.scores["sequence"].values
    count = int((scores < 0).sum()) // 2
    assert count > 1
    lowest = sorted(scores.argsort()[:count].tolist())
    assert sorted(attachment.selection.dropped.tolist()) == lowest
    assert (~whole["influence_kept"]).nonzero().flatten().tolist() == lowest
    assert sum(int(batch["influence_kept"].sum()) for batch in micro) == 32 - count


def test_groups_are_dropped_whole_and_advantages_stay(tmp_path: Any) -> None:
    changes = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "num_generations": 2}
    stock, _ = generation(trainer(tmp_path, **changes))
    trained = trainer(tmp_path, **changes)
    attachment = attach(trained, drop=1.0, unit="group", target=FirstCompletions())
    whole, _ = generation(trained)
    totals = attachment.scores["sequence"].values.view(16, 2).sum(1)
    kept = whole["influence_kept"].view(16, 2)
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert torch.equal(kept[:, 0], totals >= 0)
    assert 0 < int(kept.sum()) < 32
    assert torch.equal(whole["advantages"], stock["advantages"])


def test_metrics_and_columns_appear_where_trl_shows_its_own(tmp_path: Any) -> None:
    changes = {"log_completions": True, "eval_strategy": "steps", "eval_steps": 1, "num_completions_to_print": 0}
    trained = trainer(tmp_path, per_device_eval_batch_size=4, **changes)
    attachment = attach(trained, drop=0.5, target=[FirstCompletions(), "return"], every=2)
    trained.train()
    first, second = (one for one in trained.state.log_history if "influence/kept_frac" in one)
    dropped = len(attachment.selection.dropped)
    assert dropped > 0
    assert first["influence/kept_frac"] == 1
    assert "influence/median" not in first
    assert second["influence/kept_frac"] == pytest.approx(1 - dropped / 8)
    assert second["influence/median"] == pytest.approx(float(attachment.scores["sequence"].values.quantile(0.5)))
    assert not any(name.startswith("eval_influence") for one in trained.state.log_history for name in one)
    tables = sorted((tmp_path / "completions").iterdir())
    last = pd.read_parquet(tables[-1])  # written at the last evaluation: the window holds evaluation's completions
    assert len(last) == len(trained._logs["prompt"]) == 8
    assert last["influence_kept"].isna().all()
    plain = trainer(tmp_path / "plain", log_completions=True, num_completions_to_print=0)
    scored = attach(plain, drop=0.5, target=[FirstCompletions(), "return"])
    plain.train()
    table = pd.read_parquet(sorted((tmp_path / "plain" / "completions").iterdir())[-1])
    values = scored.scores["return"].values.tolist()
    assert table["influence_return"].tolist() == [float(f"{value:.4g}") for value in values]
    assert table["influence_kept"].tolist() == [i not in scored.selection.dropped for i in range(8)]


def test_evaluation_is_left_alone(tmp_path: Any) -> None:
    stock, attached = trainer(tmp_path, beta=0.0), trainer(tmp_path, beta=0.0)
    attachment = attach(attached, selection=dropping(0, 1))
    losses = []
    for one in (stock, attached):
        torch.manual_seed(3)
        losses.append(one.evaluate())
    assert attachment.round == 0
    assert attachment.scores == {}
    assert losses[0]["eval_loss"] == losses[1]["eval_loss"]
    assert losses[0]["eval_reward"] == losses[1]["eval_reward"]


def test_an_optimiser_step_without_kept_rows_changes_nothing(tmp_path: Any) -> None:
    """Adam with a zero gradient would move on by its momentum, and decay the weights."""
    changes = {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "weight_decay": 0.1, "max_steps": 4}
    trained = trainer(tmp_path, **changes)
    seen: list[Tensor] = []
    attach(trained, selection=dropping(*range(1, 8)))
    train_step = trained.training_step

    def step(*args: Any) -> Any:
        seen.append(parameters(trained))
        return train_step(*args)

    trained.training_step = step
    trained.train()
    moves = [not torch.equal(a, b) for a, b in zip(seen, [*seen[1:], parameters(trained)], strict=True)]
    assert sorted(moves[:2]) == [False, True]
    assert sorted(moves[2:]) == [False, True]


def test_detach_restores_the_trainer(tmp_path: Any) -> None:
    trained = trainer(tmp_path, log_completions=True, num_completions_to_print=0)
    before, callbacks = dict(vars(trained)), list(trained.callback_handler.callbacks)
    attachment = attach(trained, drop=0.5)
    with pytest.raises(rs.RollsightError, match="drop=2 is not a fraction"):
        attach(trained, drop=2)
    assert attachment._begin in [getattr(one, "_begin", None) for one in trained.callback_handler.callbacks]
    with pytest.warns(UserWarning, match="had an attachment already, which the new one replaces"):
        second = attach(trained)
    assert trained.callback_handler.callbacks[: len(callbacks)] == callbacks
    assert len(trained.callback_handler.callbacks) == len(callbacks) + 2
    attachment.detach()
    second.detach()
    second.detach()
    assert vars(trained).keys() == before.keys()
    assert trained.callback_handler.callbacks == callbacks
    attach(trained).detach()
    trained.train()
    assert not any("influence/kept_frac" in one for one in trained.state.log_history)


def test_the_run_folder_holds_texts_rewards_scores_and_kept_and_is_resumed(tmp_path: Any) -> None:
    folder, changes = tmp_path / "run", {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    first = trainer(tmp_path / "out", **changes)
    attachment = attach(first, drop=0.5, target=[FirstCompletions(), "return"], run=folder)
    first.train()
    attachment.detach()
    run = runs.open(folder)
    assert run.rounds == [1, 2]
    assert run.targets(2) == ["sequence", "return"]
    assert run.metadata["algo"] == "grpo"
    assert run.metadata["rule"] == "negative:0.5"
    rows = run.records(2).to_pylist()
    assert [row["prompt"] for row in rows] == list(first._logs["prompt"])
    assert [row["reward"] for row in rows] == pytest.approx(digits([row["completion"] for row in rows]))
    assert [row["group"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["episode"] for row in rows] == list(range(8))
    assert all(0 < row["length"] <= 8 for row in rows)
    assert [row["score_sequence"] for row in rows] == pytest.approx(attachment.scores["sequence"].values.tolist())
    assert [row["kept"] for row in rows] == (attachment.selection.weights > 0).tolist()
    again = trainer(tmp_path / "new")
    attach(again, run=folder)
    with pytest.raises(rs.RollsightError, match="exists already"):
        again.train()
    resumed = trainer(tmp_path / "out", **changes | {"max_steps": 3})
    attachment = attach(resumed, drop=0.5, run=folder)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    attachment.detach()
    assert runs.open(folder).rounds == [1, 2, 3]
    assert runs.open(folder).records(3)["round"].to_pylist() == [3] * 8


def test_rewards_without_signal_score_zero_and_drop_nothing(tmp_path: Any) -> None:
    trained = trainer(tmp_path, reward=lambda completions, **_: [1.0] * len(completions))
    attachment = attach(trained, drop=1.0, target=["sequence", "reward"])
    trained.train()
    assert attachment.scores["reward"].values.tolist() == [0.0] * 8
    assert len(attachment.selection.dropped) == 0


def test_completions_without_a_reward_are_named_and_kept(tmp_path: Any) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float("nan"), *digits(completions)[1:]]

    trained = trainer(tmp_path, reward=reward, max_steps=1)
    attachment = attach(trained, selection="random:1.0", target=["reward", "sequence"])
    with pytest.warns(UserWarning, match="no reward function gave a number for 1 of 8 completions"):
        trained.train()
    assert float(attachment.scores["sequence"].values[0]) == 0
    assert 0 not in attachment.selection.dropped
    assert torch.isfinite(parameters(trained)).all()


def test_truncated_completions_that_trl_masks_are_no_records(tmp_path: Any) -> None:
    trained = trainer(tmp_path, mask_truncated_completions=True)
    attachment = attach(trained, drop=1.0)
    whole, _ = generation(trained)
    masked = whole["completion_mask"].sum(1) == 0
    assert 0 < int(masked.sum()) < 8
    assert torch.equal(attachment.scores["sequence"].valid, ~masked)
    assert not attachment.scores["sequence"].values[masked].any()


def test_preconditioning_and_random_dropping_train(tmp_path: Any) -> None:
    trained = trainer(tmp_path, lora=lora(), num_iterations=2)
    attachment = attach(trained, selection="random:0.5", target=FirstCompletions(), precondition=True)
    trained.train()
    negative = int((attachment.scores["sequence"].values < 0).sum())
    assert len(attachment.selection.dropped) == negative // 2


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"drop": 1.5}, "drop=1.5 is not a fraction"),
        ({}, {"drop": 0.5, "selection": "random:0.5"}, "two rules for the same records"),
        ({}, {"target": "f_seq"}, "target='f_seq' is unknown; give 'sequence' or 'return' or 'reward'"),
        ({}, {"unit": "record"}, "unit='record' is unknown; give 'completion' or 'group'"),
        ({}, {"every": 0}, "every=0 is not a number of rounds"),
        ({}, {"backend": "ghost"}, "backend='ghost' is unknown"),
        ({"lora": lora(lora_dropout=0.1)}, {}, "has dropout 0.1: .*; set lora_dropout=0 in its LoraConfig"),
    ],
)
def test_mistakes_are_named_before_training(tmp_path: Any, changes: Any, options: Any, message: str) -> None:
    with pytest.raises(rs.RollsightError, match=message):
        attach(trainer(tmp_path, **changes), **options)


def test_trainers_that_are_not_covered_are_refused(tmp_path: Any) -> None:
    class Another(trl.GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            return super()._compute_loss(model, inputs)

    with pytest.raises(rs.RollsightError, match="the trainer is a str; give a trl"):
        attach("trainer")
    trained = trainer(tmp_path)
    trained.loss_type = "ppo"
    with pytest.raises(rs.RollsightError, match="loss_type='ppo' is not covered; use one of bnpo, cispo"):
        attach(trained)
    trained.loss_type, trained.args.use_liger_kernel = "dapo", True
    with pytest.raises(rs.RollsightError, match="use_liger_kernel=True replaces layers"):
        attach(trained)
    trained.__class__ = Another
    with pytest.raises(rs.RollsightError, match="Another has a loss of its own"):
        attach(trained)


def test_a_selection_must_leave_something(tmp_path: Any) -> None:
    trained = trainer(tmp_path)
    attachment = attach(trained, selection=dropping(*range(8)))
    with pytest.warns(
        UserWarning, match=r"round 1: no selection, so every completion is kept \(The selection leaves none"
    ):
        whole, _ = generation(trained)
    assert attachment.selection is None
    assert "influence_kept" not in whole


def test_the_parts_of_trl_it_stands_on_are_those_it_was_written_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails with another TRL: then compare the sources, adapt the adapter, and pin the new fingerprints."""
    for algorithm, methods in private_api.PINNED.items():
        for method, pinned in methods.items():
            assert private_api.fingerprint(algorithm, method) == pinned, f"TRL {trl.__version__}: {algorithm} {method}"
    trained = trainer(tmp_path)
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    attach(trained).detach()
    monkeypatch.setitem(private_api.PINNED["grpo"], "_compute_loss", "of another source")
    with pytest.raises(
        rs.RollsightError,
        match=r"TRL 1\.17\.0 has another GRPOTrainer\._compute_loss than TRL 1\.16\.0, .*pip install trl==1\.16\.0",
    ):
        attach(trained)


def test_without_trl_the_extra_is_named() -> None:
    code = "import sys; sys.modules['trl'] = None; import rollsight.adapters.trl"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtra: rollsight.adapters.trl needs the package trl: pip install 'rollsight[llm]'" in result.stderr


def test_the_example_runs_offline(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "grpo_trl.py"))
    trained = example["train"](example["Args"](steps=1, run="runs/sums"))
    assert trained.state.global_step == 1
    assert 0.2 < runs.open("runs/sums").sql("select avg(reward) from records").fetchall()[0][0] < 0.7


def test_mixed_precision_and_checkpointing_rank_the_completions_alike(tmp_path: Any) -> None:
    """TRL's defaults. Scores come out of the forward that training uses."""
    found = []
    for changes in ({}, {"bf16": True, "activation_checkpointing": True}):
        trained = trainer(tmp_path, lora=lora(), per_device_train_batch_size=16, max_steps=1, **changes)
        shifted(trained)
        attachment = attach(trained)
        trained.train()
        found.append((list(trained._logs["completion"]), attachment.scores["sequence"].values.argsort().argsort()))
    assert found[0][0] == found[1][0]
    assert torch.corrcoef(torch.stack([ranks.double() for _, ranks in found]))[0, 1] > 0.99
