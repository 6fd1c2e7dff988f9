"""A round of completions: which hurt, which were cut off, which groups teach nothing, in what order to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rollsight.explorer.tables import column

Filter = Literal["all", "harmful", "hack", "dropped", "truncated", "empty", "invalid", "same"]
Order = Literal["worst", "best", "reward", "stored"]
FILTERS, ORDERS = get_args(Filter), get_args(Order)

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Completions:
    """The N completions of a round.

    Attributes:
        table: their records.
        groups: (N,) the prompt that each continues, as a number from 0 in order of appearance.
        scores: (N,) for the chosen target, NaN where there is none.
        rewards: (N,).
        kept, valid: (N,) whether it stayed in the update, whether there was something to train on.
        truncated: (N,) whether it was cut off at the greatest length; of runs without the texts of tokens, whether it
            has that length.
        empty: (N,) whether it says nothing.
    """

    table: pa.Table
    groups: Integers
    scores: Numbers
    rewards: Numbers
    kept: Mask
    valid: Mask
    truncated: Mask
    empty: Mask

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def ends_known(self) -> bool:
        """Whether the run stores how completions end, so that those of full length that end by themselves are known."""
        return "token_texts" in self.table.column_names and not self.table["token_texts"].null_count

    @cached_property
    def harmful(self) -> Mask:
        """(N,) whether the score is negative."""
        return self.scores < 0

    @cached_property
    def hack(self) -> Mask:
        """(N,) whether it hurts the target although its reward is among the highest quarter of the round, and not the
        lowest of all: what a reward function likes and training should not have."""
        known = self.rewards[np.isfinite(self.rewards)]
        if not len(known):
            return np.zeros(len(self), np.bool_)
        high = (self.rewards >= np.quantile(known, 0.75)) & (self.rewards > known.min())
        found: Mask = self.harmful & high
        return found

    @cached_property
    def same_rewards(self) -> Mask:
        """(N,) whether all completions of its prompt, of several, have the same reward."""
        return self._same(np.unique(np.nan_to_num(self.rewards, nan=np.inf), return_inverse=True)[1])

    @cached_property
    def same_texts(self) -> Mask:
        """(N,) whether all completions of its prompt, of several, are the same text."""
        return self._same(np.asarray(self.table["completion"].combine_chunks().dictionary_encode().indices))

    def _same(self, codes: Integers) -> Mask:
        groups = int(self.groups.max(initial=-1)) + 1
        low, high = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1)
        np.minimum.at(low, self.groups, codes)
        np.maximum.at(high, self.groups, codes)
        size = np.bincount(self.groups, minlength=groups)
        found: Mask = ((low == high) & (size > 1))[self.groups]
        return found

    def matching(self, shown: Filter = "all", search: str = "") -> Mask:
        """(N,) which completions pass a filter and have the text in the prompt or the completion, in any case."""
        match shown:
            case "harmful":
                found = self.harmful
            case "hack":
                found = self.hack
            case "dropped":
                found = ~self.kept & self.valid
            case "truncated":
                found = self.truncated
            case "empty":
                found = self.empty
            case "invalid":
                found = ~self.valid
            case "same":
                found = self.same_rewards | self.same_texts
            case _:
                found = np.ones(len(self), np.bool_)
        if search:
            inside = [
                pc.match_substring(self.table[name].cast(pa.string()), search, ignore_case=True).fill_null(False)
                for name in ("prompt", "completion")
            ]
            found = found & np.asarray(pc.or_(*inside))
        return found

    def order(self, by: Order) -> Integers:
        """(N,) the completions from the first to show to the last; those without a score, or reward, come last."""
        key = {"worst": self.scores, "best": -self.scores, "reward": -self.rewards, "stored": np.zeros(len(self))}[by]
        if by in ("worst", "best") and not np.isfinite(key).any():
            key = self.rewards if by == "worst" else -self.rewards
        return np.argsort(key, kind="stable")  # NaN goes to the end

    def groups_in_order(self, chosen: Mask, by: Order) -> list[int]:
        """The prompts with a chosen completion, the one with the first completion in that order first."""
        order = self.order(by)
        return list(dict.fromkeys(self.groups[order[chosen[order]]].tolist()))

    def of_group(self, group: int, by: Order = "stored") -> Integers:
        """The rows of a prompt's completions, in that order."""
        order = self.order(by)
        found: Integers = order[self.groups[order] == group]
        return found

    def prompt(self, group: int) -> str:
        """The prompt of a group."""
        return str(self.table["prompt"][int(np.argmax(self.groups == group))].as_py() or "")


def completions_of(records: pa.Table, target: str | None, metadata: Mapping[str, Any]) -> Completions:
    """The completions of a round's records.

    Args:
        records: of one round.
        target: whose scores count; None where nothing was scored.
        metadata: of the run, which says how long a completion may be.
    """
    flags = {  # kept and valid where the run does not say otherwise
        name: np.nan_to_num(column(records, name), nan=1.0) > 0 for name in ("kept", "valid")
    }
    texts = records["completion"].cast(pa.string())
    bare = pc.utf8_length(pc.utf8_trim_whitespace(texts)).fill_null(0)
    return Completions(
        table=records,
        groups=_groups(records),
        scores=column(records, f"score_{target}"),
        rewards=column(records, "reward"),
        kept=flags["kept"],
        valid=flags["valid"],
        truncated=_truncated(records, length_limit(metadata)),
        empty=np.asarray(pc.equal(bare, 0)),
    )


def length_limit(metadata: Mapping[str, Any]) -> int | None:
    """How many tokens a completion may have; None where the run does not say."""
    options = (metadata.get("run_settings") or {}).get("options") or {}
    limit = options.get("max_new_tokens") or (metadata.get("settings") or {}).get("max_completion_length")
    return limit if isinstance(limit, int) else None


def token_columns(records: pa.Table) -> list[str]:
    """The columns with a number for each token that have any."""
    return [
        field.name
        for field in records.schema
        if field.name.startswith("token_")
        and field.name != "token_ids"
        and pa.types.is_list(field.type)
        and (pa.types.is_floating(field.type.value_type) or pa.types.is_integer(field.type.value_type))
        and records[field.name].null_count < len(records)
    ]


def _groups(records: pa.Table) -> Integers:
    # A number of the prompt, or where an old run has none the prompt itself.
    name = "group" if "group" in records.column_names and not records["group"].null_count else "prompt"
    return np.asarray(records[name].combine_chunks().dictionary_encode().indices).astype(np.int64)


def _truncated(records: pa.Table, limit: int | None) -> Mask:
    if limit is None:
        return np.zeros(len(records), np.bool_)
    full: Mask = column(records, "length") >= max(limit, 1)
    if "token_texts" not in records.column_names or records["token_texts"].null_count:
        return full
    # A completion of full length that ends by itself has the end-of-text token last, which its text is without.
    rows = np.flatnonzero(full)
    tokens = records["token_texts"].combine_chunks()
    ends = np.asarray(tokens.offsets)[1:] - 1
    last = tokens.values.take(pa.array(ends[rows])).to_pylist()
    said = records["completion"].take(pa.array(rows)).to_pylist()
    full[rows] = [str(text).endswith(end) for text, end in zip(said, last, strict=True)]
    return full
