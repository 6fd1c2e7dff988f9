"""A training loop of one's own writes a run folder that everything reads."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical

import rollsight as rs
from rollsight.cli import main

STEPS, ENVS = 6, 2


class Agent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)


def evaluate(agent, obs, actions):
    distribution = Categorical(logits=agent.actor(obs))
    return rs.Evaluation(distribution.log_prob(actions), distribution.entropy(), agent.critic(obs).squeeze(-1))


def policy_and_records(seed=0, dictionary=False, **changes):
    torch.manual_seed(seed)
    agent, n = Agent(), STEPS * ENVS
    obs, actions = torch.randn(n, 3), torch.randint(2, (n,))
    with torch.no_grad():
        log_probs, entropy, values = evaluate(agent, obs, actions)[:3]
    step, env = (place.reshape(-1) for place in np.indices((STEPS, ENVS)))  # step-major, as CleanRL's
    more = {"returns": torch.randn(n), "values": values, "rewards": torch.ones(n), "ids": {"env": env, "step": step}}
    records = rs.Records({"x": obs} if dictionary else obs, actions, log_probs, torch.randn(n), **{**more, **changes})
    given = (lambda a, o, x: evaluate(a, o["x"], x)) if dictionary else evaluate
    return rs.Policy(agent, given), records, entropy


def grid(*rows):
    """(N,) in the order of the records, from one row a step."""
    return np.array(rows).reshape(-1)


def scored(policy, records, drop=0.5):
    scores = rs.score_records(policy, records)
    return scores, rs.selection.DropNegative(drop)(scores)


def test_a_round_is_what_was_given(tmp_path):
    policy, records, entropy = policy_and_records()
    scores, selection = scored(policy, records)
    with rs.runs.Recorder(tmp_path / "run", env="CartPole-v1", algo="ppo", seed=3, settings={"gamma": 0.9}) as recorder:
        line = rs.trust_line(policy, records, seed=1)
        more = {"columns": {"entropy": entropy}, "trust": line}
        recorder.round(records, scores, selection, summary={"approx_kl": torch.tensor(0.5)}, **more)
        recorder.round(records)
    run = rs.runs.open(tmp_path / "run")
    assert run.metadata["host"] == "own"
    assert run.metadata["settings"] == {"gamma": 0.9}
    rows = run.records(1)
    np.testing.assert_array_equal(rows["score_return"], scores.values)
    np.testing.assert_array_equal(rows["kept"], selection.weights > 0)
    why = {True: None, False: "negative score"}
    assert rows["reason"].to_pylist() == [why[kept] for kept in rows["kept"].to_pylist()]
    for name, column in {"action": records.actions, "advantage": records.advantages, "value": records.values}.items():
        np.testing.assert_array_equal(rows[name], column)
    np.testing.assert_array_equal(rows["obs"].to_pylist(), records.obs)
    first, second = run.sql("select * from rounds order by round").to_arrow_table().to_pylist()
    assert first["approx_kl"] == 0.5
    assert first["dropped"] == len(selection.dropped) > 0
    assert first["trust_split_half"] == pytest.approx(line.split_half)
    assert first["entropy_mean"] == pytest.approx(float(entropy.mean()))
    assert first["neg_frac"] == pytest.approx(float((scores.values < 0).double().mean()))
    assert (second["timesteps"], second["scored"], second["target"], second["kept_frac"]) == (24, False, None, 1.0)
    assert first["warnings"] is second["warnings"] is None


def test_episodes_are_followed_over_rounds(tmp_path):
    """Environment 0 ends at steps 1 (then a step that only resets) and, in round 2, 0; environment 1 never."""
    valid = torch.ones(STEPS * ENVS, dtype=torch.bool)
    valid[2 * ENVS] = False
    rewards = torch.ones(STEPS * ENVS)
    rewards[2 * ENVS] = 0
    _, records, _ = policy_and_records(valid=valid, rewards=rewards)
    _, later, _ = policy_and_records()
    with rs.runs.Recorder(tmp_path / "run") as recorder:
        recorder.round(records, episodes=grid([0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]))
        recorder.round(later, episodes=torch.from_numpy(grid([1, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0])))
    run = rs.runs.open(tmp_path / "run")
    rows = run.sql("select * from records where env = 0 order by round, step").to_arrow_table().to_pydict()
    assert rows["episode_step"] == [0, 1, -1, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert len(set(rows["episode"])) == 3
    assert rows["episode_return"] == [2, 2, *[None] * 4, 4, *[None] * 5]
    columns = ["episodes", "return_mean", "episode_length_mean"]
    assert run.rows("rounds", columns).to_pydict() == {
        "episodes": [1, 1],
        "return_mean": [2.0, 4.0],
        "episode_length_mean": [2.0, 4.0],
    }


def test_sequences_are_recorded_with_their_tokens(tmp_path):
    valid = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    shape = 3, 3
    ids = {"group": [0, 0, 1]}
    tokens = torch.arange(9).reshape(shape)
    given = {"values": torch.zeros(shape), "returns": torch.ones(shape), "rewards": torch.ones(shape), "ids": ids}
    records = rs.Records(tokens, tokens, -torch.ones(shape), torch.ones(shape), valid=valid, **given)
    with rs.runs.Recorder(tmp_path / "run", algo="grpo", model="mine") as recorder:
        recorder.round(records, columns={"prompt": ["a", "a", "b"], "completion": ["x y", "z", ""]})
    rows = rs.runs.open(tmp_path / "run").records(1).to_pydict()
    assert rows["token_ids"] == [[0, 1], [3], []]
    assert (rows["length"], rows["reward"], rows["valid"]) == ([2, 1, 0], [2.0, 1.0, 0.0], [True, True, False])
    assert (rows["completion"], rows["group"], rows["episode"]) == (["x y", "z", ""], [0, 0, 1], [0, 1, 2])


def test_a_snapshot_replays_the_update(tmp_path):
    policy, records, _ = policy_and_records()
    optimizer = torch.optim.Adam(policy.module.parameters(), lr=1e-2)
    rule = rs.UpdateRule("ppo", n_epochs=2, batch_size=4)
    scores, selection = scored(policy, records)
    with rs.runs.Recorder(tmp_path / "run") as recorder:
        recorder.snapshot(policy, optimizer, records, rule, selection)
        for _ in range(rule.n_epochs):
            order = np.random.permutation(np.flatnonzero(selection.weights))
            for start in range(0, len(order), 4):
                batch = records.take(torch.from_numpy(order[start : start + 4]))
                if len(batch) < 2:
                    break
                log_prob, _, value = policy(batch)[:3]
                advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
                ratio = (log_prob - batch.log_probs).exp()
                loss = -torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
                loss = loss + 0.5 * torch.nn.functional.mse_loss(value, batch.returns)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.module.parameters(), 0.5)
                optimizer.step()
        recorder.round(records, scores, selection)
    replay = rs.Snapshot.load(rs.runs.open(tmp_path / "run").snapshot_path(1), trust=True).replay()
    for name, parameter in policy.module.named_parameters():
        torch.testing.assert_close(replay.parameters[name], parameter.detach(), rtol=1e-4, atol=1e-6)


def test_watching_never_stops_training(tmp_path):
    policy, records, _ = policy_and_records()
    scores, selection = scored(policy, records)
    with rs.runs.Recorder(tmp_path / "run") as recorder:
        with pytest.warns(UserWarning, match="the column 'entropy' has"):
            recorder.round(records, scores, selection, columns={"entropy": [0.0]})
        with pytest.warns(UserWarning, match="give a boolean for each of 12 records"):
            recorder.round(records, scores, selection, episodes=[True])
    run = rs.runs.open(tmp_path / "run")
    assert run.rounds == [1, 2]
    said = run.rows("rounds", ["warnings"])["warnings"].to_pylist()
    assert "entropy" in said[0]
    assert "boolean" in said[1]
    assert run.targets(1) == run.targets(2) == ["return"]
    assert "entropy" not in run.records(1).column_names


def test_a_recording_goes_on_after_an_interrupt(tmp_path):
    _, records, _ = policy_and_records()
    ends = grid([0, 0], [0, 1], [0, 0], [1, 0], [0, 0], [0, 0])

    def record(rounds, **given):
        with rs.runs.Recorder(tmp_path / "run", env="CartPole-v1", algo="ppo", resume=True, **given) as recorder:
            before = recorder.last_round
            for _ in range(rounds):
                recorder.round(records, episodes=ends)
        return before

    assert record(2) == 0  # there is none yet
    assert record(1) == 2
    run = rs.runs.open(tmp_path / "run")
    assert run.rows("rounds", ["timesteps"])["timesteps"].to_pylist() == [12, 24, 36]
    episodes = [set(run.records(number)["episode"].to_pylist()) for number in (1, 2, 3)]
    assert len(episodes[0] & episodes[1]) == 2  # of the episodes that went on; none goes on over the interrupt
    assert min(episodes[2]) > max(episodes[0] | episodes[1])
    # A checkpoint of round 1: what came after it is recorded anew. What changed is said.
    rs.runs.Recorder(tmp_path / "two", seed=1).close()
    with pytest.warns(UserWarning, match="goes on with another seed"):
        rs.runs.Recorder(tmp_path / "two", seed=2, resume=True).close()
    assert record(1, after=1) == 1
    run = rs.runs.open(tmp_path / "run")
    assert run.rounds == [1, 2]
    assert run.metadata["continued"][-1]["replaced_rounds"] == [2, 3]
    assert run.metadata["continued"][-1]["changed"] == {}
    assert main(["check", str(tmp_path / "run")]) == 0
    with pytest.raises(rs.RollsightError, match="env 'CartPole-v1', this one's is 'Other-v0'"):
        rs.runs.Recorder(tmp_path / "run", env="Other-v0", resume=True)
    with pytest.raises(rs.RollsightError, match="could be resumed after round 3"):
        rs.runs.Recorder(tmp_path / "none", resume=True, after=3)


def test_evaluations_are_those_of_any_host(tmp_path):
    _, records, _ = policy_and_records()
    with rs.runs.Recorder(tmp_path / "run") as recorder:
        recorder.evaluation([1.0, 2.0], [10, 20], round=0)
        recorder.evaluation(torch.tensor([3.0, 6.0]), [30, 60], columns={"prompt": ["a", "b"], "kl": torch.ones(2)})
        recorder.round(records)
        recorder.round(records)
        with pytest.warns(UserWarning, match="written already"):
            recorder.evaluation([1.0], [1], round=1)
    run = rs.runs.open(tmp_path / "run")
    rows = run.rows("evaluations")
    assert rows["round"].to_pylist() == [0, 0, 1, 1]
    assert rows["return"].to_pylist() == [1.0, 2.0, 3.0, 6.0]
    assert rows["length"].to_pylist() == [10, 20, 30, 60]
    assert run.rows("rounds", ["evaluation_return"])["evaluation_return"].to_pylist() == [4.5, None]


def test_mistakes_before_the_first_round_are_said(tmp_path):
    rs.runs.Recorder(tmp_path / "run").close()
    with pytest.raises(rs.RollsightError, match="exists already"):
        rs.runs.Recorder(tmp_path / "run")
    with pytest.raises(rs.RollsightError, match="'versions' is written by the run folder itself"):
        rs.runs.Recorder(tmp_path / "other", versions=1)
    with pytest.raises(rs.RollsightError, match="give its name"):
        rs.runs.Recorder(tmp_path / "other", env=3)


def test_an_environment_says_how_it_was_made(tmp_path):
    def make():
        return gym.wrappers.NormalizeObservation(gym.make("FrozenLake-v1", is_slippery=False))

    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.vector.SyncVectorEnv([make] * 2))
    rs.runs.Recorder(tmp_path / "run", envs).close()
    metadata = rs.runs.open(tmp_path / "run").metadata
    assert metadata["env"] == "FrozenLake-v1"
    assert metadata["env_kwargs"]["is_slippery"] is False
    assert (metadata["max_episode_steps"], metadata["n_envs"]) == (100, 2)
    assert metadata["env_wrappers"] == ["NormalizeObservation"]


def test_commands_read_it(tmp_path, capsys):
    policy, records, _ = policy_and_records(dictionary=True)
    scores, selection = scored(policy, records)
    for name in ("a", "b"):
        with rs.runs.Recorder(tmp_path / name, algo="ppo", seed=1, arm=name) as recorder:
            for _ in range(3):
                recorder.round(records, scores, selection, grid(*[[1, 0]] * STEPS))
    for command in (["top"], ["top", "--bottom", "--full"], ["sql"], ["check"]):
        query = ["select * from rounds"] if command == ["sql"] else []
        assert main([command[0], str(tmp_path / "a"), *query, *command[1:]]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "obs.x" in capsys.readouterr().out
