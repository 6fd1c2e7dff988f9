"""Snapshots of Stable-Baselines3 rounds: a replay ends in the host's own bits."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sb3_zoo import make_model
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from test_sb3 import DrawsNumbers, Noisy, Settings, cases

from rollsight import objectives, score_records, targets
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.snapshot import Replay, Snapshot


def frozen(settings: Settings, after: Any = (), **options: Any) -> tuple[Snapshot, Any, list[Any]]:
    """The snapshot of the second of two rounds, the model after it, and both rounds' summaries."""
    model, summaries = make_model(**settings), list[Any]()
    influence = InfluenceCallback(snapshots="every:2", on_round=summaries.append, **options)
    model.learn(48, callback=[influence, *after])
    assert influence.snapshot is not None
    assert influence.snapshot.round == 2
    return influence.snapshot, model, summaries


def difference(replay: Replay, model: Any) -> float:
    """Largest difference between the parameters; 0.0 means the same bits."""
    after = {name: p.detach() for name, p in model.policy.named_parameters()}
    assert after.keys() == replay.parameters.keys()
    return max(float((after[name] - p).abs().max()) for name, p in replay.parameters.items())


SGD = {"policy_kwargs": {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}}
MODELS: dict[str, Settings] = {
    "adam, 3 envs": {"n_envs": 3},
    "sgd": {**SGD, "learning_rate": 0.1},
    "strong gradient clipping": {"max_grad_norm": 0.01, **SGD},
    "target_kl": {"target_kl": 0.002, "n_epochs": 6},
    "partial minibatch": {"batch_size": 10},
    "last minibatch of one": {"batch_size": 23},
    "everything in the loss": {"clip_range_vf": 0.05, "ent_coef": 0.02, "vf_coef": 0.7, "action": "box"},
    "schedules": {
        "learning_rate": lambda progress: 0.03 * progress + 0.01,
        "clip_range": lambda progress: 0.2 * progress + 0.001,
        "clip_range_vf": lambda progress: 0.1 * progress + 0.001,
    },
    "raw advantages": {"normalize_advantage": False},
    "gSDE": {"action": "box", "use_sde": True, "sde_sample_freq": 4, "n_envs": 3, "ent_coef": 0.01},
    "images": {"obs": "image"},
    "dict": {"obs": "dict_image", "n_envs": 3},
    "discrete observations": {"obs": "discrete", "action": "multidiscrete"},
    "VecNormalize": {"normalize": True, "n_envs": 3},
    "a2c": {"algo": "A2C"},
    "BatchNorm and dropout": {"policy_kwargs": {"features_extractor_class": Noisy}},
    "a2c, rmsprop of tensorflow": {
        "algo": "A2C",
        "normalize_advantage": True,
        "policy_kwargs": {"optimizer_class": RMSpropTFLike},
    },
    "maskable": {"algo": "MaskablePPO", "batch_size": 10},
    "maskable, dict": {"algo": "MaskablePPO", "obs": "dict", "action": "multidiscrete", "n_envs": 3},
}


@cases(MODELS)
def test_a_replay_ends_in_the_hosts_bits(settings: Settings) -> None:
    snapshot, model, summaries = frozen(settings, [DrawsNumbers()])
    replay = snapshot.replay()
    assert difference(replay, model) == 0.0
    assert replay.steps == summaries[-1]["optimizer_steps"]
    before = dict(snapshot.policy.module.named_parameters())
    assert all(not torch.equal(p, before[name]) for name, p in replay.parameters.items() if p.requires_grad)
    everything = torch.ones(24)
    assert difference(snapshot.replay("repack", everything), model) == 0.0
    masked = snapshot.replay("mask", everything)
    assert difference(masked, model) < 1e-6
    assert masked.steps == replay.steps


def test_target_kl_really_stopped_the_update() -> None:
    _, _, summaries = frozen(MODELS["target_kl"])
    assert 0 < summaries[-1]["optimizer_steps"] < 18


@cases(
    {
        "ppo": {"n_envs": 3},
        "ppo, partial minibatch": {"batch_size": 7, "n_epochs": 3},
        "ppo, dict": {"obs": "dict"},
        "a2c": {"algo": "A2C"},
        "maskable": {"algo": "MaskablePPO"},
    }
)
@pytest.mark.parametrize("rule", ["negative:0.9", "random:0.9"])
def test_the_selection_is_replayed(settings: Settings, rule: str) -> None:
    snapshot, model, summaries = frozen(settings, [DrawsNumbers()], selection=rule)
    assert snapshot.weights is not None
    assert summaries[-1]["dropped"] == int((snapshot.weights == 0).sum()) > 0
    replay = snapshot.replay()
    assert difference(replay, model) == 0.0
    assert replay.steps == summaries[-1]["optimizer_steps"]
    assert difference(snapshot.replay(weights=snapshot.weights), model) == 0.0
    assert difference(snapshot.replay(weights=torch.ones(24)), model) > 1e-5


def test_masked_records_leave_the_loss() -> None:
    snapshot, _, _ = frozen({})
    weights = torch.ones(24)
    weights[3] = 0
    everything, without = (snapshot.replay("mask", w) for w in (torch.ones(24), weights))
    assert everything.steps == without.steps
    assert any(not torch.equal(a, without.parameters[name]) for name, a in everything.parameters.items())
    nothing = snapshot.replay("mask", torch.zeros(24))
    assert nothing.steps == 0
    before = dict(snapshot.policy.module.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in nothing.parameters.items())


def test_a_replay_leaves_the_world_alone() -> None:
    snapshot, model, _ = frozen({})
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = snapshot.replay()
    assert torch.equal(torch.rand(2), expected)
    assert difference(first, model) == difference(snapshot.replay(), model) == 0.0


def test_the_trace_of_a_single_step_is_its_score() -> None:
    snapshot, _, _ = frozen({"algo": "A2C", **SGD, "learning_rate": 0.1, "max_grad_norm": 0.05})
    trace = snapshot.trace(weighting="paper")
    scores = score_records(snapshot.policy, snapshot.records, targets.Return(), objectives.A2C(advantage="raw"))
    torch.testing.assert_close(trace.values, scores.values, rtol=1e-4, atol=1e-5 * float(scores.values.abs().max()))
    update = snapshot.trace(weighting="update")
    ratio = update.values / trace.values
    torch.testing.assert_close(ratio, ratio[:1].expand(24), rtol=1e-3, atol=0.0)
    assert 0 < float(ratio[0]) < 0.1 / 24  # the learning rate over the batch, and a gradient that was clipped


SCRIPT = """
import sys
import torch
from pathlib import Path
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from rollsight.adapters.sb3 import InfluenceCallback
from sb3_zoo import make_model
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

class Features(BaseFeaturesExtractor):
    '''Defined in the script that trains, with random numbers of its own.'''
    def __init__(self, space):
        super().__init__(space, 6)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3))

    def forward(self, obs):
        return self.layers(obs)

model = make_model(n_envs=3, policy_kwargs={"features_extractor_class": Features})
model.learn(48, callback=InfluenceCallback(drop=0.9, run=folder / "run", snapshots="every:2"))
torch.save(model.policy.state_dict(), folder / "after.pt")
"""

REPLAY = """
import sys
import torch
from rollsight import runs
from rollsight.snapshot import Snapshot

folder = sys.argv[1]
snapshot = Snapshot.load(runs.open(folder + "/run").snapshot_path(2))
after = torch.load(folder + "/after.pt", weights_only=True)
replayed = snapshot.replay().parameters
assert "features_extractor.layers.0.weight" in replayed
assert all(torch.equal(after[name], p) for name, p in replayed.items())
print("the same bits")
"""


def test_a_replay_from_the_run_folder_in_another_process(tmp_path: Path) -> None:
    """With a features extractor that only the training script defines, and that draws random numbers while training."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    runpy.run_path(str(script), {"folder": tmp_path}, run_name="__main__")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p and "tests" not in Path(p).parts),
    }
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.stdout.strip() == "the same bits", done.stderr
