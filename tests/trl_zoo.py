"""Trainers of TRL on a miniature that adds digits, and the measure of parity."""

from __future__ import annotations

from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import logging as hf_logging

import rollsight as rs
from rollsight.adapters.trl import attach
from rollsight.selection import Selection

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
    given, classes = changes.pop("model", None), changes.pop("reward_processing_classes", None)
    return host(
        model=given or model(),
        args=config(output_dir=str(folder), **settings | changes),
        reward_funcs=reward,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(8)),
        processing_class=tokenizer(),
        reward_processing_classes=classes,
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
