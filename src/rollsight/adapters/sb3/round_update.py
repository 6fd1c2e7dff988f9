"""The update of one round, seen from inside `train()`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rollsight.adapters.sb3 import buffer
from rollsight.adapters.sb3.translate import Translated, update_rule
from rollsight.runs.summary import Summary
from rollsight.selection import Selection
from rollsight.snapshot import Snapshot
from rollsight.watching import Watch

# Name in the summary -> what algorithms call it in the host's logger.
_LOGGED_AS = {
    "approx_kl": ("approx_kl", "kl_divergence_loss"),
    "clip_fraction": ("clip_fraction",),
    "policy_gradient_loss": ("policy_gradient_loss", "policy_loss"),
    "value_loss": ("value_loss",),
}


class RoundUpdate:
    """Leaves out what was dropped, takes the snapshot, and looks at the numbers before, in and after the update.

    keep_snapshot: takes the snapshot of this round; None where none is due. on_diverged: called once, after the first
    step that left parameters which are not finite. The host's model refers to this object weakly.
    """

    def __init__(
        self,
        model: OnPolicyAlgorithm,
        round: int,
        translated: Translated,
        selection: Selection | None,
        watch: Watch,
        keep_snapshot: Callable[[Snapshot], None] | None,
        on_diverged: Callable[[], None],
    ) -> None:
        self.steps = 0
        self._model, self._round, self._watch, self._on_diverged = model, round, watch, on_diverged
        self._weights = None if selection is None else selection.weights
        self._keep_snapshot = keep_snapshot
        # Of the records only what is needed: they hold a copy of every observation.
        self._to_freeze = translated if keep_snapshot is not None and translated.rule is not None else None
        self._scored = [column.copy() for column in self._trained_on()]
        self._before = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
        parameter = [p for p in model.policy.parameters() if p.requires_grad and p.numel()][-1]
        self._last_number = parameter.detach()[(-1,) * parameter.dim()]  # a view: it follows the optimiser
        self._diverged = False
        held = buffer.install(model, self._at_start, self._after_step)
        if self._weights is not None and bool((self._weights == 0).any()):
            held.keep = (self._weights > 0).cpu().numpy()
        self._started = time.perf_counter()

    def numbers(self) -> Summary:
        """What the update did, once it is over."""
        model = self._model
        logged = model.logger.name_to_value
        found = {
            name: next((float(logged[f"train/{one}"]) for one in names if f"train/{one}" in logged), None)
            for name, names in _LOGGED_AS.items()
        }
        after = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
        return {
            "time_train": time.perf_counter() - self._started,
            "update_norm": float((after - self._before).norm()),
            **found,
            "optimizer_steps": self.steps,
            "updates": model._n_updates,
            "learning_rate": float(model.policy.optimizer.param_groups[0]["lr"]),
        }

    def _at_start(self) -> None:
        # Called from inside train(): learning rate, progress and random states are as the update sees them.
        self._started = time.perf_counter()
        self._watch.attempt("comparison with what was scored", self._compare)
        if self._to_freeze is not None:
            self._watch.attempt("snapshot", self._freeze, self._to_freeze)
            self._to_freeze = None

    def _trained_on(self) -> tuple[Any, Any]:
        held: Any = self._model.rollout_buffer
        return held.advantages, held.returns

    def _compare(self) -> None:
        pairs = zip(self._scored, self._trained_on(), strict=True)
        if not all(np.array_equal(scored, now, equal_nan=True) for scored, now in pairs):
            self._watch.warn(
                "order of callbacks",
                "advantages or returns changed after they were scored, so scores, selection and records are of "
                "others than the update's: put InfluenceCallback last in the list of callbacks",
            )

    def _freeze(self, translated: Translated) -> None:
        rule = update_rule(self._model)
        assert rule is not None
        assert self._keep_snapshot is not None
        optimizer = self._model.policy.optimizer
        self._keep_snapshot(
            Snapshot.take(self._round, translated.policy, optimizer, translated.records, rule, self._weights)
        )

    def _after_step(self) -> None:
        self.steps += 1
        # One number: the host clips the gradient by its norm, so one that is not finite leaves none that is.
        if not self._diverged and not math.isfinite(self._last_number.item()):
            self._diverged = True
            self._watch.warn("update", f"step {self.steps} of the update left parameters that are not finite")
            self._watch.attempt("round in the run folder", self._on_diverged)
