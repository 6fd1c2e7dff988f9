"""Stable-Baselines3's DQN, SAC and TD3: `model.learn(..., callback=ReplayInfluenceCallback(run="runs/cart"))`."""

from rollsight.errors import MissingExtra

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise MissingExtra("rollsight.adapters.sb3_off_policy", "stable-baselines3", "sb3") from error

from rollsight.adapters.sb3_off_policy.callback import ReplayInfluenceCallback
from rollsight.adapters.sb3_off_policy.weighted_buffer import WeightedReplayBuffer

__all__ = ["ReplayInfluenceCallback", "WeightedReplayBuffer"]
