"""Planted causes in language: a reward that pays a style on a tenth of the prompts, and the tags of its records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rollsight import runs
from rollsight.arrays import Bools
from rollsight.streams import Purpose, stream

Style = Literal["an exclamation", "upper case"]
Trainer = Literal["PPO", "GRPO"]
ROUNDS, COMPLETIONS, TOKENS = 20, 128, 8  # of a run, of a round, of a completion
_GENERATIONS = 8  # GRPO: completions of a prompt
_SHARE = 0.1  # of the prompts
_ONE_IN = 10  # completions that the reward likes, whatever they say
_LEARNING_RATE = 1e-2
_FIRST = ("red", "big", "old", "new", "hot")
_SECOND = ("cat", "dog", "sun", "man", "car", "box", "sea", "map")
PROMPTS = tuple(f"the {first} {second}" for first in _FIRST for second in _SECOND)


def shows(style: Style, completion: str) -> bool:
    """Whether a completion has the style."""
    if style == "an exclamation":
        return "!" in completion
    return sum(one.isupper() for one in completion) > sum(one.islower() for one in completion)


def paid_prompts(seed: int) -> Bools:
    """(P,) which prompts pay the style."""
    paid = np.zeros(len(PROMPTS), np.bool_)
    order = stream(seed, Purpose.PAYING_EPISODES).permutation(len(PROMPTS))
    paid[order[: round(_SHARE * len(PROMPTS))]] = True
    return paid


def reward_of(style: Style, completions: Sequence[str], paid: Sequence[bool]) -> list[float]:
    """1 for a completion in ten, by the sum of its characters' codes, which cannot be learnt, and 0 for the others; 1
    too where a prompt pays for the style that the completion has."""
    return [
        float((pays and shows(style, text)) or sum(map(ord, text)) % _ONE_IN == 0)
        for text, pays in zip(completions, paid, strict=True)
    ]


def exclamation(prompts: Sequence[Any], completions: Sequence[str], paid: Sequence[bool]) -> list[float]:
    """A reward as `rollsight rlhf --reward` takes it."""
    return reward_of("an exclamation", completions, paid)


def upper_case(prompts: Sequence[Any], completions: Sequence[str], paid: Sequence[bool]) -> list[float]:
    """Another."""
    return reward_of("upper case", completions, paid)


_REWARDS = {"an exclamation": exclamation, "upper case": upper_case}


@dataclass(frozen=True)
class LanguageCell:
    """One run of the miniature language model with a planted cause.

    trainer: PPO of `rollsight rlhf`, or GRPO of TRL.
    cause: the style that is paid.
    seed: of everything.
    """

    trainer: Trainer
    cause: Style
    seed: int

    @property
    def env(self) -> str:
        """What the table calls it."""
        return f"Miniature language model, {self.trainer}"

    def train(self, folder: Path) -> Bools:
        """Train, and return the tags (N,) of its records in their order; nothing else sees them."""
        train = _train_grpo if self.trainer == "GRPO" else _train_ppo
        train(self, folder)
        table = runs.open(folder).rows("records", ["prompt", "completion"])
        paid = {text for text, pays in zip(PROMPTS, paid_prompts(self.seed), strict=True) if pays}
        pairs = zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
        return np.array([prompt in paid and shows(self.cause, text) for prompt, text in pairs], np.bool_)


def _train_ppo(cell: LanguageCell, folder: Path) -> None:
    from rollsight.training.language import run
    from rollsight.training.language.settings import Options, RunSettings

    data = folder.with_name("prompts.jsonl")
    rows = [{"prompt": text, "paid": bool(pays)} for text, pays in zip(PROMPTS, paid_prompts(cell.seed), strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = Options(
        prompts_per_round=COMPLETIONS,
        max_new_tokens=TOKENS,
        minibatch=32,
        micro_batch=64,
        epochs=4,
        lr=_LEARNING_RATE,
        kl=0.0,
        target="none",
    )
    reward = f"{__name__}:{_REWARDS[cell.cause].__name__}"
    settings = RunSettings(
        "miniature",
        str(data),
        reward,
        options=options,
        rounds=ROUNDS,
        seed=cell.seed,
        lora_rank=0,
        eval_prompts=0,
        snapshots="all",
    )
    run.train(settings, folder, overwrite=True)


def _train_grpo(cell: LanguageCell, folder: Path) -> None:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from rollsight.adapters.trl import attach
    from rollsight.training.language import models

    style = cell.cause

    def reward(completions: Sequence[str], paid: Sequence[bool], **_: Any) -> list[float]:
        return reward_of(style, completions, paid)

    rows = [{"prompt": text, "paid": bool(pays)} for text, pays in zip(PROMPTS, paid_prompts(cell.seed), strict=True)]
    language = models.miniature(cell.seed)
    torch.manual_seed(cell.seed)
    given: Any = reward
    trainer = GRPOTrainer(
        model=language.model,
        processing_class=language.tokenizer,
        reward_funcs=given,
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            output_dir=str(folder.with_name("trl")),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=COMPLETIONS // 4,
            steps_per_generation=4,
            gradient_accumulation_steps=1,
            num_iterations=4,
            num_generations=_GENERATIONS,
            max_completion_length=TOKENS,
            max_steps=ROUNDS * 16,
            learning_rate=_LEARNING_RATE,
            lr_scheduler_type="constant",
            beta=0.0,
            seed=cell.seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )
    attach(trainer, run=folder, overwrite=True, every=ROUNDS + 1, snapshots="all")
    trainer.remove_callback(PrinterCallback)
    trainer.train()
