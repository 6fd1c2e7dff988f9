"""What a completion is worth: a toxicity classifier from a wheel, any Python function, or a text classifier."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rollsight.errors import RollsightError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Reward: TypeAlias = Callable[[Sequence[str], Sequence[str]], "Sequence[float] | Array"]
"""`reward(prompts, completions)`: one number for each completion, higher is better."""

_LIMIT = 5.0  # logits beyond it are sure either way; without a limit single texts would carry the whole batch


def load(name: str) -> Reward:
    """The reward called `name`.

    name: "profanity", minus the logit of alt-profanity-check's probability that the completion is toxic, clipped to
          [-5, 5]; "module:function" (modules in the working directory are found); or a text-classification model of
          transformers as NAME or NAME#LABEL, whose logit of LABEL (by default its first label) is the reward, such as
          facebook/roberta-hate-speech-dynabench-r4-target#nothate.

    Raises:
        RollsightError: there is no such reward, or its package is missing.
    """
    if name == "profanity":
        return _profanity()
    module, separator, function = name.partition(":")
    if separator and all(part.isidentifier() for part in (*module.split("."), function)):
        return _function(module, function)
    return _classifier(name)


def compute(reward: Reward, prompts: Sequence[str], completions: Sequence[str]) -> Array:
    """(N,) the rewards.

    Raises:
        RollsightError: they are not one finite number for each completion.
    """
    values = np.asarray(reward(prompts, completions), np.float64)
    if values.shape != (len(completions),):
        raise RollsightError(
            f"the reward returned shape {values.shape} for {len(completions)} completions: return one number for each"
        )
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise RollsightError(
            f"the reward is {values[wrong[0]]} for {len(wrong)} of {len(completions)} completions, first for "
            f"{completions[wrong[0]][:40]!r}: return finite numbers"
        )
    return values


def _profanity() -> Reward:
    try:
        from profanity_check import predict_prob
    except ModuleNotFoundError as error:
        raise RollsightError(
            f"the reward 'profanity' needs the package {error.name}: pip install 'rollsight[llm]'"
        ) from error

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> Array:
        p = np.clip(np.asarray(predict_prob(list(completions)), np.float64), 1e-9, 1 - 1e-9)
        logits: Array = np.log1p(-p) - np.log(p)
        return logits.clip(-_LIMIT, _LIMIT)

    return reward


def _function(module: str, function: str) -> Reward:
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RollsightError(
            f"the reward {module}:{function} was not found ({error}): give MODULE:FUNCTION of a module that can be "
            "imported here"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise RollsightError(f"the reward {module}:{function} is {found!r}: give a function of prompts and completions")
    reward: Reward = found
    return reward


def _classifier(name: str) -> Reward:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name, _, label = name.partition("#")
    if "/" not in name and not Path(name).is_dir():  # a bare word is a mistake more often than a model of the hub
        raise RollsightError(
            f"the reward {name!r} is unknown: give profanity, MODULE:FUNCTION, or a text-classification model"
        )
    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(name).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RollsightError(
            f"the reward model {name!r} could not be loaded ({reason}): give profanity, MODULE:FUNCTION, or a "
            "text-classification model that can be reached"
        ) from error
    labels: dict[str, int] = model.config.label2id
    if label and label not in labels:
        raise RollsightError(f"the reward model {name!r} has no label {label!r}: choose from {', '.join(labels)}")
    index = labels[label] if label else 0
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def reward(prompts: Sequence[str], completions: Sequence[str]) -> Sequence[float]:
        values: list[float] = []
        for start in range(0, len(completions), 32):
            part = [text or " " for text in completions[start : start + 32]]  # not every model takes no tokens at all
            inputs = tokenizer(part, return_tensors="pt", padding=True, truncation=True).to(model.device)
            values += model(**inputs).logits[:, index].tolist()
        return values

    return reward
