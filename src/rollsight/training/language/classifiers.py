"""Sequence-classification models as rewards: text classifiers that read the completion, reward models that read the
prompt too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rollsight.errors import RollsightError
from rollsight.training.language.prompts import Conversation
from rollsight.training.language.rewards import Reads, Reward

_BATCH = 32  # texts of one forward


def classifier(name: str, reads: Reads) -> Reward:
    """The reward that is a logit of a model: NAME or NAME#LABEL, a folder or a name on the hub.

    Raises:
        RollsightError: there is no such model or label.
    """
    label = ""
    if not Path(name).exists():
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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:  # models that read their last token must know which that is
        model.config.pad_token_id = tokenizer.pad_token_id
    if reads == "both":
        tokenizer.truncation_side = "left"  # too long a text loses the prompt's beginning, not the completion
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def reward(prompts: Sequence[str | Conversation], completions: Sequence[str]) -> Sequence[float]:
        texts, special = list(completions), True
        if reads == "both":
            special = not tokenizer.chat_template or all(isinstance(prompt, str) for prompt in prompts)
            texts = [_together(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
        values: list[float] = []
        for start in range(0, len(texts), _BATCH):
            part = [text or " " for text in texts[start : start + _BATCH]]  # not every model takes no tokens at all
            inputs = tokenizer(part, return_tensors="pt", padding=True, truncation=True, add_special_tokens=special)
            values += model(**inputs.to(model.device)).logits[:, index].float().tolist()
        return values

    reward.__qualname__, reward.__module__ = name, ""
    return reward


def _together(tokenizer: Any, prompt: str | Conversation, completion: str) -> str:
    """Prompt and completion as one text: through the chat template, or one behind the other."""
    if isinstance(prompt, str):
        return prompt + completion
    if not tokenizer.chat_template:
        return "\n".join([*(message["content"] for message in prompt), completion])
    text: str = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": completion}], tokenize=False, add_generation_prompt=False
    )
    return text
