"""Stable-Baselines3: `model.learn(..., callback=InfluenceCallback(drop=0.5, run="runs/lake"))`."""

from rollsight.errors import MissingExtra

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise MissingExtra("rollsight.adapters.sb3", "stable-baselines3", "sb3") from error

from rollsight.adapters.sb3.callback import InfluenceCallback
from rollsight.adapters.sb3.translate import translate

__all__ = ["InfluenceCallback", "translate"]
