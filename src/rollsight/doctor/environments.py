"""Checks of environments against each other: does one of many differ?"""

from __future__ import annotations

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Array, Evidence
from rollsight.doctor.finding import Where

_ENOUGH = 3  # environments; with fewer none is odd


def frozen(seen: Evidence) -> Measured | None:
    """How much more often than elsewhere an environment shows the same twice."""
    env, names = _environments(seen)
    if len(names) < _ENOUGH:
        return None
    within = np.flatnonzero(seen.followed & ~seen.last)
    obs = seen.observations
    same = (obs[within] == obs[within + 1]).all(1)
    share = np.array([_mean(same[env[within] == e]) for e in names])
    odd, excess = _largest(share - _median_of_others(share))
    return _measured(names, odd, excess, {"share": float(share[odd]), "usual": float(np.nanmedian(share))})


def resets(seen: Evidence) -> Measured | None:
    """How many times shorter an environment's episodes are than elsewhere."""
    env, names = _environments(seen)
    ends = np.flatnonzero(seen.last)
    if len(names) < _ENOUGH:
        return None
    length = seen.column("episode_step") + 1
    # Where nothing ends, the episodes are at least as long as what was seen of them.
    typical = np.array([np.median(length[ends][env[ends] == e]) if (env[ends] == e).sum() >= 3
                        else length[env == e].max() for e in names], np.float64)  # fmt: skip
    odd, ratio = _largest(_median_of_others(typical) / np.maximum(typical, 1))
    return _measured(names, odd, ratio, {"length": float(typical[odd]), "usual": float(np.median(typical))})


def shifted(seen: Evidence) -> Measured | None:
    """How far an environment's mean first observation is from the others', in their spread between environments."""
    env, names = _environments(seen)
    obs = seen.observations
    if len(names) < _ENOUGH or obs.dtype.kind != "f":
        return None
    begins = np.flatnonzero(seen.column("episode_step") == 0)
    counts = np.array([(env[begins] == e).sum() for e in names])
    rows = begins if counts.min() >= 3 else np.arange(len(env))
    scale = obs[rows].std(0).astype(np.float64)
    scale[scale == 0] = 1.0
    means = np.stack([obs[rows][env[rows] == e].mean(0, dtype=np.float64) for e in names]) / scale
    centre = np.median(means, 0)
    away = np.abs(means - centre)
    spread = np.median(away, 0) * 1.4826
    size = away / np.maximum(spread, 0.05)
    far = np.where(away > 0.25, size, 0.0)
    per_env = np.median(far, 1) + 0.25 * far.max(1)
    odd, value = _largest(per_env)
    feature = int(far[odd].argmax())
    return _measured(names, odd, value, {"feature": feature, "away": float(away[odd, feature])}, (feature,))


def actions(seen: Evidence) -> Measured | None:
    """How differently the observation answers to actions, over what chance gives (a mean square, 1 by chance)."""
    env, names = _environments(seen)
    obs = seen.observations
    if len(names) < _ENOUGH:
        return None
    rows = np.flatnonzero(seen.followed & ~seen.last)
    change = obs[rows + 1].astype(np.float64) - obs[rows]
    change = change[:, change.std(0) > 0]
    if not change.shape[1] or len(rows) < 50 * len(names):
        return None
    change -= change.mean(0)
    inputs = _actions(seen, rows)
    if not inputs.shape[1]:
        return None
    odd, value = _odd_slopes(env[rows], names, inputs - inputs.mean(0), change)
    return _measured(names, odd, value, {"times": value})


def rewards(seen: Evidence) -> Measured | None:
    """Log ratio of an environment's mean absolute reward to the others', in their spread; 20 for another sign."""
    env, names = _environments(seen)
    reward = seen.column("reward").astype(np.float64)
    if len(names) < _ENOUGH or not np.isfinite(reward).all():
        return None
    nonzero = np.array([np.count_nonzero(reward[env == e]) for e in names])
    if np.sort(nonzero)[1] < 30:  # one may never pay
        return None
    mean = np.array([reward[env == e].mean() for e in names])
    # Steps depend on each other: a conservative error of the mean.
    error = np.array([reward[env == e].std() / np.sqrt(max((env == e).sum() / 20, 1)) for e in names]) + 1e-12
    sure = np.abs(mean) > 4 * error
    sign = np.sign(np.median(mean))
    turned = sure & (np.sign(mean) == -sign)
    if turned.sum() == 1 and (sure & (np.sign(mean) == sign)).sum() >= 0.75 * (len(names) - 1):
        odd = int(turned.argmax())
        return _measured(names, odd, 20.0, {"mean": float(mean[odd]), "usual": float(np.median(mean))})
    size = np.log(np.array([np.abs(reward[env == e]).mean() for e in names]) + 1e-12)
    away = np.abs(size - _median_of_others(size))
    spread = 1.4826 * np.median(np.abs(size - np.median(size)))
    odd, value = _largest(np.where(away > np.log(1.8), away / max(spread, 0.1), 0.0))
    return _measured(names, odd, value, {"mean": float(mean[odd]), "usual": float(np.median(mean))})


def reward_rule(seen: Evidence) -> Measured | None:
    """How differently the reward answers to actions and observations, over what chance gives (a mean square, 1 by
    chance)."""
    env, names = _environments(seen)
    reward = seen.column("reward").astype(np.float64)
    if len(names) < _ENOUGH or not np.isfinite(reward).all() or len(reward) < 50 * len(names):
        return None
    # Rare rewards, such as those of an end, would hide what each step is paid for.
    reward = reward.clip(*np.quantile(reward, (0.01, 0.99)))
    parts = [_actions(seen, np.arange(len(env)))]
    if seen.observations.shape[1] <= 64:
        parts.append(seen.observations.astype(np.float64))
    inputs = np.concatenate(parts, 1)
    inputs = inputs[:, inputs.std(0) > 0]
    if not inputs.shape[1]:
        return None
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    odd, value = _odd_slopes(env, names, inputs, reward[:, None])
    return _measured(names, odd, value, {"times": value})


def first_cause(seen: Evidence, value: Measured | None, *others: tuple[Measured | None, float]) -> Measured | None:
    """Nothing where the same environment has a cause that explains this one."""
    for other, threshold in others:
        if value is None or other is None or other.value < threshold:
            continue
        if value.where.environments == other.where.environments:
            return Measured(0.0, value.figures)
    return value


def shifted_alone(seen: Evidence) -> Measured | None:
    """`shifted`, where the environment is not a frozen one or one that resets at once."""
    return first_cause(seen, shifted(seen), (frozen(seen), _FROZEN), (resets(seen), _RESETS))


def actions_alone(seen: Evidence) -> Measured | None:
    """`actions`, where nothing else is odd with the environment."""
    return first_cause(seen, actions(seen), (frozen(seen), _FROZEN), (resets(seen), _RESETS))


def rewards_alone(seen: Evidence) -> Measured | None:
    """`rewards`, where the environment is not a frozen one or one that resets at once."""
    return first_cause(seen, rewards(seen), (frozen(seen), _FROZEN), (resets(seen), _RESETS), (actions(seen), _ACTIONS))


def reward_rule_alone(seen: Evidence) -> Measured | None:
    """`reward_rule`, where nothing else explains it: another sign or scale, a frozen environment, other actions."""
    return first_cause(seen, reward_rule(seen), (frozen(seen), _FROZEN), (resets(seen), _RESETS),
                       (actions(seen), _ACTIONS), (rewards(seen), _REWARDS))  # fmt: skip


def _environments(seen: Evidence) -> tuple[Array, Array]:
    env = seen.column("env")
    return env, np.unique(env)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0


def _median_of_others(values: Array) -> Array:
    return np.array([np.median(np.delete(values, i)) for i in range(len(values))])


def _largest(values: Array) -> tuple[int, float]:
    values = np.nan_to_num(values, nan=0.0)
    return int(values.argmax()), float(values.max())


def _measured(
    names: Array, odd: int, value: float, figures: dict[str, float], features: tuple[int, ...] = ()
) -> Measured:
    return Measured(value, {"env": int(names[odd]), **figures}, Where(environments=(int(names[odd]),),
                                                                     features=features))  # fmt: skip


def _actions(seen: Evidence, rows: Array) -> Array:
    """(len(rows), A) actions as numbers: one column less than there are choices, or the entries within their bounds."""
    action = seen.column("action")[rows]
    if seen.discrete:
        choices: Array = (action[:, None] == np.unique(action)).astype(np.float64)
        return choices[:, 1:]
    inputs: Array = action.reshape(len(action), -1).astype(np.float64)
    if seen.bounds is not None:
        inputs = np.clip(inputs, seen.bounds[0], seen.bounds[1])
    return inputs


def _odd_slopes(env: Array, names: Array, inputs: Array, outputs: Array) -> tuple[int, float]:
    """The environment whose slopes of outputs on inputs are furthest from the others', and how far."""
    slopes, errors = zip(*(_regressed(inputs[env == e], outputs[env == e]) for e in names), strict=True)
    slope, error = np.stack(slopes), np.stack(errors)  # (E, A, D)
    centre = np.median(slope, 0)
    noise = error + np.median(error, 0) / len(names)
    usable = np.isfinite(noise) & (noise > 0)
    distance = np.where(usable, np.square(slope - centre) / np.where(usable, noise, 1), 0.0)
    # The effects that differ most: a permutation of many actions is seen in a few of them.
    per_env = np.array(
        [np.sort(one[u])[-3:].mean() if u.any() else 0.0 for one, u in zip(distance, usable, strict=True)]
    )
    return _largest(per_env / np.maximum(np.median(per_env), 1.0))


def _regressed(inputs: Array, outputs: Array) -> tuple[Array, Array]:
    """Slopes (A, D) of a least-squares fit and their squared errors; infinite where an input does not vary."""
    inputs, outputs = inputs - inputs.mean(0), outputs - outputs.mean(0)
    gram = inputs.T @ inputs + 1e-9 * np.eye(inputs.shape[1])
    inverse = np.linalg.inv(gram)
    slope = inverse @ inputs.T @ outputs
    residual = np.square(outputs - inputs @ slope).sum(0) / max(len(inputs) - inputs.shape[1] - 1, 1)
    error = np.outer(np.diag(inverse), residual + 1e-12)
    error[np.diag(gram) < 5 * np.square(inputs).max(initial=0.0) * 0.2] = np.inf
    return slope, error


_FROZEN, _RESETS, _ACTIONS, _REWARDS = 0.25, 3.0, 20.0, 10.0
_ALIKE = "a wrapper, a version or a configuration that one environment has and the others have not"

CHECKS = (
    Check(
        "odd_environment_frozen", "data", frozen, _FROZEN, 0.5, "certain",
        "Environment {env:.0f} shows the same observation at {share:.0%} of its steps, the others at {usual:.0%}.",
        ("a sensor or a simulator that hangs", "a wrapper that returns the first observation"),
        ("make this environment anew", "leave it out"),
    ),
    Check(
        "odd_environment_resets", "data", resets, _RESETS, 5.0, "likely",
        "Episodes of environment {env:.0f} last {length:.0f} steps, those of the others {usual:.0f}.",
        ("a termination condition that holds at once", "a broken reset", _ALIKE),
        ("look at its last records of an episode", "compare its termination with another environment's"),
    ),
    Check(
        "odd_environment_shifted", "data", shifted_alone, 6.0, 10.0, "likely",
        "Episodes of environment {env:.0f} begin elsewhere: feature {feature:.0f} is {away:.2g} deviations away.",
        ("an offset or another scale in its observations", "other starts", _ALIKE),
        ("compare the first observations of two environments",),
    ),
    Check(
        "odd_environment_actions", "data", actions_alone, _ACTIONS, 40.0, "likely",
        "Observations of environment {env:.0f} answer otherwise to actions, {times:.0f} times what chance gives.",
        ("permuted or inverted actions", "another action scale or delay", _ALIKE),
        ("play the same actions in two environments from one seed",),
    ),
    Check(
        "odd_environment_reward", "data", rewards_alone, 6.0, _REWARDS, "likely",
        "Environment {env:.0f} pays {mean:.3g} a step, the others {usual:.3g}.",
        ("a turned sign or another scale of its reward", _ALIKE),
        ("compare the rewards of two environments for the same transitions",),
    ),
    Check(
        "odd_environment_reward_rule", "data", reward_rule_alone, 20.0, 40.0, "likely",
        "Environment {env:.0f} pays for something else: its reward answers otherwise to observations and actions, "
        "{times:.3g} times what chance gives.",
        ("a shaping term that is left in, or another version of the reward", _ALIKE),
        ("compare the rewards of two environments for the same transitions",
         "rollsight culprits: what did its records teach?"),
    ),
)  # fmt: skip
