"""What each token of a completion says, for people who look at it later without the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rollsight.records import Records

_NO_CHARACTER = "\ufffd"  # what a tokenizer decodes bytes to that are only a part of a character


class TokenTexts:
    """Splits completions into the texts of their tokens. Each token is decoded once.

    The texts of a row joined are the completion, with its special tokens. Where a character has several tokens, the
    last of them says it, and the others are empty.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """The texts of the tokens in each row."""
        for token in {token for row in rows for token in row} - self._known.keys():
            # After itself: some tokenizers leave out the space before a text's first token.
            self._known[token] = self._decode([token, token])[len(self._decode([token])) :]
        return [self._row([int(token) for token in row]) for row in rows]

    def of_completions(self, records: Records) -> list[list[str]]:
        """The same of the valid tokens of completions, which are the first of each row."""
        assert isinstance(records.actions, Tensor)
        lengths = records.valid.sum(1).tolist()
        return self.of([row[:length].tolist() for row, length in zip(records.actions, lengths, strict=True)])

    def _row(self, tokens: list[int]) -> list[str]:
        texts = [self._known[token] for token in tokens]
        return self._with_whole_characters(tokens) if any(_NO_CHARACTER in text for text in texts) else texts

    def _with_whole_characters(self, tokens: list[int]) -> list[str]:
        texts, first, done = list[str](), 0, 0
        for end in range(1, len(tokens) + 1):
            before, now = self._decode(tokens[first:done]), self._decode(tokens[first:end])
            if now.endswith(_NO_CHARACTER) and end < len(tokens):
                texts.append("")
                continue
            texts.append(now[len(before) :])
            first, done = done, end
        return texts

    def _decode(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
