"""Watching never stops training: whatever else fails, training ends in the bits of a training without it."""

from __future__ import annotations

import errno
import warnings
from ast import literal_eval
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sb3_zoo import AtRolloutEnd, Toy, fingerprint, make_model, trained
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from rollsight import RollsightError, runs, selection, targets
from rollsight.adapters.sb3 import InfluenceCallback, callback, round_update, selecting
from rollsight.adapters.sb3.episodes import EpisodeTracker
from rollsight.scoring import Scores
from rollsight.selection import Selection

ALGORITHMS = ("PPO", "A2C", "TRPO", "MaskablePPO", "RecurrentPPO")


class Fails:
    """Raises, from its `first` call on or in that one alone; as a user's own function after it drew random numbers."""

    def __init__(self, error: BaseException, first: int = 1, alone: bool = False, draws: bool = False) -> None:
        self.error, self.first, self.alone, self.draws, self.calls = error, first, alone, draws, 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        if self.calls == self.first or (self.calls > self.first and not self.alone):
            if self.draws:
                np.random.random(3)
                torch.rand(3)
            raise self.error


OUT_OF_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory")


@cache
def stock_fingerprint(settings: str, rounds: int) -> dict[str, bytes]:
    return fingerprint(trained(literal_eval(settings), rounds=rounds))


def watched(
    settings: dict[str, Any], influence: InfluenceCallback, message: str, rounds: int = 3
) -> list[dict[str, Any]]:
    """The rounds of a training that ends in the host's own bits, with one warning of each kind."""
    summaries: list[Any] = []
    told = influence.on_round
    influence.on_round = lambda round: (summaries.append(round), told and told(round))
    stock = stock_fingerprint(repr(settings), rounds)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fingerprint(trained(settings, influence, rounds=rounds)) == stock
    texts = [str(one.message) for one in caught if one.category is UserWarning]
    assert [text for text in texts if message in text], texts
    assert len(texts) == len({text.split("(")[0].partition(": ")[2] for text in texts}), texts
    assert [round["round"] for round in summaries] == list(range(1, rounds + 1))
    return summaries


# Scores, selection, trust line


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_scores_that_cannot_be_had(algo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selecting, "score_records", Fails(OUT_OF_MEMORY))
    influence = InfluenceCallback(drop=0.9, run=tmp_path / "run", snapshots="none")
    rounds = watched({"algo": algo}, influence, "round 1: no scores of 'return' (OutOfMemoryError: CUDA out of memory)")
    assert not any(round["scored"] for round in rounds)
    assert all(round["dropped"] == 0 and round["kept_frac"] == 1 for round in rounds)
    stored = runs.open(tmp_path / "run").sql("select scored, warnings from rounds order by round").fetchall()
    assert [scored for scored, _ in stored] == [False] * 3
    assert [said.startswith(f"round {n}: no scores") for n, (_, said) in enumerate(stored, 1)] == [True] * 3
    assert runs.open(tmp_path / "run").records(3).num_rows == 24


def test_one_round_that_fails_is_null_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = selecting.score_records
    fails = Fails(RuntimeError("once"), first=2, alone=True)
    monkeypatch.setattr(selecting, "score_records", lambda *a, **k: fails() or whole(*a, **k))
    influence = InfluenceCallback(run=tmp_path / "run", snapshots="none")
    watched({}, influence, "round 2: no scores of 'return' (RuntimeError: once); training goes on")
    run = runs.open(tmp_path / "run")
    rows = run.sql("select scored, score_min is null, warnings is null from rounds order by round").fetchall()
    assert rows == [(True, False, True), (False, True, False), (True, False, True)]
    assert run.sql("select count(score_return) from records group by round order by round").fetchall() == [
        (24,),
        (0,),
        (24,),
    ]


def test_the_first_target_decides_or_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = selecting.score_records
    broken = RuntimeError("no return")

    def scores(policy: Any, records: Any, target: Any, *more: Any, **keywords: Any) -> Scores:
        if target.name == "return":
            raise broken
        return whole(policy, records, target, *more, **keywords)

    monkeypatch.setattr(selecting, "score_records", scores)
    influence = InfluenceCallback(drop=0.9, target=["return", "objective"])
    rounds = watched({}, influence, "no scores of 'return'")
    assert list(influence.scores) == ["objective"]
    assert not any(round["scored"] or round["dropped"] for round in rounds)


class Parametrised(BaseFeaturesExtractor):
    def __init__(self, space: Any, how: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__(space, 4)
        self.layers = nn.Sequential(how(nn.Linear(3, 4)), nn.Tanh())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(obs)
        return features


def parametrised(how: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    keywords = {"features_extractor_class": Parametrised, "features_extractor_kwargs": {"how": how}}
    return {"policy_kwargs": keywords}


@pytest.mark.parametrize(
    "how",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        torch.nn.utils.parametrizations.orthogonal,
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrised_layers_train_on(how: Any, tmp_path: Path) -> None:
    settings = parametrised(how)
    stock = fingerprint(trained(settings, rounds=3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assert fingerprint(trained(settings, InfluenceCallback(), rounds=3)) == stock
        busy = InfluenceCallback(run=tmp_path / "run", snapshots="all")
        assert fingerprint(trained(settings, busy, rounds=3)) == stock
    texts = [str(one.message) for one in caught if one.category is UserWarning]
    assert sum("no snapshot (" in text for text in texts) <= 1
    run = runs.open(tmp_path / "run")
    ((scored, said),) = run.sql("select bool_and(scored), max(warnings) from rounds").fetchall()
    assert scored
    assert run.snapshot_rounds == ([] if said and "no snapshot" in said else [1, 2, 3])


class FailsWhenScored(BaseFeaturesExtractor):
    """Runs where the host runs it: without gradients in rollouts, in training mode in updates; raises in scoring."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 4)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        features = self.first(obs).tanh()
        if torch.is_grad_enabled() and not self.training:
            torch.rand(3)
            np.random.random(3)
            raise RuntimeError("half-way")
        rest: torch.Tensor = self.second(features)
        return rest


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_scoring_that_breaks_off_half_way_leaves_nothing(algo: str) -> None:
    settings = {"algo": algo, "policy_kwargs": {"features_extractor_class": FailsWhenScored}}
    stock = trained(settings)
    state = AtRolloutEnd(lambda m: sum(len(p._forward_hooks) + len(p._forward_pre_hooks) for p in m.policy.modules()))
    modes = AtRolloutEnd(lambda m: any(part.training for part in m.policy.modules()))
    with pytest.warns(UserWarning, match="no scores of 'return'.*half-way"):
        model = trained(settings, [InfluenceCallback(drop=0.9), state, modes])
    assert fingerprint(model) == fingerprint(stock)
    assert state.results == [0, 0]
    assert modes.results == [False, False]


def test_a_trust_line_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "trust_line", Fails(NotImplementedError("forward AD with _weight_norm_interface")))
    rounds = watched({}, InfluenceCallback(), "no trust line (NotImplementedError: forward AD")
    assert all(round["scored"] and "trust_split_half" not in round for round in rounds)


def test_a_users_rule_that_fails_later() -> None:
    """Keeping everything is not what was asked for, but it is what can be had."""
    fails = Fails(ZeroDivisionError("of mine"), first=2, draws=True)
    nothing = torch.tensor([], dtype=torch.long)

    def rule(scores: Scores) -> Selection:
        fails()
        return Selection(torch.ones(len(scores)), nothing, 0, 0)

    rounds = watched({}, InfluenceCallback(selection=rule), "round 2: no selection (ZeroDivisionError: of mine)")
    assert [round["warnings"] is None for round in rounds] == [True, False, False]
    calls: list[int] = []

    def short(scores: Scores) -> Selection:
        calls.append(1)
        return Selection(torch.ones(len(scores) - (len(calls) > 1)), nothing, 0, 0)

    watched({}, InfluenceCallback(selection=short), "no selection (The selection has weights of shape (23,)")


class OnFailingGround(targets.Return):
    """A target of the user's own."""

    name = "own"

    def __init__(self, fails: Fails) -> None:
        object.__setattr__(self, "fails", fails)

    def terms(self, *args: Any, **keywords: Any) -> Any:
        self.fails()  # type: ignore[attr-defined]
        return super().terms(*args, **keywords)


def test_a_users_target_stops_the_first_round_and_no_later_one() -> None:
    with pytest.raises(KeyError, match="mine"):
        trained({}, InfluenceCallback(target=OnFailingGround(Fails(KeyError("mine")))))
    settled = Fails(KeyError("mine"), first=10**9, draws=True)
    influence = InfluenceCallback(
        target=OnFailingGround(settled), on_round=lambda round: setattr(settled, "first", settled.calls + 1)
    )
    rounds = watched({}, influence, "round 2: no scores of 'own' (KeyError: 'mine')")
    assert [round["scored"] for round in rounds] == [True, False, False]


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (parametrised(torch.nn.utils.parametrizations.spectral_norm), {"backend": "layerwise"}, "layerwise|layer"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.Adagrad}}, {"precondition": True}, "Adagrad"),
        ({}, {"target": targets.Action(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))}, "shape"),
    ],
)
def test_what_was_asked_for_by_name_and_does_not_fit_stops_the_first_round(
    settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    model = make_model(**settings)
    before = fingerprint(model)["parameters"]
    with pytest.raises((RollsightError, RuntimeError), match=message):
        model.learn(48, callback=InfluenceCallback(**options))
    assert fingerprint(model)["parameters"] == before


# Run folder, logger, functions of the user's own


@pytest.mark.parametrize(
    ("method", "part", "lost"),
    [
        ("write_records", "records in the run folder", "records"),
        ("write_snapshot", "snapshot", "snapshots"),
        ("write_round", "round in the run folder", "rounds"),
        ("write_evaluation", "evaluation", "evaluations"),
    ],
)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writer")])
def test_what_cannot_be_written(
    method: str, part: str, lost: str, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, fails = (
        getattr(runs.RunWriter, method),
        Fails(error, first=3 if method == "write_evaluation" else 2, alone=True),
    )

    def write(*args: Any, **keywords: Any) -> Any:
        fails()
        return whole(*args, **keywords)

    monkeypatch.setattr(runs.RunWriter, method, write)
    influence = InfluenceCallback(
        run=tmp_path / "run", snapshots="all", evaluate=lambda model, round: ([1.0, 2.0], [3, 4])
    )
    rounds = watched({}, influence, f"round 2: no {part} ({type(error).__name__}: ")
    assert [bool(round["warnings"]) for round in rounds] == [False, True, False]
    assert [round["evaluation_return"] for round in rounds] == [1.5] * 3
    written = sorted(path.name for path in (tmp_path / "run" / lost).glob("round-00000[123]*"))
    assert [name[11] for name in written] == ["1", "3"]


def test_a_folder_that_is_taken_away(tmp_path: Path) -> None:
    """As a full disk, a network drive that went, or a folder whose rights changed: the system refuses the files."""
    import shutil

    influence = InfluenceCallback(run=tmp_path / "run", snapshots="all")
    neighbour = AtRolloutEnd(lambda _: shutil.rmtree(tmp_path / "run", ignore_errors=True))
    stock = fingerprint(trained({}, rounds=3))
    with pytest.warns(UserWarning, match=r"no records in the run folder .*could not be written"):
        assert fingerprint(trained({}, [influence, neighbour], rounds=3)) == stock


def test_evaluate_may_stop_the_beginning_only() -> None:
    with pytest.raises(KeyError, match="mine"):
        trained({}, InfluenceCallback(evaluate=Fails(KeyError("mine"))))

    def evaluate(model: Any, round: int) -> Any:
        if round:
            model.policy.train()
            np.random.random(3)
            return None  # not what was asked for
        return [1.0], [1]

    rounds = watched({}, InfluenceCallback(evaluate=evaluate), "round 1: no evaluation (TypeError: ")
    assert all("evaluation_return" not in round for round in rounds)


def test_a_display_that_fails() -> None:
    show = Fails(BrokenPipeError("bar"), draws=True)
    stock = fingerprint(trained({}, rounds=3))
    with pytest.warns(UserWarning, match=r"round 1: no call of on_round \(BrokenPipeError: bar\)") as caught:
        assert fingerprint(trained({}, InfluenceCallback(on_round=show), rounds=3)) == stock
    assert show.calls == 3
    assert len(caught) == 1


def test_whatever_else_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for owner, name, part in (
        (EpisodeTracker, "step", "episodes"),
        (EpisodeTracker, "end_rollout", "records"),
        (callback, "translate", "records"),
        (callback, "round_columns", "records in the run folder"),
        (round_update.buffer, "install", "view of the update"),
        (round_update.Snapshot, "take", "snapshot"),
        (round_update.RoundUpdate, "numbers", "numbers of the update"),
        (round_update.RoundUpdate, "_compare", "comparison with what was scored"),
    ):
        with monkeypatch.context() as patch:
            whole, fails = getattr(owner, name), Fails(RuntimeError("broken"), first=4, alone=True)
            patch.setattr(owner, name, lambda *a, w=whole, f=fails, **k: (f(), w(*a, **k))[1])
            influence = InfluenceCallback(run=tmp_path / name, snapshots="all", drop=0.0)
            rounds = watched({"n_envs": 3}, influence, f"no {part} (RuntimeError: broken)", rounds=5)
        failed = 1 if name == "step" else 4
        assert [bool(round["warnings"]) for round in rounds] == [n == failed for n in range(1, 6)], name
        assert rounds[-1]["scored"]
        assert runs.open(tmp_path / name).rounds == [1, 2, 3, 4, 5]


def test_keyboard_interrupt_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "score_records", Fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trained({}, InfluenceCallback())


# Rewards that are not finite


class BadReward(gym.Wrapper[Any, Any, Any, Any]):
    """Pays `value` in its `at`-th step."""

    def __init__(self, env: Any, at: int, value: float) -> None:
        super().__init__(env)
        self.at, self.value, self.steps = at, value, 0

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        return obs, self.value if self.steps == self.at else reward, terminated, truncated, info


def bad_environments(value: float, at: int = 13, normalize: bool = False) -> Any:
    made = [
        lambda i=i: Monitor(BadReward(gym.wrappers.TimeLimit(Toy(), 9), at if i == 1 else -1, value)) for i in (0, 1)
    ]
    env = DummyVecEnv(made)
    return VecNormalize(env, norm_obs=False) if normalize else env


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_reported_and_its_round_is_stored(
    algo: str, value: float, tmp_path: Path
) -> None:
    """Step 13 of environment 1 is step 0 of round 2; then the host trains on it, and stops where it would alone."""

    def ends(callback: Any) -> tuple[str, bytes]:
        model = make_model(algo=algo, env=bad_environments(value), n_steps=12, n_envs=2)
        try:
            model.learn(96, callback=callback)
            end = ""
        except ValueError as error:
            end = str(error)[:40]
        return end, fingerprint(model)["parameters"]

    influence = InfluenceCallback(drop=0.9, every=1, run=tmp_path / "run", snapshots="none")
    stock = ends(None)
    clean = InfluenceCallback(selection=lambda s: selection.DropNegative(0.0)(s), run=tmp_path / "clean")
    with pytest.warns(UserWarning, match=f"^round 2: the reward at step 0 of environment 1 is {value}, step . of its"):
        assert ends(clean) == stock
    with pytest.warns(UserWarning, match="^round 2: the reward at step 0 of environment 1"):
        ends(influence)
    for name in ("run", "clean"):
        run = runs.open(tmp_path / name)
        assert run.rounds[:2] == [1, 2]
        records = run.records(2)
        assert not np.isfinite(records["reward"].to_numpy()[12])
        assert "score_return" not in records.column_names
        rows = run.sql("select scored, dropped, warnings from rounds where round = 2").fetchall()
        assert rows[0][:2] == (False, 0)
        assert "environment 1" in rows[0][2]
        assert "put InfluenceCallback last" not in rows[0][2]


def test_a_reward_that_the_normaliser_spoils_is_found_where_it_was_paid() -> None:
    model = make_model(env=bad_environments(np.nan, normalize=True), n_steps=12)
    with (
        pytest.warns(UserWarning, match="the reward at step 0 of environment 1 is nan, step"),
        pytest.raises(ValueError, match="to satisfy the constraint"),
    ):
        model.learn(96, callback=InfluenceCallback())


def test_a_reward_that_a_callback_spoils() -> None:
    class Spoils(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 30:
                self.locals["rewards"][0] = np.nan
            return True

    with (
        pytest.warns(UserWarning, match="round 2: the reward as trained on at step 5 of environment 0 is nan"),
        pytest.raises(ValueError, match="to satisfy the constraint"),
    ):
        make_model().learn(48, callback=[InfluenceCallback(), Spoils()])


def test_a_round_that_diverges_is_stored_before_the_host_stops(tmp_path: Path) -> None:
    """Nothing was wrong with its records: the learning rate was."""
    settings = {"learning_rate": 1e30, "policy_kwargs": {"optimizer_class": torch.optim.SGD}, "max_grad_norm": 1e9}
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        trained(settings, rounds=3)
    with (
        pytest.warns(UserWarning, match=r"step \d of the update left parameters that are not finite"),
        pytest.raises(ValueError, match="to satisfy the constraint"),
    ):
        trained(settings, InfluenceCallback(run=tmp_path / "run", snapshots="none"), rounds=3)
    run = runs.open(tmp_path / "run")
    last = run.rounds[-1]
    ((said,),) = run.sql(f"select warnings from rounds where round = {last}").fetchall()
    assert "parameters that are not finite" in said
    assert run.records(last).num_rows == 24
    assert pq.read_table(tmp_path / "run" / "rounds" / f"round-{last:06d}.parquet").num_rows == 1


# Order of callbacks


class EditsRewards(BaseCallback):
    """Doubles the rewards of the buffer and computes its advantages anew, as intrinsic rewards do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        held: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        held.rewards *= 2
        dones = self.model._last_episode_starts  # type: ignore[attr-defined]
        held.compute_returns_and_advantage(torch.zeros(held.n_envs), dones)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_callback_that_edits_rewards_afterwards_is_seen(algo: str) -> None:
    summaries: list[Any] = []
    with pytest.warns(UserWarning, match="^round 1: advantages or returns changed after they were scored") as caught:
        trained({"algo": algo}, [InfluenceCallback(on_round=summaries.append), EditsRewards()])
    assert len([one for one in caught if "put InfluenceCallback last" in str(one.message)]) == 1
    assert all("put InfluenceCallback last" in round["warnings"] for round in summaries)
    summaries.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained({"algo": algo}, [EditsRewards(), InfluenceCallback(on_round=summaries.append)])
    assert [round["warnings"] for round in summaries] == [None, None]
