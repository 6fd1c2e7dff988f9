"""What a completion is worth: a toxicity classifier from a wheel, any Python function, or a text classifier.

A reward is called as `reward(prompts, completions)`, with those columns of the prompts' data set that it names after
them (all, where it takes `**columns`), and returns one number for each completion, higher being better. A function
whose first parameter is `completions` is called by keywords, as TRL does. Prompts are texts or conversations, as the
model was asked; completions are texts.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter
from typing import Any, Literal, TypeAlias

import numpy as np

from rollsight.arrays import Floats
from rollsight.errors import MissingExtra, RollsightError
from rollsight.training.language.prompts import Prompt, as_prompt

Reward: TypeAlias = Callable[..., "Sequence[float] | Floats"]
Reads: TypeAlias = Literal["completion", "both"]

_LIMIT = 5.0  # logits beyond it are sure either way; without a limit single texts would carry the whole batch


def load(name: str, reads: Reads = "completion") -> Reward:
    """The reward called `name`.

    name:  "profanity", minus the logit of alt-profanity-check's probability that the completion is toxic, clipped to
           [-5, 5]; "module:function" (modules in the working directory are found); or a sequence-classification model
           of transformers as NAME or NAME#LABEL, whose logit of LABEL (by default its first label) is the reward, such
           as facebook/roberta-hate-speech-dynabench-r4-target#nothate, or any reward model.
    reads: what such a model is given, the completion or the prompt too.

    Raises:
        RollsightError: there is no such reward, or its package is missing.
    """
    if name == "profanity":
        return _profanity()
    module, separator, function = name.partition(":")
    if separator and all(part.isidentifier() for part in (*module.split("."), function)):
        return _function(module, function)
    from rollsight.training.language.classifiers import classifier

    return classifier(name, reads)


def check(reward: Reward, prompts: Sequence[Prompt | str]) -> None:
    """`RollsightError` where the reward takes a column that the prompts do not have."""
    _keywords(reward, as_prompt(prompts[0]).columns if prompts else ())


def compute(reward: Reward, prompts: Sequence[Prompt | str], completions: Sequence[str]) -> Floats:
    """(N,) the rewards.

    Raises:
        RollsightError: the reward raised, or did not return one finite number for each completion.
    """
    found = [as_prompt(prompt) for prompt in prompts]
    asked, texts = [prompt.asked for prompt in found], list(completions)
    by_name, names = _keywords(reward, found[0].columns if found else ())
    columns = {name: [prompt.columns[name] for prompt in found] for name in names}
    try:
        if by_name is None:
            values = reward(asked, texts, **columns)
        else:
            values = reward(**{name: {"prompts": asked, "completions": texts}[name] for name in by_name}, **columns)
    except Exception as error:  # the user's own function fails in ways of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RollsightError(f"the reward {name_of(reward)} raised {reason}: correct it") from error
    return _numbers(values, texts, name_of(reward))


def name_of(reward: Reward) -> str:
    """The reward in messages: its module and name."""
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    return name if "." in name or ":" in name else f"{getattr(reward, '__module__', '')}:{name}".removeprefix(":")


def _keywords(reward: Reward, columns: Iterable[str]) -> tuple[list[str] | None, list[str]]:
    """Which of prompts and completions go by keyword (None: both by position), and which columns.

    Raises:
        RollsightError: the reward needs a column that there is not.
    """
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # a built-in without a signature
        return None, []
    rest = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    by_name: list[str] | None = None
    if parameters and parameters[0].name == "completions":
        by_name = ["completions"]
        if rest or any(p.name == "prompts" for p in named):
            by_name.append("prompts")
        named = [p for p in named if p.name not in by_name]
    else:
        positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
        named = [p for p in named if p not in positional[:2]]
    there = [name for name in columns if name not in ("prompts", "completions")]
    missing = [p.name for p in named if p.default is Parameter.empty and p.name not in there]
    if missing:
        has = f"only the columns {', '.join(there)}" if there else "no further columns"
        raise RollsightError(
            f"the reward {name_of(reward)} takes {' and '.join(missing)}, and the prompts have {has}: choose a data "
            "set that has it, or give the parameter a default"
        )
    return by_name, [name for name in there if rest or any(p.name == name for p in named)]


def _numbers(values: Any, completions: Sequence[str], name: str) -> Floats:
    n = len(completions)
    wanted = f"return one number for each of the {n} completions"
    if hasattr(values, "detach"):  # a tensor, which may have a graph or be on another device
        values = values.detach().cpu().numpy()
    try:
        found = np.asarray(values)
        if found.dtype == object:  # None among numbers, or numbers of unusual types
            found = np.array([np.nan if value is None else float(value) for value in found.ravel()]).reshape(
                found.shape
            )
        if found.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError):
        raise RollsightError(f"the reward {name} returned {_described(values)}: {wanted}") from None
    if found.shape != (n,):
        what = f"shape {found.shape}" if found.ndim else _described(values)
        raise RollsightError(f"the reward {name} returned {what} for {n} completions: {wanted}")
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        first = None if isinstance(values, list) and values[wrong[0]] is None else found[wrong[0]]
        raise RollsightError(
            f"the reward {name} is {first} for {len(wrong)} of {n} completions, first for "
            f"{completions[wrong[0]][:40]!r}: return finite numbers"
        )
    return found.astype(np.float64)


def _described(values: Any) -> str:
    if isinstance(values, list | tuple):
        kinds = list(dict.fromkeys(type(value).__name__ for value in values))
        return f"a {type(values).__name__} of {' and '.join(kinds)}"
    return f"{type(values).__name__} {' '.join(repr(values).split())[:60]}" if values is not None else "None"


def _profanity() -> Reward:
    try:
        from profanity_check import predict_prob
    except ModuleNotFoundError as error:
        raise MissingExtra("the reward 'profanity'", error.name or "alt-profanity-check", "llm") from error

    def reward(prompts: Sequence[Any], completions: Sequence[str]) -> Floats:
        p = np.clip(np.asarray(predict_prob(list(completions)), np.float64), 1e-9, 1 - 1e-9)
        logits: Floats = np.log1p(-p) - np.log(p)
        return logits.clip(-_LIMIT, _LIMIT)

    reward.__qualname__, reward.__module__ = "profanity", ""
    return reward


def _function(module: str, function: str) -> Reward:
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs the user's module
        raise RollsightError(
            f"the reward {module}:{function} was not found ({type(error).__name__}: {error}): give MODULE:FUNCTION of "
            "a module that can be imported here"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise RollsightError(f"the reward {module}:{function} is {found!r}: give a function of prompts and completions")
    reward: Reward = found
    return reward
