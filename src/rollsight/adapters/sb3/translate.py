"""Translation: a Stable-Baselines3 model with a full rollout buffer becomes a policy, records and an update rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from rollsight import objectives
from rollsight.arrays import Array, Bools, Ints
from rollsight.errors import RollsightError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring import Scores
from rollsight.update import UpdateRule

Ids = Mapping[str, Ints]


@dataclass(frozen=True, eq=False)
class Translated:
    """One round in Rollsight's terms.

    policy: the host's policy, with its `evaluate`.
    records: one row per step, env-major as the host flattens them: row = env * n_steps + step.
    scored: what is scored: the same records, or for recurrent policies one row per sequence.
    objective: the host's policy loss as an objective to be maximised.
    rule: the hyper-parameters of the round's update; None where the update cannot be replayed.
    position: (N,) for recurrent policies, where each step's score stands among the flattened tokens; else None.
    """

    policy: Policy
    records: Records
    scored: Records
    objective: objectives.Objective
    rule: UpdateRule | None
    position: Tensor | None = None

    def per_step(self, scores: Scores) -> Scores:
        """Scores with one value per step."""
        if self.position is None:
            return scores
        assert scores.tokens is not None  # only layerwise gives none, and it does not cover an LSTM
        values = scores.tokens.reshape(-1)[self.position]
        return Scores(
            values,
            None,
            self.records.ids,
            self.records.valid_rows,
            target=scores.target,
            normalisation=scores.normalisation,
            backend=scores.backend,
            reason=scores.reason,
        )

    def per_scored(self, weights: Tensor) -> Tensor:
        """Weights per step, in the shape of the scored records."""
        if self.position is None:
            return weights
        flat = torch.zeros(self.scored.log_probs.numel(), dtype=weights.dtype)
        flat[self.position] = weights
        return flat.view_as(self.scored.log_probs)


def translate(
    model: OnPolicyAlgorithm,
    ids: Ids | None = None,
    objective: objectives.Objective | None = None,
    valid: Bools | None = None,
) -> Translated:
    """Translate a model whose rollout buffer is full and not yet flattened (as in a callback's `_on_rollout_end`).

    ids: name -> (n_steps, n_envs) integers in addition to `env` and `step`, which are filled in.
    objective: None follows the host: the clipped policy term, or A2C's, with advantages normalised as the host does
    (its per-minibatch normalisation is represented by the whole buffer's).
    valid: (n_steps, n_envs) which records can be scored; None for all, which must then be finite.
    """
    buffer = model.rollout_buffer
    if not buffer.full or buffer.generator_ready:
        raise RollsightError(
            "translate: the rollout buffer is not full, or train() has already used it; call it in _on_rollout_end."
        )
    records = _records(model, ids or {}, valid)
    objective = _objective(model) if objective is None else objective
    rule = update_rule(model)
    if hasattr(buffer, "hidden_states_pi"):
        from rollsight.adapters.sb3_contrib import evaluate_sequences, sequences

        scored, position = sequences(model, records)
        return Translated(Policy(model.policy, evaluate_sequences), records, scored, objective, None, position)
    evaluate = evaluate_masked if hasattr(buffer, "action_masks") else evaluate_actions
    return Translated(Policy(model.policy, evaluate), records, records, objective, rule)


def evaluate_actions(module: nn.Module, obs: Any, actions: Any) -> Evaluation:
    """SB3's own evaluation of actions."""
    values, log_prob, entropy = module.evaluate_actions(obs, actions)  # type: ignore[operator]
    return Evaluation(log_prob, entropy, values.flatten())


def evaluate_masked(module: nn.Module, obs: Any, actions: Any) -> Evaluation:
    """The same with action masks, which stand next to the observation in a dict."""
    plain = obs["obs"] if "obs" in obs else {k.removeprefix("obs."): v for k, v in obs.items() if k.startswith("obs.")}
    values, log_prob, entropy = module.evaluate_actions(plain, actions, action_masks=obs["action_masks"])  # type: ignore[operator]
    return Evaluation(log_prob, entropy, values.flatten())


def flat(buffer: Any, column: Array) -> Tensor:
    """A (n_steps, n_envs, ...) column in the host's flat order, as the tensor the host would train on."""
    if column.ndim < 3:
        column = column.reshape(*column.shape, 1)
    tensor: Tensor = buffer.to_torch(buffer.swap_and_flatten(column))
    return tensor


def _records(model: OnPolicyAlgorithm, ids: Ids, valid: Bools | None) -> Records:
    buffer = model.rollout_buffer
    steps, envs = buffer.buffer_size, buffer.n_envs

    def one(column: Array) -> Tensor:
        return flat(buffer, column).flatten()

    obs: Any
    if isinstance(buffer.observations, dict):
        obs = {key: flat(buffer, column) for key, column in buffer.observations.items()}
    else:
        obs = flat(buffer, buffer.observations)
    if hasattr(buffer, "action_masks"):
        masks = flat(buffer, buffer.action_masks.reshape(steps, envs, -1))
        plain = {f"obs.{key}": column for key, column in obs.items()} if isinstance(obs, dict) else {"obs": obs}
        obs = {**plain, "action_masks": masks}
    actions = flat(buffer, buffer.actions.astype(np.float32, copy=False))
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    grid = {
        "env": np.broadcast_to(np.arange(envs), (steps, envs)),
        "step": np.broadcast_to(np.arange(steps)[:, None], (steps, envs)),
    }
    return Records(
        obs,
        actions,
        one(buffer.log_probs),
        one(buffer.advantages),
        returns=one(buffer.returns),
        values=one(buffer.values),
        rewards=one(buffer.rewards),
        ids={name: torch.from_numpy(column.T.flatten()) for name, column in {**grid, **ids}.items()},
        valid=None if valid is None else torch.from_numpy(valid.T.flatten()),  # type: ignore[arg-type]
    )


def _objective(model: OnPolicyAlgorithm) -> objectives.Objective:
    normalised = "buffer" if getattr(model, "normalize_advantage", True) else "raw"
    if isinstance(model, A2C):
        return objectives.A2C(advantage=normalised)
    clip = getattr(model, "clip_range", None)
    if clip is None:
        return objectives.PPO(advantage=normalised)
    return objectives.PPO(advantage=normalised, clip_range=float(clip(model._current_progress_remaining)))


def update_rule(model: OnPolicyAlgorithm) -> UpdateRule | None:
    """The host's update at its present progress, or None for algorithms whose `train` we do not reproduce."""
    train = type(model).train
    common: dict[str, Any] = {
        "normalize_advantage": bool(getattr(model, "normalize_advantage", False)),
        "ent_coef": model.ent_coef,
        "vf_coef": model.vf_coef,
        "max_grad_norm": model.max_grad_norm,
    }
    if train is A2C.train:
        return UpdateRule("a2c", 1, None, normalize_single=True, **common)
    masked = train.__module__ == "sb3_contrib.ppo_mask.ppo_mask"
    if train is not PPO.train and not masked:
        return None
    progress = model._current_progress_remaining
    clip_vf = model.clip_range_vf  # type: ignore[attr-defined]
    return UpdateRule(
        "ppo",
        model.n_epochs,  # type: ignore[attr-defined]
        model.batch_size,  # type: ignore[attr-defined]
        clip_range=float(model.clip_range(progress)),  # type: ignore[attr-defined]
        clip_range_vf=None if clip_vf is None else float(clip_vf(progress)),
        normalize_single=masked,
        target_kl=model.target_kl,  # type: ignore[attr-defined]
        **common,
    )
