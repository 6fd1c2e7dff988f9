"""Outcomes of retraining a round under many weightings, kept on disk so that interrupted work goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from rollsight import runs
from rollsight.analysis.fidelity.stacked import retrain_chunks
from rollsight.analysis.fidelity.stacked_optimizers import Stacked
from rollsight.arrays import Floats
from rollsight.snapshot import Snapshot

Measure: TypeAlias = Callable[[Stacked], Tensor]  # parameters (m, ...) -> (m,) outcomes

_ROWS_PER_FILE = 50


class Retraining:
    """Retrains one round and measures the policies it ends in.

    measures: name -> function of stacked parameters. folder: where finished chunks are kept; None keeps nothing.
    described: what else the outcomes depend on (the measures' seeds, say), part of every stored chunk's name.
    on_progress: called with the number of models just finished.

    After a call, `reason` says why models were trained one after another; it is empty where they were stacked.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        measures: Mapping[str, Measure],
        folder: Path | None = None,
        described: str = "",
        on_progress: Callable[[int], None] = lambda models: None,
    ) -> None:
        self._snapshot, self._measures, self._on_progress = snapshot, measures, on_progress
        self._folder = folder
        text = f"{snapshot.round} {snapshot.rule} {list(measures)} {described} {torch.__version__}"
        # The model's bytes and the buffer are what the outcomes depend on; a snapshot taken again has other bytes.
        digest = hashlib.sha256(
            text.encode() + snapshot.model.digest + snapshot.records.advantages.cpu().numpy().tobytes()
        )
        self._fingerprint = digest.digest()
        self.reason = ""

    def __call__(self, weights: Tensor, order: int | None = None) -> dict[str, Floats]:
        """Measure -> (M,) outcomes of training with each row of weights (M, N), in the recorded minibatch order or in
        another one."""
        parts = []
        for part in weights.split(_ROWS_PER_FILE):
            parts.append(self._part(part, order))
            self._on_progress(len(part))
        return {name: np.concatenate([part[name] for part in parts]) for name in self._measures}

    def _part(self, weights: Tensor, order: int | None) -> dict[str, Floats]:
        path = self._path(weights, order)
        if path is not None and (known := self._read(path)) is not None:
            return known
        collected: dict[str, list[Tensor]] = {name: [] for name in self._measures}
        for _, trained in retrain_chunks(self._snapshot, weights, order):
            self.reason = trained.reason
            for name, measure in self._measures.items():
                collected[name].append(measure(trained.parameters))
        columns = {name: torch.cat(parts).double().cpu().numpy() for name, parts in collected.items()}
        if path is not None:
            stored: dict[str, Any] = {**columns, "reason": np.array(self.reason)}
            path.parent.mkdir(parents=True, exist_ok=True)
            with runs.whole_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **stored)
        return columns

    def _path(self, weights: Tensor, order: int | None) -> Path | None:
        if self._folder is None:
            return None
        content = self._fingerprint + f" {order} ".encode() + weights.cpu().contiguous().numpy().tobytes()
        return self._folder / f"outcomes-{hashlib.sha256(content).hexdigest()[:20]}.npz"

    def _read(self, path: Path) -> dict[str, Floats] | None:
        """The stored outcomes; None where there are none, or they are damaged: then they are made again."""
        try:
            with np.load(path) as file:
                self.reason = str(file["reason"])
                return {name: file[name] for name in self._measures}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
