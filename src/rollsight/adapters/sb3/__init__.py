"""Stable-Baselines3: `model.learn(..., callback=InfluenceCallback(drop=0.5, run="runs/lake"))`."""

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError("rollsight.adapters.sb3 needs Stable-Baselines3: pip install 'rollsight[sb3]'") from error

from rollsight.adapters.sb3.callback import InfluenceCallback
from rollsight.adapters.sb3.translate import translate

__all__ = ["InfluenceCallback", "translate"]
