"""TRL in two data-parallel processes: one set of scores, one selection, the update of one process on the kept rows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("trl")

from trl_rank import CHANGES, ROWS
from trl_zoo import gradient, trainer

import rollsight as rs
from rollsight import runs

HERE = Path(__file__).parent


def train_in_two_processes(folder: Path, loss: str) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    shared |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ranks = []
    for rank in ("0", "1"):
        environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, str(HERE / "trl_rank.py"), str(folder), loss]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in ranks:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The two processes' batches as one: prompts padded on the left, completions on the right."""
    whole = {"num_items_in_batch": one["num_items_in_batch"]}
    for name in one.keys() - whole.keys():
        columns = [one[name], other[name]]
        width = max(c.shape[-1] for c in columns)
        if columns[0].dim() == 2:
            left = name.startswith("prompt")
            columns = [F.pad(c, (width - c.shape[1], 0) if left else (0, width - c.shape[1])) for c in columns]
        whole[name] = torch.cat(columns)
    return whole


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_in_two_processes(folder, "grpo")


def test_two_processes_make_the_update_of_one_on_the_kept_rows(tmp_path: Path, trained: Any) -> None:
    folder, (first, second) = trained
    assert torch.equal(first["end"], second["end"])
    assert torch.equal(first["scores"], second["scores"])
    whole = merged(first["batch"], second["batch"])
    alone = trainer(tmp_path / "alone", **CHANGES)
    torch.nn.utils.vector_to_parameters(first["start"], alone.model.parameters())

    columns = [whole[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
    unread = torch.zeros(whole["completion_ids"].shape)
    records = rs.language.completion_records(*columns, unread, whole["advantages"])
    policy, objective = rs.Policy(alone.model, rs.language.Completions()), rs.objectives.GRPO("grpo", on_policy=True)
    expected = rs.score_records(policy, records, rs.targets.Sequence(), objective).values
    assert (first["scores"] - expected).abs().max() < 1e-5 * expected.abs().max()

    kept = torch.tensor([i not in ROWS for i in range(16)])
    alone.args.steps_per_generation = 1
    alone.model.train()
    step = gradient(alone, [{k: v[kept] if v.dim() else v for k, v in whole.items()}])
    found = (first["start"] - first["end"]) / CHANGES["learning_rate"]
    assert (found - step).norm() < 1e-4 * step.norm()

    table = runs.open(folder / "run").records(1)
    assert table["kept"].to_pylist() == kept.tolist()
    assert table["group"].to_pylist() == [i // 4 for i in range(16)]
    assert table["score_sequence"].to_pylist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_scores_from_the_training_itself_are_those_of_all_processes(trained: Any) -> None:
    """The first process keeps no row."""
    _, (first, second) = trained
    for way in ("plain", "nothing", "in_backward", "own_pass"):
        assert torch.equal(first[way]["end"], second[way]["end"])
    assert first["in_backward"]["backend"] == "in_backward"
    assert first["own_pass"]["backend"] == "layerwise"
    assert torch.equal(first["nothing"]["end"], first["plain"]["end"])
    assert (first["in_backward"]["end"] - first["plain"]["end"]).abs().max() > 1e-4
    assert (first["in_backward"]["end"] - first["own_pass"]["end"]).abs().max() < 1e-7
    for target, expected in first["own_pass"]["scores"].items():
        for rank in (first, second):
            found = rank["in_backward"]["scores"][target]
            assert len(found) == 16
            assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_what_fails_in_one_process_stops_neither(tmp_path: Path) -> None:
    first, second = train_in_two_processes(tmp_path, "survive")
    assert torch.equal(first["end"], first["plain"])
    assert torch.equal(second["end"], second["plain"])
    assert torch.equal(first["end"], second["end"])
    assert torch.equal(first["scores"], second["scores"])
    lost = "round 1: no scores of 'sequence', so every completion is kept"
    assert first["said"] == [
        f"{lost} (rank 1: OutOfMemoryError: in round 1); training goes on",
        "round 3: no selection, so every completion is kept (ValueError: no such rule); training goes on",
        "round 4: no record in the run folder (OSError: disk full); training goes on",
    ]
    assert second["said"][0] == f"{lost} (OutOfMemoryError: in round 1); training goes on"
    assert first["ruled"] == [3, 4, 5]
    assert second["ruled"] == []
    assert "exists already" in first["refused"]
    assert first["refused"] == second["refused"]
    run = runs.open(tmp_path / "run")
    assert run.rounds == [1, 2, 3, 5]
    known = run.sql("select count(score_sequence), count(score_return) from records group by round order by round")
    assert known.fetchall() == [(0, 16), (0, 16), (16, 16), (16, 16)]
