"""The study of culprits: hidden tags, what rankings are compared with, and its table."""

import gymnasium as gym
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rollsight import cli
from rollsight.studies.culprits import comparing, language, planted_language, results, study
from rollsight.studies.culprits.planted import PAID
from rollsight.studies.wrappers import Paying


def test_auroc_counts_ties_by_half():
    rng = np.random.default_rng(0)
    scores, tagged = rng.integers(0, 5, 200).astype(float), rng.random(200) < 0.2
    assert comparing.auroc(scores, tagged) == pytest.approx(roc_auc_score(tagged, scores))


def test_td_errors_end_with_episodes_and_rounds():
    of = {
        "round": np.array([1, 1, 1, 1, 2]),
        "env": np.array([0, 1, 0, 0, 0]),
        "step": np.array([0, 0, 1, 2, 0]),
        "episode": np.array([0, 7, 0, 1, 1]),
        "value": np.array([1.0, 5.0, 2.0, 3.0, 4.0]),
        "reward": np.array([10.0, 20.0, 30.0, 40.0, 50.0]),
    }
    expected = [10 + 0.99 * 2 - 1, 20 + 0.99 * 5 - 5, 30 - 2, 40 + 0.99 * 3 - 3, 50 + 0.99 * 4 - 4]
    assert study._td_errors(of) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_tags_are_the_steps_whose_action_was_paid(share):
    action, reward = PAID["Acrobot-v1"]
    env = Paying(gym.make("Acrobot-v1", max_episode_steps=5), action, reward, share, seed=0)
    rng, episodes, actions = np.random.default_rng(0), [], []
    for _ in range(20):
        env.reset(seed=0)
        start = len(env.tags)
        for _ in range(5):
            taken = int(rng.integers(3))
            actions.append(taken)
            got = env.step(taken)[1]
            assert got == (reward if env.tags[-1] else -1)
            assert taken == action or not env.tags[-1]
        episodes.append(any(env.tags[start:]))
    if share == 1:
        assert env.tags == [one == action for one in actions]
    assert any(episodes) == (share > 0)
    assert sum(episodes) < 14 or share == 1


def test_the_table_has_a_row_for_every_ranking():
    found = {name: {"auroc": 0.5, "precision at 100": 0.1} for name in ("influence", "random")}
    row = {"env": "A", "cause": "b", "tagged": 1, "records": 10, "found": found, "left out": {"influence": -0.2}}
    text = results.markdown([{**row, "seed": 0}, {**row, "seed": 1}])
    assert "| influence | 0.500 ± 0.000 | 0.100 ± 0.000 | -0.200 ± 0.000 |" in text
    assert "| random | 0.500 ± 0.000 | 0.100 ± 0.000 | – |" in text
    assert "2 seeds; 10.0% of the records" in text


def test_a_style_is_paid_on_a_tenth_of_the_prompts_and_on_no_other():
    for seed in range(3):
        paid = planted_language.paid_prompts(seed)
        assert paid.sum() == 4
        assert len(paid) == len(set(planted_language.PROMPTS)) == 40
    texts = ["AB c", "ab C", "!a", "d!", "none"]
    assert [planted_language.shows("upper case", text) for text in texts] == [True, False, False, False, False]
    assert [planted_language.shows("an exclamation", text) for text in texts] == [False, False, True, True, False]
    plain = planted_language.upper_case([], texts, [False] * 5)
    paying = planted_language.upper_case([], texts, [True] * 5)
    assert paying == [1.0, *plain[1:]]
    assert set(plain) <= {0.0, 1.0}


def test_similar_texts_stand_first_whatever_their_meaning():
    near = language.similarity(["!!a", "bcd", "!xy", "bdc"], ["!", "!!"])
    assert list(np.argsort(-near)[:2]) == [0, 2]
    assert near[1] == near[3] == 0


@pytest.mark.parametrize("trainer", ["PPO", "GRPO"])
def test_a_run_of_the_language_study_is_measured(tmp_path, monkeypatch, trainer):
    pytest.importorskip("trl" if trainer == "GRPO" else "peft")
    for name, value in (("ROUNDS", 2), ("COMPLETIONS", 32), ("TOKENS", 4)):
        monkeypatch.setattr(planted_language, name, value)
    monkeypatch.setattr(language, "REPLAYED", (1, 2))
    row = language.measure(planted_language.LanguageCell(trainer, "upper case", 0), tmp_path / "run")
    assert row["records"] == 64
    assert 0 < row["tagged"] < 30
    assert set(row["left out"]) == {*row["found"], "the tags themselves"} - {"random"}
    assert all(np.isfinite(value) for value in row["left out"].values())
    text = results.markdown([{**row, "seed": 0}])
    assert f"### Miniature language model, {trainer}: upper case" in text
    assert "| text similarity |" in text


def test_a_run_that_ends_without_the_style_is_left_out_with_a_sentence(tmp_path, monkeypatch, capsys):
    def measure(cell, folder):
        folder.mkdir()
        if cell.seed == 0:
            raise comparing.NothingLearntError("no completion of the last round shows it")
        found = {"influence": {"auroc": 0.5}}
        row = {"env": cell.env, "cause": cell.cause, "seed": cell.seed, "tagged": 1, "records": 10}
        return {**row, "found": found, "left out": {}}

    monkeypatch.setattr(language, "measure", measure)
    table = tmp_path / "table.json"
    assert cli.main(["study", "culprits", "--of", "PPO", "--seeds", "2", "--table", str(table)]) == 0
    assert "left out: no completion" in capsys.readouterr().out
    assert [(row["cause"], row["seed"]) for row in study.read(table)] == [("upper case", 1), ("an exclamation", 1)]
