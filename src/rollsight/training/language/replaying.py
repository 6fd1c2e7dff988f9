"""A run's trainer put back to a frozen round: its policy as it was, and its update again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rollsight.arrays import Ints
from rollsight.runs import Run
from rollsight.snapshot import LanguageRound
from rollsight.training.language import models
from rollsight.training.language.policy import ActorCritic
from rollsight.training.language.ppo import LanguagePPO
from rollsight.training.language.run import settings_of


def trainer_of(run: Run, model: str | None = None) -> LanguagePPO:
    """The trainer of a run, without prompts and reward: for rounds whose completions are there.

    model: the base model, where it is not where the run's settings say.

    Raises:
        RollsightError: it is not a run of this trainer, or its model cannot be loaded.
    """
    settings = settings_of(run.path)
    then: Any = run.metadata.get("precision")
    precision = then if then in ("float32", "bfloat16") else settings.precision
    full = settings.lora_rank == 0
    loaded = models.load(model or settings.model, precision=precision, full=full, seed=settings.seed)
    policy = ActorCritic(loaded, settings.lora_rank, settings.seed, settings.sampling)
    return LanguagePPO(policy, (), _no_reward, settings.options, settings.seed)


def put_back(trainer: LanguagePPO, frozen: LanguageRound) -> None:
    """Put policy and optimiser where they were when the round's update began."""
    trainer.round = frozen.round
    frozen.put_into(trainer.policy.trainable())
    frozen.put_into_optimizer(trainer.optimizer)


def train_again(trainer: LanguagePPO, frozen: LanguageRound, weights: Tensor) -> None:
    """The round's update, on the completions whose weights (N,) are not 0: minibatches are formed from them.

    With the round's own weights it ends with the parameters of the run, on the same build and number of threads, where
    the run scored once a round; where it scored more often, the first selection serves for all epochs.
    """
    put_back(trainer, frozen)
    kept = (weights > 0).numpy(force=True)

    def select(rows: Ints, *_: int) -> Ints:
        chosen: Ints = rows[kept[rows]]
        return chosen

    with torch.enable_grad():
        trainer.passes(frozen.records.to(trainer.policy.device), select)


def _no_reward(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    raise NotImplementedError("a replay samples nothing that could be rewarded")
