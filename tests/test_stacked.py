"""Stacked retraining ends where retraining one by one ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sb3_zoo import make_model
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import Tensor, nn

from rollsight import score_records, targets
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.analysis.fidelity import stacked
from rollsight.errors import RollsightError
from rollsight.snapshot import Snapshot
from rollsight.update import full_minibatches


def snapshot_of(rounds: int = 2, **settings: Any) -> Snapshot:
    """The snapshot of the last of some rounds of 24 records."""
    model = make_model(**settings)
    influence = InfluenceCallback(snapshots=f"every:{rounds}")
    model.learn(24 * rounds, callback=influence)
    assert influence.snapshot is not None
    return influence.snapshot


def optimizer(kind: type[torch.optim.Optimizer], **options: Any) -> dict[str, Any]:
    return {"policy_kwargs": {"optimizer_class": kind, "optimizer_kwargs": options}}


def rows_of_weights(snapshot: Snapshot) -> Tensor:
    """Half masks, everything, nothing, nothing in the first minibatch, and weights around 1."""
    n = len(snapshot.records)
    generator = torch.Generator().manual_seed(3)
    halves = (torch.rand(3, n, generator=generator).argsort(1) < n // 2).float()
    without = torch.ones(n)
    without[torch.from_numpy(full_minibatches(n, snapshot.rule, snapshot.minibatch_order())[0])] = 0
    around = 1 + 0.3 * torch.randn(n, generator=generator)
    return torch.cat([halves, torch.stack([torch.ones(n), torch.zeros(n), without, around])])


SGD = optimizer(torch.optim.SGD)
CASES: dict[str, dict[str, Any]] = {
    "sgd": {**SGD, "learning_rate": 0.1, "n_epochs": 4},
    "sgd with weight decay": {**optimizer(torch.optim.SGD, weight_decay=0.1), "learning_rate": 0.1},
    "adam": {"n_envs": 3, "n_epochs": 4},
    "adam, first round": {"rounds": 1},
    "adamw": optimizer(torch.optim.AdamW, weight_decay=0.1, eps=1e-5),
    "rmsprop": optimizer(torch.optim.RMSprop, alpha=0.9, eps=1e-5),
    "a2c": {"algo": "A2C"},
    "a2c, rmsprop of tensorflow": {"algo": "A2C", **optimizer(RMSpropTFLike), "normalize_advantage": True},
    "gaussian": {"action": "box", "ent_coef": 0.02},
    "gSDE": {"action": "box", "use_sde": True},
    "multidiscrete": {"action": "multidiscrete", "obs": "discrete"},
    "multibinary": {"action": "multibinary"},
    "images": {"obs": "image"},
    "dict": {"obs": "dict_image"},
    "maskable": {"algo": "MaskablePPO"},
    "strong gradient clipping": {"max_grad_norm": 0.01, **SGD, "learning_rate": 1.0},
    "value clipping, partial minibatch": {"clip_range_vf": 0.05, "batch_size": 10},
    "raw advantages": {"normalize_advantage": False},
}


@pytest.mark.parametrize(("name", "order"), [*((name, None) for name in CASES), ("adam", 5), ("gaussian", 5)])
def test_stacked_training_equals_replay(name: str, order: int | None) -> None:
    snapshot = snapshot_of(**CASES[name])
    weights = rows_of_weights(snapshot)
    result = stacked.retrain(snapshot, weights, order)
    assert result.reason == ""
    for i, w in enumerate(weights):
        replayed = snapshot.replay("mask", w, order).parameters
        assert result.parameters.keys() == replayed.keys()
        for name, p in replayed.items():
            torch.testing.assert_close(result.parameters[name][i], p, rtol=0.0, atol=1e-6)
    everything, nothing = 3, 4
    start = dict(snapshot.policy.module.named_parameters())
    assert all(torch.equal(p[nothing], start[n]) for n, p in result.parameters.items())
    assert any(not torch.equal(p[everything], start[n]) for n, p in result.parameters.items())


def test_every_model_has_its_own_early_stop() -> None:
    snapshot = snapshot_of(target_kl=0.004, n_epochs=8, learning_rate=0.02)
    weights = torch.cat([rows_of_weights(snapshot), torch.full((1, 24), 5.0)])
    steps = [snapshot.replay("mask", w).steps for w in weights]
    assert len(set(steps)) > 2  # they really stop at different steps
    result = stacked.retrain(snapshot, weights)
    for i, w in enumerate(weights):
        for name, p in snapshot.replay("mask", w).parameters.items():
            torch.testing.assert_close(result.parameters[name][i], p, rtol=0.0, atol=1e-6)


def test_chunks_do_not_change_the_result() -> None:
    snapshot = snapshot_of()
    weights = rows_of_weights(snapshot)
    whole = stacked.retrain(snapshot, weights).parameters
    rows = [(rows, part) for rows, part in stacked.retrain_chunks(snapshot, weights, at_once=3)]
    assert [r.stop - r.start for r, _ in rows] == [3, 3, 1]
    for r, part in rows:
        for name, p in part.parameters.items():
            torch.testing.assert_close(p, whole[name][r], rtol=0.0, atol=1e-7)


class Stochastic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (optimizer(torch.optim.SGD, momentum=0.9), "momentum=0.9"),
        (optimizer(torch.optim.Adam, amsgrad=True), "amsgrad"),
        (optimizer(torch.optim.Adagrad), "Adagrad"),
        ({"policy_kwargs": {"activation_fn": Stochastic}}, "does not run stacked"),
    ],
)
def test_what_cannot_be_stacked_is_replayed_and_said(settings: dict[str, Any], said: str) -> None:
    snapshot = snapshot_of(**settings)
    weights = rows_of_weights(snapshot)[:3]
    result = stacked.retrain(snapshot, weights)
    assert said in result.reason
    for i, w in enumerate(weights):
        assert all(torch.equal(result.parameters[n][i], p) for n, p in snapshot.replay("mask", w).parameters.items())


def test_invalid_records_weigh_nothing() -> None:
    snapshot = snapshot_of()
    valid = torch.ones(24, dtype=torch.bool)
    valid[[2, 7]] = False
    snapshot = replace(snapshot, records=replace(snapshot.records, valid=valid))
    weights = torch.ones(1, 24)
    result = stacked.retrain(snapshot, weights)
    for name, p in snapshot.replay("mask", weights[0]).parameters.items():
        torch.testing.assert_close(result.parameters[name][0], p, rtol=0.0, atol=1e-6)


def test_weights_of_another_shape_are_an_error() -> None:
    with pytest.raises(RollsightError, match=r"weights has shape \(24,\) for 24 records"):
        stacked.retrain(snapshot_of(), torch.ones(24))


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_target_values_of_stacked_policies(action: str) -> None:
    snapshot = snapshot_of(action=action)
    parameters = stacked.retrain(snapshot, rows_of_weights(snapshot)).parameters
    target = targets.Return()
    values = stacked.target_values(snapshot.policy, parameters, target, snapshot.records, at_once=3)
    for i, w in enumerate(rows_of_weights(snapshot)):
        policy = snapshot.replay("mask", w).policy
        expected = (policy(snapshot.records).log_prob * snapshot.records.advantages).mean()
        torch.testing.assert_close(values[i], expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_snapshot_is_left_as_it_was() -> None:
    """Its shared policy can still be scored, and the rebuilt one pickled, after stacked tensors ran through them."""
    snapshot = snapshot_of()
    before = score_records(snapshot.policy, snapshot.records).values
    state = torch.get_rng_state()
    parameters = stacked.retrain(snapshot, rows_of_weights(snapshot)).parameters
    stacked.target_values(snapshot.policy, parameters, targets.Return(), snapshot.records)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(score_records(snapshot.policy, snapshot.records).values, before)
    assert torch.distributions.Distribution._validate_args is True
