"""The Stable-Baselines3 adapter on sb3-contrib's TRPO, MaskablePPO and RecurrentPPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from sb3_zoo import Perturb, fingerprint, in_double, make_model, weights, with_full_buffer
from test_sb3 import Settings, batches_of, cases, keeping, noisy_evaluation, trained

from rollsight import RollsightError, score_records, targets
from rollsight.adapters.sb3 import InfluenceCallback, translate
from rollsight.adapters.sb3.columns import entropy_of
from rollsight.scoring import Scores
from rollsight.selection import Selection

MODELS: dict[str, Settings] = {
    "trpo": {"algo": "TRPO"},
    "trpo, continuous": {"algo": "TRPO", "action": "box", "n_envs": 3},
    "maskable": {"algo": "MaskablePPO"},
    "maskable, dict": {"algo": "MaskablePPO", "obs": "dict", "n_envs": 3},
    "maskable, multi-discrete actions": {"algo": "MaskablePPO", "action": "multidiscrete"},
    "recurrent": {"algo": "RecurrentPPO", "n_envs": 3},
    "recurrent, dict": {"algo": "RecurrentPPO", "obs": "dict"},
    "recurrent, images": {"algo": "RecurrentPPO", "obs": "image"},
    "recurrent, continuous": {"algo": "RecurrentPPO", "action": "box", "n_envs": 3},
    "recurrent, VecNormalize, critic without LSTM": {
        "algo": "RecurrentPPO",
        "normalize": True,
        "policy_kwargs": {"enable_critic_lstm": False, "shared_lstm": True, "n_lstm_layers": 2},
    },
}
RECURRENT = {name: settings for name, settings in MODELS.items() if "recurrent" in name}


@pytest.mark.filterwarnings("ignore:.*no snapshots are taken")
@cases(MODELS)
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


@pytest.mark.parametrize("algo", ["MaskablePPO", "RecurrentPPO"])
def test_parity_of_resumed_learning(algo: str) -> None:
    def resumed(first: Any, second: Any) -> dict[str, bytes]:
        model = trained({"algo": algo}, first)
        model.learn(2 * 24, callback=second, reset_num_timesteps=False)
        return fingerprint(model)

    assert resumed(InfluenceCallback(), InfluenceCallback(drop=0.0)) == resumed(None, None)


@cases(MODELS)
def test_scores_equal_the_oracle(settings: Settings) -> None:
    translated = translate(with_full_buffer(**settings))
    for precise, tolerance in ((False, 1e-5), (True, 1e-10)):
        round_ = in_double(translated) if precise else translated
        given = (round_.policy, round_.scored, targets.Return(), round_.objective)
        backend = "auto" if round_.position is None else "jvp"
        scores = round_.per_step(score_records(*given, backend=backend))
        oracle = round_.per_step(score_records(*given, backend="oracle"))
        assert oracle.values.abs().max() > 0
        assert (scores.values - oracle.values).abs().max() < tolerance * oracle.values.abs().max()
    assert scores.values.dtype == torch.float64


# A dropped record


@cases(
    {
        "trpo": {"algo": "TRPO", "n_envs": 3},
        "maskable": {"algo": "MaskablePPO", "n_envs": 3},
        "maskable, dict": {"algo": "MaskablePPO", "obs": "dict"},
        "recurrent": {"algo": "RecurrentPPO", "n_envs": 3, "clip_range_vf": 0.2},
        "recurrent, dict": {"algo": "RecurrentPPO", "obs": "dict"},
    }
)
def test_a_dropped_record_cannot_change_the_weights(settings: Settings) -> None:
    def weights_after(columns: str, which: str, by: float) -> torch.Tensor:
        influence = InfluenceCallback(drop=0.9)
        spoil = Perturb(influence, columns, which, by)
        model = trained(settings, [influence, spoil])
        assert spoil.changed >= 2
        return weights(model)

    columns = "advantages returns log_probs values"
    by = 0.7  # a recurrent host evaluates dropped steps, and a NaN there would not leave with the mask
    if settings["algo"] != "RecurrentPPO":
        columns, by = columns + " observations actions", np.nan
    if settings["algo"] == "MaskablePPO":
        columns += " action_masks"
    untouched = weights_after("", "dropped", by)
    assert torch.equal(weights_after(columns, "dropped", by), untouched)
    assert not torch.equal(weights_after("advantages", "kept", 1.0), untouched)
    assert not torch.equal(weights(trained(settings)), untouched)


@pytest.mark.parametrize("kept", [17, 9])
def test_a_maskable_host_never_meets_a_minibatch_of_one(kept: int) -> None:
    sizes = batches_of({"algo": "MaskablePPO", "n_epochs": 1}, InfluenceCallback(selection=keeping(kept)))
    assert sizes == [8] * (kept // 8)


def keeping_only(*rows: int) -> Any:
    def rule(scores: Scores) -> Selection:
        kept = torch.zeros(len(scores))
        kept[list(rows)] = 1
        dropped = (kept == 0).nonzero().flatten()
        return Selection(kept, dropped, len(dropped), len(dropped))

    return rule


@pytest.mark.parametrize("rows", [(0, 1, 2, 12), (0, 12), (3, 4)])
def test_a_recurrent_host_never_meets_a_minibatch_with_one_survivor(rows: tuple[int, ...]) -> None:
    model = make_model("RecurrentPPO", batch_size=4, n_epochs=3)
    before = weights(model)
    model.learn(24, callback=InfluenceCallback(selection=keeping_only(*rows)))
    after = weights(model)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


# Recurrent policies


@cases(RECURRENT)
def test_sequences_are_evaluated_as_the_steps_were_taken(settings: Settings) -> None:
    model = with_full_buffer(**settings)
    translated = translate(model)
    assert translated.position is not None
    with torch.no_grad():
        evaluation = translated.policy(translated.scored)
    for column, recorded in (
        (evaluation.log_prob, translated.records.log_probs),
        (evaluation.value, translated.records.values),
    ):
        assert column is not None
        torch.testing.assert_close(column.reshape(-1)[translated.position], recorded)
    assert int(translated.scored.valid.sum()) == 24
    given = torch.arange(1.0, 25.0)
    placed = translated.per_scored(given)
    assert torch.equal(placed > 0, translated.scored.valid)
    assert torch.equal(placed.reshape(-1)[translated.position], given)
    starts = int((model.rollout_buffer.episode_starts[1:] > 0).sum()) + model.n_envs
    assert len(translated.scored) == starts > model.n_envs


@pytest.mark.parametrize("obs", ["box", "dict"])
def test_scores_of_a_recurrent_policy_equal_a_loop_over_steps(obs: str) -> None:
    """Independent of the adapter: the policy runs step by step through the buffer, as during collection, and each
    step's own gradient goes through the steps before it."""
    model = with_full_buffer(algo="RecurrentPPO", obs=obs, n_envs=3)
    buffer, policy = model.rollout_buffer, model.policy
    steps, envs = buffer.buffer_size, buffer.n_envs
    policy.set_training_mode(False)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    log_probs: dict[tuple[int, int], torch.Tensor] = {}
    entropies: list[float] = []
    for env in range(envs):
        state = None
        for step in range(steps):
            if step == 0:
                state = RNNStates(
                    *(
                        tuple(
                            torch.from_numpy(getattr(buffer, f"{kind}_states_{net}")[0][:, env : env + 1].copy())
                            for kind in ("hidden", "cell")
                        )
                        for net in ("pi", "vf")
                    )
                )
            start = torch.tensor([float(buffer.episode_starts[step, env])])
            row: Any = buffer.observations
            row = (
                {k: torch.as_tensor(v[step, env : env + 1]) for k, v in row.items()}
                if obs == "dict"
                else torch.as_tensor(row[step, env : env + 1])
            )
            distribution, pi = policy.get_distribution(row, state.pi, start)
            state = RNNStates(pi, state.vf)
            action = torch.as_tensor(buffer.actions[step, env]).long().flatten()
            entropies.append(float(distribution.entropy().detach()))
            log_probs[env, step] = distribution.log_prob(action).squeeze()
    order = [(env, step) for env in range(envs) for step in range(steps)]
    advantages = torch.tensor([buffer.advantages[step, env] for env, step in order])
    taken = torch.stack([log_probs[key] for key in order])

    def gradient(value: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, grads, strict=True)]
        )

    direction = gradient((taken * advantages).mean())
    normalised = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    expected = torch.stack([gradient(x) for x in taken * normalised]) @ direction

    translated = translate(model)
    scores = translated.per_step(
        score_records(translated.policy, translated.scored, targets.Return(), translated.objective, "jvp")
    )
    torch.testing.assert_close(entropy_of(translated), torch.tensor(entropies), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.values, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_recurrent_policy_needs_a_backend_with_scores_per_step() -> None:
    with pytest.raises(RollsightError, match=r"'layerwise' does not cover .* use backend='jvp'"):
        trained({"algo": "RecurrentPPO"}, InfluenceCallback(backend="layerwise"))


def test_whole_episodes_of_a_recurrent_policy_are_dropped() -> None:
    influence = InfluenceCallback(drop=1.0, unit="episode")
    trained({"algo": "RecurrentPPO", "n_envs": 3}, influence, rounds=1)
    assert influence.selection is not None
    kept = influence.selection.weights > 0
    assert 0 < kept.sum() < 24
    episodes = influence.scores["return"].ids["episode"]
    for episode in episodes.unique():
        assert kept[episodes == episode].unique().numel() == 1


# Snapshots


@pytest.mark.parametrize("algo", ["TRPO", "RecurrentPPO"])
def test_no_snapshot_of_an_update_that_cannot_be_replayed(algo: str) -> None:
    influence = InfluenceCallback(snapshots="all")
    with pytest.warns(UserWarning, match=f"{algo}'s update is not one that Rollsight can replay") as caught:
        trained({"algo": algo}, influence)
    assert len([w for w in caught if "snapshots" in str(w.message)]) == 1
    assert influence.snapshot is None
