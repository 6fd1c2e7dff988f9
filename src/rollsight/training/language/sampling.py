"""Sampling completions from exactly the distribution that is scored: the model's own, at a temperature, within the
likeliest tokens. Each sequence has a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from rollsight.language import pack_support
from rollsight.streams import stream
from rollsight.training.language.settings import Sampling

# What may differ from one model to the next without changing the distribution, or is an option of ours.
_OURS = {"transformers_version", "do_sample", "max_length", "max_new_tokens", "use_cache"}
_OURS |= {"eos_token_id", "pad_token_id", "bos_token_id"}


class Sampler(LogitsProcessor):
    """Chooses each sequence's next token, by leaving it as the only possible one.

    seeds: of the sequences' random streams; width: columns of the prompts; length: of a completion at most.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[tuple[int, ...]], width: int, length: int) -> None:
        self._sampling, self._width = sampling, width
        # In (0, 1]: a token without probability is never the first one to reach such a share of the whole.
        draws = [1 - stream(*seed).random(length) for seed in seeds]
        self._draws = torch.from_numpy(np.stack(draws))
        self._supports: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        step = min(input_ids.shape[1] - self._width, self._draws.shape[1] - 1)
        logits = scores / self._sampling.temperature
        if self._sampling.truncated:
            kept = support(logits, self._sampling)
            self._supports[step:] = [pack_support(kept)]
            logits = logits.masked_fill(~kept, -torch.inf)
        reached = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        draws = self._draws[:, step, None].to(scores.device)
        tokens = torch.searchsorted(reached, draws * reached[:, -1:])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    def supports(self, length: int) -> tuple[Tensor, ...]:
        """(n, length, W): the tokens that could be sampled at each step, packed; nothing where all of them could."""
        return (torch.stack(self._supports[:length], 1),) if self._sampling.truncated else ()


def support(logits: Tensor, sampling: Sampling) -> Tensor:
    """(n, V): the tokens that may be sampled, by logits (n, V) at their temperature: of the top_k likeliest, the fewest
    that have the probability top_p among them, and at least one."""
    kept = torch.ones_like(logits, dtype=torch.bool)
    if 0 < sampling.top_k < logits.shape[-1]:
        kept = logits >= logits.topk(sampling.top_k).values[:, -1:]
    if sampling.top_p < 1:
        probabilities, order = logits.masked_fill(~kept, -torch.inf).softmax(-1).sort(-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        kept &= torch.zeros_like(kept).scatter(1, order, before < sampling.top_p)
    return kept


def plain_config(model: Any, pad: int | None, new_tokens: int) -> GenerationConfig:
    """What generation is told: which tokens end, pad and begin a text, and its length. `Sampler` chooses the tokens, so
    it is told to take the best one."""
    own = model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else getattr(model.config, "eos_token_id", None)
    return GenerationConfig(
        eos_token_id=end, pad_token_id=pad, bos_token_id=own.bos_token_id, max_new_tokens=new_tokens, do_sample=False
    )


def set_aside(model: Any) -> dict[str, Any]:
    """The entries of the model's generation_config that would make samples of another distribution than the model's
    own, or are left out with them."""
    entries = model.generation_config.to_diff_dict()
    return {
        name: value
        for name, value in entries.items()
        if name not in _OURS and not name.startswith("_") and not _neutral(name, value)
    }


def _neutral(name: str, value: Any) -> bool:
    return value in (None, False, 0, "", [], {}) or (value == 1 and name != "top_k")
