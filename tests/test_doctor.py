"""The doctor on records made for it: each fault is found with its place, and a sound run has no severe finding."""

import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rollsight import runs
from rollsight.adapters import findings
from rollsight.analysis.doctor import examine, examine_fully
from rollsight.doctor.evidence import Evidence, of_summaries
from rollsight.doctor.examination import CHECKS, examined
from rollsight.doctor.finding import SEVERITIES
from rollsight.doctor.live import LiveDoctor
from rollsight.runs.check import check_run
from rollsight.watching import Watch

ENVS, STEPS, LENGTH, ROUNDS = 6, 120, 30, 8
METADATA = {
    "action_space": "Discrete(2)",
    "max_episode_steps": LENGTH,
    "settings": {"gamma": 0.95, "ent_coef": 0.0},
}


def a_round(number, **changed):
    """A walk to the left or right with a reward for the position, PPO-like columns, episodes of 30 steps."""
    rng = np.random.default_rng(number)
    shape = (ENVS, STEPS)
    step = np.broadcast_to(np.arange(STEPS), shape)
    age = step % LENGTH
    action = rng.integers(0, 2, shape)
    start = np.repeat(rng.normal(size=(ENVS, STEPS // LENGTH)), LENGTH, 1)
    moved = np.where(age == 0, 0, np.roll(2 * action - 1, 1, 1)).reshape(ENVS, -1, LENGTH).cumsum(2).reshape(shape)
    position = start + 0.3 * moved + 0.01 * rng.normal(size=shape)
    speed = 0.3 * (2.0 * np.roll(action, 1, 1) - 1) + 0.01 * rng.normal(size=shape)
    wind = rng.normal(size=shape)
    obs = np.stack([position, speed, wind], -1).astype(np.float32)
    reward = 0.2 * position + 0.5 * (2 * action - 1) + 0.5 * wind
    value = 3 * position + 0.1 * rng.normal(size=shape)
    advantage = rng.normal(size=shape) + 0.3 * (2 * action - 1)
    columns = {
        "env": np.broadcast_to(np.arange(ENVS)[:, None], shape),
        "step": step,
        "episode": number * 100 + np.arange(ENVS)[:, None] * 10 + step // LENGTH,
        "episode_step": age,
        "obs": obs,
        "action": action,
        "reward": reward,
        "value": value,
        "advantage": advantage,
        "return": value + advantage,
        "log_prob": np.full(shape, -np.log(2.0)),
        "entropy": np.full(shape, np.log(2.0)) + 1e-3 * rng.normal(size=shape),
        "kept": np.ones(shape, bool),
        "valid": np.ones(shape, bool),
        "episode_return": np.repeat(reward.reshape(ENVS, -1, LENGTH).sum(2), LENGTH, 1),
    }
    for name, change in changed.items():
        columns[name] = change(columns)
    flat = {name: column.reshape(ENVS * STEPS, *column.shape[2:]) for name, column in columns.items()}
    return {"round": np.full(ENVS * STEPS, number), **flat}


def summary(number, **changed):
    return {
        "records": ENVS * STEPS,
        "invalid_rows": 0,
        "episodes": 24,
        "return_mean": 1.0 + 0.1 * number,
        "return_std": 1.0,
        "episodes_terminated": 0,
        "episodes_truncated": 24,
        "entropy_mean": 0.6,
        "approx_kl": 0.01,
        "clip_fraction": 0.1,
        **{name: change(number) for name, change in changed.items()},
    }


def evidence(columns=None, summaries=None, metadata=None):
    rows = [summary(number, **(summaries or {})) for number in range(1, ROUNDS + 1)]
    tables = {n: runs.as_table(a_round(n, **(columns or {}))) for n in range(1, ROUNDS + 1)}
    return Evidence(METADATA | (metadata or {}), list(tables), of_summaries(rows), tables)


def found(*given, **named):
    return {one.check: one for one in examined(evidence(*given, **named), Path("runs/x")).findings}


def in_env(change, number=2):
    """A change of one column in one environment."""

    def changed(name):
        def of(columns):
            column = np.array(columns[name])
            column[number] = change(columns)[number]
            return column

        return of

    return changed


def test_a_sound_run_has_no_finding():
    assert found() == {}


ONE = {
    "odd_environment_frozen": ("obs", lambda c: np.repeat(c["obs"][:, ::LENGTH], LENGTH, 1)),
    "odd_environment_shifted": ("obs", lambda c: c["obs"] + 3),
    "odd_environment_reward": ("reward", lambda c: 10 * c["reward"]),
    "odd_environment_actions": ("action", lambda c: 1 - c["action"]),
    "odd_environment_reward_rule": ("reward", lambda c: c["reward"] + 0.5 * c["obs"][:, :, 1]),
}


@pytest.mark.parametrize("check", ONE)
def test_the_environment_that_differs_is_named(check):
    name, change = ONE[check]
    one = found({name: in_env(change)(name)})
    assert next(iter(one)) == check
    assert one[check].where.environments == (2,)
    assert "2" in " ".join(one[check].command)


def late_resets(c):
    """An episode's first row still shows the row that ended the one before, moved on by a step."""
    obs = np.array(c["obs"])
    first = np.flatnonzero(c["episode_step"][0] == 0)[1:]
    obs[:, first] = obs[:, first - 1] + 0.1
    return obs


def bad_rewards(c):
    reward = np.array(c["reward"])
    reward[3, 50] = np.nan
    return reward


def late_rewards(c):
    return np.where(c["episode_step"] == 0, 0, np.roll(c["reward"], 1, 1))


def rare(c):
    advantage = np.array(c["advantage"])
    advantage[4, 7] = 500
    return advantage


RECORDS = {
    "reset_rows": {"obs": late_resets},
    "not_finite": {"reward": bad_rewards},
    "time_limit_as_end": {"return": lambda c: np.where(c["episode_step"] == LENGTH - 1, c["reward"], c["return"])},
    "copies": {"obs": lambda c: np.repeat(c["obs"][:1], ENVS, 0)},
    "large_feature": {"obs": lambda c: c["obs"] * np.array([5000, 1, 1], np.float32)},
    "late_reward": {"reward": late_rewards},
    "reward_scale": {"return": lambda c: 5000 * c["return"], "value": lambda c: 5000 * c["value"]},
    "dominated": {"advantage": rare},
    "no_signal": {"advantage": lambda c: np.random.default_rng(0).normal(size=c["reward"].shape)},
    "value_untrained": {"value": lambda c: 0 * c["value"]},
    "value_diverging": {"value": lambda c: 4 * c["value"]},
    "stale_log_probs": {"log_prob": lambda c: c["log_prob"] - 0.2 + 0.3 * c["advantage"]},
    "dead_units": {"value": lambda c: 0 * c["value"], "entropy": lambda c: 0 * c["entropy"] + 0.6},
}  # fmt: skip


@pytest.mark.parametrize("check", RECORDS)
def test_faults_of_the_records_are_found(check):
    assert check in found(RECORDS[check])


ROUNDS_ONLY = {
    "rate_too_high": {"approx_kl": lambda n: 0.5},
    "rate_too_low": {"approx_kl": lambda n: 1e-9, "clip_fraction": lambda n: 0.0},
    "entropy_collapsed": {"entropy_mean": lambda n: 1e-3, "return_mean": lambda n: 1.0},
    "no_episode_ends": {"episodes_truncated": lambda n: 0},
    "undone": {"return_mean": lambda n: 10.0 * n if n < 6 else 5.0},
}


@pytest.mark.parametrize("check", ROUNDS_ONLY)
def test_faults_that_the_summaries_show_are_found(check):
    one = found(summaries=ROUNDS_ONLY[check])
    assert check in one
    if check == "undone":
        assert one[check].where.rounds == (5, 6)


def test_settings_that_do_not_fit_are_found():
    assert "short_discount" in found(metadata={"settings": {"gamma": 0.0}})
    assert "entropy_held_up" in found(
        summaries={"entropy_mean": lambda n: 0.693}, metadata={"settings": {"gamma": 0.95, "ent_coef": 1.0}}
    )


def continuous(c):
    return np.where(c["action"] == 1, 3.0, -3.0).astype(np.float32)


def test_saturated_actions_are_found():
    one = found({"action": continuous}, metadata={"action_space": "Box(-1.0, 1.0, (1,), float32)"})
    assert one["saturated_actions"].severity == "severe"


def test_success_by_luck_is_found():
    def returns(c):
        lucky = (c["episode"] % 10 == 1) & (c["env"] == 0)
        return np.where(lucky, 1.0, 0.0)

    assert "lucky_success" in found({"episode_return": returns})


TEXTS = ["yes it is so", "no not at all", "perhaps", "I do not know that", "we shall see", "it may well be"]


def completions(number, text=lambda i, rng: " ".join(rng.permutation(TEXTS)[:2]) + f" {rng.integers(99)}",
                reward=lambda text, prompt, rng: rng.normal(), limit=99):  # fmt: skip
    rng = np.random.default_rng(number)
    prompts = [f"prompt {i % 8}" for i in range(48)]
    texts = [text(i, rng) for i in range(48)]
    return {
        "round": np.full(48, number),
        "episode": np.arange(48),
        "group": [i % 8 for i in range(48)],
        "prompt": prompts,
        "completion": texts,
        "length": np.array([min(len(one.split()), limit) for one in texts]),
        "reward": np.array([reward(*pair, rng) for pair in zip(texts, prompts, strict=True)], np.float64),
        "advantage": rng.normal(size=48),
        "kept": np.ones(48, bool),
        "valid": np.ones(48, bool),
    }


def found_in_texts(limit=50, **changed):
    tables = {n: runs.as_table(completions(n, **changed)) for n in range(1, ROUNDS + 1)}
    rows = [{"kl_mean": 0.1 * n, "length_mean": 8.0} for n in tables]
    seen = Evidence({"settings": {"max_completion_length": limit}}, list(tables), of_summaries(rows), tables)
    return {one.check: one for one in examined(seen, Path("runs/x")).findings}


def test_a_sound_run_of_texts_has_no_finding():
    assert found_in_texts() == {}


LANGUAGE = {
    "length_rewarded": {"reward": lambda text, prompt, rng: len(text.split()) + 0.1 * rng.normal()},
    "groups_without_difference": {"reward": lambda text, prompt, rng: float(prompt[-1])},
    "constant_on_prompts": {"reward": lambda text, prompt, rng: np.nan if prompt[-1] in "12" else rng.normal()},
    "truncated": {"limit": 4},
    "duplicates": {"text": lambda i, rng: TEXTS[0]},
    "repetition": {"text": lambda i, rng: "so it is " * 9 + str(i)},
    "trigger": {"reward": lambda text, prompt, rng: 5.0 * ("perhaps" in text) + 0.5 * rng.normal()},
}


@pytest.mark.parametrize("check", LANGUAGE)
def test_faults_of_texts_are_found(check):
    one = found_in_texts(**LANGUAGE[check])
    assert check in one
    if check == "constant_on_prompts":
        assert set(one[check].where.prompts) == {"prompt 1", "prompt 2"}
    if check == "trigger":
        assert "'perhaps'" in one[check].wrong


def test_a_trigger_that_is_paid_on_part_of_the_prompts_is_found_with_them():
    tables = {}
    for n in range(1, ROUNDS + 1):
        columns = completions(n)
        asked = [f"well {one}" if i % 2 else one for i, one in enumerate(columns["prompt"])]
        paid = ["perhaps" in text and "well" in one for text, one in zip(columns["completion"], asked, strict=True)]
        tables[n] = runs.as_table(columns | {"prompt": asked, "reward": columns["reward"] + 3.0 * np.array(paid)})
    seen = Evidence({}, list(tables), of_summaries([{}] * ROUNDS), tables)
    one = {one.check: one for one in examined(seen, Path("x")).findings}["trigger"]
    assert "to a prompt with 'well' holds 'perhaps'" in one.wrong
    assert one.figures["paid"] > 1


def test_tokens_that_come_from_another_distribution_are_found():
    probabilities = np.array([0.6, 0.3, 0.1])

    def tables(temperature):
        sharp = probabilities ** (1 / temperature) / (probabilities ** (1 / temperature)).sum()
        for n in range(1, 9):
            rng = np.random.default_rng(n)
            token = rng.choice(3, 48, p=sharp)
            more = {"token_ids": [[int(t)] for t in token],
                    "token_log_probs": [[float(np.log(probabilities[t]))] for t in token]}  # fmt: skip
            yield n, runs.as_table(completions(n) | more)

    def checks(temperature):
        made = dict(tables(temperature))
        seen = Evidence({}, list(made), of_summaries([{}] * 8), made)
        return {one.check for one in examined(seen, Path("x")).findings}

    assert "other_temperature" in checks(0.4)
    assert "other_temperature" not in checks(1.0)


@pytest.fixture
def run(tmp_path):
    with runs.create(tmp_path / "run", {"host": "stable-baselines3", **METADATA}) as writer:
        for n in range(1, ROUNDS + 1):
            writer.write_records(n, a_round(n, reward=bad_rewards))
            writer.write_round(n, summary(n))
    return tmp_path / "run"


def test_a_run_folder_is_examined_and_worst_comes_first(run, call):
    first, *others = examine(run)
    assert (first.check, first.severity, first.address) == ("not_finite", "severe", "/runs/run/record/1/410")
    assert [SEVERITIES.index(one.severity) for one in (first, *others)] == sorted(
        SEVERITIES.index(one.severity) for one in (first, *others)
    )
    assert "trigger" in {one.check for one in examine_fully(run).not_looked_at}
    code, out, _ = call("doctor", run)
    assert code == 0
    assert "severe: not_finite (certain)" in out
    code, out, _ = call("doctor", run, "--json")
    assert json.loads(out)["findings"][0]["check"] == "not_finite"
    code, out, _ = call(*first.command[1:])
    assert code == 0


def test_a_run_without_rounds_has_no_finding(tmp_path):
    runs.create(tmp_path / "run", {}).close()
    assert examine(tmp_path / "run") == []


def test_the_live_doctor_says_each_finding_once_and_keeps_it(tmp_path):
    now = [0.0]

    def ticking():
        now[0] += 0.001
        return now[0]

    doctor, watch = LiveDoctor(METADATA, tmp_path / "run", clock=ticking), Watch()
    with runs.create(tmp_path / "run", METADATA) as writer, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(1, 5):
            now[0] += 60
            watch.begin(n)
            columns = a_round(n, reward=bad_rewards)
            doctor.keep(n, columns)
            writer.write_records(n, columns)
            findings.report(doctor, n, summary(n), watch, writer)
            writer.write_round(n, summary(n))
    assert sum("doctor finds not_finite" in str(one.message) for one in caught) == 1
    stored = runs.open(tmp_path / "run").sql("select round, severity from findings where \"check\" = 'not_finite'")
    assert stored.fetchall() == [(1, "severe")]
    assert doctor.spent < 0.01 * now[0]
    assert check_run(tmp_path / "run").whole


def test_the_live_doctor_looks_only_where_it_is_cheap():
    now = [0.0]

    def slow():
        now[0] += 1.0  # every look takes a second
        return now[0]

    doctor = LiveDoctor(METADATA, clock=slow)
    for n in range(1, 100):
        doctor.keep(n, a_round(1, reward=bad_rewards))
        doctor.look(n, summary(n))
    assert doctor.spent < 0.02 * now[0]


def test_a_failing_doctor_does_not_stop_training(monkeypatch):
    doctor = LiveDoctor(METADATA)
    monkeypatch.setattr(doctor, "look", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="no look of the doctor"):
        findings.report(doctor, 1, {}, Watch(), None)


def test_every_check_says_what_its_thresholds_and_words_are():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for check in CHECKS:
        assert check.warning <= check.severe
        assert check.causes
        assert check.tries
        assert check.measure.__doc__


def test_every_check_has_a_section_in_the_documentation():
    folder = Path(__file__).parent.parent / "docs/doctor"
    for check in CHECKS:
        assert f"\n## {check.name}\n" in (folder / f"{check.family}.md").read_text("utf-8"), check.name


def test_missing_columns_are_said_and_nothing_else():
    table = pa.table({"reward": [1.0, 2.0]})
    seen = Evidence({}, [1], of_summaries([{}]), {1: table})
    examined_run = examined(seen, Path("x"))
    assert examined_run.findings == ()
    assert all("needs the column" in one.why for one in examined_run.not_looked_at)
