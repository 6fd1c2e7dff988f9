"""Actor and critic in one: a causal language model, its adapter, and a value head on the states its own head reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rollsight import language
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.training.language import models, sampling
from rollsight.training.language.padding import stack
from rollsight.training.language.prompts import Prompt, token_ids
from rollsight.training.language.settings import Sampling


class ActorCritic(nn.Module):
    """A language model to train, with the model it started from as its reference.

    lora_rank: of the adapter that is trained, the reference being the model without it; 0 trains all weights and
    keeps a frozen copy. sampled: how completions are sampled; every log-probability is of that distribution.

    Warns where the model's generation_config asks for another distribution: its entries are not applied.

    Raises:
        RollsightError: the model is not causal.
    """

    def __init__(
        self, loaded: models.LanguageModel, lora_rank: int, seed: int, sampled: Sampling | None = None
    ) -> None:
        super().__init__()
        models.check_causal(loaded)
        self.tokenizer, self.sampling = loaded.tokenizer, Sampling() if sampled is None else sampled
        if entries := sampling.set_aside(loaded.model):
            named = ", ".join(f"{name}={value}" for name, value in entries.items())
            warnings.warn(
                f"the model's generation_config sets {named}, which is not applied: completions are sampled from the "
                "distribution that is scored (choose it with temperature, top_p and top_k)",
                stacklevel=2,
            )
        self._copy: tuple[Any, ...] = ()  # in a tuple: the copy's weights are not parameters of this module
        if lora_rank:
            self.language_model = models.add_adapter(loaded.model, lora_rank, seed).eval()
        else:
            self._copy = (deepcopy(loaded.model).requires_grad_(False),)
            self.language_model = loaded.model.requires_grad_(True)
        self.value_head = nn.Linear(self._head.in_features, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained, rather than all weights."""
        return not self._copy

    @property
    def _head(self) -> Any:
        return self.language_model.get_output_embeddings()

    @property
    def distribution(self) -> language.Completions:
        """What gives the log-probabilities of completions, of this model and of the reference."""
        return language.Completions(self.sampling.temperature)

    @property
    def actor(self) -> Policy:
        """The actor alone, as scores see it: the value head is not part of log pi."""
        return Policy(self.language_model, self.distribution)

    @property
    def actor_with_values(self) -> Policy:
        """The same, with the values next to the log-probabilities."""
        return Policy(self.language_model, lambda _, obs, completions: self(obs, completions))

    def to(self, *args: Any, **kwargs: Any) -> ActorCritic:
        super().to(*args, **kwargs)
        self._copy = tuple(model.to(*args, **kwargs) for model in self._copy)
        return self

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """What training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The language model before training."""
        if self._copy:
            yield self._copy[0]
        else:
            with self.language_model.disable_adapter():
                yield self.language_model

    def forward(self, obs: Mapping[str, Tensor], completions: Tensor) -> Evaluation:
        """log pi(token) and V(state before it), each (n, T), from one pass through the body."""
        states: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        try:
            log_prob = self.distribution(self.language_model, obs, completions).log_prob
        finally:
            handle.remove()
        return Evaluation(log_prob, value=self.value_head(states[0].float()).squeeze(-1))

    def evaluate(self, records: Records) -> Evaluation:
        """The same for the records' completions."""
        evaluation: Evaluation = self(records.obs, records.actions)
        return evaluation

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt | str], new_tokens: int, seed: int | tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """Sample a completion of each prompt, without touching global random streams.

        seed: keys the first prompt's random stream; the others' have 1, 2, ... more in its last number. Which prompts
        are sampled together changes a completion only where rounding decides.

        Returns prompts (n, P) padded on the left with their mask, completions (n, T) padded on the right with theirs;
        the end-of-text token belongs to the completion. Where sampling leaves tokens out, also which ones it could
        have taken at each, as `language.pack_support` packs them.
        """
        pad = self.tokenizer.pad_token_id
        rows = [torch.tensor([tokens]) for tokens in token_ids(prompts, self.tokenizer)]
        ids = stack(rows, pad, left=True).to(self.device)
        mask = stack([torch.ones_like(row) for row in rows], 0, left=True).to(self.device)
        *keys, last = (seed,) if isinstance(seed, int) else seed
        seeds = [(*keys, last + i) for i in range(len(prompts))]
        sampler = sampling.Sampler(self.sampling, seeds, ids.shape[1], new_tokens)
        model = self.language_model.get_base_model() if self.adapted else self.language_model
        config = sampling.plain_config(model, pad, new_tokens)
        own, model.generation_config = model.generation_config, config  # or its entries would fill the gaps of ours
        try:
            sequences = self.language_model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=[sampler]
            )
        finally:
            model.generation_config = own
        completions = sequences[:, ids.shape[1] :]
        end = config.eos_token_id
        ends = torch.isin(completions, torch.as_tensor(end if end is not None else -1, device=completions.device))
        before = ends.cumsum(1) - ends.long()
        return ids, mask, completions, (before == 0).long(), *sampler.supports(completions.shape[1])

    def texts(self, completions: Tensor, mask: Tensor) -> list[str]:
        """The completions as text, without padding and special tokens."""
        rows = [row[: int(n)] for row, n in zip(completions, mask.sum(1), strict=True)]
        found: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return found
