"""A run of TRL's GRPO or RLOO to score and replay, without TRL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rollsight import objectives
from rollsight.analysis.culprits.language_rounds import as_messages, tokens_of
from rollsight.errors import OptionError, RollsightError
from rollsight.language import Completions
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.runs import Run
from rollsight.snapshot import LanguageRound
from rollsight.streams import Purpose, stream
from rollsight.training.language import models

_ROWS = 32  # completions of one forward
_OPTIMIZERS = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam, "SGD": torch.optim.SGD}


class TRLHost:
    """The model of the run, and the update of its trainer. See `language_rounds.Host`.

    A round's batch is split into the same number of optimiser steps, in an order of its own where there are several;
    the learning rate is that of the round's first step, and the KL term is left out.
    """

    def __init__(self, run: Run, model: str | None) -> None:
        update = LanguageRound.load(run.policy_path(run.policy_rounds[-1])).update
        named = model or str(run.metadata.get("model") or "")
        try:
            loaded = models.load(named, precision="float32")
        except RollsightError as error:
            raise OptionError(
                f"the base model of {run.path} is needed, and {error}; name it with {{model}}", model=model or "FOLDER"
            ) from error
        self._model, self._tokenizer = _with_adapter(loaded.model, update), loaded.tokenizer
        self.policy = Policy(self._model, Completions(update["temperature"], count_padding=True))
        self.objective = _objective(update, on_policy=True)
        self.pad_token = int(self._tokenizer.pad_token_id)
        self.width = _ROWS

    def prompt_tokens(self, prompt: Any) -> list[int]:
        """The tokens of a prompt; messages through the model's chat template."""
        return tokens_of(prompt, self._tokenizer)

    def completion_tokens(self, text: str) -> list[int]:
        """The tokens of a completion; of messages, the last one's."""
        messages = as_messages(text)
        text = text if isinstance(messages, str) else str(messages[-1]["content"])
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def put_back(self, frozen: LanguageRound) -> None:
        """Set the policy to that of the round's start."""
        named = dict(self._model.named_parameters())
        mine = {name: named[name] for name in frozen.trainable if name in named}
        for name, p in named.items():
            p.requires_grad_(name in mine)
        frozen.put_into(mine)

    def train_again(self, frozen: LanguageRound, weights: Tensor) -> None:
        """Set the policy to that after the round's update with these weights (N,)."""
        self.put_back(frozen)
        optimizer = self._optimizer(frozen)
        update, device = frozen.update, self.policy.device
        kept = torch.nonzero(weights > 0).flatten()
        if not len(kept):
            return
        records = frozen.records.take(kept).to(device)
        steps = min(int(update["steps"]), len(kept))
        several = steps * int(update["passes"]) > 1
        if several:  # the old log-probabilities are those of the policy that made the batch
            with torch.no_grad():
                parts = [self.policy(part).log_prob for part in _parts(records)]
            records = _with_log_probs(records, torch.cat(parts))
        objective = _objective(update, on_policy=not several)
        order = torch.from_numpy(stream(update["seed"], frozen.round, Purpose.MINIBATCH_ORDER).permutation(len(kept)))
        total = len(records) if update["row_mean"] else int(records.valid.sum())
        trained = [p for p in self._model.parameters() if p.requires_grad]
        for _ in range(int(update["passes"])):
            for index in order.tensor_split(steps):
                batch = records.take(index)
                divisor = float(batch.valid.sum()) if update["loss"] == "bnpo" else total / steps
                with torch.enable_grad():
                    for part in _parts(batch):
                        (-objective.terms(self.policy(part), part).sum() / max(divisor, 1.0)).backward()
                if update["max_grad_norm"] > 0:
                    nn.utils.clip_grad_norm_(trained, update["max_grad_norm"])
                optimizer.step()
                optimizer.zero_grad()

    def _optimizer(self, frozen: LanguageRound) -> torch.optim.Optimizer:
        """Over the model's parameters, as it was at the round's start."""
        update, named = frozen.update, dict(self._model.named_parameters())
        kind = _OPTIMIZERS.get(update["optimizer"])
        if kind is None:
            raise RollsightError(
                f"round {frozen.round} was trained with the optimiser {update['optimizer']}, which is not replayed: "
                f"train with one of {', '.join(_OPTIMIZERS)}"
            )
        groups = [{"params": [named[name] for name in group]} for group in update["groups"]]
        optimizer: torch.optim.Optimizer = kind(groups, lr=1e-3)
        frozen.put_into_optimizer(optimizer)
        return optimizer


def _parts(records: Records) -> Iterator[Records]:
    # Padding stays: TRL's positions count it.
    return (records.take(rows) for rows in torch.arange(len(records)).split(_ROWS))


def _with_log_probs(records: Records, log_probs: Tensor) -> Records:
    return replace(records, log_probs=torch.where(records.valid, log_probs, 0.0))


def _objective(update: Any, on_policy: bool) -> objectives.Objective:
    clips = (update["clip_low"], update["clip_high"])
    if update["algorithm"] == "rloo":
        return objectives.RLOO(*clips, on_policy=on_policy)
    loss = {"sapo": "grpo", "vespo": "dapo"}.get(update["loss"], update["loss"])
    return objectives.GRPO(loss, *clips, update["importance"], update["max_length"], on_policy=on_policy)


def _with_adapter(model: nn.Module, update: Any) -> nn.Module:
    """The model with the run's adapter, in evaluation mode."""
    if update["adapter"] is None:
        return model.eval()
    from peft import get_peft_config, get_peft_model

    adapted: nn.Module = get_peft_model(model, get_peft_config(dict(update["adapter"])))
    return adapted.eval()
