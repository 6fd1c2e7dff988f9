"""Randomly initialised miniatures of language models, with and without LoRA, and records of their completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import rollsight as rs
from rollsight.language import Completions, completion_records

VOCABULARY, PROMPT, COMPLETION, PAD = 256, 6, 5, 7


_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # sharp enough for records to differ
}


def llama(tied: bool = False, **more: Any) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**_SMALL, **more, tie_word_embeddings=tied))


def qwen2() -> nn.Module:
    """Tied, and its padding token, which `completions` puts into the text, has a row without a gradient."""
    return Qwen2ForCausalLM(Qwen2Config(**_SMALL, tie_word_embeddings=True, pad_token_id=PAD))


def gpt2() -> nn.Module:
    """Its embeddings are tied; dropout 0.1 by default."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    )


def lora(model: nn.Module, *targets: str, dropout: float = 0.0) -> nn.Module:
    """Adapters on the named layers, away from their start at B = 0, where A has no gradient."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), lora_dropout=dropout, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tied=True),
    "llama-lora": lambda: lora(llama(), "q_proj", "v_proj"),
    "llama-lora-all": lambda: lora(
        llama(tied=True), *["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ),
    "llama-tied-padding": lambda: llama(tied=True, pad_token_id=PAD),
    "qwen2": qwen2,
    "gpt2": gpt2,
    "gpt2-lora": lambda: lora(gpt2(), "c_attn", dropout=0.1),
}


@dataclass(frozen=True)
class Language:
    """A policy and records of its own completions."""

    policy: rs.Policy
    records: rs.Records


def language(
    name: str, n: int = 6, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 0
) -> Language:
    """n completions in groups of two, prompts and completions of unequal length, one completion empty, off the policy a
    little so that ratios differ from 1; advantages per token."""
    torch.manual_seed(seed)
    model = MODELS[name]().to(dtype)
    model.set_attn_implementation(attention)
    policy = rs.Policy(model, Completions(temperature=0.9))
    return Language(policy, completions(policy, n, seed + 1))


def completions(policy: rs.Policy, n: int, seed: int, *, shift: float = 0.1, empty: bool = True) -> rs.Records:
    torch.manual_seed(seed)
    prompts, actions = torch.randint(VOCABULARY, (n, PROMPT)), torch.randint(VOCABULARY, (n, COMPLETION))
    prompts[:, -1], actions[1, 0] = PAD, PAD  # in the text, where a chat template puts the end of a turn
    prompt_mask = torch.arange(PROMPT) >= torch.randint(PROMPT, (n, 1))
    lengths = torch.randint(1, COMPLETION + 1, (n, 1))
    lengths[0] = COMPLETION
    if empty and n > 3:
        lengths[3] = 0
    mask = torch.arange(COMPLETION) < lengths
    draft = completion_records(prompts, prompt_mask, actions, mask, torch.zeros(n, COMPLETION), torch.zeros(n))
    policy.module.eval()
    with torch.no_grad():
        log_probs = policy(draft).log_prob
    return completion_records(
        prompts,
        prompt_mask,
        actions,
        mask,
        log_probs + shift * torch.randn_like(log_probs),
        torch.randn(n, COMPLETION),
        rewards=torch.randn(n),
        ids={"group": torch.arange(n) // 2},
    )
