"""What a model is asked: a text, or a conversation through the model's chat template, which tokens it becomes, and
which prompts fit, are trained on and are held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from rollsight.errors import RollsightError
from rollsight.streams import Purpose, stream
from rollsight.training.language.models import LanguageModel

Conversation: TypeAlias = Sequence[Mapping[str, str]]
APrompt = TypeVar("APrompt", bound="Prompt | str")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt.

    text: what the model reads.
    conversation: the messages that it was made of; None where the text is the prompt itself.
    columns: the other columns of the data set.
    """

    text: str
    conversation: Conversation | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> str | Conversation:
        """The prompt as the reward is given it."""
        return self.text if self.conversation is None else self.conversation

    @property
    def stored(self) -> str:
        """The prompt as the run keeps it: conversations as JSON."""
        return self.text if self.conversation is None else json.dumps(self.conversation, ensure_ascii=False)


def as_prompt(given: Prompt | str) -> Prompt:
    """A plain text as a prompt."""
    return Prompt(given) if isinstance(given, str) else given


def through_template(found: Sequence[Prompt], tokenizer: Any, chat: bool, system: str | None) -> list[Prompt]:
    """The prompts as the model reads them: conversations, and with `chat` or `system` texts too, go through its chat
    template, up to where the answer begins.

    Raises:
        RollsightError: the model has no chat template, or it does not take such a conversation.
    """
    prompts = []
    for prompt in found:
        messages = prompt.conversation
        if messages is None and (chat or system is not None):
            messages = [{"role": "user", "content": prompt.text}]
        if messages is None:
            prompts.append(prompt)
            continue
        if system is not None:
            messages = [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]
        prompts.append(replace(prompt, text=_templated(tokenizer, messages), conversation=messages))
    return prompts


def token_ids(prompts: Sequence[Prompt | str], tokenizer: Any) -> list[list[int]]:
    """The tokens of each prompt. A chat template writes its special tokens itself, to a text the tokenizer adds its
    own."""
    found = [as_prompt(prompt) for prompt in prompts]
    ids: list[list[int]] = [[]] * len(found)
    for special in (True, False):
        rows = [i for i, prompt in enumerate(found) if (prompt.conversation is None) == special]
        if rows:
            encoded = tokenizer([found[i].text for i in rows], add_special_tokens=special)["input_ids"]
            for i, tokens in zip(rows, encoded, strict=True):
                ids[i] = tokens
    return ids


def fitting(
    prompts: Sequence[APrompt], language: LanguageModel, new_tokens: int, longest: int | None = None
) -> tuple[APrompt, ...]:
    """The prompts of at most `longest` tokens; None keeps all.

    Raises:
        RollsightError: a kept prompt and `new_tokens` more do not fit the model's context, or none is kept.
    """
    lengths = [len(tokens) for tokens in token_ids(prompts, language.tokenizer)]
    kept = [(prompt, n) for prompt, n in zip(prompts, lengths, strict=True) if longest is None or n <= longest]
    if not kept:
        raise RollsightError(
            f"no prompt has at most {longest} tokens, the shortest has {min(lengths)}: raise --max-prompt-tokens"
        )
    for prompt, n in kept:
        if n == 0 or n + new_tokens > language.context:
            raise RollsightError(
                f"the prompt {as_prompt(prompt).text[:40]!r} has {n} tokens, and with {new_tokens} new ones it must "
                f"fit the model's context of {language.context}: leave out long prompts (--max-prompt-tokens) or lower "
                "--max-new-tokens"
            )
    return tuple(prompt for prompt, _ in kept)


def split(prompts: Sequence[APrompt], held_out: int) -> tuple[tuple[APrompt, ...], tuple[APrompt, ...]]:
    """Prompts to train on, and `held_out` others to evaluate on: the same for every seed.

    Raises:
        RollsightError: none would be left to train on.
    """
    if held_out >= len(prompts):
        raise RollsightError(
            f"{held_out} of {len(prompts)} prompts for the evaluation leave none to train on: lower --eval-prompts or "
            "give more prompts"
        )
    order = stream(Purpose.PROMPT_SPLIT).permutation(len(prompts))
    return tuple(prompts[i] for i in order[held_out:]), tuple(prompts[i] for i in order[:held_out])


def _templated(tokenizer: Any, messages: Conversation) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise RollsightError(
            "the model's tokenizer has no chat template, which --chat, --system and prompts that are conversations "
            "need: choose an instruct model, or plain prompts"
        )
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's own, which raises what it likes
        roles = ", ".join(message["role"] for message in messages)
        raise RollsightError(
            f"the model's chat template does not take a conversation of {roles} ({error}): change the prompts or "
            "--system"
        ) from error
    return text
