"""The doctor while a host trains: a finding is told once and kept, training stays the same, a broken check stops
nothing."""

import warnings

import numpy as np
import pytest
import torch

from rollsight import runs
from rollsight.adapters import findings
from rollsight.doctor import examination, live

stable_baselines3 = pytest.importorskip("stable_baselines3")


def vector(parameters):
    return np.concatenate([p.detach().numpy().ravel() for p in parameters])


def train_sb3(folder, doctor, logger=None):
    """Six small rounds with a learning rate of 1."""
    from rollsight.adapters.sb3 import InfluenceCallback

    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", 1.0, n_steps=64, batch_size=32, seed=0, device="cpu")
    if logger is not None:
        model.set_logger(logger)
    model.learn(6 * 64, InfluenceCallback(run=folder, snapshots="none", doctor=doctor))
    return vector(model.policy.parameters())


def train_compiled(folder, doctor):
    """The same with `rollsight train --engine compiled`."""
    pytest.importorskip("jax")
    from rollsight.training.run import RunSettings, prepared

    settings = RunSettings("CartPole-v1", engine="compiled", rounds=4, lr=1.0, n_steps=128, envs=2, batch_size=64,
                           epochs=4, optimizer="adam", eval_episodes=0, snapshots="none", doctor=doctor)  # fmt: skip
    with prepared(settings, folder) as ready:
        ready.train(None)
    return runs.open(folder).sql("select update_norm from rounds order by round").fetchnumpy()["update_norm"]


def train_trl(folder, doctor):
    """Groups of completions that are all paid the same, but for those of the first batch."""
    pytest.importorskip("trl")
    from trl_zoo import digits, parameters, trainer

    from rollsight.adapters.trl import attach

    batches = []

    def reward(completions, **_):
        batches.append(1)
        return digits(completions) if len(batches) == 1 else [1.0] * len(completions)

    trained = trainer(folder.parent / "out", reward=reward, max_steps=5)
    attach(trained, run=folder, doctor=doctor)
    trained.train()
    return parameters(trained).numpy()


def train_rlhf(folder, doctor):
    """`rollsight rlhf` with completions of one token."""
    pytest.importorskip("peft")
    from language_trainer import PROMPTS, options

    from rollsight.training.language import run

    (folder.parent / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    (folder.parent / "my_length.py").write_text(
        "def reward(prompts, completions):\n    return [len(set(c)) for c in completions]\n"
    )
    settings = run.RunSettings("miniature", str(folder.parent / "prompts.txt"), "my_length:reward", rounds=3,
                               options=options(max_new_tokens=1), eval_prompts=0, doctor=doctor)  # fmt: skip
    run.train(settings, folder)
    opened = runs.open(folder)
    state = torch.load(opened.checkpoint_path(opened.rounds[-1]), weights_only=True)
    return vector(state["trainable"].values())


HOSTS = {
    "sb3": (train_sb3, "rate_too_high"),
    "compiled": (train_compiled, "rate_too_high"),
    "trl": (train_trl, "groups_without_difference"),
    "rlhf": (train_rlhf, "no_end_of_text"),
}


@pytest.fixture(autouse=True)
def _looks_after_every_round(monkeypatch, tmp_path):
    monkeypatch.setattr(live, "_SHARE", 100.0)  # however short the round is
    monkeypatch.syspath_prepend(tmp_path)


def told(train, *given):
    """What training returns, and the warnings that name the doctor."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(*given)
    return result, [str(one.message) for one in caught if "doctor" in str(one.message)]


@pytest.mark.parametrize("host", HOSTS)
def test_each_finding_is_told_once_and_kept_and_training_stays_the_same(host, tmp_path):
    train, check = HOSTS[host]
    plain, said = told(train, tmp_path / "plain", False)
    assert said == []
    watched, said = told(train, tmp_path / "watched", True)
    assert np.array_equal(plain, watched)
    assert sum(f"the doctor finds {check}" in one for one in said) == 1
    stored = runs.open(tmp_path / "watched").sql('select "check", "severity" from findings').fetchall()
    names = [name for name, _ in stored]
    assert check in names
    assert len(set(names)) == len(names)
    assert list((tmp_path / "plain/findings").iterdir()) == []


@pytest.mark.parametrize("host", HOSTS)
def test_a_check_that_raises_is_one_warning_and_the_others_go_on(host, tmp_path, monkeypatch):
    train, check = HOSTS[host]
    broken = next(one for one in examination.CHECKS if one.name == "not_finite")
    monkeypatch.setitem(vars(broken), "measure", lambda seen: {}["nothing"])
    _, said = told(train, tmp_path / "run", True)
    assert sum("check not_finite failed on this run (KeyError: 'nothing')" in one for one in said) == 1
    assert sum(f"the doctor finds {check}" in one for one in said) == 1


def test_findings_go_to_the_logger_of_stable_baselines3_where_it_takes_texts(tmp_path):
    from stable_baselines3.common.logger import configure

    _, said = told(train_sb3, tmp_path / "run", True, configure(str(tmp_path / "log"), ["log"]))
    assert said == []
    text = (tmp_path / "log/log.txt").read_text("utf-8")
    assert text.count("the doctor finds rate_too_high") == 1
    _, said = told(train_sb3, tmp_path / "numbers", True, configure(str(tmp_path / "csv"), ["csv"]))
    assert sum("the doctor finds rate_too_high" in one for one in said) == 1


def test_a_round_that_was_not_looked_at_has_no_check_that_failed(monkeypatch):
    broken = next(one for one in examination.CHECKS if one.name == "not_finite")
    monkeypatch.setitem(vars(broken), "measure", lambda seen: {}["nothing"])
    now = [0.0]
    monkeypatch.setattr(live, "_SHARE", 0.01)
    doctor = live.LiveDoctor({"host": "own"}, clock=lambda: now[0])
    now[0] = 1e6
    doctor.look(1, {})
    assert "not_finite" in {one.check for one in doctor.failed}
    doctor.spent = 1e6
    doctor.look(2, {})
    assert doctor.failed == ()


def test_a_logger_without_outputs_takes_no_texts():
    assert findings.text_log(object()) is None


def test_a_finding_is_told_where_the_hosts_logger_fails(tmp_path):
    from stable_baselines3.common.logger import HumanOutputFormat, Logger

    class Closed(HumanOutputFormat):
        def write_sequence(self, sequence):
            raise ValueError("I/O operation on closed file")

    with (tmp_path / "log.txt").open("w") as file:
        _, said = told(train_sb3, tmp_path / "run", True, Logger(None, [Closed(file)]))
    assert sum("the doctor finds rate_too_high" in one for one in said) == 1


def test_what_another_finding_explains_is_shown_after_it_and_not_as_worse():
    alone = examination.ranked({"value_untrained": "severe", "time_limit_as_end": "warning"})
    assert alone == [("value_untrained", "severe"), ("time_limit_as_end", "warning")]
    explained = examination.ranked({"value_untrained": "severe", "no_signal": "warning", "copies": "severe"})
    assert explained == [("copies", "severe"), ("no_signal", "warning"), ("value_untrained", "warning")]
    names = {check.name for check in examination.CHECKS}
    assert all(set(check.explained_by) <= names - {check.name} for check in examination.CHECKS)
