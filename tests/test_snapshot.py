"""Replaying a frozen round, against a training loop written out here (Stable-Baselines3 itself: test_sb3.py)."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn
from zoo import KINDS, Kind

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg
from rollsight.snapshot import Snapshot
from rollsight.update import UpdateRule, repack

PPO = UpdateRule("ppo", n_epochs=3, batch_size=16, ent_coef=0.02)
A2C = UpdateRule("a2c", n_epochs=1, batch_size=None, ent_coef=0.02, normalize_single=True)
N = 50  # three minibatches of 16 and one of 2


def noisy() -> nn.Module:
    """Dropout at work, next to a BatchNorm that is frozen on purpose."""
    trunk = nn.Sequential(nn.Linear(zoo.OBS, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh())
    trunk[1].running_mean += 0.3
    module = zoo.ActorCritic(trunk, 6).train()
    trunk[1].eval()
    return module


NOISY = Kind("noisy", noisy)
SGD = torch.optim.SGD, {"lr": 0.3}
ADAM = torch.optim.Adam, {"lr": 0.02, "eps": 1e-5}


def frozen(kind=KINDS["shared_trunk"], rule=PPO, optimizer=SGD, dtype=torch.float32, n=N, weights=None, **options):
    """A snapshot, with everything it was taken of; the optimiser has taken two steps before."""
    policy = kind.policy(dtype)
    records = kind.records(policy, n, garbage=options.pop("garbage", False), shift=0.1)
    build, settings = optimizer
    optimizer = build(policy.module.parameters(), **settings)
    for _ in range(2):
        optimizer.zero_grad()
        (policy(records.take(records.valid_rows)).log_prob ** 2).mean().backward()
        optimizer.step()
    np.random.seed(7), torch.manual_seed(7)
    return Snapshot.take(4, policy, optimizer, records, rule, weights), policy, optimizer, records


def train_by_hand(policy, optimizer, records, rule, *, keep=None, weights=None, before_step=None) -> int:
    """The update as a textbook has it. keep: rows that form the minibatches; weights: of the records' loss terms."""
    steps = 0
    for _ in range(rule.n_epochs):
        size = rule.batch_size or N
        if keep is None:
            order = np.random.permutation(len(records))
            minibatches = [order[start : start + size] for start in range(0, len(order), size)]
        else:
            order = np.random.permutation(keep)
            minibatches = [order[start : start + size] for start in range(0, len(order), size)]
            if len(minibatches) > 1 and len(minibatches[-1]) < size / 2:
                minibatches = minibatches[:-1]
        for minibatch in minibatches:
            rows = torch.from_numpy(minibatch)
            b_advantages, b_old, b_returns = (c[rows] for c in (records.advantages, records.log_probs, records.returns))
            log_prob, entropy, value = policy.evaluate(policy.module, records.obs[rows], records.actions[rows])[:3]
            if rule.normalize_advantage and len(rows) > 1:
                b_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
            if rule.algorithm == "ppo":
                ratio = (log_prob - b_old).exp()
                surrogate = torch.min(
                    b_advantages * ratio, b_advantages * ratio.clamp(1 - rule.clip_range, 1 + rule.clip_range)
                )
            else:
                surrogate = b_advantages * log_prob
            if rule.clip_range_vf is not None:
                old = records.values[rows]
                value = old + (value - old).clamp(-rule.clip_range_vf, rule.clip_range_vf)
            if weights is None:
                policy_loss, value_loss = -surrogate.mean(), F.mse_loss(b_returns, value)
                entropy_loss = -(-log_prob if entropy is None else entropy).mean()
            else:
                w = weights[rows]
                if not w.any():
                    continue
                policy_loss = -(w * surrogate).sum() / len(rows)
                value_loss = (w * (b_returns - value) ** 2).sum() / len(rows)
                entropy_loss = -(w * (-log_prob if entropy is None else entropy)).sum() / len(rows)
            loss = policy_loss + rule.ent_coef * entropy_loss + rule.vf_coef * value_loss
            if rule.target_kl is not None:
                log_ratio = (log_prob - b_old).detach()
                if float((log_ratio.exp() - 1 - log_ratio).mean()) > 1.5 * rule.target_kl:
                    return steps
            optimizer.zero_grad()
            loss.backward()
            length = nn.utils.clip_grad_norm_(policy.module.parameters(), rule.max_grad_norm)
            if before_step is not None:
                before_step(rows, b_advantages, min(1.0, rule.max_grad_norm / (float(length) + 1e-6)))
            optimizer.step()
            steps += 1
    return steps


def assert_same_bits(replay, policy, optimizer):
    mine = dict(policy.module.state_dict())
    for name, value in replay.policy.module.state_dict().items():
        assert torch.equal(value, mine[name]), name
    states = [o.state_dict()["state"] for o in (replay.optimizer, optimizer)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(states[1][key][k]))
            for k, v in state.items()
            if v is not None
        )


def assert_close(replay, policy):
    for name, value in policy.module.named_parameters():
        assert torch.allclose(replay.parameters[name], value, rtol=0, atol=1e-6), name


# --- replay


UPDATES = {
    "sgd": {},
    "adam": {"optimizer": ADAM},
    "adam, clipped gradients": {"optimizer": ADAM, "rule": replace(PPO, max_grad_norm=0.01)},
    "sgd with momentum, clipped gradients": {
        "optimizer": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9}),
        "rule": replace(PPO, max_grad_norm=0.01),
    },
    "target_kl": {"rule": replace(PPO, target_kl=0.02), "optimizer": (torch.optim.SGD, {"lr": 1.0})},
    "clipped values": {"rule": replace(PPO, clip_range_vf=0.05)},
    "raw advantages": {"rule": replace(PPO, normalize_advantage=False, clip_range=0.05)},
    "a last minibatch of one": {"rule": replace(PPO, batch_size=7)},
    "no closed-form entropy": {"kind": KINDS["gsde"], "optimizer": ADAM},
    "dropout": {"kind": NOISY, "optimizer": ADAM},
    "double precision": {"dtype": torch.float64},
    "a2c": {"rule": A2C, "optimizer": (torch.optim.RMSprop, {"lr": 0.01})},
}


@pytest.mark.parametrize("name", UPDATES)
def test_replay_ends_in_the_bits_of_the_update_itself(name):
    snapshot, policy, optimizer, records = frozen(**UPDATES[name])
    start = [p.detach().clone() for p in policy.module.parameters()]
    steps = train_by_hand(policy, optimizer, records, snapshot.rule)
    assert any(not torch.equal(a, b) for a, b in zip(start, policy.module.parameters(), strict=True))
    rule = snapshot.rule
    full = rule.n_epochs * -(-N // (rule.batch_size or N))
    assert (0 < steps < full) if rule.target_kl else steps == full
    for _ in range(2):  # replaying leaves no trace in the snapshot
        np.random.seed(0), torch.manual_seed(0)
        replay = snapshot.replay()
        assert replay.steps == steps
        assert_same_bits(replay, policy, optimizer)
    assert (replay.semantic, replay.counterfactual) == ("repack", "replay")
    assert_same_bits(snapshot.replay(weights=torch.ones(N)), policy, optimizer)


@pytest.mark.parametrize("name", [name for name in UPDATES if name != "dropout"])
def test_mask_with_ones_is_the_same_update(name):
    snapshot, policy, optimizer, records = frozen(**UPDATES[name])
    train_by_hand(policy, optimizer, records, snapshot.rule)
    replay = snapshot.replay("mask", torch.ones(N))
    assert_close(replay, policy)
    assert replay.semantic == "mask"


@pytest.mark.parametrize("name", ["sgd", "adam", "clipped values", "no closed-form entropy", "a2c"])
def test_mask_weighs_the_loss_terms_and_nothing_else(name):
    """Minibatches, normalised advantages and denominators are those of the full buffer."""
    snapshot, policy, optimizer, records = frozen(**UPDATES[name])
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 2
    weights[::3] = 0
    steps = train_by_hand(policy, optimizer, records, snapshot.rule, weights=weights)
    replay = snapshot.replay("mask", weights)
    assert replay.steps == steps
    assert_close(replay, policy)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_minibatch_of_zero_weights_is_a_true_no_op(optimizer):
    """Adam's moments and step count stand still too: its momentum from the steps before would move the parameters."""
    rule = replace(PPO, n_epochs=1, batch_size=25)
    snapshot, policy, optimizer, records = frozen(rule=rule, optimizer=optimizer)
    second = np.random.permutation(N)[25:]
    weights = torch.ones(N)
    weights[second] = 0
    np.random.seed(7)
    first_only = replace(rule, n_epochs=1)
    assert train_by_hand(policy, optimizer, records, first_only, weights=weights) == 1
    replay = snapshot.replay("mask", weights)
    assert replay.steps == 1
    assert_close(replay, policy)
    for mine, theirs in zip(optimizer.state.values(), replay.optimizer.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        assert "step" not in mine or float(mine["step"]) == float(theirs["step"])
    nothing = snapshot.replay("mask", torch.zeros(N))
    assert nothing.steps == 0
    assert_same_bits(nothing, snapshot.policy, snapshot.optimizer)


@pytest.mark.parametrize("name", ["sgd", "adam", "a2c", "target_kl"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_repack_forms_minibatches_of_the_survivors(name, share):
    weights = (torch.rand(N, generator=torch.Generator().manual_seed(1)) >= share).float()
    snapshot, policy, optimizer, records = frozen(weights=weights, **UPDATES[name])
    steps = train_by_hand(policy, optimizer, records, snapshot.rule, keep=weights.nonzero().flatten().numpy())
    replay = snapshot.replay()
    assert replay.steps == steps
    assert_same_bits(replay, policy, optimizer)
    stock = snapshot.replay(weights=torch.ones(N))
    assert any(not torch.equal(stock.parameters[k], v) for k, v in replay.parameters.items())


@pytest.mark.parametrize(
    ("survivors", "size", "lengths"),
    [
        (64, 32, [32, 32]),
        (80, 32, [32, 32, 16]),  # half of the batch size: stays
        (79, 32, [32, 32]),  # fewer: left out
        (33, 32, [32]),
        (31, 32, [31]),  # no full one: stays
        (1, 32, [1]),
        (7, 3, [3, 3]),  # a lone record
        (3, 2, [2]),  # a lone record, although half of the batch size
        (3, 1, [1, 1, 1]),
        (10, None, [10]),
    ],
)
def test_the_last_minibatch_of_the_survivors(survivors, size, lengths):
    order = np.random.default_rng(0).permutation(1000)[:survivors]
    parts = repack(order, size)
    assert [len(part) for part in parts] == lengths
    assert np.concatenate(parts).tolist() == order[: sum(lengths)].tolist()


def test_a_dropped_record_cannot_change_the_weights():
    weights = torch.ones(N)
    weights[10:25] = 0
    snapshot, _, _, records = frozen(weights=weights, optimizer=ADAM)
    other = records.take(slice(None))
    for column in ("obs", "log_probs", "advantages", "returns", "values"):
        part = getattr(other, column).clone()
        part[10:25] = 1e9 if column != "obs" else float("nan")
        object.__setattr__(other, column, part)
    kept = other.advantages.clone()
    perturbed = replace(snapshot, records=other)
    for name, value in perturbed.replay().parameters.items():
        assert torch.equal(value, snapshot.replay().parameters[name])
    kept[0] += 1
    changed = replace(snapshot, records=other.with_advantages(kept)).replay()
    assert any(not torch.equal(v, snapshot.replay().parameters[k]) for k, v in changed.parameters.items())


def test_invalid_records_are_not_trained_on():
    snapshot, policy, optimizer, records = frozen(garbage=True, optimizer=ADAM)
    keep = records.valid_rows.nonzero().flatten().numpy()
    assert len(keep) == N - 1
    train_by_hand(policy, optimizer, records, snapshot.rule, keep=keep)
    assert_same_bits(snapshot.replay(), policy, optimizer)
    assert_same_bits(snapshot.replay(weights=torch.ones(N)), policy, optimizer)
    fewer = (torch.arange(N) % 3 > 0).float()
    np.random.seed(7)
    policy, optimizer = snapshot.policy, snapshot.optimizer
    train_by_hand(policy, optimizer, records, snapshot.rule, keep=(fewer * records.valid).nonzero().flatten().numpy())
    assert_same_bits(snapshot.replay(weights=fewer), policy, optimizer)


def test_another_minibatch_order_is_reproducible_and_leaves_the_recorded_one_alone():
    snapshot = frozen()[0]
    ends = {order: digest(snapshot.replay(order=order)) for order in (None, 0, 1)}
    assert len(set(ends.values())) == 3
    assert digest(replace(snapshot, round=5).replay(order=0)) != ends[0], "keyed by the round too"
    assert {order: digest(snapshot.replay(order=order)) for order in (None, 0, 1)} == ends


# --- what a snapshot holds


def test_a_snapshot_is_frozen():
    """The host goes on: it trains the same module and writes the next round into the same buffer."""
    weights = (torch.arange(N) % 5 > 0).float()
    snapshot, policy, optimizer, records = frozen(weights=weights, optimizer=ADAM)
    before = snapshot.replay().parameters
    weights.zero_()
    train_by_hand(policy, optimizer, records, snapshot.rule)
    for column in (records.obs, records.actions, records.log_probs, records.advantages, records.returns):
        column.zero_()
    after = snapshot.replay().parameters
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_policy_and_optimizer_belong_together():
    snapshot, policy, _, _ = frozen(optimizer=ADAM)
    first = snapshot.policy
    held = {id(p) for group in snapshot.optimizer.param_groups for p in group["params"]}
    assert first is snapshot.policy
    assert held == {id(p) for p in first.module.parameters()}
    for name, value in policy.module.state_dict().items():
        assert torch.equal(value, first.module.state_dict()[name])
    scores = rs.score_records(snapshot.policy, snapshot.records, optimizer=snapshot.optimizer)
    snapshot.replay()
    again = rs.score_records(snapshot.policy, snapshot.records, optimizer=snapshot.optimizer)
    assert torch.equal(scores.values, again.values)


def digest(replay) -> str:
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in replay.parameters.values())).hexdigest()


IN_ANOTHER_PROCESS = """
import hashlib, sys, torch
from rollsight.snapshot import Snapshot
snapshot = Snapshot.load(sys.argv[1])
parameters = snapshot.replay().parameters.values()
print(hashlib.sha256(b"".join(p.numpy().tobytes() for p in parameters)).hexdigest())
print(*snapshot.trace().values[:5].tolist())
print("rollsight" in sys.modules, "zoo" in sys.modules, snapshot.round, torch.get_num_threads())
"""


def test_another_process_ends_in_the_same_bits(tmp_path):
    weights = (torch.arange(N) % 4 > 0).float()
    snapshot, _, _, records = frozen(weights=weights, optimizer=ADAM)
    snapshot.save(tmp_path / "round-4.pt")
    with (tmp_path / "open.pt").open("wb") as file:
        snapshot.save(file)
    loaded = Snapshot.load(tmp_path / "open.pt")
    assert (loaded.rule, loaded.round, loaded.threads) == (PPO, 4, 1)
    assert torch.equal(loaded.weights, weights)
    assert torch.equal(loaded.records.advantages, records.advantages)
    assert torch.equal(loaded.records.ids["episode"], records.ids["episode"])
    paths = [str(Path(zoo.__file__).parent), *(p for p in sys.path if p)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "round-4.pt")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    bits, trace, facts = result.stdout.splitlines()
    assert bits == digest(snapshot.replay()) == digest(loaded.replay())
    assert [float(x) for x in trace.split()] == snapshot.trace().values[:5].tolist()
    assert facts == "True True 4 2", "the thread count is set for the replay only"


def test_a_file_that_is_no_snapshot_is_an_error(tmp_path):
    snapshot = frozen(n=8)[0]
    path = tmp_path / "snapshot.pt"
    snapshot.save(path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            rs.RollsightError, match=r"snapshot\.pt: not a readable snapshot \(.*take it again"
        ) as error:
            Snapshot.load(path)
        assert "\n" not in str(error.value)
    for other in (b"not a snapshot\n", b"\x80\x04garbage" * 50, b"\x00" * 1000):
        path.write_bytes(other)
        with pytest.raises(rs.RollsightError, match="not a readable snapshot"):
            Snapshot.load(path)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(rs.RollsightError, match="not a readable snapshot"):
        Snapshot.load(path)
    torch.save([1, 2], path)
    with pytest.raises(rs.RollsightError, match="not a readable snapshot"):
        Snapshot.load(path)
    torch.save({"format": 99}, path)
    with pytest.raises(rs.RollsightError, match="another version of Rollsight"):
        Snapshot.load(path)
    with pytest.raises(FileNotFoundError):
        Snapshot.load(tmp_path / "absent.pt")


def test_another_torch_version_is_said():
    import io

    snapshot, file = replace(frozen(n=8)[0], versions={"torch": "1.0", "numpy": "1.0"}), io.BytesIO()
    snapshot.save(file)
    file.seek(0)
    with pytest.warns(UserWarning, match=r"round 4 was taken with torch 1\.0.*last bits"):
        Snapshot.load(file)


def without_returns(records: rs.Records) -> rs.Records:
    return rs.Records(records.obs, records.actions, records.log_probs, records.advantages)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.replay("drop"), "semantic='drop' is unknown"),
        (lambda s: s.replay("mask", torch.ones(3)), r"weights has shape \(3,\) for 50 records"),
        (lambda s: s.replay("repack", torch.full((N,), 0.5)), "'repack' takes weights of 0 and 1 only"),
        (lambda s: s.replay("repack", torch.zeros(N)), "Every record has weight 0"),
        (lambda s: s.trace(weighting="mean"), "weighting='mean' is unknown"),
        (lambda s: s.trace(tg.Action(torch.zeros(2, zoo.OBS), [0, 1], each=True)), "each=False"),
        (lambda s: replace(s, records=without_returns(s.records)).replay(), "need `returns`"),
    ],
)
def test_what_cannot_be_replayed_is_said(call, message):
    with pytest.raises(rs.RollsightError, match=message):
        call(frozen()[0])


@pytest.mark.parametrize("raising", [False, True], ids=["returns", "raises"])
def test_replay_and_trace_leave_the_process_as_it_was(raising):
    snapshot = replace(frozen(kind=NOISY)[0], threads=2)
    if raising:
        snapshot = replace(snapshot, records=snapshot.records.with_advantages(torch.full((N,), float("nan"))))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    for call in (snapshot.replay, snapshot.trace):
        if raising and call == snapshot.trace:
            with pytest.raises(rs.RollsightError) as error:
                call()
            assert "NaN" in str(error.value), "held here, so that nothing is put right by garbage collection"
        else:
            call()
        assert torch.get_num_threads() == 1
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]
        assert np.random.get_state()[2] == states[2]


THREADS = []


def remember_threads(module, obs, actions):
    THREADS.append(torch.get_num_threads())
    return zoo.categorical(module, obs, actions)


def test_replay_uses_the_thread_count_of_the_update():
    snapshot = frozen(kind=replace(KINDS["shared_trunk"], evaluate=remember_threads))[0]
    THREADS.clear()
    replace(snapshot, threads=2).replay()
    assert set(THREADS) == {2}
    assert torch.get_num_threads() == 1


# --- trace


@pytest.mark.parametrize("weighting", ["update", "paper"])
@pytest.mark.parametrize("case", ["ppo", "ppo, dropped", "ppo, action", "a2c", "gsde"])
def test_trace_is_the_sum_over_the_steps_at_their_own_parameters(case, weighting):
    rule = replace(PPO, n_epochs=2, batch_size=6, max_grad_norm=0.1) if case != "a2c" else A2C
    kind = KINDS["gsde"] if case == "gsde" else KINDS["shared_trunk"]
    weights = (torch.arange(14) % 3 > 0).float() if case == "ppo, dropped" else None
    options = {
        "kind": kind,
        "rule": rule,
        "n": 14,
        "dtype": torch.float64,
        "weights": weights,
        "optimizer": (torch.optim.SGD, {"lr": 0.5}),
    }
    snapshot, policy, optimizer, records = frozen(**options)
    target = tg.Action(records.obs[:2] + 1, records.actions[:2]) if case == "ppo, action" else tg.Return()
    objective = ob.A2C("raw") if case == "a2c" else ob.PPO("raw")
    total, clipped = torch.zeros(14, dtype=torch.float64), []

    def add(rows, advantages, clip):
        clipped.append(clip < 1)
        minibatch = records.take(rows).with_advantages(advantages)
        gradients = zoo.reference_gradients(policy, minibatch, objective)
        direction = zoo.flat_gradient(policy, zoo.reference_target(policy, records, target))
        weight = 0.5 * clip / len(rows) if weighting == "update" else 1.0
        total[rows] += weight * (gradients @ direction)

    keep = None if weights is None else weights.nonzero().flatten().numpy()
    train_by_hand(policy, optimizer, records, rule, keep=keep, before_step=add)
    scores = snapshot.trace(target, weighting=weighting)
    assert zoo.relative_error(scores.values, total) < 1e-10
    assert any(clipped) or case == "a2c"
    assert total.abs().max() > 1e-6
    assert (scores.target, scores.normalisation) == (target.name, "minibatch")
    assert weighting in scores.reason
    if keep is not None:
        assert bool((scores.values[weights == 0] == 0).all())
    assert_same_bits(snapshot.replay(), policy, optimizer)


def test_trace_of_one_small_step_predicts_what_the_step_did_to_the_target():
    """The sum of the scores is the first-order change of the target under SGD on the policy term alone."""
    rule = replace(PPO, n_epochs=1, batch_size=N, ent_coef=0.0, vf_coef=0.0, max_grad_norm=1e9)
    snapshot, _, _, records = frozen(rule=rule, dtype=torch.float64, optimizer=(torch.optim.SGD, {"lr": 1e-4}))
    before, after = (
        float((policy(records).log_prob * records.advantages).mean().detach())
        for policy in (snapshot.policy, snapshot.replay().policy)
    )
    assert after - before == pytest.approx(float(snapshot.trace().values.sum()), rel=1e-3)
