"""The benchmark of the doctor: wrappers plant what they say, and tables count what was said."""

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the study needs Stable-Baselines3 (pip install 'rollsight[sb3]')")

from rollsight.studies import wrappers
from rollsight.studies.doctor import results
from rollsight.studies.doctor.cases import Case, all_cases
from rollsight.studies.doctor.faults import FAULTS, FITTED, ODD
from rollsight.studies.doctor.language import LANGUAGE_FAULTS, PROMPTS, vowels
from rollsight.studies.doctor.measured import MEASURED, read_rows, rows_of, write_rows


def played(wrapper, strength, steps=40, env="CartPole-v1"):
    """(observation, reward, terminated, truncated) of some steps, and the same without the wrapper."""
    rows = []
    for made in (wrapper(gym.make(env, max_episode_steps=15), strength, 0), gym.make(env, max_episode_steps=15)):
        obs, _ = made.reset(seed=0)
        rng, mine = np.random.default_rng(0), [(obs, 0.0, False, False)]
        for _ in range(steps):
            obs, reward, terminated, truncated, _ = made.step(int(rng.integers(2)))
            mine.append((obs, float(reward), terminated, truncated))
            if terminated or truncated:
                obs, _ = made.reset()
        rows.append(mine)
    return rows


def test_a_late_reset_ignores_one_action_and_pays_nothing():
    env = wrappers.LateReset(gym.make("CartPole-v1", max_episode_steps=3), 1, 0)
    env.reset(seed=0)
    for _ in range(3):
        last, _, terminated, truncated, _ = env.step(0)
    assert truncated
    assert not terminated
    shown, _ = env.reset()
    assert np.array_equal(shown, last)
    obs, reward, terminated, truncated, _ = env.step(0)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert np.abs(obs).max() <= 0.05  # a start of CartPole


def test_limits_rewards_and_observations_are_changed_as_told():
    faulty, plain = played(wrappers.LimitIsTheEnd, 1)
    assert [f[2] for f in faulty] == [p[2] or p[3] for p in plain]
    assert not any(f[3] for f in faulty)
    faulty, plain = played(wrappers.RewardScale, -3)
    assert [f[1] for f in faulty] == [-3 * p[1] for p in plain]
    faulty, plain = played(wrappers.LateReward, 1, steps=8)
    assert [f[1] for f in faulty][1:] == [0.0, *[p[1] for p in plain][1:-1]]
    faulty, plain = played(wrappers.ShiftedObservation, 2, steps=5)
    assert all(np.allclose(f[0], p[0] + 2) for f, p in zip(faulty, plain, strict=True))
    faulty, _ = played(wrappers.FrozenObservation, 1, steps=5)
    assert all(np.array_equal(f[0], faulty[0][0]) for f in faulty)
    faulty, _ = played(wrappers.NotFiniteReward, 0.5)
    assert any(np.isnan(f[1]) for f in faulty)


def test_every_fault_names_checks_that_there_are_and_its_runs_have_names_of_their_own():
    names = {check.name for check in MEASURED}
    for fault in (*FAULTS.values(), *LANGUAGE_FAULTS.values()):
        assert set(fault.right) <= names
        assert len(fault.strengths) >= 2
    made = [case.name for case in all_cases(2)]
    assert len(set(made)) == len(made)
    healthy = [case for case in all_cases(1) if case.fault is None and isinstance(case, Case)]
    assert len(healthy) >= 40
    assert len({case.env for case in healthy}) >= 8


def row(run, fault, check, value, env="Acrobot-v1", rounds=10, environments=(), last=True):
    return {
        "run": run, "env": env, "fault": fault, "strength": 1.0, "seed": 0, "rate": "tuned", "engine": "sb3",
        "check": check, "rounds": rounds, "last": last, "value": value, "environments": list(environments),
        "features": [], "at_rounds": [],
    }  # fmt: skip


def test_the_tables_count_what_was_said():
    rows = [
        row("a", "one env: frozen", "odd_environment_frozen", 1.0, rounds=3, environments=[ODD], last=False),
        row("a", "one env: frozen", "odd_environment_frozen", 1.0, environments=[ODD]),
        row("a", "one env: frozen", "dominated", 1.0),
        row("b", "one env: frozen", "odd_environment_frozen", 1.0, environments=[ODD + 1]),
        row("c", "one env: frozen", "odd_environment_frozen", 0.0),
        row("d", None, "large_feature", 1e6, env=FITTED[0]),
        row("e", None, "large_feature", 1.0),
    ]
    told = results.told(rows)
    assert results.by_fault(told) == [["one env: frozen", "1", "3", "2/3", "2/3", "2/3", "1/2", "6"]]
    parts = results.parts(told)
    assert [len(parts[name]) for name in ("thresholds set on", "held out, seed 0", "held out, seed 1")] == [1, 4, 0]
    totals = results.totals(told)
    assert (totals["planted runs"], totals["healthy with a severe finding"]) == ("3", "1/2")
    assert results.totals(parts["held out, seed 0"])["healthy with a severe finding"] == "0/1"
    assert results.alarms(told) == [["large_feature", "1", "1", FITTED[0]]]
    assert "| one env: frozen | 1 | 3 | 2/3 |" in results.markdown(rows)


def test_the_baseline_and_the_other_tools_are_counted_on_the_runs_that_have_them():
    rows = [
        row("a", "value untrained", "value_untrained", 1.0),
        row("a", "value untrained", "explained_variance", 0.2),
        row("b", "value untrained", "value_untrained", 1.0),
    ]
    told = results.told(rows, results.BASELINE)
    assert [one.found for one in told] == [False, False]
    assert "| right cause among the findings | 1/1 | 0/1 |" in results.markdown(rows)
    of_tools = [
        row("c", "length rewarded", "rlprobe", 1.0, "miniature"),
        row("c", "length rewarded", "rlprobe: KL_BLOWUP", 1.0, "miniature"),
        row("c", "length rewarded", "rl-doctor", 1.0, "miniature"),
        row("c", "length rewarded", "rl-doctor: length_pathology", 1.0, "miniature"),
        row("c", "length rewarded", "length_rewarded", 0.9, "miniature"),
        row("d", None, "rlprobe", 0.0, "miniature"),
        row("d", None, "rl-doctor", 0.0, "miniature"),
    ]
    any_warning, right, healthy = results.compared(rows + of_tools)
    assert any_warning[1:] == ["1/1", "1/1", "1/1"]
    assert right[1:] == ["0/1", "1/1", "1/1"]
    assert healthy[1:] == ["0/1", "0/1", "0/1"]


def test_faults_are_weaker_at_a_smaller_strength():
    def ends(strength):
        env = wrappers.LimitIsTheEnd(gym.make("Pendulum-v1", max_episode_steps=5), strength, 0)
        found = []
        for seed in range(40):
            env.reset(seed=seed)
            found.append([env.step(env.action_space.sample())[2:4] for _ in range(5)][-1])
        return found

    assert set(ends(1.0)) == {(True, False)}
    assert set(ends(0.5)) == {(True, False), (False, True)}
    faulty, plain = played(wrappers.FrozenObservation, 0.5, steps=10)
    same = [np.array_equal(f[0], p[0]) for f, p in zip(faulty, plain, strict=True)]
    assert any(same[1:])
    assert not all(same)


def test_a_fault_is_planted_in_the_compiled_engine(tmp_path):
    pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")
    case = Case("CartPole-v1", "large feature", 1000.0, 0, engine="compiled", rounds=1)
    case.run(tmp_path / "run")
    found = {one["check"]: one for one in rows_of(case, tmp_path / "run")}
    assert found["large_feature"]["value"] > 60
    assert found["large_feature"]["features"] == [0]


def test_a_run_is_measured_and_kept(tmp_path):
    case = Case("CartPole-v1", "not finite", 0.05, 0, rounds=2)
    case.run(tmp_path / "run")  # its fault ends it in the first round
    rows = list(rows_of(case, tmp_path / "run"))
    write_rows(tmp_path / "table.parquet", rows)
    (found,) = [one for one in read_rows(tmp_path / "table.parquet") if one["check"] == "not_finite"]
    assert found["value"] > 10
    (told,) = results.told(rows)
    assert told.first


def test_the_command_reports_what_the_table_holds(tmp_path, call):
    write_rows(tmp_path / "t.parquet", [row("a", "not finite", "not_finite", 3.0), row("b", None, "not_finite", 0.0)])
    code, out, _ = call("study", "doctor", "--only-report", "--table", tmp_path / "t.parquet")
    assert code == 0
    assert "| not finite | 1 | 1 | 1/1 | 1/1 |" in out
    code, _, err = call("study", "doctor", "--only-report", "--table", tmp_path / "none.parquet")
    assert code == 1
    assert "holds nothing to report" in err


def test_rewards_of_texts_do_not_depend_on_the_run():
    assert vowels(PROMPTS[:1], ["abc"]) == vowels(PROMPTS[:1], ["abc"])
