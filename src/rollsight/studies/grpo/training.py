"""One run with TRL's GRPOTrainer: the model and its adapter, the reward, what is left out, and what is measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from rollsight.adapters.trl import attach
from rollsight.runs.summary import Clock
from rollsight.scoring import Scores
from rollsight.selection import Rule, Selection
from rollsight.studies.grpo import miniature
from rollsight.studies.grpo.arms import GRPOArm
from rollsight.studies.grpo.problems import END, Problem, Problems, draw, is_right, measure, solved
from rollsight.studies.grpo.settings import PHASES, Settings
from rollsight.studies.runner import Report
from rollsight.training.language import models
from rollsight.training.language.models import LanguageModel


class Meter(TrainerCallback):
    """Rewards and measures a training: processor seconds of the phases, what was right and kept, accuracy now and
    then."""

    def __init__(self, problems: Problems, settings: Settings, tokenizer: Any, report: Report) -> None:
        self.rows: list[dict[str, Any]] = []
        self._problems, self._settings, self._tokenizer, self._report = problems, settings, tokenizer, report
        self._clock = _clock()
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._rounds: list[dict[str, float]] = []
        self._round: dict[str, float] = {}

    def right(self, completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
        """The reward, which TRL asks for when a batch is generated."""
        self._clock.lap("generate")
        rewards = [float(is_right(*pair)) for pair in zip(completions, answer, strict=True)]
        groups = torch.tensor(rewards).view(-1, self._settings.generations)
        self._round = {
            "train_reward": float(groups.mean()),
            "silent_groups": float((groups == groups[:, :1]).all(1).float().mean()),
            "kept": 1.0,
        }
        return rewards

    def timed(self, rule: Rule) -> Rule:
        """The rule, which the adapter asks when the batch is scored."""

        def select(scores: Scores) -> Selection:
            self._clock.lap("score")
            chosen, values = rule(scores), scores.values[scores.valid]
            self._round["negative"] = float((values < 0).float().mean())
            self._round["kept"] = float((chosen.weights > 0).float().mean())
            return chosen

        return select

    def on_train_begin(self, *_: Any, **given: Any) -> None:
        self._evaluate(0, given["model"])

    def on_step_begin(self, *_: Any, **given: Any) -> None:
        self._before = _trained(given["model"])
        self._clock = _clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._clock.lap("train")
        model = given["model"]
        for phase, seconds in self._clock.laps.items():
            self._spent[phase] += seconds
            self._round[f"time_{phase}"] = seconds
        self._round["update_norm"] = float((_trained(model) - self._before).norm())
        self._rounds.append(self._round)
        round, settings = state.global_step, self._settings
        if round % settings.evaluate_every == 0 or round == settings.rounds:
            self._evaluate(round, model)
        self._report(round, self._round | {"accuracy": self.rows[-1]["accuracy"]})

    def _evaluate(self, round: int, model: Any) -> None:
        found = measure(model, self._tokenizer, self._problems)
        row: dict[str, Any] = {"round": round, "accuracy": found.accuracy, "greedy": found.greedy}
        for name in ("train_reward", "silent_groups", "negative", "kept", "update_norm"):
            known = [one[name] for one in self._rounds if name in one]
            row[name] = sum(known) / len(known) if known else None
        self.rows.append(row | {f"{phase}_s": seconds for phase, seconds in self._spent.items()})
        self._rounds.clear()


def _clock() -> Clock:
    return Clock(time.process_time(), time.process_time)


def _trained(model: Any) -> Tensor:
    """(P,) the trainable parameters as they are now."""
    return torch.nn.utils.parameters_to_vector(p.detach() for p in model.parameters() if p.requires_grad)


def train(arm: GRPOArm, settings: Settings, seed: int, folder: Path, report: Report) -> list[dict[str, Any]]:
    """Train, and return the learning curve, a row for each evaluation, the first before training. Columns:

    accuracy, greedy: on the evaluation problems, as `problems.Accuracy` has them.
    train_reward, silent_groups (share of the groups without advantage), negative, kept (shares of the completions),
    update_norm: means over the rounds since the row before.
    *_s: processor seconds since the start of training; scoring only where the arm needs it.

    folder: of the run folder that scored arms write.
    """
    problems = draw(settings.task, settings.shots, settings.held_out, settings.evaluation, seed)
    language = _language(settings)
    meter = Meter(problems, settings, language.tokenizer, report)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(arm, settings, seed, problems, language, meter, scratch)
        asked = arm.attachment(solved(problems, problems.held_out, language.tokenizer))
        if asked is not None:
            more = {"arm": str(arm), "task": settings.task}
            attach(trainer, selection=meter.timed(arm.rule(seed)), run=folder, overwrite=True, metadata=more, **asked)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    for row in meter.rows:
        row["score_s"] *= arm.scored
    return meter.rows


def _language(settings: Settings) -> LanguageModel:
    """The model, whose completions end with their line."""
    if settings.model == "miniature":
        language = miniature.taught(settings.task, settings.shots)
    else:
        language = models.load(settings.model, precision="float32")
    ends = {language.tokenizer.eos_token_id, language.tokenizer(END, add_special_tokens=False).input_ids[-1]}
    language.model.generation_config.eos_token_id = sorted(ends)
    return language


def _trainer(
    arm: GRPOArm,
    settings: Settings,
    seed: int,
    problems: Problems,
    language: LanguageModel,
    meter: Meter,
    scratch: str,
) -> Any:
    layers = language.model.config.num_hidden_layers
    adapted = "|".join(map(str, range(max(0, layers - settings.lora_layers), layers)))
    torch.manual_seed(seed)  # the adapter's first weights
    reward: Any = meter.right
    return GRPOTrainer(
        model=language.model,
        processing_class=language.tokenizer,
        peft_config=LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            lora_dropout=0.0,
            target_modules=rf".*layers\.({adapted})\..*proj",
            task_type="CAUSAL_LM",
        ),
        reward_funcs=reward,
        callbacks=[meter],
        train_dataset=Dataset.from_list(list(_rows(problems, problems.training))),
        args=GRPOConfig(
            output_dir=scratch,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=settings.prompts * settings.generations,
            num_generations=settings.generations,
            max_completion_length=settings.max_tokens,
            max_steps=settings.rounds,
            learning_rate=arm.lr or settings.lr,
            lr_scheduler_type="constant",
            beta=0.0,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )


def _rows(problems: Problems, chosen: Sequence[Problem]) -> Iterator[dict[str, str]]:
    for one in chosen:
        yield {"prompt": problems.prompt(one), "answer": one.answer}
