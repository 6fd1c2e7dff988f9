"""TRL: training equals training on the kept completions, and nothing dropped equals the stock trainer, bit by bit."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
trl = pytest.importorskip("trl")

from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from transformers import logging as hf_logging  # noqa: E402

import rollsight as rs  # noqa: E402
from rollsight.adapters.trl import attach  # noqa: E402
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


def test_bnpo_is_exact_with_one_micro_batch_and_near_with_two(tmp_path: Any) -> None:
    """Its normaliser is each micro-batch's own number of tokens, which the shuffle decides."""
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    assert parity(trainer(tmp_path, loss_type="bnpo", num_iterations=2, **whole), (0, 3, 6)) < 1e-5
    assert 1e-4 < parity(trainer(tmp_path, loss_type="bnpo", num_iterations=2), (0, 3, 6)) < 0.1


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


def test_a_whole_run_equals_a_run_on_the_kept_rows(tmp_path: Any) -> None:
    """The stock trainer, made to train on a physically smaller batch, against `attach`; through the optimiser."""
    rows = (1, 2, 5)
    attached = trainer(tmp_path / "a", loss_type="grpo", per_device_train_batch_size=8, gradient_accumulation_steps=1)
    attach(attached, selection=dropping(*rows))
    attached.train()
    smaller = trainer(tmp_path / "b", loss_type="grpo", per_device_train_batch_size=8, gradient_accumulation_steps=1)
    made = smaller._generate_and_score_completions

    def fewer(inputs: Any) -> Any:
        torch.manual_seed(smaller.state.global_step)
        kept = [i for i in range(8) if i not in rows]
        return {k: v[kept] if torch.is_tensor(v) and v.dim() else v for k, v in made(inputs).items()}

    smaller._generate_and_score_completions = fewer
    generated = attached._generate_and_score_completions
    assert generated is not None
    smaller.args.max_steps = attached.args.max_steps
    smaller.train()
    change = (parameters(attached) - parameters(trainer(tmp_path / "c"))).abs().max()
    assert change > 1e-3
    assert (parameters(attached) - parameters(smaller)).abs().max() < 1e-5
