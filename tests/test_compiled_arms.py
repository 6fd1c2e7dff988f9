"""The arms of a study do to a round what their names say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sb3_zoo import make_model

pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")

from rollsight import score_records, targets
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.scoring.halves import split_halves
from rollsight.selection import DropNegative, DropRandom
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, seed_from
from rollsight.training.compiled import arms, rankings
from rollsight.training.compiled.batch import draw_minibatches, draw_prioritised
from rollsight.training.compiled.conversion import optimizer_of, parameters_of
from rollsight.training.compiled.networks import network_of
from rollsight.training.compiled.round import Round

DROP = DropNegative(0.5, min_keep=8)
GAMMA, LAMBDA = 0.99, 0.95


def frozen(**settings: Any) -> tuple[Snapshot, Round]:
    """The second round of a Stable-Baselines3 model, twice: as a snapshot and as the engine has it."""
    model = make_model(**{"n_envs": 3, **settings})
    callback = InfluenceCallback(snapshots="every:2")
    model.learn(48, callback=callback)
    snapshot = callback.snapshot
    assert snapshot is not None
    module = snapshot.policy.module
    optimizer, state = optimizer_of(module, snapshot.optimizer)
    rate = snapshot.optimizer.param_groups[0]["lr"]
    start = (network_of(module), optimizer, parameters_of(module), state)
    return snapshot, Round(2, 7, *start, snapshot.records, snapshot.rule, rate, GAMMA, LAMBDA)


def torch_scores(snapshot: Snapshot, **options: Any) -> np.ndarray:
    return score_records(
        snapshot.policy, snapshot.records, objective=snapshot.rule.policy_term(), **options
    ).values.numpy()


def agree(mine: Any, theirs: Any) -> None:
    assert np.abs(theirs).max() > 0
    assert np.abs(np.asarray(mine) - theirs).max() < 2e-5 * np.abs(theirs).max()


def moved(round: Round, update: arms.Update, names: set[str]) -> float:
    after = update.trained.parameters
    return float(
        np.sqrt(sum(float(((np.asarray(after[n]) - np.asarray(round.parameters[n])) ** 2).sum()) for n in names))
    )


def test_preconditioned_scores_are_torchs() -> None:
    snapshot, round = frozen()
    theirs = torch_scores(snapshot, optimizer=snapshot.optimizer)
    agree(rankings.preconditioned(round).values, theirs)
    with pytest.raises(AssertionError):
        agree(rankings.f_return(round).values, theirs)


def test_cross_fitted_scores_see_the_other_half_only() -> None:
    snapshot, round = frozen()
    seen = rankings.cross_fitted(round).values
    first = split_halves(snapshot.records, seed_from(7, 2, Purpose.CROSS_FIT_HALVES))
    for half in (first, ~first):
        other = snapshot.records.take((~half).nonzero().flatten())
        agree(seen[half], torch_scores(snapshot, target=targets.Return(records=other))[half.numpy()])


def test_dtv_without_the_own_episode() -> None:
    snapshot, round = frozen()
    prepared = round.rule.policy_term().prepare(snapshot.records)
    whole = torch_scores(snapshot, target=targets.Return(records=prepared))
    agree(rankings.objective(round).values, whole)
    episode = snapshot.records.ids["episode"]
    mine = rankings.objective_without_own_episode(round).values
    for number in episode.unique().tolist():
        rows = episode == number
        own = prepared.take(rows.nonzero().flatten())
        part = torch_scores(snapshot, target=targets.Return(records=own)) * len(own) / len(prepared)
        agree(mine[rows], (whole - part)[rows.numpy()])


def test_permuted_advantages_move_between_records_and_with_the_round() -> None:
    snapshot, round = frozen()
    before = snapshot.records.advantages.clone()
    one, again, plain = (f(round).values for f in (rankings.permuted, rankings.permuted, rankings.f_return))
    assert torch.equal(one, again)
    assert torch.equal(snapshot.records.advantages, before)
    assert not torch.allclose(one, plain, rtol=0.1)
    later = Round(3, *[getattr(round, name) for name in list(Round.__dataclass_fields__)[1:]])
    assert not torch.equal(rankings.permuted(later).values, one)


def test_td_errors_add_up_to_the_advantages() -> None:
    snapshot, round = frozen()
    errors, episode, env = (
        rankings.temporal_difference_errors(round),
        *(snapshot.records.ids[n] for n in ("episode", "env")),
    )
    total, last = 0.0, None
    for row in reversed(range(len(errors))):
        here = (int(episode[row]), int(env[row]))
        total = float(errors[row]) + GAMMA * LAMBDA * (total if here == last else 0.0)
        last = here
        assert total == pytest.approx(float(snapshot.records.advantages[row]), abs=1e-4)


@pytest.mark.parametrize(
    ("ranking", "lowest_first"),
    [
        (rankings.sign_mismatch, lambda a_bar, a: -np.abs(a_bar - a)),
        (rankings.agreement, lambda a_bar, a: a_bar * a),
    ],
)
def test_heuristics_drop_records_with_wrong_signs_only(
    ranking: rankings.Ranking, lowest_first: Callable[..., Any]
) -> None:
    _, round = frozen(obs="discrete")
    scores = ranking(round)
    dropped = DROP(scores).dropped.numpy()
    a, a_bar = round.records.advantages.numpy(), rankings.tabular_values(round).numpy()
    wrong = np.flatnonzero(np.sign(a) * np.sign(a_bar) < 0)
    assert len(dropped) == len(wrong) // 2 > 0
    expected = wrong[np.argsort(lowest_first(a_bar, a)[wrong], kind="stable")][: len(dropped)]
    assert set(dropped.tolist()) == set(expected.tolist())


def test_plain_ppo_neither_scores_nor_drops() -> None:
    _, round = frozen()
    update = arms.Filtered(every=0)(round)
    assert (update.scores, update.selection) == (None, None)
    kept_all = arms.Filtered()(round)
    assert kept_all.scores is not None
    assert moved(round, update, set(round.parameters)) == moved(round, kept_all, set(round.parameters)) > 0


def test_an_update_as_long_as_iifs() -> None:
    _, round = frozen()
    iif, plain, matched = (
        arm(round) for arm in (arms.Filtered(DROP), arms.Filtered(every=0), arms.MatchedNorm(arms.Filtered(DROP)))
    )
    policy = arms.policy_parameters(round.network, round.parameters)
    assert 0 < len(policy) < len(round.parameters)
    assert moved(round, matched, policy) == pytest.approx(moved(round, iif, policy), rel=1e-4)
    assert moved(round, plain, policy) != pytest.approx(moved(round, iif, policy), rel=1e-3)
    for name in set(round.parameters) - policy:
        assert np.array_equal(matched.trained.parameters[name], plain.trained.parameters[name])
    name = next(iter(sorted(policy)))
    ways = [
        (np.asarray(u.trained.parameters[name]) - np.asarray(round.parameters[name])).ravel() for u in (matched, plain)
    ]
    assert np.corrcoef(*ways)[0, 1] > 0.999


@pytest.mark.parametrize("drop", [DROP, DropNegative(1.0, min_keep=8)])
def test_an_update_that_changes_the_policy_as_much_as_iifs(drop: DropNegative) -> None:
    snapshot, round = frozen()
    iif, plain, matched = (
        arm(round) for arm in (arms.Filtered(drop), arms.Filtered(every=0), arms.MatchedKL(arms.Filtered(drop)))
    )
    policy = snapshot.policy.module

    def changed(update: arms.Update) -> float:
        """By PyTorch's distributions, over all records."""
        obs, actions = torch.as_tensor(snapshot.records.obs), torch.as_tensor(snapshot.records.actions)
        copied = copy.deepcopy(policy)
        start = copied.evaluate_actions(obs, actions)[1].detach()
        copied.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in update.trained.parameters.items()})
        ratio = copied.evaluate_actions(obs, actions)[1].detach() - start
        return float((ratio.exp() - 1 - ratio).mean())

    assert changed(matched) == pytest.approx(changed(iif), rel=5e-3)
    assert changed(plain) != pytest.approx(changed(iif), rel=5e-2)
    assert float(matched.trained.approx_kl) == pytest.approx(changed(matched), rel=1e-3)
    names = arms.policy_parameters(round.network, round.parameters)
    for name in set(round.parameters) - names:
        assert np.array_equal(matched.trained.parameters[name], plain.trained.parameters[name])
    name = next(iter(sorted(names)))
    ways = [
        (np.asarray(u.trained.parameters[name]) - np.asarray(round.parameters[name])).ravel() for u in (matched, plain)
    ]
    assert np.corrcoef(*ways)[0, 1] > 0.999


@pytest.mark.parametrize("only", ["in_policy", "in_value"])
def test_dropped_records_can_leave_one_loss_only(only: Any) -> None:
    _, round = frozen(max_grad_norm=1e9)  # clipping would make each part's step depend on the other's gradient
    plain, part = arms.Filtered(every=0)(round), arms.Filtered(DROP, only=only)(round)
    assert plain.steps == part.steps
    assert part.selection is not None
    assert len(part.selection.dropped)
    policy = arms.policy_parameters(round.network, round.parameters)
    for name, p in part.trained.parameters.items():
        stays = (name in policy) == (only == "in_value")
        assert np.allclose(p, plain.trained.parameters[name], atol=1e-7) == stays, name
    spoilt = replace(round.records, advantages=round.records.advantages.clone())
    spoilt.advantages[part.selection.dropped] += 3.0
    again = replace(round, records=spoilt)
    rows = part.selection.weights.numpy() > 0
    minibatches = draw_minibatches(round.order(), len(rows), round.rule, None)
    ends = [each.train(minibatches, **{only: rows}).parameters for each in (round, again)]
    same = [np.array_equal(ends[0][name], ends[1][name]) for name in policy]
    assert all(same) if only == "in_policy" else not any(same)


def test_as_many_steps_over_fewer_records() -> None:
    _, round = frozen()
    rule = DropRandom(DropNegative(0.7), 3)

    def all_negative(round: Round) -> Any:
        return replace(scores := rankings.f_return(round), values=-1 - scores.values.abs())

    short, long = (arms.Filtered(rule, ranking=all_negative, as_many_steps=many)(round) for many in (False, True))
    plain = arms.Filtered(every=0)(round)
    assert short.steps < long.steps == plain.steps
    assert short.selection is not None
    assert long.selection is not None
    assert torch.equal(short.selection.weights, long.selection.weights)


def test_prioritised_minibatches_hold_large_errors_more_often() -> None:
    _, round = frozen()
    rank = np.arange(1, len(round.records) + 1)
    weights = rank**-0.6 / (rank**-0.6).sum()
    drawn = np.concatenate(
        [draw_prioritised(np.random.RandomState(s), round.rule, weights).index.ravel() for s in range(300)]
    )
    share = np.bincount(drawn, minlength=len(rank)) / len(drawn)
    assert np.abs(share - weights).max() < 0.01


def test_records_with_large_td_errors_are_likelier(monkeypatch: pytest.MonkeyPatch) -> None:
    _, round = frozen()
    seen = list[Any]()

    def draw(order: Any, rule: Any, probabilities: Any) -> Any:
        seen.append(probabilities)
        return draw_prioritised(order, rule, probabilities)

    monkeypatch.setattr(arms, "draw_prioritised", draw)
    assert arms.Prioritised()(round).steps == arms.Filtered(every=0)(round).steps
    ranked = np.argsort(-rankings.temporal_difference_errors(round).abs().numpy(), kind="stable")
    assert (np.diff(seen[0][ranked]) < 0).all()
    assert seen[0][ranked[0]] / seen[0][ranked[9]] == pytest.approx(10**0.6)


def test_rescoring_goes_by_the_parameters_of_each_epoch() -> None:
    _, round = frozen(learning_rate=0.05)
    seen = list[Any]()

    def ranking(now: Round) -> Any:
        seen.append(rankings.f_return(now).values.numpy())
        return rankings.f_return(now)

    update = arms.Rescored(DROP, ranking)(round)
    assert len(seen) == round.rule.n_epochs > 1
    assert np.array_equal(seen[0], rankings.f_return(round).values.numpy())
    assert not np.allclose(seen[-1], seen[0], rtol=0.01)
    once = arms.Filtered(DROP)(round)
    assert once.selection is not None
    assert update.selection is not None
    assert torch.equal(update.selection.weights, once.selection.weights)
    assert moved(round, update, set(round.parameters)) != moved(round, once, set(round.parameters))


@pytest.mark.parametrize(("returns", "paused"), [([], False), ([-500.0, -500.0], True), ([-500.0, -499.0], False)])
def test_nothing_is_dropped_while_no_episode_is_better_than_another(returns: list[float], paused: bool) -> None:
    _, round = frozen()
    now = replace(round, returns=np.array(returns))
    update = arms.Filtered(DROP, pause=True)(now)
    assert update.scores is not None
    assert (update.selection is None) == paused
    assert arms.Filtered(DROP)(now).selection is not None
