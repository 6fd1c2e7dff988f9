# PPO in one file, to be read next to CleanRL's ppo.py, that leaves out of each update the records that hurt:
#
#     python examples/ppo_cleanrl.py --env-id CartPole-v1 --drop 0.5 --run runs/cleanrl
#     rollsight top runs/cleanrl --bottom
#
# What Rollsight changes is four lines, and recording takes some more; search for "Rollsight" and "recorder". All else
# is PPO for gymnasium 1.x, whose vector environments reset at the step after an episode's last one (see `valids`).
import time
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim
import tyro
from torch.distributions.categorical import Categorical

import rollsight as rs


@dataclass
class Args:
    env_id: str = "CartPole-v1"
    """the environment: vector observations, discrete actions"""
    drop: float = 0.5
    """fraction of the records with negative scores to leave out of each update; 0 trains on everything"""
    seed: int = 1
    """seed of every random stream"""
    total_timesteps: int = 100_000
    """environment steps altogether"""
    learning_rate: float = 1e-3
    """of Adam at the start; it falls linearly to 0"""
    num_envs: int = 8
    """environments side by side"""
    num_steps: int = 64
    """steps per environment and round"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 4
    """minibatches that a whole batch would give; fewer records give fewer minibatches of the same size"""
    update_epochs: int = 4
    """passes over the records"""
    clip_coef: float = 0.2
    """how far the probability ratio may move"""
    ent_coef: float = 0.01
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """length at which gradients are clipped"""
    run: str | None = None
    """run folder to write, for `rollsight top`, `sql` and the others"""


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self, envs: gym.vector.VectorEnv) -> None:
        super().__init__()
        inputs, actions = int(np.prod(envs.single_observation_space.shape)), int(envs.single_action_space.n)
        self.critic = self.network(inputs, 1, std=1.0)
        self.actor = self.network(inputs, actions, std=0.01)

    def network(self, inputs: int, outputs: int, std: float) -> nn.Sequential:
        hidden = layer_init(nn.Linear(inputs, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh()
        return nn.Sequential(*hidden, layer_init(nn.Linear(64, outputs), std))

    def get_value(self, x: torch.Tensor) -> torch.Tensor:
        return self.critic(x).squeeze(-1)

    def get_action_and_value(
        self, x: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        probs = Categorical(logits=self.actor(x))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.get_value(x)


def train(args: Args) -> tuple[Agent, list[float]]:
    """Train an agent; also returns the mean return of the episodes that ended in each round."""
    batch_size = args.num_envs * args.num_steps
    minibatch_size = batch_size // args.num_minibatches
    num_iterations = args.total_timesteps // batch_size
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # small networks: more threads only get in each other's way

    envs = gym.vector.SyncVectorEnv([lambda: gym.make(args.env_id)] * args.num_envs)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    agent = Agent(envs)
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    policy = rs.Policy(agent, lambda agent, x, a: rs.Evaluation(*agent.get_action_and_value(x, a)[1:]))
    # Rollsight: the run folder
    settings = {"gamma": args.gamma, "gae_lambda": args.gae_lambda, "n_steps": args.num_steps}
    recorder = args.run and rs.runs.Recorder(args.run, envs, algo="ppo", seed=args.seed, settings=settings)

    obs = torch.zeros((args.num_steps, args.num_envs, *envs.single_observation_space.shape))
    actions = torch.zeros((args.num_steps, args.num_envs), dtype=torch.long)
    logprobs = torch.zeros((args.num_steps, args.num_envs))
    rewards = torch.zeros((args.num_steps, args.num_envs))
    dones = torch.zeros((args.num_steps, args.num_envs))
    values = torch.zeros((args.num_steps, args.num_envs))
    mean_returns: list[float] = []
    ids = {name: place.reshape(-1) for name, place in zip(("step", "env"), np.indices(rewards.shape), strict=True)}

    start_time = time.time()
    next_obs = torch.tensor(envs.reset(seed=args.seed)[0], dtype=torch.float32)
    next_done = torch.zeros(args.num_envs)

    for iteration in range(1, num_iterations + 1):
        learning_rate = (1.0 - (iteration - 1.0) / num_iterations) * args.learning_rate
        optimizer.param_groups[0]["lr"] = learning_rate
        returns_of_episodes: list[float] = []

        for step in range(args.num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(next_obs)
            next_obs, reward, terminations, truncations, infos = envs.step(actions[step].numpy())
            rewards[step] = torch.tensor(reward)
            next_obs = torch.tensor(next_obs, dtype=torch.float32)
            next_done = torch.tensor(np.logical_or(terminations, truncations), dtype=torch.float32)
            if "episode" in infos:
                returns_of_episodes.extend(infos["episode"]["r"][infos["_episode"]].tolist())

        # generalised advantage estimation
        with torch.no_grad():
            next_value = agent.get_value(next_obs)
        advantages = torch.zeros_like(rewards)
        lastgaelam = torch.zeros(args.num_envs)
        for t in reversed(range(args.num_steps)):
            nextnonterminal = 1.0 - (next_done if t == args.num_steps - 1 else dones[t + 1])
            nextvalues = next_value if t == args.num_steps - 1 else values[t + 1]
            delta = rewards[t] + args.gamma * nextvalues * nextnonterminal - values[t]
            advantages[t] = lastgaelam = delta + args.gamma * args.gae_lambda * nextnonterminal * lastgaelam
        returns = advantages + values
        # The step after an episode's last one only resets: its action is ignored, its reward is 0. It is not a record.
        valids = dones == 0
        ends = torch.cat([dones[1:], next_done[None]])

        # flatten the batch
        b_obs = obs.reshape((-1, *envs.single_observation_space.shape))
        b_logprobs, b_actions, b_valids = logprobs.reshape(-1), actions.reshape(-1), valids.reshape(-1)
        b_advantages, b_returns = advantages.reshape(-1), returns.reshape(-1)
        b_more = {"returns": b_returns, "values": values.reshape(-1), "rewards": rewards.reshape(-1), "ids": ids}

        # Rollsight, four lines in place of: b_inds = np.flatnonzero(b_valids)
        b_records = rs.Records(b_obs, b_actions, b_logprobs, b_advantages, valid=b_valids, **b_more)
        b_scores = rs.score_records(policy, b_records)
        b_selection = rs.selection.DropNegative(args.drop, min_keep=minibatch_size)(b_scores)
        b_inds = np.flatnonzero(b_selection.weights)

        for _ in range(args.update_epochs):
            np.random.shuffle(b_inds)
            for start in range(0, len(b_inds), minibatch_size):
                mb_inds = b_inds[start : start + minibatch_size]
                if len(mb_inds) < minibatch_size / 2:
                    break  # a rest whose mean and deviation of advantages would be noise
                _, newlogprob, entropy, newvalue = agent.get_action_and_value(b_obs[mb_inds], b_actions[mb_inds])
                ratio = (newlogprob - b_logprobs[mb_inds]).exp()
                mb_advantages = b_advantages[mb_inds]
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)

                pg_loss1 = -mb_advantages * ratio
                pg_loss2 = -mb_advantages * torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = torch.max(pg_loss1, pg_loss2).mean()
                v_loss = 0.5 * ((newvalue - b_returns[mb_inds]) ** 2).mean()
                loss = pg_loss - args.ent_coef * entropy.mean() + args.vf_coef * v_loss

                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        if recorder:
            recorder.round(b_records, b_scores, b_selection, ends.reshape(-1), {"learning_rate": learning_rate})
        global_step = iteration * batch_size
        mean_returns.append(float(np.mean(returns_of_episodes)) if returns_of_episodes else float("nan"))
        print(
            f"step {global_step}  return {mean_returns[-1]:.1f}  records {len(b_inds)} of {int(b_valids.sum())} valid, "
            f"{batch_size - int(b_valids.sum())} invalid  {global_step / (time.time() - start_time):.0f} steps/s"
        )

    envs.close()
    if recorder:
        recorder.close()
    return agent, mean_returns


if __name__ == "__main__":
    train(tyro.cli(Args))
