"""The CleanRL-style example: Rollsight in a loop of one's own, and the run folder that it writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rollsight as rs
from rollsight.cli import main

EXAMPLE = Path(__file__).parents[1] / "examples" / "ppo_cleanrl.py"


def load(source: str) -> Any:
    module = ModuleType("ppo_cleanrl")
    sys.modules["ppo_cleanrl"] = module  # where dataclasses looks for the names of its annotations
    exec(compile(source, EXAMPLE, "exec"), module.__dict__)
    return module


@pytest.fixture
def example() -> Any:
    return load(EXAMPLE.read_text())


def weights(agent: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(agent.parameters()).detach()


def short(example: Any, **changes: Any) -> Any:
    return example.Args(**{"total_timesteps": 1536, "drop": 0.5, **changes})


def test_it_learns(example: Any) -> None:
    """A random policy gets about 20."""
    curves = [example.train(example.Args(total_timesteps=10_240, seed=seed))[1] for seed in (1, 2)]
    assert all(np.nanmean(curve[:2]) < 30 for curve in curves)
    assert all(np.nanmean(curve[-4:]) > 80 for curve in curves)


def test_dropping_nothing_equals_the_loop_without_rollsight(example: Any) -> None:
    """The plain line stands in the comment above the four lines that replace it."""
    lines = EXAMPLE.read_text().splitlines()
    (where,) = (i for i, line in enumerate(lines) if "Rollsight, four lines in place of: " in line)
    indent = re.match(" *", lines[where])[0]  # type: ignore[index]
    lines[where : where + 5] = [indent + lines[where].split("in place of: ")[1]]
    plain = load("\n".join(lines))
    assert "score_records" not in "\n".join(lines)
    expected, expected_curve = plain.train(short(plain))
    agent, curve = example.train(short(example, drop=0.0))
    assert torch.equal(weights(agent), weights(expected))
    assert curve == expected_curve
    assert not torch.equal(weights(example.train(short(example))[0]), weights(expected))


class CountsResets(gym.Wrapper[Any, Any, Any, Any]):
    """Counts, for all environments together, the resets after the first."""

    count = 0

    def reset(self, **keywords: Any) -> Any:
        CountsResets.count += 1
        return self.env.reset(**keywords)


def test_reset_rows_are_neither_scored_nor_trained_on(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights(example.train(short(example))[0])
    invalid, score_records = [], rs.score_records

    def score_and_spoil(policy: rs.Policy, records: rs.Records) -> rs.Scores:
        scores = score_records(policy, records)
        rows = ~records.valid
        assert (scores.values[rows] == 0).all()
        assert (scores.values[~rows] != 0).any()
        invalid.append(int(rows.sum()))
        spoiled = rs.Records(
            **{
                **{name: getattr(records, name).clone() for name in ("obs", "actions", "log_probs", "advantages")},
                "valid": records.valid,
            }
        )
        for column in (spoiled.obs, spoiled.log_probs, spoiled.advantages):
            column[rows] = 1e3
        torch.testing.assert_close(score_records(policy, spoiled).values, scores.values)
        # The records share the memory of the loop's own columns.
        for column in (records.obs, records.log_probs, records.advantages):
            column[rows] = torch.nan
        return scores

    CountsResets.count = 0
    make = gym.make
    monkeypatch.setattr(gym, "make", lambda name: CountsResets(make(name)))
    monkeypatch.setattr(rs, "score_records", score_and_spoil)
    agent, _ = example.train(short(example))
    assert torch.equal(weights(agent), expected)
    assert sum(invalid) == CountsResets.count - 8 > 20


def test_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--drop", "0.5", "--total-timesteps", "1024"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (last,) = done.stdout.splitlines()[-1:]
    kept, valid, invalid = map(int, re.findall(r"records (\d+) of (\d+) valid, (\d+) invalid", last)[0])
    assert kept < valid
    assert valid + invalid == 512


def test_it_writes_a_run_folder_and_trains_as_without(example: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    expected, curve = example.train(short(example, total_timesteps=5 * 512))
    agent, _ = example.train(short(example, total_timesteps=5 * 512, run=str(folder)))
    assert torch.equal(weights(agent), weights(expected))
    run = rs.runs.open(folder)
    assert run.rounds == list(range(1, 6))
    summary = run.rows("rounds", ["return_mean", "kept_frac", "invalid_rows", "warnings", "timesteps"]).to_pydict()
    np.testing.assert_allclose(summary["return_mean"], curve, rtol=1e-6)
    assert summary["timesteps"][-1] == 2560
    assert set(summary["warnings"]) == {None}
    assert all(0 < share < 1 for share in summary["kept_frac"])
    assert run.metadata["env"] == "CartPole-v1"
    assert run.metadata["n_envs"] == 8
    assert run.metadata["env_wrappers"] == []
    # The returns of CartPole are the lengths; every stored episode has as many valid steps.
    wrong = run.sql(
        "select episode from records group by episode having max(episode_return) is not null "
        "and (max(episode_return) != max(episode_step) + 1 or count(*) filter (valid) != max(episode_return))"
    )
    assert wrong.fetchall() == []
    assert run.sql("select count(*) from records where episode_step = -1 and valid").fetchall() == [(0,)]
    for command in (["top"], ["top", "--bottom"], ["compare"], ["check"]):
        assert main([command[0], str(folder), *command[1:]]) == 0
