"""TRL: training equals training on the kept completions, and nothing dropped equals the stock trainer, bit by bit."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
trl = pytest.importorskip("trl")

import pandas as pd  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from transformers import logging as hf_logging  # noqa: E402

import rollsight as rs  # noqa: E402
from rollsight import runs  # noqa: E402
from rollsight.adapters.trl import attach, seams  # noqa: E402
from rollsight.selection import Selection  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
hf_logging.set_verbosity_error()
CHARACTERS = "0123456789+= abcdefghijklmnopqrstuvwxyz"
LOSSES = ("grpo", "dapo", "dr_grpo", "cispo", "luspo", "sapo", "vespo")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    vocabulary = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(CHARACTERS)}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def model(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = {
        "vocab_size": len(CHARACTERS) + 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**config | changes))


def digits(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs within groups."""
    return [sum(c.isdigit() for c in text) + 0.1 * text.count("a") for text in completions]


def trainer(folder: Any, algorithm: str = "grpo", reward: Any = digits, lora: Any = None, **changes: Any) -> Any:
    """2 prompts x 4 completions in one generation batch of 2 micro-batches, unless changed."""
    config, host = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer), "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}[algorithm]
    settings = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "activation_checkpointing": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "beta": 0.0,
    }
    prompts = Dataset.from_dict({"prompt": [f"{a}+{b * 11}=" for a in range(8) for b in range(4)]})
    return host(
        model=changes.pop("model", None) or model(),
        args=config(output_dir=str(folder), **settings | changes),
        reward_funcs=reward,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(8)),
        processing_class=tokenizer(),
        peft_config=lora,
    )


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.0} | changes)


def parameters(trained: Any) -> Tensor:
    return torch.nn.utils.parameters_to_vector(trained.model.parameters()).detach().clone()


def dropping(*rows: int) -> Any:
    """A rule that drops these rows, whatever their scores."""

    def rule(scores: rs.Scores) -> Selection:
        weights = scores.valid.float()
        weights[list(rows)] = 0
        return Selection(weights, torch.tensor(rows), len(rows), len(rows))

    return rule


def generation(trained: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The whole generation batch as TRL made it, and the micro-batches that training gets of it."""
    trained.model.train()
    whole: dict[str, Any] = {}
    made = trained._generate_and_score_completions

    def generate(inputs: Any) -> Any:
        batch = made(inputs)
        whole.update(batch)
        return batch

    trained._generate_and_score_completions = generate
    prompts = next(iter(trained.get_train_dataloader()))
    micro = []
    for _ in range(trained.args.steps_per_generation):
        micro.append(trained._prepare_inputs(prompts))
        trained._step += 1
    return whole, micro


def gradient(trained: Any, micro: list[dict[str, Any]]) -> Tensor:
    """Of the loss over these micro-batches, as one optimiser step sums it."""
    trained.current_gradient_accumulation_steps = len(micro)
    trained.model.zero_grad()
    share = len(micro) if isinstance(trained, trl.RLOOTrainer) else 1  # there the Trainer divides
    for batch in micro:
        (trained.compute_loss(trained.model, batch) / share).backward()
    return torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.grad is not None])


def shifted(trained: Any) -> None:
    """Move the policy off the one that generated, so that ratios, clipping and KL are at work."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in trained.model.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))


def parity(trained: Any, rows: tuple[int, ...], **options: Any) -> float:
    """Relative difference of the gradient without these rows, left out by `attach`, and with them taken out of the
    tensors."""
    attachment = attach(trained, selection=dropping(*rows), **options)
    whole, micro = generation(trained)
    shifted(trained)
    found = gradient(trained, micro)
    attachment.detach()
    kept = torch.ones(len(whole["advantages"]), dtype=torch.bool)
    kept[list(rows)] = False
    ours = {"influence_kept", "influence_scale"}
    physical = {k: v[kept] if v.dim() else v for k, v in whole.items() if k not in ours}
    if "num_items_in_batch" in physical:
        physical["num_items_in_batch"] = physical["completion_mask"].sum()
    trained.args.steps_per_generation = 1
    expected = gradient(trained, [physical])
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("loss", LOSSES)
def test_dropping_equals_training_without_the_rows(tmp_path: Any, loss: str) -> None:
    trained = trainer(tmp_path, loss_type=loss, num_iterations=2)
    assert parity(trained, (0, 3, 6)) < 1e-5


@pytest.mark.parametrize("changes", [{}, {"importance_sampling_level": "sequence"}, {"use_bias_correction_kl": True}])
@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_the_kl_term_of_dropped_rows_leaves_too(tmp_path: Any, loss: str, changes: Any) -> None:
    trained = trainer(tmp_path, loss_type=loss, num_iterations=2, beta=0.5, lora=lora(), **changes)
    assert parity(trained, (0, 3, 6)) < 1e-5


def test_the_entropy_term_of_dropped_rows_leaves_too(tmp_path: Any) -> None:
    """It is a mean per micro-batch, so one micro-batch holds the whole batch here."""
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_iterations": 2}
    for changes in ({"entropy_coef": 0.5}, {"top_entropy_quantile": 0.5, "entropy_coef": 0.5}):
        assert parity(trainer(tmp_path, loss_type="grpo", **whole, **changes), (0, 3, 6)) < 1e-5


def test_bnpo_is_exact_where_micro_batches_have_equally_many_tokens(tmp_path: Any) -> None:
    """Its normaliser is each micro-batch's own number of tokens, which the shuffle decides."""
    one = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    equal = {"generation_kwargs": {"min_new_tokens": 8}}
    for changes in (one, equal):
        assert parity(trainer(tmp_path, loss_type="bnpo", num_iterations=2, **changes), (0, 3, 6)) < 1e-5
    assert parity(trainer(tmp_path, loss_type="bnpo", num_iterations=2), (0, 3, 6)) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"beta": 0.5, "lora": lora()}])
def test_rloo_without_the_rows(tmp_path: Any, changes: Any) -> None:
    assert parity(trainer(tmp_path, "rloo", num_iterations=2, **changes), (0, 3, 6)) < 1e-5


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": lora(), "num_iterations": 2}, {"steps_per_generation": 4, "per_device_train_batch_size": 2}],
    ids=["full", "lora, 2 iterations", "2 updates per generation"],
)
def test_scoring_and_dropping_nothing_are_bit_identical(tmp_path: Any, algorithm: str, changes: Any) -> None:
    stock = trainer(tmp_path / "stock", algorithm, **changes)
    stock.train()
    scored = trainer(tmp_path / "scored", algorithm, **changes)
    start = parameters(scored)
    attachment = attach(scored, drop=0.0, target=["sequence", "return"])
    scored.train()
    assert attachment.round >= 1
    assert all(one.values.abs().min() > 0 for one in attachment.scores.values())
    assert not torch.equal(parameters(scored), start)
    assert torch.equal(parameters(scored), parameters(stock))


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_whole_run_equals_a_run_on_the_kept_rows(tmp_path: Any, algorithm: str) -> None:
    """Against the stock trainer on physically smaller batches, through generation and optimiser."""
    rows: tuple[int, ...] = (1, 2, 5)
    whole: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 0.3}
    whole["optim"] = "sgd"  # Adam makes whole steps of what rounding leaves of a gradient of zero

    def run(folder: str, change: Any) -> Tensor:
        trained = trainer(tmp_path / folder, algorithm, **whole)
        made = trained._generate_and_score_completions

        def generate(inputs: Any) -> Any:
            torch.manual_seed(trained.state.global_step)  # shuffling fewer rows takes fewer random numbers
            return change(made(inputs))

        trained._generate_and_score_completions = generate
        if folder == "attached":
            attach(trained, selection=dropping(*rows))
        trained.train()
        return parameters(trained)

    def smaller(batch: dict[str, Any]) -> dict[str, Any]:
        kept = torch.tensor([i for i in range(8) if i not in rows])
        batch = {k: v[kept] if v.dim() else v for k, v in batch.items()}
        return batch | {"num_items_in_batch": batch["completion_mask"].sum()}

    attached, without = run("attached", lambda batch: batch), run("smaller", smaller)
    assert (attached - run("stock", lambda batch: batch)).abs().max() > 1e-3
    assert (attached - without).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [("grpo", {"loss_type": "grpo"}), ("grpo", {"loss_type": "dapo", "temperature": 0.7}), ("rloo", {})],
)
@pytest.mark.parametrize("adapter", [None, lora()], ids=["full", "lora"])
def test_scores_are_inner_products_of_the_trainers_own_gradients(
    tmp_path: Any, algorithm: str, changes: Any, adapter: Any
) -> None:
    """Each row's gradient from TRL's loss on that row alone, the target's from TRL's own log-probabilities."""
    trained = trainer(tmp_path, algorithm, lora=adapter, **changes)
    shifted(trained)
    attachment = attach(trained, target=["sequence", "return", "reward"])
    whole, _ = generation(trained)
    trained.args.steps_per_generation = 1
    rows = []
    for i in range(8):
        one = {k: v[i : i + 1] if v.dim() else v.new_ones(()) for k, v in whole.items()}
        rows.append(-gradient(trained, [one]).double())
    both = torch.cat([whole["prompt_ids"], whole["completion_ids"]], 1)
    attended = torch.cat([whole["prompt_mask"], whole["completion_mask"]], 1)
    length = whole["completion_ids"].shape[1]
    log_probs = trained._get_per_token_logps_and_entropies(trained.model, both, attended, length)[0]
    mask, advantages = whole["completion_mask"], whole["advantages"]
    sums = (log_probs * mask).sum(1)
    rewards = torch.tensor(list(trained._logs["rewards"]["digits"]))
    targets = {
        "sequence": (sums * advantages).mean(),
        "return": (sums * advantages).sum() / mask.sum(),
        "reward": (sums * (rewards - rewards.mean()) / (rewards.std() + 1e-8)).mean(),
    }
    for name, target in targets.items():
        trained.model.zero_grad()
        target.backward(retain_graph=True)
        direction = torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.grad is not None]).double()
        expected = torch.stack([row @ direction for row in rows])
        assert (attachment.scores[name].values - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("loss", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "luspo"])
@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_the_objective_is_the_trainers_loss(tmp_path: Any, loss: str, importance: str) -> None:
    """Off the policy that generated, where ratios and clipping matter."""
    settings = {"loss_type": loss, "importance_sampling_level": importance, "num_iterations": 2}
    one = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    trained = trainer(tmp_path, epsilon=0.05, epsilon_high=0.1, **settings, **one)
    whole, _ = generation(trained)
    shifted(trained)
    trained.current_gradient_accumulation_steps = 1
    expected = -trained.compute_loss(trained.model, whole)
    objective = rs.objectives.GRPO(loss, 0.05, 0.1, importance, max_length=8)
    assert float(mean_loss(trained, objective, whole, loss in ("dapo", "bnpo", "cispo"))) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_the_rloo_objective_is_the_trainers_loss(tmp_path: Any) -> None:
    trained = trainer(tmp_path, "rloo", epsilon=0.05, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    whole, _ = generation(trained)
    shifted(trained)
    objective = rs.objectives.RLOO(0.05, 0.05)
    expected = -trained.compute_loss(trained.model, whole)
    mask = whole["completion_mask"]  # TRL keeps the sum over a sequence only: any split over its tokens will do
    whole["old_per_token_logps"] = (whole["old_logps"] / mask.sum(1))[:, None].expand(mask.shape)
    assert float(mean_loss(trained, objective, whole, False)) == pytest.approx(float(expected), rel=1e-4)


def mean_loss(trained: Any, objective: Any, whole: dict[str, Any], over_tokens: bool) -> Tensor:
    columns = [whole[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
    records = rs.language.completion_records(*columns, whole["old_per_token_logps"], whole["advantages"])
    evaluation = rs.Policy(trained.model, rs.language.Completions())(records)
    losses = objective.losses(evaluation, objective.prepare(records)).sum()
    return losses / (records.valid.sum() if over_tokens else len(records))


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
    assert table["influence_return"].tolist() == pytest.approx(scored.scores["return"].values.tolist())
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
    with pytest.raises(rs.RollsightError, match="has an attachment already"):
        attach(trained)
    attachment.detach()
    attachment.detach()
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
        ({}, {"drop": 1.5}, "p=1.5 is outside"),
        ({}, {"drop": 0.5, "selection": "random:0.5"}, "two rules for the same records"),
        ({}, {"target": "f_seq"}, "target='f_seq' is unknown; give 'sequence' or 'return' or 'reward'"),
        ({}, {"unit": "record"}, "unit='record' is unknown; give 'completion' or 'group'"),
        ({}, {"every": 0}, "every=0 is no number of rounds"),
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
    attach(trained, selection=dropping(*range(8)))
    with pytest.raises(rs.RollsightError, match=r"leaves none of the 8 completions in round 1; keep at least one"):
        generation(trained)


def test_the_parts_of_trl_it_stands_on_are_those_it_was_written_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails with another TRL: then compare the sources, adapt the adapter, and pin the new fingerprints."""
    for algorithm, methods in seams.PINNED.items():
        for method, pinned in methods.items():
            assert seams.fingerprint(algorithm, method) == pinned, f"TRL {trl.__version__}: {algorithm} {method}"
    trained = trainer(tmp_path)
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    attach(trained).detach()
    monkeypatch.setitem(seams.PINNED["grpo"], "_compute_loss", "of another source")
    with pytest.raises(
        rs.RollsightError,
        match=r"TRL 1\.17\.0 has another GRPOTrainer\._compute_loss than TRL 1\.16\.0, .*pip install trl==1\.16\.0",
    ):
        attach(trained)


def test_without_trl_the_extra_is_named() -> None:
    code = "import sys; sys.modules['trl'] = None; import rollsight.adapters.trl"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: rollsight.adapters.trl needs TRL: pip install 'rollsight[llm]'" in result.stderr


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
