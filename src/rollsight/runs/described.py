"""How an environment is called and made, as far as it says: without importing gymnasium."""

from __future__ import annotations

from typing import Any

from rollsight.errors import RollsightError

# They note or draw, and change nothing that a policy meets.
_HARMLESS = {"RecordEpisodeStatistics", "RecordVideo", "RenderCollection", "HumanRendering", "PassiveEnvChecker"}


def described(env: Any) -> dict[str, Any]:
    """Entries of `run.json` for an environment, a vector environment, a name, or None.

    Raises:
        RollsightError: it does not say its name.
    """
    if env is None or isinstance(env, str):
        return {} if env is None else {"env": env}
    wrappers, spec, layer = [], getattr(env, "spec", None), env
    while spec is None and layer is not None and hasattr(layer, "num_envs"):  # a vector environment
        if (inner := getattr(layer, "env", None)) is not None:
            wrappers.append(type(layer).__name__)
        elif hasattr(layer, "get_attr"):
            spec = layer.get_attr("spec")[0]
        layer = inner
    if spec is None:
        raise RollsightError(f"env={type(env).__name__} does not say which environment it is: give its name")
    described: dict[str, Any] = {
        "env": spec.id,
        "env_kwargs": dict(spec.kwargs),
        "max_episode_steps": spec.max_episode_steps,
        "env_wrappers": [name for name in wrappers if name not in _HARMLESS]
        + [one.name for one in reversed(spec.additional_wrappers) if one.name not in _HARMLESS],
    }
    return described | ({"n_envs": env.num_envs} if hasattr(env, "num_envs") else {})
