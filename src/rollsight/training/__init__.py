"""The fast trainer: PPO in JAX with scoring and selection inside, writing the same run folders as the SB3 adapter."""

try:
    import jax  # noqa: F401
except ImportError as error:
    raise ImportError("rollsight.training needs JAX: pip install 'rollsight[fast]'") from error
