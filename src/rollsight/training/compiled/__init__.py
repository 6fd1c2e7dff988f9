"""PPO in JAX, with scoring and selection inside: Stable-Baselines3's update, compiled."""

from rollsight.errors import MissingExtra

try:
    import jax  # noqa: F401
except ImportError as error:
    raise MissingExtra("the compiled engine", "jax", "fast") from error
