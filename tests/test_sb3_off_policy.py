"""DQN, SAC and TD3 watched: the same bits, the right transitions, the host's own loss, and what a run holds of it."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch
from off_policy_zoo import ALGORITHMS, Labelled, fingerprint, labelled, make_model, toy
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.nn import functional as F
from zoo import relative_error

import rollsight as rs
from rollsight.adapters.sb3_off_policy import ReplayInfluenceCallback, WeightedReplayBuffer
from rollsight.adapters.sb3_off_policy import callback as callback_module
from rollsight.adapters.sb3_off_policy.actors import actor_problem
from rollsight.adapters.sb3_off_policy.critics import Critic, critic_of
from rollsight.adapters.sb3_off_policy.held_out import play
from rollsight.adapters.sb3_off_policy.transitions import Transitions
from rollsight.cli import main
from rollsight.environments.trained import TrainedEnvironment
from rollsight.errors import OptionError, RollsightError
from rollsight.explorer import Reading
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pages import PAGES
from rollsight.selection import RankWeights, Selection

CASES = {
    "DQN": {},
    "DQN, four environments": {"n_envs": 4},
    "DQN, normalised": {"n_envs": 2, "normalize": True},
    "DQN, dictionary": {"obs": "dict"},
    "DQN, shared memory": {
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    },
    "SAC, two environments": {"n_envs": 2, "ent_coef": 0.1},
    "TD3": {"n_envs": 2},
    "DDPG": {},
}


def watching(algo, **options):
    obs = options.pop("obs", "box")
    return ReplayInfluenceCallback(**{"every": 8, "episodes": 3, "make_env": partial(toy, algo, obs), **options})


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_hosts_to_the_bit(case, tmp_path):
    algo, settings = case.split(",")[0], CASES[case]
    plain = make_model(algo, **settings).learn(110)
    seen = watching(algo, obs=settings.get("obs", "box"), run=tmp_path / "run", target=["calibration", "bellman"])
    watched = make_model(algo, **settings).learn(110, callback=seen)
    assert fingerprint(watched) == fingerprint(plain)
    run = rs.runs.open(tmp_path / "run")
    assert len(run.rounds) >= 2
    assert run.targets(run.rounds[-1]) == ["calibration", "bellman"]
    assert run.rows("rounds", ["warnings"])["warnings"].null_count == len(run.rounds)


def test_every_transition_keeps_its_identity_while_the_buffer_wraps_around(tmp_path):
    model = make_model(env=labelled(3))
    rounds = []

    def compare(finished):
        records = seen.replay.records
        rounds.append(len(records))
        number, steps, _ = records.obs.T
        assert records.ids["env"].tolist() == number.tolist()
        assert records.ids["step"].tolist() == steps.tolist()
        lengths = 5 + number.long()
        place = records.ids["step"] % lengths
        # Episodes of one environment are different numbers, in their order; no two environments share one.
        own = {}
        for env, step, length, episode in zip(
            *(x.tolist() for x in (number, steps, lengths, records.ids["episode"])), strict=True
        ):
            own.setdefault(episode, set()).add((env, int(step) // length))
        assert all(len(one) == 1 for one in own.values())
        assert len(own) == len(set.union(*own.values()))
        assert torch.equal(records.returns == 1.0, torch.from_numpy(seen.replay.terminated))
        assert torch.equal(torch.from_numpy(seen.replay.terminated), place == lengths - 1)
        assert seen.replay.age.min() == 0

    seen = ReplayInfluenceCallback(every=4, episodes=2, make_env=Labelled, on_round=compare, run=tmp_path / "run")
    model.learn(240, callback=seen)
    assert rounds[0] < 60
    assert rounds[-1] == 60
    run = rs.runs.open(tmp_path / "run")
    told = run.rows("rounds", ["warnings", "episodes", "return_mean", "episode_length_mean"]).to_pylist()
    assert [row["warnings"] for row in told] == [None] * len(told)
    assert 5 <= told[0]["return_mean"] == told[0]["episode_length_mean"] <= 7
    last = run.records(run.rounds[-1]).to_pydict()
    returns = {(env, ended) for env, ended in zip(last["env"], last["episode_return"], strict=True) if ended}
    assert returns == {(0, 5.0), (1, 6.0), (2, 7.0)}
    assert last["obs"][0][1] == last["step"][0]


def test_transitions_that_others_stored_have_no_identity(tmp_path):
    model = make_model(env=labelled(1))
    model.learn(40)
    seen = ReplayInfluenceCallback(every=10, episodes=2, make_env=Labelled, run=tmp_path / "run")
    model.learn(40, callback=seen, reset_num_timesteps=False)
    last = rs.runs.open(tmp_path / "run").records(seen.round).to_pydict()
    followed = [step is not None for step in last["step"]]
    PAGES["round"].layout(Context(Reading([tmp_path])), Address("round", "run", seen.round))
    assert 0 < sum(followed) < len(followed)
    assert all(step is None or step == obs[1] for step, obs in zip(last["step"], last["obs"], strict=True))


def test_a_step_that_a_callback_stopped_at_has_no_transition():
    def stops(_locals, _globals):
        return model.num_timesteps < 100

    model = make_model(env=labelled(1))
    seen = ReplayInfluenceCallback(every=10, episodes=2, make_env=Labelled)
    model.learn(200, callback=[seen, ConvertCallback(stops)])
    assert model.num_timesteps == 100
    ids, obs = seen.replay.records.ids, seen.replay.records.obs
    known = ids["step"] >= 0
    assert int(known.sum()) == len(known) - 1 == 59
    assert torch.equal(ids["step"][known], obs[known, 1].long())


class Normalizing(BaseFeaturesExtractor):
    """A layer that evaluation leaves as it is, and training does not."""

    def __init__(self, space):
        super().__init__(space, space.shape[0])
        self.norm = torch.nn.BatchNorm1d(space.shape[0])

    def forward(self, obs):
        return self.norm(obs)


def test_running_statistics_of_the_networks_are_the_hosts():
    def model():
        return make_model(policy_kwargs={"net_arch": [8], "features_extractor_class": Normalizing})

    rounds = []
    plain, watched = model().learn(110), model().learn(110, callback=watching("DQN", on_round=rounds.append))
    assert [one["warnings"] for one in rounds] == [None] * len(rounds)
    assert all(one["scored"] for one in rounds)
    expected = plain.policy.state_dict()
    assert all(torch.equal(column, expected[name]) for name, column in watched.policy.state_dict().items())
    assert [part.training for part in watched.policy.modules()] == [part.training for part in plain.policy.modules()]


def by_hand(model, records, held):
    """The host's own loss of each transition, one autograd each, along the gradient of the calibration."""
    dqn = isinstance(model, ALGORITHMS["DQN"])
    module = model.q_net if dqn else model.critic
    parameters = list(module.parameters())

    def q_of(data, i):
        obs, action = data.obs[i : i + 1], data.actions[i : i + 1]
        return [module(obs).gather(1, action[:, None])] if dqn else module(obs, action)

    def flat(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    means = [sum((q - held.returns[i]) ** 2 for q in qs) / len(qs) for i in range(len(held)) for qs in [q_of(held, i)]]
    direction = flat(-sum(means).sum() / 2 / len(held))
    scores = []
    for i in range(len(records)):
        y = records.returns[i].reshape(1, 1)
        if dqn:
            loss = F.smooth_l1_loss(q_of(records, i)[0], y)
        else:
            loss = (0.5 if isinstance(model, ALGORITHMS["SAC"]) else 1.0) * sum(
                F.mse_loss(q, y) for q in q_of(records, i)
            )
        scores.append(-flat(loss) @ direction)
    return torch.stack(scores)


@pytest.mark.parametrize("case", ["DQN", "SAC", "TD3"])
def test_scores_are_the_hosts_gradients(case):
    model, compared = make_model(case), []

    def compare(finished):
        expected = by_hand(model, seen.replay.records, seen.held_out.records)
        assert finished["backend"] == "layerwise"
        compared.append(relative_error(seen.scores["calibration"].values, expected))
        if case == "DQN":
            buffer = model.replay_buffer
            size = buffer.buffer_size if buffer.full else buffer.pos
            with torch.no_grad():
                following = model.q_net_target(torch.from_numpy(buffer.next_observations[:size, 0])).max(1).values
            ends = torch.from_numpy((buffer.dones * (1 - buffer.timeouts))[:size, 0])
            y = torch.from_numpy(buffer.rewards[:size, 0]) + (1 - ends) * 0.9 * following
            assert torch.allclose(seen.replay.records.returns, y, atol=1e-6)

    seen = watching(case, on_round=compare)
    model.learn(100, callback=seen)
    assert len(compared) >= 2
    assert max(compared) < 2e-5


def of_critic(act, next_value=0.0):
    """A critic that values everything 0, with a policy of its own."""
    module = torch.nn.Linear(1, 1)
    policy = rs.Policy(module, lambda m, obs, actions: rs.Evaluation.of_critics(m(0 * actions.float()[:, None])))
    return Critic(policy, rs.objectives.TD(), lambda obs: torch.full((1,), next_value), act)


@pytest.mark.parametrize(("limit", "lowered"), [(None, 0.0), (3, 0.0), (3, 0.25)])
def test_monte_carlo_returns_by_numbers(limit, lowered):
    """Episodes of 5 steps that pay 1 each, cut off after 3 where there is a limit; the state there is worth 8."""

    def one():
        return Labelled() if limit is None else gym.wrappers.TimeLimit(Labelled(), limit)

    model = make_model(env=DummyVecEnv([one]))
    made = TrainedEnvironment("labelled", None, make=callback_module.held_out.CloudpickleWrapper(one))
    critic = of_critic(lambda obs: (torch.zeros(len(obs), dtype=torch.long), torch.full((len(obs),), lowered)), 8.0)
    held = play(model, critic, made, 2, (0, 1))
    steps = limit or 5
    expected, following = [], 0.0 if limit is None else 8.0
    for place in reversed(range(steps)):
        # What acting costs is paid from the second action on: that of (s, a) itself is given.
        expected.insert(0, 1 + 0.9 * (following if place == steps - 1 else expected[0] - lowered))
    assert held.records.returns.tolist() == pytest.approx(2 * expected)
    assert held.returns.tolist() == [steps, steps]
    assert held.lengths.tolist() == [steps, steps]
    assert held.records.ids["episode"].tolist() == [0] * steps + [1] * steps
    weights = [0.0 if limit is None else 0.9**k for k in range(1, steps + 1)]
    assert held.bootstrapped == pytest.approx(np.mean(weights))
    again = play(model, critic, made, 2, (0, 1))
    assert torch.equal(again.records.returns, held.records.returns)


def test_soft_values_are_held_against_returns_with_entropy():
    model = make_model("SAC", ent_coef=0.5)
    critic = critic_of(model)
    obs = torch.zeros(3, 3)
    torch.manual_seed(0)
    actions, lowered = critic.act(obs)
    torch.manual_seed(0)
    again, log_prob = model.actor.action_log_prob(obs)
    assert torch.equal(actions, again)
    assert torch.equal(lowered, 0.5 * log_prob)
    torch.manual_seed(0)
    expected = torch.min(*model.critic_target(obs, actions)).flatten() - 0.5 * log_prob
    torch.manual_seed(0)
    assert torch.allclose(critic.next_values(obs), expected)


def test_the_actors_scores_are_the_gradients_of_the_hosts_loss():
    model, compared = make_model("SAC", n_envs=2), []

    def compare(finished):
        actor = actor_problem(model, seen.critic, seen.replay, seen.held_out, (7, seen.round))
        parameters = list(model.actor.parameters())

        def flat(value):
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

        held = actor.held_out
        log_prob = actor.policy.evaluate(model.actor, held.obs, held.actions).log_prob
        direction = flat((log_prob * held.advantages).mean())
        expected = []
        for i in range(len(seen.replay.records)):
            obs, noise = seen.replay.records.obs[i : i + 1], actor.records.obs["noise"][i : i + 1]
            mean, log_std, _ = model.actor.get_action_dist_params(obs)
            gaussian = mean + log_std.exp() * noise
            density = torch.distributions.Normal(mean, log_std.exp()).log_prob(gaussian).sum(1)
            density = density - torch.log(1 - torch.tanh(gaussian) ** 2 + 1e-6).sum(1)
            q = torch.min(*model.critic(obs, torch.tanh(gaussian))).flatten()
            expected.append(-flat((model.log_ent_coef.exp().detach() * density - q).mean()) @ direction)
        compared.append(relative_error(seen.scores["improvement"].values, torch.stack(expected)))
        assert seen.scores["improvement"].backend == "layerwise"

    seen = watching("SAC", target=["improvement", "calibration"], on_round=compare)
    model.learn(70, callback=seen)
    assert len(compared) >= 2
    assert max(compared) < 1e-4
    with pytest.raises(OptionError, match="target='improvement' needs the actor of SAC without gSDE"):
        make_model("TD3").learn(20, callback=watching("TD3", target="improvement"))


# --- drawing by weight


def test_a_buffer_that_weighs_nothing_draws_as_the_hosts():
    plain = make_model(n_envs=2).learn(150)
    weighing = make_model(n_envs=2, replay_buffer_class=WeightedReplayBuffer).learn(150)
    assert fingerprint(weighing) == fingerprint(plain)


@pytest.mark.parametrize(("filled", "later"), [(30, 0), (30, 7), (30, 25), (53, 0), (53, 9), (53, 100)])
def test_transitions_are_drawn_in_proportion_to_their_weights(filled, later):
    """20 positions of 2 environments: before and after the buffer wraps around, and with some stored since."""
    model = make_model(env=labelled(2), buffer_size=40, replay_buffer_class=WeightedReplayBuffer)
    buffer, stored = model.replay_buffer, iter(range(10**6))

    def add():
        value = next(stored)
        obs = np.array([[env, value, 0.0] for env in (0, 1)])
        buffer.add(obs, obs, np.zeros((2, 1)), np.zeros(2), np.zeros(2), [{}, {}])

    for _ in range(filled):
        add()
    held = buffer.size() * 2
    weights = np.random.default_rng(0).random(held) * (np.arange(held) % 3 > 0)
    buffer.weigh(weights)
    expected = {
        (env, int(buffer.observations[position, env, 1])): weights[2 * position + env] / weights.mean()
        for position in range(buffer.size())
        for env in (0, 1)
    }
    for _ in range(later):
        add()
        expected |= {(env, filled + _): 1.0 for env in (0, 1)}
    alive = {(int(o[0]), int(o[1])) for position in buffer.observations[: buffer.size()] for o in position}
    expected = {which: weight for which, weight in expected.items() if which in alive}
    assert len(expected) == buffer.size() * 2
    np.random.seed(1)
    drawn = buffer.sample(40_000).observations.numpy()
    found = dict.fromkeys(expected, 0)
    for env, value, _ in drawn:
        found[int(env), int(value)] += 1
    total = sum(expected.values())
    for which, weight in expected.items():
        share = weight / total
        assert abs(found[which] / 40_000 - share) <= 5 * np.sqrt(share / 40_000) + 1e-12, which


def test_a_rule_decides_how_often_transitions_are_drawn(tmp_path):
    model = make_model(replay_buffer_class=WeightedReplayBuffer)
    seen = watching("DQN", selection=RankWeights(1.0), run=tmp_path / "run")
    model.learn(100, callback=seen)
    run = rs.runs.open(tmp_path / "run")
    last = run.records(run.rounds[-1]).to_pydict()
    order = np.argsort(last["score_calibration"])[::-1]
    weights = np.array(last["weight"])[order]
    assert weights == pytest.approx(weights[0] / np.arange(1, len(weights) + 1))
    assert weights.mean() == pytest.approx(1)
    assert all(last["kept"])
    assert fingerprint(model)["parameters"] != fingerprint(make_model().learn(100))["parameters"]


def test_where_a_rule_fails_draws_are_the_hosts():
    def first_alone(scores):
        if seen.round > 1:
            raise ValueError("no idea")
        weights = torch.zeros(len(scores))
        weights[0] = 1
        return Selection(weights, torch.arange(1, len(scores)), 0, 0)

    model = make_model(env=labelled(1), replay_buffer_class=WeightedReplayBuffer)
    seen = ReplayInfluenceCallback(every=10, episodes=2, make_env=Labelled, selection=first_alone)
    with pytest.warns(UserWarning, match=r"round 2: no weights \(ValueError: no idea\)"):
        model.learn(60, callback=seen)
    assert seen.selection is None
    np.random.seed(0)
    assert len(np.unique(model.replay_buffer.sample(2_000).observations[:, 1])) == model.replay_buffer.size()


@pytest.mark.parametrize(
    ("weights", "told"), [([1.0], "weights has shape"), (-1.0, "at least 0"), (0.0, "not all 0"), (np.nan, "finite")]
)
def test_weights_that_do_not_fit_are_refused(weights, told):
    model = make_model(replay_buffer_class=WeightedReplayBuffer).learn(30)
    given = np.full(30, weights) if np.isscalar(weights) else np.array(weights)
    with pytest.raises(RollsightError, match=told):
        model.replay_buffer.weigh(given)


# --- the run folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "run"
    seen = watching("DQN", run=path, target=["calibration", "bellman"])
    model = make_model(n_envs=2)
    model.learn(120, callback=seen)
    return path


def test_the_command_line_shows_it(run, capsys):
    assert main(["top", str(run), "--bottom"]) == 0
    assert "target calibration" in capsys.readouterr().out
    assert main(["check", str(run)]) == 0
    query = "select count(*) as n, avg(abs(td_error)) as e, max(age) as a from records where score_calibration < 0"
    assert main(["sql", str(run), query]) == 0
    rows = rs.runs.open(run).sql("select round, value_bias, value_rmse, trust_split_half from rounds").fetchall()
    assert all(np.isfinite(row).all() and row[2] >= abs(row[1]) for row in rows)


def test_the_explorer_shows_it(run):
    context = Context(Reading([run.parent]))
    last = rs.runs.open(run).rounds[-1]
    shown = {
        page: str(PAGES[page].layout(context, Address(page, "run", last, *place)))
        for page, place in (("overview", ()), ("round", ()), ("record", (3,)), ("trust", ()))
    }
    assert "Score against TD error" in shown["round"]
    assert "TD error" in shown["record"]
    assert "held-out episodes" in shown["trust"]


def test_a_model_goes_on_in_its_run(tmp_path):
    path = tmp_path / "run"
    model = make_model().learn(80, callback=watching("DQN", run=path))
    before = rs.runs.open(path).rounds
    model.learn(60, callback=watching("DQN", run=path), reset_num_timesteps=False)
    run = rs.runs.open(path)
    assert run.rounds == list(range(1, len(run.rounds) + 1))
    assert len(run.rounds) > len(before)
    with pytest.raises(OptionError, match=r"the run .* exists already"):
        make_model().learn(40, callback=watching("DQN", run=path))
    other = make_model(seed=8).learn(40)
    with pytest.raises(OptionError, match=r"another model's \(seed 7, this one's is 8\)"):
        other.learn(40, callback=watching("DQN", run=path), reset_num_timesteps=False)


def test_a_model_of_an_earlier_round_replaces_the_later_ones(tmp_path):
    path = tmp_path / "run"
    model = make_model().learn(60, callback=watching("DQN", run=path))
    model.save(tmp_path / "earlier")
    done = rs.runs.open(path).rounds
    model.learn(60, callback=watching("DQN", run=path), reset_num_timesteps=False)
    later = rs.runs.open(path).rounds[len(done) :]
    earlier = type(model).load(tmp_path / "earlier", env=model.get_env(), learning_rate=0.02)
    seen = watching("DQN", run=path)
    with pytest.warns(UserWarning, match="are replaced") as warned:
        earlier.learn(60, callback=seen, reset_num_timesteps=False)
    told = [str(one.message) for one in warned]
    assert any(f"rounds {rs.runs.spell(later)} of {path} are replaced" in one for one in told)
    assert any("is continued with another learning_rate than it began with" in one for one in told)
    run = rs.runs.open(path)
    assert run.rounds == list(range(1, seen.round + 1))
    assert run.metadata["continued"][-1]["changed"]["learning_rate"] == {"was": 0.01, "is": 0.02}
    steps = run.rows("rounds", ["timesteps"])["timesteps"].to_pylist()
    assert steps == sorted(steps)


# --- what is refused, and what is not allowed to stop training


def test_what_does_not_fit_is_refused_before_training():
    with pytest.raises(RollsightError, match=r"needs an algorithm with a replay buffer .*not PPO"):
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).learn(8, callback=ReplayInfluenceCallback())
    with pytest.raises(OptionError, match="every=0 is not possible"):
        ReplayInfluenceCallback(every=0)
    with pytest.raises(OptionError, match=r"target='return' is unknown: give 'calibration', 'bellman', 'improvement'"):
        ReplayInfluenceCallback(target="return")
    with pytest.raises(OptionError, match="needs a buffer that draws by weight"):
        make_model().learn(20, callback=watching("DQN", selection=RankWeights()))
    with pytest.raises(OptionError, match=r"this one cannot be made again .*make_env"):
        make_model().learn(20, callback=ReplayInfluenceCallback())
    with pytest.raises(RollsightError, match="stores arrays, and these observations are dictionaries"):
        make_model(obs="dict", replay_buffer_class=WeightedReplayBuffer)
    with pytest.raises(RollsightError, match="leave out optimize_memory_usage=True"):
        make_model(replay_buffer_class=WeightedReplayBuffer, **CASES["DQN, shared memory"])
    with pytest.raises(RollsightError, match="NStepReplayBuffer makes others of them"):
        make_model(n_steps=3).learn(20, callback=watching("DQN"))

    class Own(ALGORITHMS["DQN"]):
        def train(self, gradient_steps, batch_size=100):
            pass

    own = Own("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(RollsightError, match="knows the updates of DQN, SAC, TD3 and DDPG, and Own has another"):
        own.learn(20, callback=ReplayInfluenceCallback())


@pytest.mark.parametrize("part", ["play", "translate", "round_columns", "add"])
def test_watching_never_stops_training(part, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise OSError("no space left")

    place = {"play": callback_module.held_out, "add": Transitions}.get(part, callback_module)
    monkeypatch.setattr(place, part, broken)
    plain = make_model().learn(100)
    with pytest.warns(UserWarning, match="no space left"):
        watched = make_model().learn(100, callback=watching("DQN", run=tmp_path / "run"))
    assert fingerprint(watched) == fingerprint(plain)
    run = rs.runs.open(tmp_path / "run")
    assert all("no space left" in text for text in run.rows("rounds", ["warnings"])["warnings"].to_pylist())
