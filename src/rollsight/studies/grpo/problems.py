"""One-digit problems from reasoning-gym as few-shot prompts, their verifier, and how likely a policy is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollsight import language
from rollsight.errors import RollsightError
from rollsight.records import Records
from rollsight.streams import Purpose, stream
from rollsight.studies.grpo.settings import Task

_DATA_SETS = {"products": "products", "sums": "chain_sum"}
_DRAWN = 5000  # far more than there are different problems: 100 products, 200 sums and differences
END = "\n"  # ends a problem's line, and a completion


@dataclass(frozen=True)
class Problem:
    """An arithmetic problem.

    expression: such as "7 * 8".
    answer: the number as text.
    """

    expression: str
    answer: str


@dataclass(frozen=True)
class Problems:
    """The problems of a run, no two alike.

    shots: stand before each prompt, solved.
    training: trained on.
    held_out: of the held-out target.
    evaluation: neither trained nor scored on.
    """

    shots: Sequence[Problem]
    training: Sequence[Problem]
    held_out: Sequence[Problem]
    evaluation: Sequence[Problem]

    def prompt(self, problem: Problem) -> str:
        """The solved shots, a line each, and the problem up to its answer."""
        solved = "".join(f"{shot.expression} = {shot.answer}{END}" for shot in self.shots)
        return f"{solved}{problem.expression} = "


def draw(task: Task, shots: int, held_out: int, evaluation: int, seed: int) -> Problems:
    """All one-digit problems of the task. The shots are the same for all seeds, the split is drawn from the seed.

    Raises:
        RollsightError: reasoning-gym is missing, or there are not enough problems for the split.
    """
    found = _all(task)
    order = stream(Purpose.SHOTS).permutation(len(found))
    first, rest = ([found[i] for i in part] for part in (order[:shots], order[shots:]))
    order = stream(seed, Purpose.PROBLEM_SPLIT).permutation(len(rest))
    if held_out + evaluation >= len(rest):
        raise RollsightError(
            f"{task} has {len(found)} problems, of which {shots} shots, {held_out} held-out and {evaluation} "
            "evaluation problems leave none to train on: ask for fewer"
        )
    parts = np.split(order, [held_out, held_out + evaluation])
    held, evaluated, training = ([rest[i] for i in part] for part in parts)
    return Problems(first, training, held, evaluated)


def _all(task: Task) -> list[Problem]:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise RollsightError("the problems come from reasoning-gym: pip install reasoning-gym==0.1.25") from error
    drawn = reasoning_gym.create_dataset(
        _DATA_SETS[task], size=_DRAWN, seed=0, min_terms=2, max_terms=2, min_digits=1, max_digits=1
    )
    return [Problem(*pair) for pair in sorted({(one["metadata"]["expression"], one["answer"]) for one in drawn})]


def is_right(completion: str, answer: str) -> bool:
    """Exact match of the first number. (reasoning-gym's own scores give credit for a part of the answer.)"""
    found = re.search(r"-?\d+", completion)
    return found is not None and found.group() == answer


def solved(problems: Problems, chosen: Sequence[Problem], tokenizer: Any) -> Records:
    """The right answers to the chosen problems as completions with advantage 1: what a target of these is measured
    on."""
    prompts = tokenizer([problems.prompt(one) for one in chosen], return_tensors="pt", padding=True)
    answers = tokenizer([one.answer + END for one in chosen], return_tensors="pt", padding=True, padding_side="right")
    mask = answers["attention_mask"]
    return language.completion_records(
        prompts["input_ids"],
        prompts["attention_mask"],
        answers["input_ids"],
        mask,
        torch.zeros(mask.shape),  # not read
        torch.ones(len(mask)),
    )


@dataclass(frozen=True)
class Accuracy:
    """How well a model solves problems.

    accuracy: how likely a sampled answer is right, on average.
    greedy: share of right answers without sampling.
    """

    accuracy: float
    greedy: float


@torch.no_grad()
def measure(model: Any, tokenizer: Any, problems: Problems) -> Accuracy:
    """On the evaluation problems, without sampling noise: a sampled completion is right where its digits are the
    answer's and no digit follows. (What comes before the first number counts as wrong here.)"""
    records = solved(problems, problems.evaluation, tokenizer)
    assert isinstance(records.obs, dict)
    length = records.valid.shape[1]
    training = model.training
    model.eval()
    logits = language.completion_logits(model, records.obs["input_ids"], records.obs["attention_mask"], length)
    model.train(training)
    log_probs = logits.float().log_softmax(-1)
    digits = torch.tensor([tokenizer(d, add_special_tokens=False).input_ids[-1] for d in "0123456789"])
    ends = records.valid.sum(1) - 1  # where the line ends; anything but a digit would do
    rows = torch.arange(len(ends))
    inside = torch.arange(length) < ends[:, None]
    chosen = language.token_log_probs(logits.float(), _tokens(records))
    goes_on = log_probs[rows, ends][:, digits].exp().sum(1)
    right = torch.where(inside, chosen, 0.0).sum(1).exp() * (1 - goes_on)
    best = log_probs.argmax(-1)
    greedy = ((best == _tokens(records)) | ~inside).all(1) & ~torch.isin(best[rows, ends], digits)
    return Accuracy(float(right.mean()), float(greedy.float().mean()))


def _tokens(records: Records) -> Tensor:
    assert isinstance(records.actions, Tensor)
    return records.actions
