"""Actor and critic in one: a causal language model, its adapter, and a value head on the states its own head reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rollsight import language
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.training.language import models


class ActorCritic(nn.Module):
    """A language model to train, with the model it started from as its reference.

    lora_rank: of the adapter that is trained, the reference being the model without it; 0 trains all weights, beside a
    frozen copy.
    """

    def __init__(self, loaded: models.LanguageModel, lora_rank: int, seed: int) -> None:
        super().__init__()
        self.tokenizer = loaded.tokenizer
        self._copy: tuple[Any, ...] = ()  # in a tuple: the copy's weights are no parameters of this module
        if lora_rank:
            self.language_model = models.add_adapter(loaded.model, lora_rank, seed).eval()
        else:
            self._copy = (deepcopy(loaded.model).requires_grad_(False),)
            self.language_model = loaded.model.requires_grad_(True)
        self.value_head = nn.Linear(self._head.in_features, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def _head(self) -> Any:
        return self.language_model.get_output_embeddings()

    @property
    def actor(self) -> Policy:
        """The actor alone, as scores see it: the value head is no part of log pi."""
        return Policy(self.language_model, language.Completions())

    @property
    def actor_with_values(self) -> Policy:
        """The same, with the values beside the log-probabilities."""
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
            log_prob = language.Completions()(self.language_model, obs, completions).log_prob
        finally:
            handle.remove()
        return Evaluation(log_prob, value=self.value_head(states[0].float()).squeeze(-1))

    def evaluate(self, records: Records) -> Evaluation:
        """The same for the records' completions."""
        evaluation: Evaluation = self(records.obs, records.actions)
        return evaluation

    @torch.no_grad()
    def generate(self, prompts: list[str], new_tokens: int, seed: int) -> tuple[Tensor, ...]:
        """Sample a completion of each prompt at temperature 1, without touching global random streams.

        Returns prompts (n, P) padded on the left with their mask, completions (n, T) padded on the right with theirs;
        the end-of-text token belongs to the completion.
        """
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        end, pad = self.language_model.generation_config.eos_token_id, self.tokenizer.pad_token_id
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sequences = self.language_model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, pad_token_id=pad,
            )  # fmt: skip
        completions = sequences[:, ids.shape[1] :]
        ends = torch.isin(completions, torch.as_tensor(end if end is not None else -1, device=completions.device))
        before = ends.cumsum(1) - ends.long()
        return ids, mask, completions, (before == 0).long()

    def texts(self, completions: Tensor, mask: Tensor) -> list[str]:
        """The completions as text, without padding and special tokens."""
        rows = [row[: int(n)] for row, n in zip(completions, mask.sum(1), strict=True)]
        found: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return found
