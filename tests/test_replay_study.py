"""`rollsight study replay`: what its runs measure, and what its tables make of it."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from rollsight.cli import main
from rollsight.errors import RollsightError
from rollsight.studies import store
from rollsight.studies.metrics import auroc
from rollsight.studies.replay import models
from rollsight.studies.replay.arms import KINDS, ReplayArm
from rollsight.studies.replay.cell import KEYS, Cell, Settings
from rollsight.studies.replay.results import read_results, rows, tables


@pytest.fixture
def small(monkeypatch):
    """CartPole with 400 steps, looked at three times."""
    setting = models.SETTINGS["CartPole-v1"]
    few = {"learning_starts": 100, "train_freq": 2, "gradient_steps": 1, "buffer_size": 300}
    keywords = {**setting.keywords, **few}
    monkeypatch.setitem(models.SETTINGS, "CartPole-v1", replace(setting, steps=400, every=60, keywords=keywords))


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_makes_a_run(kind, small):
    seen = []
    cell = Cell("CartPole-v1", ReplayArm(kind), 1, Settings(corrupt=0.3, episodes=2))
    found = cell.run(lambda round, summary: seen.append(round))
    assert [row["round"] for row in found] == seen == [1, 2, 3]
    for row in found:
        assert row["auroc_reward"] == 1  # a flipped reward of CartPole is one that it never gives
        assert 0 < row["flipped"] < 1
        assert all(0 <= row[f"auroc_{name}"] <= 1 for name in ("influence", "influence_size", "td", "age"))
        assert row["value_rmse"] >= abs(row["value_bias"])
        assert row["return"] > 0  # of the environment without flipped rewards


def test_weighing_arms_draw_differently_and_uniform_ones_as_without_weights(small):
    def last(kind, power=0.6):
        return Cell("CartPole-v1", ReplayArm(kind), 1, Settings(power=power, episodes=2)).run(lambda *_: None)[-1]

    assert last("uniform") == last("uniform")
    assert last("per")["td_error_mean"] != last("random")["td_error_mean"] != last("uniform")["td_error_mean"]


def test_tags_are_of_the_episodes_that_flip():
    env = models.Flipping(models.gym.make("CartPole-v1"), 0.5, 0)
    rewards = []
    for seed in range(20):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(0)
            rewards.append(reward)
            over = terminated or truncated
    assert rewards == [-1.0 if tag else 1.0 for tag in env.tags]
    assert 0 < np.mean(env.tags) < 1


def test_auroc_by_numbers():
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True])) == 1
    assert auroc(np.array([1.0, 1.0, 0.0]), np.array([True, False, False])) == pytest.approx(0.75)


def a_run(returns, found, bias):
    names = ("value_rmse", "trust_split_half", "trust_split_half_permuted", "agreement")
    others = ("auroc_influence_size", "auroc_td", "auroc_age", "auroc_reward")
    columns = {"return": returns, "auroc_influence": found, "value_bias": bias}
    return [
        {
            "round": i + 1,
            **{name: values[i] for name, values in columns.items()},
            **dict.fromkeys((*names, *others), 0.5),
        }
        for i in range(len(returns))
    ]


def test_tables_by_numbers(tmp_path, capsys):
    for arm, seed, shift in (("uniform", 0, 0.0), ("uniform", 1, 2.0), ("influence", 0, 10.0), ("influence", 1, 14.0)):
        run = a_run([shift + value for value in range(10)], [0.9, 0.1] * 5, [-1.0, 1.0] * 5)
        store.add(tmp_path, KEYS, ("CartPole-v1", arm, seed), run)
    (found,) = read_results(tmp_path)
    influence, uniform = ReplayArm.of("influence"), ReplayArm.of("uniform")
    assert found.interval(uniform, "final").value == pytest.approx(10)  # the last round: 9 and 11
    assert found.interval(uniform, "area").value == pytest.approx(5.5)
    assert found.difference(influence, "final").value == pytest.approx(11)
    assert found.interval(influence, "auroc_influence_low").value == pytest.approx(0.9)
    assert found.interval(influence, "auroc_influence_high").value == pytest.approx(0.1)
    assert "| `influence` | 21" in tables([found])
    assert {row["measure"] for row in rows([found])} >= {"final", "final_difference", "auroc_td"}
    assert read_results(tmp_path, influence)[0].difference(uniform, "final").value == pytest.approx(-11)
    with pytest.raises(RollsightError, match="nothing to compare with per"):
        read_results(tmp_path, ReplayArm.of("per"))
    (tmp_path / "settings.json").write_text("{}", "utf-8")
    assert main(["study", "replay", "--only-report", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "replay.png").exists()
    assert "AUROC" in capsys.readouterr().out


def test_an_environment_without_settings_is_refused(tmp_path, capsys):
    assert main(["study", "replay", "--envs", "Acrobot-v1", "--out", str(tmp_path / "x")]) == 1
    assert "Acrobot-v1 has no settings in this study: choose from CartPole-v1" in capsys.readouterr().err
