"""Systems without POSIX: Windows has neither `fcntl` nor `O_NOFOLLOW`, and neither renames nor removes open files."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("stable_baselines3")

WITHOUT_POSIX = """
import os, signal, sys
import filelock, pyarrow.parquet, stable_baselines3, torch  # these know by themselves which system they are on

for owner, names in {
    os: ("O_NOFOLLOW", "fork", "register_at_fork", "getuid", "sched_getaffinity"),
    signal: ("pthread_sigmask",),
}.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
for name in ("fcntl", "resource", "grp"):
    assert "rollsight.runs" not in sys.modules
    sys.modules[name] = None


def is_open(path):
    path = os.path.realpath(path)
    numbers = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    return any(os.path.realpath(f"/proc/self/fd/{number}") == path for number in numbers)


def refusing(call):
    def called(path, *others, **keywords):
        for name in (path, *others):
            if is_open(name):
                raise PermissionError(13, "used by another process", str(name))
        return call(path, *others, **keywords)

    return called


for name in ("replace", "rename", "unlink", "remove"):
    setattr(os, name, refusing(getattr(os, name)))
"""
TRAIN = """
from stable_baselines3 import PPO

import rollsight
from rollsight import runs
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.errors import RollsightError
from rollsight.snapshot import Snapshot, signing

path = sys.argv[1]
for attempt in range(2):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    influence = InfluenceCallback(drop=0.5, run=path, snapshots="all", overwrite=bool(attempt))
    model.learn(128, callback=influence)
run = runs.open(path)
assert run.rounds == run.snapshot_rounds == [1, 2]
assert len(run.records(2)) == 64
assert len(Snapshot.load(run.snapshot_path(2)).records) == 64
assert b"\\r" not in (run.path / "SHA256SUMS").read_bytes()
with runs.resume(path, after=1) as writer:
    assert runs.is_being_written(run.path)
    writer.write_round(2, {"records": 0})
    writer.write_checkpoint(2, lambda file: file.write(b"state"))
    writer.remove_checkpoint(2)
assert not runs.is_being_written(run.path)
try:
    with runs.whole_file(run.path / "table.csv") as temporary:
        raise ValueError
except ValueError:
    assert not temporary.exists()
assert signing.is_signed("digest", signing.sign("digest"))
print("trained")
"""


def test_runs_and_stable_baselines3_do_without_posix(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX + TRAIN, str(tmp_path / "run")]
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "settings"), "USERNAME": "user"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert result.stdout == "trained\n", result.stderr


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("rollsight.runs", "pyarrow", "runs"),
        ("rollsight.runs", "filelock", "runs"),
        ("rollsight.adapters.sb3", "stable_baselines3", "sb3"),
        ("rollsight.adapters.trl", "trl", "llm"),
        ("rollsight.training.compiled", "jax", "fast"),
        ("rollsight.explorer", "dash", "explorer"),
    ],
)
def test_a_package_whose_extra_is_absent_names_it(module, package, extra):
    code = f"""
import importlib, sys
from rollsight.errors import MissingExtra, RollsightError
sys.modules[{package!r}] = None
try:
    importlib.import_module({module!r})
except ImportError as error:
    assert isinstance(error, MissingExtra) and isinstance(error, RollsightError)
    print(error, error.name, sep="|")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"needs the package {package.replace('_', '-')}: pip install 'rollsight[{extra}]'|" in said
