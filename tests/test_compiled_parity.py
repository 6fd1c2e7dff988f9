"""The compiled engine's update is Stable-Baselines3's: from the same parameters, buffer and minibatch order to 1e-5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_zoo import Toy, make_model
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger

pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")

import jax

from rollsight import RollsightError, score_records
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.snapshot import Snapshot
from rollsight.training.compiled import influence, ppo
from rollsight.training.compiled.batch import Batch, Minibatches, draw_minibatches
from rollsight.training.compiled.conversion import copy_into, copy_state_into, optimizer_of, parameters_of
from rollsight.training.compiled.networks import evaluate, inputs_of, network_of
from rollsight.training.networks import MiniGridFeatures

SGD: dict[str, Any] = {"policy_kwargs": {"optimizer_class": torch.optim.SGD}, "learning_rate": 0.1}
DROP: dict[str, Any] = {"drop": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adam": ({"n_envs": 3}, {}),
    "adam, dropped": ({"n_envs": 3}, DROP),
    "sgd": (SGD, {}),
    "sgd, dropped": (SGD, DROP),
    "gaussian, adam": ({"action": "box"}, {}),
    "gaussian, adam, dropped": ({"action": "box"}, DROP),
    "gaussian, sgd": ({"action": "box", **SGD}, {}),
    "gaussian, sgd, dropped": ({"action": "box", **SGD}, DROP),
    "random drop": ({}, {"selection": "random:0.9"}),
    "multi-discrete": ({"obs": "discrete", "action": "multidiscrete"}, DROP),
    "multi-discrete observations": ({"obs": "multidiscrete", "action": "multidiscrete"}, DROP),
    # At the default rate: where a gradient is only rounding, Adam takes a share of a whole step in its direction.
    "images": ({"obs": "image", "learning_rate": 3e-4}, DROP),
    "strong gradient clipping": ({"max_grad_norm": 0.01, **SGD}, DROP),
    "no gradient clipping": ({"max_grad_norm": float("inf"), **SGD}, DROP),
    "partial minibatch": ({"batch_size": 10}, {}),
    "last minibatch of one": ({"batch_size": 23}, {}),
    "everything in the loss": ({"clip_range_vf": 0.05, "ent_coef": 0.02, "vf_coef": 0.7, "action": "box"}, DROP),
    "every option of the command line": (
        {
            "n_envs": 2,
            "n_steps": 16,
            "batch_size": 10,
            "n_epochs": 3,
            "gamma": 0.9,
            "gae_lambda": 0.7,
            "clip_range": 0.1,
            "ent_coef": 0.03,
            "vf_coef": 0.9,
            "max_grad_norm": 0.2,
            "policy_kwargs": {"net_arch": [24, 8]},
        },
        DROP,
    ),
    "raw advantages": ({"normalize_advantage": False}, DROP),
}


def trained(settings: dict[str, Any], options: dict[str, Any]) -> tuple[Snapshot, Any, list[Any]]:
    """The snapshot of the second of two rounds, the Stable-Baselines3 model after it, and the rounds' summaries."""
    model, summaries = make_model(**settings), list[Any]()
    influence = InfluenceCallback(snapshots="every:2", on_round=summaries.append, **options)
    model.learn(48, callback=influence)
    assert influence.snapshot is not None
    return influence.snapshot, model, summaries


def minibatches_of(snapshot: Snapshot) -> Minibatches:
    """As the snapshot recorded them."""
    kept = None if snapshot.weights is None else np.flatnonzero(snapshot.weights.numpy())
    return draw_minibatches(snapshot.minibatch_order(), len(snapshot.records), snapshot.rule, kept)


def update(snapshot: Snapshot, minibatches: Minibatches) -> ppo.Trained:
    """The compiled engine's update of the snapshot's round."""
    module = snapshot.policy.module
    optimizer, state = optimizer_of(module, snapshot.optimizer)
    learning_rate = snapshot.optimizer.param_groups[0]["lr"]
    start, batch = parameters_of(module), Batch.of(snapshot.records)
    return ppo.update(network_of(module), optimizer, start, state, batch, snapshot.rule, learning_rate, minibatches)


def difference(parameters: Any, module: torch.nn.Module) -> float:
    """The largest absolute difference to a module's parameters."""
    assert parameters.keys() == dict(module.named_parameters()).keys()
    return max(float(np.abs(parameters[n] - p.detach().numpy()).max()) for n, p in module.named_parameters())


@pytest.mark.parametrize(("settings", "options"), CASES.values(), ids=CASES.keys())
def test_one_round_is_stable_baselines3s(settings: dict[str, Any], options: dict[str, Any]) -> None:
    snapshot, model, summaries = trained(settings, options)
    minibatches = minibatches_of(snapshot)
    after = update(snapshot, minibatches)
    assert difference(after.parameters, snapshot.policy.module) > 1e-4
    assert difference(after.parameters, model.policy) < 1e-5
    assert minibatches.steps == summaries[-1]["optimizer_steps"]
    assert float(after.approx_kl) == pytest.approx(summaries[-1]["approx_kl"], rel=1e-3, abs=1e-6)
    for name in ("clip_fraction", "policy_gradient_loss", "value_loss"):
        assert float(after.means[name]) == pytest.approx(summaries[-1][name], rel=1e-3, abs=1e-5), name
    if options:
        assert summaries[-1]["dropped"] > 0


@pytest.mark.parametrize(("settings", "options"), CASES.values(), ids=CASES.keys())
def test_scores_equal_the_torch_scores(settings: dict[str, Any], options: dict[str, Any]) -> None:
    snapshot, *_ = trained(settings, options)
    _scores_agree(snapshot)


def test_a_full_size_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """2048 records, minibatches of 64, 10 epochs, 64 x 64: Stable-Baselines3's defaults, with a tenth dropped."""
    env = gym.wrappers.TimeLimit(Toy("box", "discrete"), 50)
    model = PPO("MlpPolicy", env, seed=3, device="cpu")
    model.set_logger(Logger(None, []))
    influence = InfluenceCallback(drop=0.25, snapshots="all")
    model.learn(2048, callback=influence)
    assert influence.snapshot is not None
    after = update(influence.snapshot, minibatches_of(influence.snapshot))
    assert difference(after.parameters, influence.snapshot.policy.module) > 1e-2
    assert difference(after.parameters, model.policy) < 1e-5
    _scores_agree(influence.snapshot)


def test_the_papers_minigrid_network() -> None:
    network = {
        "features_extractor_class": MiniGridFeatures,
        "features_extractor_kwargs": {},
        "normalize_images": False,
        "net_arch": [],
    }
    snapshot, model, _ = trained({"obs": "image", "policy_kwargs": {**SGD["policy_kwargs"], **network}}, DROP)
    assert difference(update(snapshot, minibatches_of(snapshot)).parameters, model.policy) < 1e-5
    _scores_agree(snapshot)


def test_invalid_rows_are_not_trained_on_and_score_nothing() -> None:
    snapshot, *_ = trained({}, {})
    valid = torch.ones(24, dtype=torch.bool)
    valid[[3, 17]] = False
    advantages = snapshot.records.advantages.clone()
    advantages[[3, 17]] = 1e6
    masked = replace(snapshot, records=replace(snapshot.records, valid=valid, advantages=advantages))
    minibatches = draw_minibatches(masked.minibatch_order(), 24, masked.rule, valid.numpy().nonzero()[0])
    assert difference(update(masked, minibatches).parameters, masked.replay().policy.module) < 1e-5
    scores = _scores_agree(masked)
    assert not scores[[3, 17]].any()


@pytest.mark.parametrize("settings", [SGD, {}], ids=["sgd", "adam"])
def test_padding_is_never_seen(settings: dict[str, Any]) -> None:
    snapshot, *_ = trained(settings, {"drop": 1.0})
    minibatches = minibatches_of(snapshot)
    index = np.where(np.arange(minibatches.index.shape[1]) < minibatches.size[:, None], minibatches.index, 5)
    index[minibatches.steps :] = 11
    size = minibatches.size.copy()
    size[minibatches.steps :] = 8
    plain, padded = update(snapshot, minibatches), update(snapshot, replace(minibatches, index=index, size=size))
    assert minibatches.steps < len(minibatches.index)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(padded), strict=True):
        assert np.array_equal(one, other)
    if plain.state:
        assert float(plain.state["step"]) - _steps_before(snapshot) == minibatches.steps


def test_rounds_compile_nothing_anew(caplog: pytest.LogCaptureFixture) -> None:
    snapshot, *_ = trained({}, {})
    update(snapshot, minibatches_of(snapshot))
    with jax.log_compiles():
        for drop, clip in ((3, 0.2), (9, 0.1), (0, 0.05)):
            rule = replace(snapshot.rule, clip_range=clip)
            kept = np.arange(drop, 24)
            update(replace(snapshot, rule=rule), draw_minibatches(snapshot.minibatch_order(), 24, rule, kept))
    assert not [message for message in caplog.messages if message.startswith("Compiling")]


def test_the_torch_model_takes_the_state_over() -> None:
    snapshot, model, _ = trained({}, {})
    after = update(snapshot, minibatches_of(snapshot))
    policy, optimizer = snapshot.rebuild()
    copy_into(policy.module, after.parameters)
    copy_state_into(optimizer, policy.module, after.state, 0.02)
    assert difference(after.parameters, policy.module) == 0
    assert optimizer.param_groups[0]["lr"] == 0.02
    for mine, theirs in zip(policy.module.parameters(), model.policy.parameters(), strict=True):
        mine_state, state = optimizer.state[mine], model.policy.optimizer.state[theirs]
        assert float(mine_state["step"]) == float(state["step"])
        assert torch.allclose(mine_state["exp_avg"], state["exp_avg"], atol=1e-6)
        assert torch.allclose(mine_state["exp_avg_sq"], state["exp_avg_sq"], atol=1e-6)


@pytest.mark.parametrize("action", ["discrete", "multidiscrete", "box"])
def test_evaluation_equals_the_torch_policys(action: str) -> None:
    snapshot, *_ = trained({"action": action}, {})
    module, batch = snapshot.policy.module, Batch.of(snapshot.records)
    network = network_of(module)
    mine = evaluate(network, parameters_of(module), inputs_of(network, batch.obs), batch.actions)
    with torch.no_grad():
        theirs = snapshot.policy(snapshot.records)
    for name in ("log_prob", "entropy", "value"):
        assert np.allclose(getattr(mine, name), getattr(theirs, name).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"action": "box", "use_sde": True}, "gSDE"),
        ({"action": "multibinary"}, "MultiBinary"),
        ({"obs": "dict"}, "MultiInputActorCriticPolicy"),
        ({"policy_kwargs": {"share_features_extractor": False}}, "separate feature extractors"),
        ({"policy_kwargs": {"activation_fn": torch.nn.ELU}}, "ELU"),
    ],
)
def test_what_is_not_covered_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(RollsightError, match=rf"{named}.*--engine sb3"):
        network_of(make_model(**settings).policy)


@pytest.mark.parametrize("optimizer", [torch.optim.RMSprop, torch.optim.AdamW])
def test_optimisers_that_are_not_covered_are_named(optimizer: Any) -> None:
    model = make_model(policy_kwargs={"optimizer_class": optimizer})
    with pytest.raises(RollsightError, match=f"{optimizer.__name__} .*--engine sb3"):
        optimizer_of(model.policy, model.policy.optimizer)


def _steps_before(snapshot: Snapshot) -> float:
    return float(next(iter(snapshot.optimizer.state.values()))["step"])


def _scores_agree(snapshot: Snapshot) -> Any:
    """The scores, equal to `score_records`'s to 1e-5 of the largest."""
    module, rule = snapshot.policy.module, snapshot.rule
    batch = Batch.of(snapshot.records)
    mine = influence.scores(network_of(module), rule.normalize_advantage, parameters_of(module), batch, rule.clip_range)
    theirs = score_records(snapshot.policy, snapshot.records, objective=rule.policy_term()).values.numpy()
    assert np.abs(mine - theirs).max() < 1e-5 * np.abs(theirs).max()
    return np.asarray(mine)
