"""TRL: rewards are told apart by their place, not by their name."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from transformers import LlamaConfig, LlamaForSequenceClassification
from trl_zoo import CHARACTERS, digits, tokenizer, trainer

import rollsight as rs
from rollsight import runs
from rollsight.adapters.trl import attach, table

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def rewarding(name: str, letters: str, nothing_for: str = "") -> Any:
    """A reward function of this name that counts letters, and gives None where there is one of `nothing_for`."""

    def count(completions: list[str], **_: Any) -> list[float | None]:
        return [
            None if set(nothing_for) & set(text) else float(sum(text.count(letter) for letter in letters))
            for text in completions
        ]

    count.__name__ = name
    return count


def rows_of(folder: Any, functions: list[Any], weights: list[float], **changes: Any) -> list[dict[str, Any]]:
    """Every record of two rounds in which nothing but the names of the reward functions differs between calls."""
    trained = trainer(folder / "out", reward=functions, reward_weights=weights, learning_rate=0.1, **changes)
    attach(trained, drop=0.5, target=["reward", "sequence"], run=folder / "run")
    trained.train()
    return [row for round in (1, 2) for row in runs.open(folder / "run").records(round).to_pylist()]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_two_reward_functions_of_one_name_train_and_record_as_two(tmp_path: Any, algorithm: str) -> None:
    found = {}
    for second in ("reward", "another"):
        functions = [rewarding("reward", "0123456789", nothing_for="x"), rewarding(second, "ab0")]
        found[second] = rows_of(tmp_path / second, functions, [2.0, -1.0], algorithm=algorithm)
    for same, other in zip(found["reward"], found["another"], strict=True):
        assert same["reward_reward_2"] == other.pop("reward_another")
        assert same["reward_reward"] is None or same["reward"] == 2 * same["reward_reward"] - same.pop(
            "reward_reward_2"
        )
        same.pop("reward_reward_2", None)
        assert same == pytest.approx(other, nan_ok=True)
    assert not all(row["kept"] for row in found["reward"])


def test_lambdas_partials_and_reward_models_are_numbered(tmp_path: Any) -> None:
    def reward_model(bias: float) -> Any:
        torch.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
        config = LlamaConfig(vocab_size=len(CHARACTERS) + 2, pad_token_id=0, num_labels=1, **size)
        config._name_or_path = "of/judge"
        made = LlamaForSequenceClassification(config)
        made.register_forward_hook(lambda _module, _inputs, output: output.__setitem__("logits", output.logits + bias))
        return made

    functions = [
        lambda completions, **_: [1.0] * len(completions),
        lambda completions, **_: [2.0] * len(completions),
        functools.partial(digits),
        digits,
        reward_model(10.0),
        reward_model(20.0),
    ]
    classes = [None] * 4 + [tokenizer(), tokenizer()]
    trained = trainer(tmp_path / "out", reward=functions, reward_processing_classes=classes, max_steps=1)
    attachment = attach(trained, run=tmp_path / "run")
    trained.train()
    run = runs.open(tmp_path / "run")
    assert run.metadata["rewards"] == ["<lambda>", "<lambda>_2", "digits", "digits_2", "judge", "judge_2"]
    for row in run.records(1).to_pylist():
        rewards = [row[f"reward_{name}"] for name in run.metadata["rewards"]]
        assert rewards[:2] == [1.0, 2.0]
        assert rewards[2] == rewards[3] == pytest.approx(digits([row["completion"]])[0])
        assert rewards[5] - rewards[4] == pytest.approx(10, abs=1e-4)
        assert row["reward"] == pytest.approx(sum(rewards), rel=1e-5)
    assert attachment.round == 1
    assert run.sql('select "reward_<lambda>_2" from records').fetchall() == [(2.0,)] * 8


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
        (["a_2", "a", "a"], ["a_2", "a", "a_3"]),
        (["Len", "len", "LEN"], ["Len", "len_2", "LEN_3"]),
        (["", ""], ["", "_2"]),
        (["total", "reward", "reward"], ["total", "reward", "reward_2"]),
    ],
)
def test_columns_are_unique_and_a_name_that_is_unique_stays(names: list[str], columns: list[str]) -> None:
    assert table.column_names(names) == columns
    assert len({column.casefold() for column in columns}) == len(names)


def test_a_column_that_a_reward_function_logs_too_does_not_break_the_table(tmp_path: Any) -> None:
    def reward(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("influence_kept", [0] * len(completions))
        log_extra("length", [len(text) for text in completions])
        return digits(completions)

    evaluating = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    shown = {"log_completions": True, "num_completions_to_print": 0}
    window = {"per_device_train_batch_size": 8, "max_steps": 1}  # of 16 rows, and an evaluation of 8
    trained = trainer(tmp_path, reward=reward, **evaluating, **shown, **window)
    attach(trained, drop=0.5)
    trained.train()
    assert trained.state.global_step == 1
    assert len(trained._logs["extra"]["influence_kept"]) == len(trained._logs["extra"]["length"]) == 16


def test_a_reward_function_named_like_a_column_of_the_table_is_refused(tmp_path: Any) -> None:
    with pytest.raises(rs.RollsightError, match=r"reward function .influence_kept. has the name of a column"):
        attach(trainer(tmp_path, reward=rewarding("influence_kept", "a")))
