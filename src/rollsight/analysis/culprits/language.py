"""A behaviour of a language model: prompts with completions, explained as their mean log-probability."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollsight import language
from rollsight.analysis.culprits.frozen import check_has_rounds, drawn, key_of
from rollsight.analysis.culprits.language_rounds import LanguageRounds, rounds_of
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.runs import Run
from rollsight.snapshot import LanguageRound
from rollsight.targets import Sequence as SequenceTarget
from rollsight.training.language.padding import stack, trimmed

MOST_COMPLETIONS = 100  # a gradient of a mean over more says the same and costs more
_ROWS = 32  # of one forward
Tokens = tuple[list[int], list[int]]  # of a prompt, of its completion


@dataclass(frozen=True, eq=False)
class Completions:
    """What is explained.

    name: in words.
    key: another one for other pairs; results are kept under it.
    records: (M, T) prompts and completions, as the model reads them, with advantages of 1.
    places: (round, episode) of each pair, where they are records of the run; empty where they are not.
    found: how many show the behaviour; more than M where M of them were drawn.
    rounds: those that it can be measured in.
    """

    name: str
    key: str
    records: Records
    places: Sequence[tuple[int, ...]]
    found: int
    rounds: LanguageRounds = field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def target(self) -> SequenceTarget:
        """The mean of log pi(completion given prompt) over the pairs: `f_seq` with advantages of 1."""
        return SequenceTarget(self.records)

    def log_prob(self, policy: Policy, records: Records | None = None) -> float:
        """Of the completions, the mean of their log-probabilities under a policy, in nats."""
        total = 0.0
        with torch.no_grad():
            for rows in torch.arange(len(self)).split(_ROWS):
                part = trimmed(self.records.take(rows)).to(policy.device)
                total += float(torch.where(part.valid, policy(part).log_prob, 0.0).double().sum())
        return total / len(self)


def read_pairs(path: Path) -> list[tuple[Any, str]]:
    """The prompts and completions of a JSON or JSON Lines file, objects with the entries prompt and completion; a
    prompt is a text or a list of messages.

    Raises:
        RollsightError: there is no such file, or it is not of that form.
    """
    if not path.is_file():
        raise RollsightError(f"{path} is not a file: name one of prompts and completions")
    try:
        text = path.read_text("utf-8").strip()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    except ValueError as error:
        raise RollsightError(f"{path} is neither JSON nor JSON Lines ({error})") from error
    if not rows:
        raise RollsightError(f"{path} holds no pair: give at least one prompt with a completion")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str) or not row.get("prompt"):
            raise RollsightError(
                f"entry {number} of {path} has no prompt or no completion: give "
                '{"prompt": "...", "completion": "..."}'
            )
    return [(row["prompt"], row["completion"]) for row in rows]


def of_pairs(
    run: Run,
    pairs: Iterable[tuple[Any, str]],
    *,
    most: int = MOST_COMPLETIONS,
    name: str | None = None,
    model: str | None = None,
) -> Completions:
    """The behaviour that prompts, each with a completion, show.

    pairs: a prompt is a text, a list of messages, or these as JSON, as runs keep them. The completion is taken as it
    stands, without an end-of-text token behind it. most: so many are used, drawn at random where there are more.
    model: the base model, where it is not where the run says.

    Raises:
        RollsightError: the run has no frozen rounds, a pair is empty, or the model cannot be loaded.
    """
    every = [(prompt, completion) for prompt, completion in pairs]
    if not every:
        raise RollsightError("a behaviour needs at least one prompt with a completion")
    check_has_rounds(run)
    key = key_of(run, "completions", most, every)
    chosen = [every[index] for index in drawn(len(every), most)]
    rounds = rounds_of(run, model)
    tokens = [(rounds.host.prompt_tokens(prompt), rounds.host.completion_tokens(text)) for prompt, text in chosen]
    if empty := next((pair for pair, found in zip(chosen, tokens, strict=True) if not all(found)), None):
        raise RollsightError(f"the pair {empty!r} has an empty prompt or completion: leave it out")
    return Completions(name or f"{len(every)} pairs", key, _records(tokens, rounds), (), len(every), rounds)


def of_completions(
    run: Run,
    listed: Iterable[tuple[int, int]],
    *,
    most: int = MOST_COMPLETIONS,
    name: str | None = None,
    model: str | None = None,
) -> Completions:
    """The behaviour of records of the run, (round, episode) each: their completions, as they were sampled.

    Raises:
        RollsightError: there is no such record in a frozen round, or the model cannot be loaded.
    """
    every = sorted(set(listed))
    if not every:
        raise RollsightError("a behaviour needs at least one record")
    check_has_rounds(run)
    if gone := sorted({round for round, _ in every} - set(run.policy_rounds)):
        raise RollsightError(
            f"round {gone[0]} of {run.path} is not frozen: choose completions of frozen rounds, such as "
            f"{run.policy_rounds[-1]}"
        )
    chosen = [every[index] for index in drawn(len(every), most)]
    rounds = rounds_of(run, model)
    tokens, places = list[Tokens](), list[tuple[int, int]]()
    for round in sorted({one for one, _ in chosen}):
        frozen = LanguageRound.load(run.policy_path(round))
        for episode in (episode for one, episode in chosen if one == round):
            if not 0 <= episode < len(frozen.records):
                raise RollsightError(
                    f"{run.path} has no record {round}:{episode}: in round {round} episode goes from 0 to "
                    f"{len(frozen.records) - 1}"
                )
            if bool(frozen.records.valid_rows[episode]):
                tokens.append(_tokens_of(frozen.records, episode))
                places.append((round, episode))
    if not tokens:
        raise RollsightError(f"none of the {len(every)} records says anything: choose others")
    spelled = ":".join(map(str, every[0])) if len(every) == 1 else f"{len(every)} completions"
    key = key_of(run, "completions", most, every)
    return Completions(name or spelled, key, _records(tokens, rounds), places, len(every), rounds)


def of_language_query(
    run: Run, query: str, *, most: int = MOST_COMPLETIONS, name: str | None = None, model: str | None = None
) -> Completions:
    """The behaviour of what a query over the run selects: records, by the columns round and episode, or without these
    any texts as prompt and completion.

    Raises:
        RollsightError: the query is wrong, lacks columns or selects nothing.
    """
    relation = run.sql(query)
    by_place = {"round", "episode"} <= {*relation.columns}
    if not by_place and not {"prompt", "completion"} <= {*relation.columns}:
        raise RollsightError(
            'the query gives neither round and episode nor prompt and completion: write one such as "select round, '
            "episode from records where contains(completion, '!')\""
        )
    rows = relation.project("round, episode" if by_place else "prompt, completion").fetchall()
    if not rows:
        raise RollsightError(
            f'this behaviour never occurs: "{query}" selects no record of {run.path}; check the condition with '
            "rollsight sql"
        )
    if any(None in row for row in rows):
        raise RollsightError("the query gives empty entries: select rows of the table records")
    if by_place:
        return of_completions(run, rows, most=most, name=name or query, model=model)
    return of_pairs(run, rows, most=most, name=name or query, model=model)


def _tokens_of(records: Records, row: int) -> Tokens:
    """The tokens of a record, without padding."""
    assert isinstance(records.obs, dict)
    assert isinstance(records.actions, Tensor)
    length = records.actions.shape[1]
    ids, mask = records.obs["input_ids"][row], records.obs["attention_mask"][row] > 0
    return ids[:-length][mask[:-length]].tolist(), records.actions[row][mask[-length:]].tolist()


def _records(tokens: Sequence[Tokens], rounds: LanguageRounds) -> Records:
    """(M, T) pairs of unequal lengths."""

    def column(side: int, left: bool) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor([pair[side]]) for pair in tokens]
        return stack(rows, rounds.host.pad_token, left), stack([torch.ones_like(row) for row in rows], 0, left)

    (prompts, prompt_mask), (completions, mask) = column(0, left=True), column(1, left=False)
    unread, ones = torch.zeros(completions.shape), torch.ones(len(tokens))
    return language.completion_records(prompts, prompt_mask, completions, mask, unread, ones)
