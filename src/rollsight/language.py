"""Causal language models as policies: a completion is the action, its tokens' log-probabilities are the record's.

    policy  = rs.Policy(model, rs.language.Completions(temperature=0.7))
    records = rs.language.completion_records(prompts, prompt_mask, completions, completion_mask, log_probs, advantages)

`model` is a Hugging Face causal language model, with or without PEFT adapters; nothing of transformers is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollsight.errors import RollsightError
from rollsight.policy import Evaluation
from rollsight.records import Records


@dataclass(frozen=True)
class Completions:
    """`evaluate` for `Policy`: the log-probabilities (N, T) of completions under a causal language model.

    It is called with obs = {"input_ids": (N, P + T), "attention_mask": (N, P + T)}, prompts padded on the left and
    completions on the right (see `completion_records`), and actions (N, T), the completions' tokens. Where top-p or
    top-k left some tokens out, `obs["support"]` (N, T, W), as `pack_support` packs it, holds the tokens that each one
    was sampled from. Probabilities are then those among them, of any policy.

    temperature: the logits are divided by it, as in sampling: above 1 the distribution is flatter, below 1 sharper.
    entropy: also give the entropy (N, T) of each token's distribution.
    count_padding: positions count the padding on the left too, as where a model is called without any (TRL's trainers).
    """

    temperature: float = 1.0
    entropy: bool = False
    count_padding: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RollsightError(f"Completions: temperature is {self.temperature}; give a number above 0.")

    def __call__(self, module: nn.Module, obs: Mapping[str, Tensor], actions: Tensor) -> Evaluation:
        logits = completion_logits(
            module, obs["input_ids"], obs["attention_mask"], actions.shape[1], count_padding=self.count_padding
        )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits if self.temperature == 1 else logits / self.temperature
        if "support" in obs:
            logits = within_support(logits, obs["support"])
        return Evaluation(token_log_probs(logits, actions), token_entropies(logits) if self.entropy else None)


def completion_logits(
    module: nn.Module, input_ids: Tensor, attention_mask: Tensor, length: int, *, count_padding: bool = False
) -> Tensor:
    """(N, length, V): the logits of each row's last `length` tokens, by the model's own forward.

    count_padding: leave the positions to the model, which counts the padding on the left too.

    Raises `RollsightError` for sequences longer than the model's context, for encoder-decoders, and for prompt-learning
    adapters, whose virtual tokens move the positions.
    """
    total = input_ids.shape[1]
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        raise RollsightError(f"{type(module).__name__} is an encoder-decoder; give a causal language model.")
    context = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    if context is not None and total > context:
        raise RollsightError(
            f"The prompt and completion take {total} tokens but the model's context has {context}; shorten the prompts "
            f"or the completions."
        )
    if getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False):
        raise RollsightError("Adapters that learn virtual prompt tokens are not covered; use LoRA, or no adapter.")
    # Positions as a tensor: the head then gets a copy. The strided slice that a number makes doubles its cost in bf16.
    kept = torch.arange(total - length - 1, total - 1, device=input_ids.device)
    positions = {} if count_padding else {"position_ids": (attention_mask.cumsum(1) - 1).clamp_min(0)}
    logits: Tensor = module(
        input_ids=input_ids,
        attention_mask=attention_mask,
        logits_to_keep=kept,
        use_cache=False,
        **positions,
    ).logits
    return logits


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """(N, T): log-probability of each token, from logits (N, T, V)."""
    return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


def token_entropies(logits: Tensor) -> Tensor:
    """(N, T): entropy in nats of each token's distribution, from logits (N, T, V)."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def pack_support(kept: Tensor) -> Tensor:
    """(..., W) bytes of booleans (..., V), eight tokens in each: which tokens could be sampled."""
    padded = F.pad(kept, (0, -kept.shape[-1] % 8)).unflatten(-1, (-1, 8))
    packed: Tensor = (padded << torch.arange(8, dtype=torch.uint8, device=kept.device)).sum(-1, dtype=torch.uint8)
    return packed


def within_support(logits: Tensor, support: Tensor) -> Tensor:
    """The logits (..., V) with tokens outside of the support (..., W) made impossible."""
    bits = (support[..., None] >> torch.arange(8, dtype=torch.uint8, device=support.device)) & 1
    kept = bits.flatten(-2)[..., : logits.shape[-1]].bool()
    # Not infinity: an entropy would be 0 * inf, and padding may have no possible token at all.
    return logits.masked_fill(~kept, torch.finfo(logits.dtype).min / 2)


def completion_records(
    prompts: Tensor,
    prompt_mask: Tensor,
    completions: Tensor,
    completion_mask: Tensor,
    log_probs: Tensor,
    advantages: Tensor,
    **columns: Any,
) -> Records:
    """`Records` of N completions, in the form `Completions` reads.

    prompts, prompt_mask: (N, P) tokens, padded on the left, and 1 where they are not padding; at least one column.
    completions, completion_mask: (N, T), padded on the right. Padding is invalid, so is an empty completion.
    log_probs: (N, T), of the policy that wrote them; advantages: (N,) or (N, T).
    columns: `rewards`, `values`, `returns`, `ids` (`group`: the prompt) as in `Records`.
    """
    shapes = [tuple(x.shape) for x in (prompts, prompt_mask, completions, completion_mask)]
    if shapes[0] != shapes[1] or shapes[2] != shapes[3] or len({len(shape) for shape in shapes} | {2}) > 1:
        raise RollsightError(
            f"completion_records: prompts {shapes[0]} with mask {shapes[1]}, completions {shapes[2]} with mask "
            f"{shapes[3]}; give (N, P) and (N, T), each with a mask of its own shape."
        )
    if shapes[0][1] == 0 or shapes[2][1] == 0:
        raise RollsightError(
            f"completion_records: prompts have {shapes[0][1]} and completions {shapes[2][1]} columns; a record needs "
            f"at least one token of each (a start token will do for a prompt)."
        )
    if shapes[0][0] != shapes[2][0]:
        raise RollsightError(
            f"completion_records: {shapes[0][0]} prompts and {shapes[2][0]} completions; repeat a prompt for each of "
            f"its completions."
        )
    obs = {
        "input_ids": torch.cat([prompts, completions], 1),
        "attention_mask": torch.cat([prompt_mask, completion_mask], 1).long(),
    }
    return Records(obs, completions, log_probs, advantages, valid=completion_mask.bool(), **columns)
