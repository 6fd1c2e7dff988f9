"""A run of `rollsight rlhf` to score and replay."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rollsight import objectives
from rollsight.analysis.culprits.language_rounds import tokens_of
from rollsight.runs import Run
from rollsight.snapshot import LanguageRound
from rollsight.training.language import replaying
from rollsight.training.language.run import settings_of


class RLHFHost:
    """The model of the run, and its PPO update. See `language_rounds.Host`."""

    def __init__(self, run: Run, model: str | None) -> None:
        self._trainer = replaying.trainer_of(run, model)
        self._settings = settings_of(run.path)
        self._tokenizer = self._trainer.policy.tokenizer
        self.policy = self._trainer.policy.actor
        self.objective: objectives.Objective = objectives.PPO("raw", self._trainer.options.clip_range)
        self.pad_token = int(self._tokenizer.pad_token_id)
        self.width = self._trainer.options.micro_batch

    def prompt_tokens(self, prompt: Any) -> list[int]:
        """The tokens of a prompt, through the chat template where the run's prompts went through it."""
        return tokens_of(prompt, self._tokenizer, self._settings.chat, self._settings.system)

    def completion_tokens(self, text: str) -> list[int]:
        """The tokens of a completion."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def put_back(self, frozen: LanguageRound) -> None:
        """Set the policy to that of the round's start."""
        replaying.put_back(self._trainer, frozen)

    def train_again(self, frozen: LanguageRound, weights: Tensor) -> None:
        """Set the policy to that after the round's update with these weights (N,)."""
        replaying.train_again(self._trainer, frozen, weights)
