"""Snapshots in strange hands: data is rebuilt without executing anything, pickles need a signature or trust."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from sb3_zoo import make_model
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from rollsight import Policy, Records, runs
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.adapters.sb3.translate import evaluate_actions
from rollsight.cli import main
from rollsight.errors import OptionError, RollsightError
from rollsight.snapshot import Snapshot, file, plain, signing, trust_folder
from rollsight.snapshot.model import Model

COMMANDS = {
    "top": ["--target", "action", "--record", "0:3"],
    "diagnose": ["--records", "4", "--branches", "2", "--processes", "1", "--out", "OUT"],
    "intervene": ["--rounds", "2", "--orders", "1", "--episodes", "1", "--processes", "1"],
    "fidelity": ["--round", "2", "--masks", "4"],
    "phases": ["--record", "2:0:3"],
    "culprits": ["--record", "2:0:3", "--no-check"],
}


class Mine(FlattenExtractor):
    """A class that no package defines."""


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return Path.write_text, (Path(self.target), "executed")


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.delenv("ROLLSIGHT_TRUSTED_FOLDERS", raising=False)


def trained(run=None, **settings):
    model = make_model(**settings)
    influence = InfluenceCallback(run=run, snapshots="all", metadata={"env": "CartPole-v1", "settings": {"gamma": 0.9}})
    model.learn(48, callback=influence)
    return influence.snapshot, model


def saved(snapshot, path):
    snapshot.save(path)
    return path


def replayed(snapshot, model):
    after = dict(model.policy.named_parameters())
    return all(torch.equal(p, after[name]) for name, p in snapshot.replay().parameters.items())


def parts(path):
    """State, tensors and metadata of a file."""
    data = path.read_bytes()
    head = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return json.loads(head["__metadata__"]["rollsight"]), load(data), head["__metadata__"]


def forged(path, state, tensors, sign=lambda digest: None):
    with path.open("wb") as opened:
        file.write(opened, state, tensors, sign)
    return path


OLD = {"weights": None, "numpy_state": np.random.get_state(), "torch_state": torch.get_rng_state(), "threads": 1}


def of_format_1(snapshot, path, model=None):
    """As an earlier version wrote it: one pickle, with the policy's in it."""
    buffer = io.BytesIO()
    torch.save((snapshot.policy, snapshot.optimizer), buffer)
    state = {"format": 1, "round": 2, "model": model or buffer.getvalue(), "versions": dict(snapshot.versions), **OLD}
    state["records"] = {field.name: getattr(snapshot.records, field.name) for field in fields(Records)}
    torch.save({**state, "numpy_state": snapshot.numpy_state, "rule": asdict(snapshot.rule)}, path)
    return path


# Data.


def test_a_policy_of_a_known_package_is_data_alone(tmp_path):
    snapshot, model = trained(obs="dict", action="box", n_envs=3, use_sde=True)
    path = saved(snapshot, tmp_path / "s.pt")
    state, tensors, metadata = parts(path)
    assert "model.pickle" not in tensors
    assert metadata["signature"] == "0" * 64
    assert not (tmp_path / "settings").exists(), "no key is made for what needs none"
    assert state["rule"]["batch_size"] == 8
    assert "model.policy.action_net.weight" in tensors
    assert "records.obs.obs" in tensors
    loaded = Snapshot.load(path)
    assert replayed(loaded, model)
    before = torch.get_rng_state()
    policy, optimizer = loaded.rebuild()
    assert torch.equal(before, torch.get_rng_state()), "building draws no number of the process"
    assert policy.module.optimizer is optimizer
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in policy.module.parameters()}
    assert type(policy.module) is type(model.policy)


def test_memory_order_frozen_parts_and_modes_come_back():
    model = make_model(obs="image")
    weight = model.policy.features_extractor.cnn[2].weight
    weight.data = weight.data.to(memory_format=torch.channels_last)
    model.policy.value_net.bias.requires_grad_(False)
    model.policy.mlp_extractor.eval()
    frozen = Model.freeze(Policy(model.policy, evaluate_actions), model.policy.optimizer)
    assert frozen.described is not None
    policy = frozen.build()[0].module
    built = policy.features_extractor.cnn[2].weight
    assert torch.equal(built, weight)
    assert built.stride() == weight.stride() != weight.contiguous().stride()
    assert [name for name, p in policy.named_parameters() if not p.requires_grad] == ["value_net.bias"]
    assert policy.action_net.training
    assert not policy.mlp_extractor.training


@pytest.mark.parametrize(
    "change",
    [
        lambda policy: policy.register_forward_hook(lambda *_: None),
        lambda policy: setattr(policy, "extract_features", policy.extract_features),
        lambda policy: setattr(policy, "action_net", nn.Sequential(policy.action_net)),
        lambda policy: setattr(policy.mlp_extractor.policy_net, "1", nn.ReLU()),
        lambda policy: setattr(policy, "extra", object()),
    ],
    ids=["hook", "patched method", "other head", "other activation", "other attribute"],
)
def test_a_policy_that_is_not_as_its_class_makes_it_is_not_called_data(change):
    model = make_model()
    model.learn(24)
    frozen = Policy(model.policy, evaluate_actions), model.policy.optimizer
    assert Model.freeze(*frozen).described is not None
    change(model.policy)
    assert Model.freeze(*frozen).described is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class", {"$class": "os:system"}),
        ("class", {"$class": "subprocess:Popen"}),
        ("class", {"$class": "stable_baselines3.common.policies:ActorCriticPolicy.load"}),
        ("class", {"$class": "stable_baselines3.common.save_util:load_from_zip_file"}),
        ("class", {"$class": "rollsight.__main__:main"}),
        ("class", {"$class": "torch.nn.modules.module:torch"}),
        ("evaluate", "os:system"),
        ("evaluate", "rollsight.runs.writer:create"),
        ("optimizer", {"$class": "builtins:exec"}),
        ("arguments", {"x": {"$code": "1"}}),
    ],
)
def test_a_forged_description_names_nothing_that_is_not_allowed(tmp_path, name, value):
    state, tensors, _ = parts(saved(trained()[0], tmp_path / "s.pt"))
    state["model"][name] = value
    loaded = Snapshot.load(forged(tmp_path / "s.pt", state, tensors))
    with pytest.raises(RollsightError, match="cannot be rebuilt"):
        loaded.rebuild()


def test_only_known_packages_are_imported(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("planted:X", "planted.deeper:X", "torch:load", "torch.hub:load", "stable_baselines3:PPO"):
        with pytest.raises(ValueError, match="is not a module or optimiser of"):
            plain.class_named(name)
    assert "planted" not in sys.modules


def test_every_flipped_bit_of_a_file_is_found(tmp_path):
    path = saved(trained()[0], tmp_path / "s.pt")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at in [0, 3, 8, 20, len(whole) - 1, *rng.integers(len(whole), size=100)]:
        content = bytearray(whole)
        content[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(RollsightError, match=r"not a readable snapshot|loaded with|load it with"):
            Snapshot.load(path)


# Pickles.


def test_a_class_of_the_users_own_works_in_the_users_hands(tmp_path):
    snapshot, model = trained(policy_kwargs={"features_extractor_class": Mine})
    path = saved(snapshot, tmp_path / "s.pt")
    assert "model.pickle" in parts(path)[1]
    key = tmp_path / "settings/rollsight/key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert replayed(Snapshot.load(path), model)
    saved(snapshot, tmp_path / "t.pt")  # the same key

    key.rename(tmp_path / "of another user")
    with pytest.raises(OptionError, match=r"holds a pickle.*another key than yours signed it.*trust=True") as caught:
        Snapshot.load(path)
    assert "load it with --trust" in caught.value.on_command_line()
    assert replayed(Snapshot.load(path, trust=True), model)
    saved(snapshot, tmp_path / "u.pt")  # makes another key
    with pytest.raises(RollsightError, match="another key than yours"):
        Snapshot.load(path)


def test_a_signature_is_of_the_whole_file(tmp_path):
    path = saved(trained(policy_kwargs={"features_extractor_class": Mine})[0], tmp_path / "s.pt")
    state, tensors, metadata = parts(path)
    signature = metadata["signature"]
    evil = torch.frombuffer(bytearray(pickle.dumps(Evil(tmp_path / "flag"))), dtype=torch.uint8)
    for change in ({"model.pickle": evil}, {"weights": torch.zeros(3)}):
        forged(path, state, {**tensors, **change}, lambda digest: signature)
        with pytest.raises(RollsightError, match="another key than yours signed it"):
            Snapshot.load(path)
    forged(path, {**state, "round": 3}, tensors, lambda digest: signature)
    with pytest.raises(RollsightError, match="another key than yours signed it"):
        Snapshot.load(path)
    forged(path, state, tensors)
    with pytest.raises(RollsightError, match="it has no signature"):
        Snapshot.load(path)
    assert not (tmp_path / "flag").exists()


def test_an_earlier_versions_snapshot_needs_trust(tmp_path):
    snapshot, model = trained()
    path = of_format_1(snapshot, tmp_path / "old.pt")
    with pytest.raises(OptionError, match=r"earlier versions wrote pickles without a signature.*trust=True"):
        Snapshot.load(path)
    assert replayed(Snapshot.load(path, trust=True), model)
    trust_folder(tmp_path)
    assert replayed(Snapshot.load(path), model)
    assert signing.in_trusted_folder(tmp_path / "old.pt")
    assert not signing.in_trusted_folder(tmp_path.parent / "other.pt")


def evil_files(folder, flag):
    """Snapshots whose loading or rebuilding would execute code, one a way."""
    snapshot, _ = trained()
    evil = pickle.dumps(Evil(flag))
    boxed = io.BytesIO()
    torch.save(Evil(flag), boxed)
    state, tensors, _ = parts(saved(snapshot, folder / "new.pt"))
    pickled = {**tensors, "model.pickle": torch.frombuffer(bytearray(boxed.getvalue()), dtype=torch.uint8)}
    forged(folder / "unsigned.pt", {**state, "model": None}, pickled)
    forged(folder / "badly signed.pt", {**state, "model": None}, pickled, lambda digest: "ab" * 32)
    torch.save({"format": 1, "model": Evil(flag)}, folder / "old.pt")
    of_format_1(snapshot, folder / "old model.pt", boxed.getvalue())
    plainly = {"format": 1, "round": 2, "model": boxed.getvalue(), "rule": asdict(snapshot.rule), "records": {}}
    torch.save(plainly, folder / "old, data but for the model.pt")
    (folder / "bare pickle.pt").write_bytes(evil)
    torch.save(Evil(flag), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "new.pt").unlink()
    return sorted(folder.glob("*.pt"))


def test_no_command_executes_a_planted_snapshot(tmp_path, capsys):
    flag, folder, run = tmp_path / "flag", tmp_path / "evil", tmp_path / "run"
    folder.mkdir()
    trained(run)
    files = evil_files(folder, flag)
    assert len(files) == 7
    digests = run / "SHA256SUMS"
    digests.write_text("".join(line for line in digests.read_text().splitlines(True) if "snapshots" not in line))
    for planted in files:
        (run / "snapshots/round-000002.pt").write_bytes(planted.read_bytes())
        for command, options in COMMANDS.items():
            arguments = [option.replace("OUT", str(tmp_path / "out")) for option in options]
            assert main([command, str(run), *arguments]) == 1, planted
            assert "error: " in capsys.readouterr().err
            assert not flag.exists(), (planted, command)
    with pytest.raises(RollsightError):
        Snapshot.load(folder / "old.pt", trust=True)
    assert flag.exists(), "the trap works"


def test_trust_reaches_every_command_and_its_worker_processes(tmp_path, capsys):
    run = tmp_path / "run"
    snapshot, _ = trained(run)
    of_format_1(snapshot, run / "snapshots/round-000002.pt")
    digests = run / "SHA256SUMS"
    digests.write_text("".join(line for line in digests.read_text().splitlines(True) if "snapshots" not in line))
    assert main(["top", str(run), *COMMANDS["top"]]) == 1
    assert "load it with --trust" in capsys.readouterr().err
    assert main(["top", str(run), *COMMANDS["top"], "--trust"]) == 0
    code = "import sys; from rollsight.snapshot import Snapshot; Snapshot.load(sys.argv[1])"
    here = [sys.executable, "-c", code, str(run / "snapshots/round-000002.pt")]
    path = os.pathsep.join(p for p in sys.path if p)
    assert subprocess.run(here, env={**os.environ, "PYTHONPATH": path}).returncode == 0, "a process of this one"


def test_a_home_that_cannot_hold_a_key_costs_the_signature_only(tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "a file"))
    snapshot, model = trained(policy_kwargs={"features_extractor_class": Mine})
    with pytest.warns(UserWarning, match=r"not signed.*need trust.*cannot be read .Not a directory"):
        path = saved(snapshot, tmp_path / "s.pt")
    with pytest.raises(RollsightError):
        Snapshot.load(path)
    assert replayed(Snapshot.load(path, trust=True), model)


def test_a_key_that_others_can_read_signs_nothing(tmp_path):
    path = saved(trained(policy_kwargs={"features_extractor_class": Mine})[0], tmp_path / "s.pt")
    signing.key_path().chmod(0o644)
    with pytest.raises(RollsightError, match=r"can be read by others: chmod 600"):
        Snapshot.load(path)
    signing.key_path().write_bytes(b"short")
    signing.key_path().chmod(0o600)
    with pytest.raises(RollsightError, match="is damaged: remove it"):
        Snapshot.load(path)


def test_a_language_models_checkpoint_is_named_as_such(tmp_path):
    torch.save({"language_format": 1, "trainable": {}}, tmp_path / "c.pt")
    with pytest.raises(RollsightError, match="checkpoint of a language model's run"):
        Snapshot.load(tmp_path / "c.pt")


# The emulator's state.


def test_no_pickle_is_taken_from_a_records_column(tmp_path):
    from base64 import b64encode

    import ale_py
    import gymnasium as gym

    from rollsight.environments.episode_start import START, EpisodeStart, restart

    gym.register_envs(ale_py)
    env = EpisodeStart(gym.make("ALE/Pong-v5", frameskip=4))
    env.reset(seed=1)
    for _ in range(20):
        env.step(2)
    obs, info = env.reset()
    again = gym.make("ALE/Pong-v5", frameskip=4)
    again.reset(seed=2)
    assert np.array_equal(restart(again, info[START]), obs)
    how = json.loads(info[START])
    how["ale"] = b64encode(pickle.dumps(Evil(tmp_path / "flag"))).decode()
    with pytest.raises(TypeError, match="a pickle of an earlier version"):
        restart(again, json.dumps(how))
    assert not (tmp_path / "flag").exists()


def test_a_run_with_own_classes_is_read_by_commands_without_a_word(tmp_path, capsys):
    trained(tmp_path / "run", policy_kwargs={"features_extractor_class": Mine})
    assert main(["top", str(tmp_path / "run"), *COMMANDS["top"]]) == 0
    assert capsys.readouterr().err == ""
    assert runs.open(tmp_path / "run").snapshot_rounds == [1, 2]
