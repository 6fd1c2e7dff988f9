"""The callback as a guest: what it leaves behind, logs and writes, and which options it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sb3_zoo import (
    AtRolloutEnd,
    fingerprint,
    make_env,
    make_model,
    noisy_evaluation,
    trained,
)
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

from rollsight import RollsightError, runs, targets
from rollsight.adapters.sb3 import InfluenceCallback

Settings = Mapping[str, Any]


# Good manners


def test_nothing_is_left_behind() -> None:
    model = make_model()
    kind, state = type(model.rollout_buffer), set(model.rollout_buffer.__dict__)
    during = AtRolloutEnd(lambda m: type(m.rollout_buffer))
    model.learn(48, callback=[InfluenceCallback(drop=0.5, snapshots="all"), during])
    assert issubclass(during.results[0], kind)
    assert during.results[0] is not kind
    assert type(model.rollout_buffer) is kind
    assert set(model.rollout_buffer.__dict__) == state
    assert not model.policy.optimizer._optimizer_step_post_hooks
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.policy.modules())


class Fails(BaseCallback):
    """Breaks one `learn`: in its second rollout, or between that and its training."""

    broken = False

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def _on_step(self) -> bool:
        self._fail("in a rollout")
        return True

    def _on_rollout_end(self) -> None:
        self._fail("before training")

    def _fail(self, now: str) -> None:
        if now == self.when and self.num_timesteps >= 40 and not self.broken:
            self.broken = True
            raise KeyboardInterrupt


at_any_time = pytest.mark.parametrize("when", ["in a rollout", "before training"])


@at_any_time
def test_learning_goes_on_after_a_learn_that_was_broken_off(when: str, tmp_path: Path) -> None:
    counted: list[int] = []
    influence = InfluenceCallback(
        snapshots="all", run=tmp_path / "run", on_round=lambda round: counted.append(round["optimizer_steps"])
    )
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        model.learn(72, callback=[influence, Fails(when)])
    model.learn(24, callback=influence, reset_num_timesteps=False)
    assert counted[-1] == 6  # the optimiser's steps of the last round, each counted once
    assert type(model.rollout_buffer) is type(make_model().rollout_buffer)
    rounds = sorted(path.name for path in (tmp_path / "run" / "rounds").iterdir())
    assert rounds == ["round-000001.parquet", "round-000002.parquet"]


@at_any_time
@pytest.mark.parametrize("callback", [None, InfluenceCallback()], ids=["none", "new"])
def test_another_callback_after_a_learn_that_was_broken_off(when: str, callback: Any) -> None:
    def broken_off(first: list[Any], second: Any) -> dict[str, bytes]:
        model = make_model()
        with pytest.raises(KeyboardInterrupt):
            model.learn(72, callback=[*first, Fails(when)])
        model.learn(48, callback=second, reset_num_timesteps=False)
        return fingerprint(model)

    influence = InfluenceCallback(snapshots="every:2")
    assert broken_off([influence], callback) == broken_off([], None)
    assert influence.snapshot is None  # it had asked for one of the round that was never trained on


def test_numbers_in_the_hosts_logger() -> None:
    model, rows = make_model(n_envs=3, batch_size=10), []
    plain = model.logger.dump
    model.logger.dump = lambda step=0: (rows.append(dict(model.logger.name_to_value)), plain(step))
    influence = InfluenceCallback(drop=1.0, every=2)
    model.learn(96, callback=influence)
    first, second, third = ({k[10:]: v for k, v in row.items() if k.startswith("influence/")} for row in rows[:3])
    always = {"kept_frac", "invalid_rows", "overhead_s", "time_collect"}
    of_scores = {"neg_frac", "neg_mass", "min", "p01", "median", "p99", "top1pct_share", "target_grad_norm"}
    of_trust = {"trust_split_half", "trust_split_half_permuted", "trust_gradient_ratio", "time_score", "time_trust"}
    of_update = {"update_norm", "approx_kl", "optimizer_steps", "time_train"}
    assert always <= set(first)
    assert not (of_scores | of_trust) & set(first)
    assert first["kept_frac"] == 1
    assert always | of_scores | of_trust | of_update <= set(second)
    assert 0 < second["kept_frac"] < 1
    assert second["invalid_rows"] == 0
    assert second["min"] <= second["p01"] <= second["median"] <= second["p99"]
    assert second["optimizer_steps"] == 6
    assert third["optimizer_steps"] < 6
    assert second["approx_kl"] == pytest.approx(rows[1]["train/approx_kl"])
    assert 0 < second["neg_frac"] < 1
    assert 0 < second["neg_mass"] < 1
    assert second["overhead_s"] == pytest.approx(second["time_score"] + second["time_trust"])


def test_an_action_can_be_explained(tmp_path: Path) -> None:
    """A target of one's own, next to the first, which decides the selection."""
    why = targets.Action(torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([2]), name="why")
    influence = InfluenceCallback(drop=0.9, target=["return", why], run=tmp_path / "run")
    trained({}, influence, rounds=1)
    alone = InfluenceCallback(drop=0.9)
    trained({}, alone, rounds=1)
    assert torch.equal(influence.selection.weights, alone.selection.weights)  # type: ignore[union-attr]
    assert not torch.equal(influence.scores["why"].values, influence.scores["return"].values)
    assert runs.open(tmp_path / "run").targets(1) == ["return", "why"]


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_rounds_of_a_few_records(n_steps: int, tmp_path: Path) -> None:
    settings = {"algo": "A2C", "n_steps": n_steps}
    stock = fingerprint(make_model(**settings).learn(10))
    callback = InfluenceCallback(drop=0.0, run=tmp_path / "run", snapshots="all")
    assert fingerprint(make_model(**settings).learn(10, callback=callback)) == stock
    make_model(**settings).learn(10, callback=InfluenceCallback(drop=1.0))


def test_summaries_go_to_on_round() -> None:
    seen: list[Mapping[str, Any]] = []
    trained({}, InfluenceCallback(drop=0.5, evaluate=noisy_evaluation, on_round=seen.append))
    assert [summary["round"] for summary in seen] == [1, 2]
    assert all("evaluation_return" in summary and summary["time_train"] > 0 for summary in seen)


def test_a_round_without_a_finished_episode(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    model = make_model(n_steps=2, batch_size=2)
    model.env.seed(1)  # an episode of more than four steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(4, callback=InfluenceCallback(run=tmp_path / "run", on_round=seen.append))
    assert [summary["return_mean"] for summary in seen] == [None, None]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 0.5, "selection": "random:0.5"}, "two rules for the same records"),
        ({"drop": 1.5}, r"drop=1.5 is not a fraction"),
        ({"drop": -0.1}, r"drop=-0.1 is not a fraction"),
        ({"drop": "half"}, "drop='half' is not a fraction"),
        ({"drop": True}, "drop=True is not a fraction"),
        ({"selection": "worst:0.5"}, "selection='worst:0.5' is unknown"),
        ({"selection": "negative"}, "has no fraction"),
        ({"selection": 0.5}, "selection=0.5 is not a rule"),
        ({"drop": 0.5, "unit": "step"}, "unit='step' is unknown"),
        ({"every": 0}, "every=0 is not a number of rounds"),
        ({"every": "2"}, "every='2' is not a number of rounds"),
        ({"every": 2.5}, "every=2.5 is not a number of rounds"),
        ({"every": True}, "every=True is not a number of rounds"),
        ({"target": "reward"}, "target='reward' is unknown; give 'return' or 'objective'"),
        ({"target": ["return", "return"]}, "each with a name of its own"),
        ({"target": []}, "at least one target"),
        ({"target": 3}, "target=3 is unknown"),
        ({"target": targets.Action(torch.zeros(2, 3), torch.zeros(2), each=True)}, "each=True"),
        ({"snapshots": "every:0"}, "snapshots='every:0' is unknown"),
        ({"snapshots": "10"}, "snapshots='10' is unknown"),
        ({"snapshots": 10}, "snapshots=10 is unknown"),
        ({"snapshots": ""}, "snapshots='' is unknown"),
        ({"backend": "fast"}, "backend='fast' is unknown"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RollsightError, match=message) as caught:
        InfluenceCallback(**options)
    assert "\n" not in str(caught.value)


def test_options_can_stand_in_a_yaml_file(tmp_path: Path) -> None:
    text = f"""
    selection: "random:0.25"
    unit: episode
    target: [return, objective]
    every: 2
    run: {tmp_path / "run"}
    overwrite: true
    snapshots: every:2
    backend: jvp
    precondition: true
    cross_fit: true
    metadata: {{note: hello}}
    """
    trained({}, InfluenceCallback(**yaml.safe_load(text)))
    assert (tmp_path / "run" / "snapshots" / "round-000002.pt").is_file()


def test_other_algorithms_are_refused() -> None:
    with pytest.raises(RollsightError, match=r"InfluenceCallback needs an on-policy algorithm .* not DQN"):
        DQN("MlpPolicy", make_env(), buffer_size=100, learning_starts=10).learn(20, callback=InfluenceCallback())


@pytest.mark.parametrize("run", ["", "  ", 123, 1.5, b"runs/lake", True, ["runs"]])
def test_a_run_that_is_not_a_path(run: Any) -> None:
    with pytest.raises(RollsightError, match=r"^run=.* is not the path of a folder: give a text or a Path such as"):
        InfluenceCallback(run=run)


def test_a_run_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run", str(tmp_path / "notes.txt")):
        with pytest.raises(RollsightError, match=r"^run='.*' is not the path of a folder \(.*notes.txt is a file\)"):
            InfluenceCallback(run=path)
