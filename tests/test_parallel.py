"""Two gloo processes with half of the records each, against one process with all of them."""

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import zoo
from zoo import KINDS

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg
from rollsight.distributed import most_steps, select_across

KIND, SPLIT, SHORT = KINDS["transformer"], 5, zoo.STEPS - 1


def share(records, rank, split=SPLIT):
    """A rank's records; the second rank's are padded to a smaller T (its last tokens are invalid)."""
    if rank == 0:
        return records.take(slice(0, split))
    part = records.take(slice(split, None))
    columns = {name: getattr(part, name)[:, :SHORT] for name in ("returns", "values", "valid")}
    columns |= {"ids": part.ids, "rewards": part.rewards}
    cut = [column[:, :SHORT] for column in (part.obs, part.actions, part.log_probs, part.advantages)]
    return rs.Records(*cut, **columns)


def everything():
    """Policy, optimiser after a step, records, held-out records: the same in every process."""
    policy = KIND.policy()
    records, held_out = (rewarded(KIND.records(policy, n, seed=seed), seed) for n, seed in ((9, 1), (8, 5)))
    optimizer = torch.optim.Adam(policy.module.parameters())
    KIND.evaluate(policy.module, records.obs, records.actions).log_prob[:4].sum().backward()
    optimizer.step()
    return policy, optimizer, records, held_out


def rewarded(records, seed):
    rewards = torch.randn(len(records), generator=torch.Generator().manual_seed(seed)).double()
    columns = {name: getattr(records, name) for name in ("returns", "values", "valid", "ids")}
    return rs.Records(records.obs, records.actions, records.log_probs, records.advantages, rewards=rewards, **columns)


def settings(policy, optimizer, records, held_out):
    """Name -> target, objective, options."""
    pairs = KIND.records(policy, 3, seed=6, garbage=False)
    adam = {"optimizer": optimizer}
    return {
        "return": (tg.Return(), ob.PPO(), {}),
        "sequence, chunks": (tg.Sequence(), ob.PPO("chunk:4"), {"chunk_size": 2}),
        "reward, Adam": (tg.Reward(), ob.PPO(), adam),
        "objective, jvp": (tg.Objective(ob.A2C("buffer")), ob.A2C("raw"), {"backend": "jvp"}),
        "held-out sequence": (tg.Sequence(held_out), ob.PPO(), {}),
        "held-out reward, Adam, jvp": (tg.Reward(held_out), ob.PPO(), {"backend": "jvp", **adam}),
        "action": (tg.Action(pairs.obs, pairs.actions), ob.PPO(), {}),
    }


def worker(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    group, found = dist.group.WORLD, {}
    policy, optimizer, records, held_out = everything()
    mine, mine_held_out = share(records, rank), share(held_out, rank)
    for name, (target, objective, options) in settings(policy, optimizer, records, mine_held_out).items():
        scores = rs.score_records(policy, mine, target, objective, group=group, **options)
        found[name] = scores.values
        selection = select_across(rs.selection.DropNegative(1.0, unit="episode"), scores, group)
        assert (selection.weights[selection.dropped] == 0).all()
        found[f"{name}: selection"] = selection.weights
        found[f"{name}: counts"] = torch.tensor([selection.requested, selection.reached])
    for options in ({}, {"optimizer": optimizer}):
        options |= {"group": group, "backend": ("layerwise", "jvp")[rank]}
        found[f"two backends, {len(options)}"] = rs.score_records(policy, mine, tg.Objective(), **options).values
    invalid = rs.Records(mine.obs, mine.actions, mine.log_probs, mine.advantages, valid=torch.zeros(len(mine)).bool())
    for backend in ("auto", "jvp"):
        one_sided = rs.score_records(policy, (mine, invalid)[rank], group=group, backend=backend)
        found[f"one side, {backend}"] = one_sided.values
    with pytest.raises(rs.RollsightError, match="None of the records of 2 ranks is valid"):
        rs.score_records(policy, invalid, group=group)
    for options in ({"cross_fit": True}, {"target": tg.Action(mine.obs, mine.actions, each=True)}):
        with pytest.raises(rs.RollsightError, match="group= gives every record one direction"):
            rs.score_records(policy, mine, group=group, **options)
    # A selection that leaves this rank nothing: it still takes the other's steps.
    steps = (3, 0)[rank]
    assert most_steps(steps, group) == 3
    weight = torch.nn.Parameter(torch.ones(1))
    for step in range(most_steps(steps, group)):
        (weight * (1.0 if step < steps else 0.0)).sum().backward()
        dist.all_reduce(weight.grad)
    found["gradient"] = weight.grad
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(worker, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def both(ranks, name):
    return torch.cat([found[name] for found in ranks])


def test_two_processes_give_the_scores_and_selections_of_one(ranks):
    policy, optimizer, records, held_out = everything()
    dropped = 0
    for name, (target, objective, options) in settings(policy, optimizer, records, held_out).items():
        scores = rs.score_records(policy, records, target, objective, **options)
        assert zoo.relative_error(both(ranks, name), scores.values) < 1e-5, name
        selection = rs.selection.DropNegative(1.0, unit="episode")(scores)
        assert torch.equal(both(ranks, f"{name}: selection"), selection.weights), name
        assert ranks[0][f"{name}: counts"].tolist() == [selection.requested, selection.reached]
        dropped += selection.reached
    assert dropped > 5
    for name, options in (("two backends, 2", {}), ("two backends, 3", {"optimizer": optimizer})):
        scores = rs.score_records(policy, records, tg.Objective(), backend="oracle", **options)
        assert zoo.relative_error(both(ranks, name), scores.values) < 1e-5, name


def test_a_rank_without_a_valid_record_takes_part(ranks):
    policy, _, records, _ = everything()
    expected = rs.score_records(policy, share(records, 0)).values
    for backend in ("auto", "jvp"):
        assert zoo.relative_error(ranks[0][f"one side, {backend}"], expected) < 1e-5
        assert ranks[1][f"one side, {backend}"].tolist() == [0] * (len(records) - SPLIT)


def test_a_rank_without_records_left_takes_the_others_steps(ranks):
    assert ranks[0]["gradient"].tolist() == ranks[1]["gradient"].tolist()
