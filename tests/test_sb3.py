"""The Stable-Baselines3 adapter on PPO and A2C: parity, exact scores, subset, repeatability."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_zoo import (
    AtRolloutEnd,
    Perturb,
    fingerprint,
    in_double,
    make_env,
    make_model,
    noisy_evaluation,
    trained,
    weights,
    with_full_buffer,
)
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from rollsight import RollsightError, score_records, selection, targets
from rollsight.adapters.sb3 import InfluenceCallback, translate
from rollsight.scoring import Scores
from rollsight.selection import Selection

Settings = Mapping[str, Any]


class Noisy(BaseFeaturesExtractor):
    """Batch statistics and random numbers while training."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 4)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(obs)
        return features


MODELS: dict[str, Settings] = {
    "ppo": {},
    "ppo, BatchNorm and dropout": {"policy_kwargs": {"features_extractor_class": Noisy}},
    "ppo, 3 envs": {"n_envs": 3},
    "ppo, images": {"obs": "image"},
    "ppo, images, continuous": {"obs": "image", "action": "box"},
    "ppo, two image networks": {"obs": "image", "policy_kwargs": {"share_features_extractor": False}},
    "ppo, dict": {"obs": "dict", "n_envs": 3},
    "ppo, dict with image": {"obs": "dict_image"},
    "ppo, discrete observations": {"obs": "discrete", "n_envs": 3},
    "ppo, multi-discrete observations": {"obs": "multidiscrete"},
    "ppo, multi-discrete actions": {"action": "multidiscrete", "n_envs": 3},
    "ppo, multi-binary actions": {"action": "multibinary"},
    "ppo, continuous": {"action": "box"},
    "ppo, gSDE": {"action": "box", "n_envs": 3, "use_sde": True, "sde_sample_freq": 4, "ent_coef": 0.01},
    "ppo, VecNormalize": {"normalize": True, "n_envs": 3},
    "a2c": {"algo": "A2C"},
    "a2c, 3 envs": {"algo": "A2C", "n_envs": 3, "normalize_advantage": True},
    "a2c, images": {"algo": "A2C", "obs": "image"},
    "a2c, gSDE": {"algo": "A2C", "action": "box", "use_sde": True, "use_rms_prop": False},
}
UPDATES: dict[str, Settings] = {
    "target_kl": {"target_kl": 0.001, "n_epochs": 4},
    "partial minibatch": {"batch_size": 10},
    "SGD and schedules": {
        "policy_kwargs": {"optimizer_class": torch.optim.SGD},
        "learning_rate": lambda progress: 0.1 * progress,
        "clip_range": lambda progress: 0.2 * progress + 0.01,
        "clip_range_vf": 0.1,
    },
}


def cases(settings: Mapping[str, Settings]) -> Any:
    return pytest.mark.parametrize("settings", settings.values(), ids=settings.keys())


class DrawsNumbers(BaseCallback):
    """A neighbour that uses up random numbers wherever it is called."""

    def _on_step(self) -> bool:
        np.random.random()
        torch.rand(())
        return True

    def _on_rollout_end(self) -> None:
        self._on_step()


# Parity


@cases(MODELS | UPDATES)
def test_nothing_dropped_is_bit_identical_to_the_host(settings: Settings, tmp_path: Path) -> None:
    stock = fingerprint(trained(settings))
    assert fingerprint(trained(settings, InfluenceCallback())) == stock
    busy = InfluenceCallback(
        drop=0.0,
        run=tmp_path / "run",
        snapshots="all",
        every=2,
        target=["return", "objective"],
        evaluate=noisy_evaluation,
        precondition=True,
        cross_fit=True,
    )
    assert fingerprint(trained(settings, busy)) == stock


def test_parity_with_other_callbacks() -> None:
    def neighbours() -> list[BaseCallback]:
        return [DrawsNumbers(), EvalCallback(make_env(), eval_freq=10, n_eval_episodes=2, verbose=0)]

    stock = fingerprint(trained({}, neighbours()))
    assert fingerprint(trained({}, [*neighbours(), InfluenceCallback()])) == stock
    assert fingerprint(trained({}, [InfluenceCallback(drop=0.0), *neighbours()])) == stock


@pytest.mark.parametrize("settings", [{"n_envs": 3}, {"algo": "A2C", "normalize": True}], ids=["ppo", "a2c"])
@pytest.mark.parametrize("same_callback", [True, False])
def test_parity_of_resumed_learning(settings: Settings, same_callback: bool) -> None:
    def resumed(first: Any, second: Any) -> dict[str, bytes]:
        model = trained(settings, first)
        model.learn(2 * 24, callback=second, reset_num_timesteps=False)
        return fingerprint(model)

    first = InfluenceCallback()
    second = first if same_callback else InfluenceCallback(drop=0.0)
    assert resumed(first, second) == resumed(None, None)
    assert second.round == 4


def test_parity_of_a_saved_and_loaded_model(tmp_path: Path) -> None:
    def continued(callback: Any) -> dict[str, bytes]:
        trained({"n_envs": 3}, callback).save(tmp_path / "model")
        model = PPO.load(tmp_path / "model", env=make_env(n_envs=3), device="cpu")
        model.set_random_seed(3)
        model.learn(2 * 24, callback=callback, reset_num_timesteps=False)
        return fingerprint(model)

    assert continued(InfluenceCallback()) == continued(None)


def test_a_model_is_saved_while_it_learns(tmp_path: Path) -> None:
    model = make_model()
    callbacks = [InfluenceCallback(drop=0.5), AtRolloutEnd(lambda m: m.save(tmp_path / "during"))]
    model.learn(48, callback=callbacks)
    loaded = PPO.load(tmp_path / "during", env=make_env())
    assert type(loaded.rollout_buffer) is type(make_model().rollout_buffer)
    loaded.learn(24)


# Scores


@cases(MODELS)
def test_scores_equal_the_oracle(settings: Settings) -> None:
    translated = translate(with_full_buffer(**settings))

    def error(values: torch.Tensor, oracle: torch.Tensor) -> float:
        return float((values - oracle).abs().max() / oracle.abs().max())

    for precise, tolerance in ((False, 1e-5), (True, 1e-10)):
        round_ = in_double(translated) if precise else translated
        given = (round_.policy, round_.scored, targets.Return(), round_.objective)
        scores, oracle = score_records(*given), score_records(*given, backend="oracle")
        assert oracle.values.abs().max() > 0
        assert error(scores.values, oracle.values) < tolerance
    assert scores.values.dtype == torch.float64


@pytest.mark.parametrize("use_sde", [False, True])
def test_log_std_has_its_share_of_the_score(use_sde: bool) -> None:
    translated = translate(with_full_buffer(action="box", use_sde=use_sde))
    given = (translated.policy, translated.records, targets.Return(), translated.objective)
    everything = score_records(*given).values
    translated.policy.module.log_std.requires_grad_(False)  # type: ignore[union-attr]
    assert (everything - score_records(*given).values).abs().max() > 0.01 * everything.abs().max()


def test_records_are_what_the_host_trains_on() -> None:
    """Every column, in the host's order; our evaluation gives the recorded log-probabilities and values."""
    for settings in ({"n_envs": 3, "action": "box", "normalize": True}, {"n_envs": 3, "obs": "dict"}):
        model = with_full_buffer(**settings)
        translated = translate(model)
        records, evaluation = translated.records, translated.policy(translated.records)
        torch.testing.assert_close(evaluation.log_prob, records.log_probs)
        torch.testing.assert_close(evaluation.value, records.values)
        (host,) = list(model.rollout_buffer.get())
        order = torch.argsort(host.old_log_prob, stable=True), torch.argsort(records.log_probs, stable=True)
        for theirs, ours in (
            (host.advantages, records.advantages),
            (host.returns, records.returns),
            (host.old_values, records.values),
            (host.actions.squeeze(-1), records.actions),
        ):
            assert torch.equal(theirs[order[0]], ours[order[1]].to(theirs.dtype))
        assert records.ids["env"].tolist() == [0] * 8 + [1] * 8 + [2] * 8
        assert records.ids["step"].tolist() == list(range(8)) * 3


def test_the_objective_follows_the_host() -> None:
    raw = translate(with_full_buffer(normalize_advantage=False)).objective
    assert raw.normalisation == "raw"
    assert translate(with_full_buffer()).objective.normalisation == "buffer"
    assert type(translate(with_full_buffer(algo="A2C")).objective).__name__ == "A2C"
    influence = InfluenceCallback(target="objective")
    seen = AtRolloutEnd(lambda model: translate(model))
    make_model(algo="A2C").learn(24, callback=[seen, influence])
    (translated,) = seen.results
    own = targets.Objective(translated.objective)
    model = make_model(algo="A2C")
    at_start = AtRolloutEnd(
        lambda m: score_records(translate(m).policy, translate(m).records, own, translated.objective)
    )
    model.learn(24, callback=at_start)
    torch.testing.assert_close(influence.scores["objective"].values, at_start.results[0].values)


# Subset


@cases(
    {
        "ppo": {"n_envs": 3},
        "ppo, images": {"obs": "image"},
        "ppo, discrete observations": {"obs": "discrete"},
        "ppo, dict": {"obs": "dict"},
        "ppo, continuous, clipped values": {"action": "box", "clip_range_vf": 0.1},
        "a2c": {"algo": "A2C", "n_envs": 3},
    }
)
def test_a_dropped_record_cannot_change_the_weights(settings: Settings) -> None:
    def weights_after(columns: str, which: str = "dropped", by: float = np.nan) -> torch.Tensor:
        influence = InfluenceCallback(drop=0.9)
        spoil = Perturb(influence, columns, which, by)
        model = trained(settings, [influence, spoil])
        assert spoil.changed >= 2
        return weights(model)

    untouched = weights_after("")
    assert torch.equal(weights_after("observations actions advantages returns log_probs values"), untouched)
    assert not torch.equal(weights_after("advantages", "kept", 1.0), untouched)
    assert not torch.equal(weights(trained(settings)), untouched)


def batches_of(settings: Settings, callback: InfluenceCallback) -> list[int]:
    """Records in every minibatch that reached the host in one round."""
    model, sizes = make_model(**settings), []
    plain = model.policy.evaluate_actions

    def evaluate_actions(obs: Any, actions: Any, **keywords: Any) -> Any:
        if model.policy.training:
            sizes.append(len(actions))
        return plain(obs, actions, **keywords)

    model.policy.evaluate_actions = evaluate_actions
    model.learn(24, callback=callback)
    return sizes


def keeping(count: int) -> Any:
    """A user's own rule."""

    def rule(scores: Scores) -> Selection:
        order = scores.values.argsort(descending=True)
        kept = torch.zeros(len(scores))
        kept[order[:count]] = 1
        return Selection(kept, order[count:], len(scores) - count, len(scores) - count)

    return rule


@pytest.mark.parametrize(
    ("kept", "sizes"),
    [(24, [8, 8, 8]), (23, [8, 8, 7]), (20, [8, 8, 4]), (19, [8, 8]), (17, [8, 8]), (16, [8, 8]), (9, [8]), (5, [5])],
)
def test_minibatches_of_survivors(kept: int, sizes: list[int]) -> None:
    assert batches_of({"n_epochs": 1}, InfluenceCallback(selection=keeping(kept))) == sizes
    assert batches_of({"algo": "A2C"}, InfluenceCallback(selection=keeping(kept))) == [kept]


def test_at_least_one_minibatch_stays() -> None:
    influence = InfluenceCallback(drop=1.0)
    assert batches_of({"n_epochs": 1, "batch_size": 20}, influence) == [20]
    assert influence.selection is not None
    assert len(influence.selection.dropped) == 4 < influence.selection.requested
    with pytest.warns(UserWarning, match="batch_size=24 takes the whole buffer"):
        assert batches_of({"n_epochs": 1, "batch_size": 24}, InfluenceCallback(drop=1.0)) == [24]


def test_a_users_own_rule_must_make_sense() -> None:
    with pytest.raises(RollsightError, match="leaves 1 of 24 records"):
        trained({}, InfluenceCallback(selection=keeping(1)))
    half = lambda scores: Selection(torch.full((24,), 0.5), torch.tensor([], dtype=torch.long), 0, 0)  # noqa: E731
    with pytest.raises(RollsightError, match="weights are 0 or 1"):
        trained({}, InfluenceCallback(selection=half))
    short = lambda scores: Selection(torch.ones(23), torch.tensor([], dtype=torch.long), 0, 0)  # noqa: E731
    with pytest.raises(RollsightError, match=r"weights of shape \(23,\) for 24 records"):
        trained({}, InfluenceCallback(selection=short))


def test_only_one_callback_selects() -> None:
    trained({}, [InfluenceCallback(drop=0.9), InfluenceCallback(target="objective")])
    with pytest.raises(RollsightError, match="Two InfluenceCallbacks select"):
        trained({}, [InfluenceCallback(drop=0.9), InfluenceCallback(drop=0.9, target="objective")])


def test_whole_episodes_are_dropped() -> None:
    influence = InfluenceCallback(drop=1.0, unit="episode")
    trained({"n_envs": 3}, influence, rounds=1)
    assert influence.selection is not None
    scores = influence.scores["return"]
    kept = influence.selection.weights > 0
    assert 0 < kept.sum() < len(kept)
    for episode in scores.ids["episode"].unique():
        assert kept[scores.ids["episode"] == episode].unique().numel() == 1


# Repeatability


@pytest.mark.parametrize("rule", ["negative:0.5", "random:0.5"])
def test_the_same_seed_gives_the_same_run(rule: str) -> None:
    def run(**more: Any) -> dict[str, bytes]:
        return fingerprint(trained({"n_envs": 3}, InfluenceCallback(selection=rule, **more)))

    assert run() == run() == run(evaluate=noisy_evaluation) == run(evaluate=lambda model, round: ([1.0] * round, []))
    assert run() != run(every=2)


def test_random_drop_is_keyed_by_seed_and_round() -> None:
    def dropped(seed: int) -> list[list[int]]:
        influence = InfluenceCallback(selection="random:0.5")
        seen = AtRolloutEnd(lambda _: influence.selection.dropped.tolist())  # type: ignore[union-attr]
        trained({"seed": seed}, [influence, seen])
        return seen.results

    first = dropped(1)
    assert dropped(1) == first
    assert dropped(2) != first
    assert first[0] != first[1]
    for seed in (1, 2):
        rule = selection.DropRandom(like=selection.DropNegative(0.5), seed=seed)
        influence = InfluenceCallback(selection=rule)
        trained({"seed": 1}, influence, rounds=1)
        assert influence.selection is not None
        assert (influence.selection.dropped.tolist() == first[0]) == (seed == 1)  # the text takes the model's


def test_an_evaluation_has_random_numbers_of_its_own() -> None:
    def draws(rounds: int) -> list[float]:
        numbers: list[float] = []

        def evaluate(model: Any, round: int) -> tuple[list[float], list[int]]:
            numbers.extend([np.random.random(), float(torch.rand(()))])
            return [0.0], [1]

        trained({}, [DrawsNumbers(), InfluenceCallback(evaluate=evaluate)], rounds)
        return numbers

    assert len(set(draws(2))) == 6
    assert draws(3)[:6] == draws(2)
