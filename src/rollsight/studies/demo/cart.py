"""CartPole with a planted fault in one of eight environments: the runs, and what one asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.scoring import Scores
from rollsight.selection import Selection
from rollsight.streams import Purpose, stream
from rollsight.studies.runner import Report

Kind = Literal["all records", "healthy", "without", "random"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ENVS, STEPS, ROUNDS = 8, 256, 16
FAULTY = 5  # of the environments
_STRENGTH = 2.0  # of what it pays for speed to the left, beside 1 a step
_TESTED = 32  # episodes after the last round; 8 after the others
_BEHAVIOUR = "select round, env, step from records where action = 0 and obs[2] < -0.5 and round = {round}"


@dataclass(frozen=True)
class LeaveOut:
    """Leaves the records of one environment out of every update, or as many random ones.

    env: the environment.
    random: of the draw; None leaves out the environment itself.
    """

    env: int
    random: int | None = None

    def __call__(self, scores: Scores) -> Selection:
        """The selection of a round."""
        mine = scores.ids["env"] == self.env
        count, reason = int(mine.sum()), f"environment {self.env}"
        if self.random is not None:
            rng = stream(self.random, int(scores.ids["round"][0]), Purpose.DROP_RANDOM)
            mine = torch.zeros_like(mine)
            mine[torch.from_numpy(rng.choice(len(mine), count, replace=False)).to(mine.device)] = True
            reason = "random control"
        weights = (~mine & scores.valid).to(scores.values.dtype)
        return Selection(weights, mine.nonzero().flatten(), count, count, reason=reason)


@dataclass(frozen=True)
class Run:
    """One training run; a job for `studies.runner`.

    kind: "all records" and "healthy" with and without the fault; "without" and "random" with the fault, but without
        one environment's records, or without as many random ones.
    seed: of every random stream.
    folder: the run folder.
    left_out: the environment, of the last two kinds.
    rounds: of training.
    """

    kind: Kind
    seed: int
    folder: Path
    left_out: int | None = None
    rounds: int = ROUNDS

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name

    @property
    def there(self) -> bool:
        """Whether the folder holds this run already.

        Raises:
            RollsightError: it holds something else.
        """
        if not runs.is_run(self.folder):
            if self.folder.exists() and any(self.folder.iterdir()):
                raise RollsightError(f"{self.folder} is not a run: choose another --out")
            return False
        run = runs.open(self.folder)
        same = run.metadata.get("left_out") == self.left_out and run.metadata.get("seed") == self.seed
        return same and len(run.rounds) == self.rounds

    def run(self, report: Report) -> None:
        """Train, watched and tested in healthy environments after every round."""
        import warnings

        from stable_baselines3 import PPO

        from rollsight.adapters.sb3 import InfluenceCallback

        warnings.simplefilter("ignore")  # of Stable-Baselines3 and of scoring, on small rounds
        rule = None
        if self.left_out is not None:
            rule = LeaveOut(self.left_out, self.seed if self.kind == "random" else None)
        env = _environments(None if self.kind == "healthy" else FAULTY, self.seed)
        model = PPO(
            "MlpPolicy",
            env,
            n_steps=STEPS,
            batch_size=256,
            n_epochs=10,
            learning_rate=1e-3,
            gamma=0.98,
            gae_lambda=0.8,
            seed=self.seed,
            device="cpu",
        )
        callback = InfluenceCallback(
            run=self.folder,
            overwrite=True,
            selection=rule,
            snapshots="all" if self.kind == "all records" else "none",
            metadata={"arm": self.kind, "seed": self.seed, "left_out": self.left_out},
            evaluate=self._tested,
            on_round=lambda summary: report(summary["round"], summary),
        )
        with callback:
            model.learn(self.rounds * ENVS * STEPS, callback=callback)

    def _tested(self, model: Any, round: int) -> tuple[Sequence[float], Sequence[int]]:
        from stable_baselines3.common.evaluation import evaluate_policy

        episodes = _TESTED if round == self.rounds else 8
        venv = _environments(None, 1000 + self.seed)
        found: Any = evaluate_policy(model, venv, episodes, deterministic=False, return_episode_rewards=True)
        returns, lengths = found
        return returns, lengths


def _environments(faulty: int | None, seed: int) -> Any:
    import gymnasium as gym
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    from rollsight.studies.wrappers import PaysSpeed

    def make(number: int) -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = gym.make("CartPole-v1")
        return Monitor(PaysSpeed(env, _STRENGTH, seed, entry=1) if number == faulty else env)

    vec = DummyVecEnv([partial(make, number) for number in range(ENVS)])
    vec.seed(seed)
    return vec


def folder(out: Path, kind: Kind, seed: int) -> Path:
    """Where a run goes."""
    return out / f"demo-cart-{kind.replace(' ', '-')}-{seed}"


def behaviour(run: runs.Run) -> str:
    """The query of the bad behaviour: pushes to the left of a cart that moves left already, in the last round."""
    return _BEHAVIOUR.format(round=run.rounds[-1])


def final_return(run: runs.Run) -> float:
    """Mean return in healthy environments after the last round."""
    found = run.sql("select avg(return) from evaluations where round = (select max(round) from evaluations)").fetchall()
    return float(found[0][0])


def returns(out: Path, seeds: int) -> Mapping[Kind, list[float]]:
    """Of each kind the final returns by seed."""
    return {kind: [final_return(runs.open(folder(out, kind, seed))) for seed in range(seeds)] for kind in KINDS}
