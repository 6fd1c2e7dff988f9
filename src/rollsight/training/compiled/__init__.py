"""PPO in JAX, with scoring and selection inside: Stable-Baselines3's update, compiled."""

try:
    import jax  # noqa: F401
except ImportError as error:
    raise ImportError("the compiled engine needs JAX: pip install 'rollsight[fast]'") from error
