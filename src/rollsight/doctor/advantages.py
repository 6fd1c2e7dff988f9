"""Checks of advantages: is there a signal, and does it rest on few records?"""

from __future__ import annotations

import math

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Array, Evidence
from rollsight.doctor.finding import Where

_NEVER = math.inf
_FITTED = 20_000  # records of a regression


def no_signal(seen: Evidence) -> Measured | None:
    """1 where advantages do not depend on actions, 0 from four standard errors on: an F test of a regression of the
    advantage on the action, alone and times the observation, once both are freed of what the observation explains.
    Actions are drawn anew at every step, so that steps that depend on each other do not matter."""
    advantage, good = seen.column("advantage").astype(np.float64), seen.column("valid")
    obs, action = seen.observations.astype(np.float64), seen.column("action")
    good = good & np.isfinite(advantage) & np.isfinite(obs).all(1)
    if seen.discrete and obs.shape[1] == 1 and seen.observations.dtype.kind in "iu":
        states = np.unique(obs)
        obs = (obs == states).astype(np.float64) if len(states) <= 64 else obs
    if obs.shape[1] > 64 or good.sum() < 2000:
        return None
    if seen.discrete:
        acted = (action[:, None] == np.unique(action)[None, :16]).astype(np.float64)[:, 1:]
    else:
        acted = action.reshape(len(action), -1).astype(np.float64)
    rows = np.flatnonzero(good)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _FITTED)).astype(int)]
    of_round = (seen.round[rows][:, None] == np.unique(seen.round)).astype(np.float64)
    obs, acted, output = _scaled(obs[rows]), acted[rows], advantage[rows]
    before = np.concatenate([of_round, obs, np.square(obs)], 1)
    output = output.clip(*np.quantile(output, [0.005, 0.995]))  # single huge ones have a check of their own
    output = _freed(before, output[:, None])[:, 0]
    inputs = _freed(before, np.concatenate([acted, *(acted * one[:, None] for one in obs.T[:16])], 1))
    inputs = inputs[:, inputs.std(0) > 1e-6]
    if not inputs.shape[1] or output.std() == 0:
        return None
    fitted = inputs @ np.linalg.lstsq(inputs, output, rcond=None)[0]
    freedom = inputs.shape[1]
    rest = max(len(rows) - before.shape[1] - freedom, 1)
    ratio = np.square(fitted).sum() / freedom / (np.square(output - fitted).sum() / rest)
    errors = float((ratio - 1) / np.sqrt(2 / freedom))
    return Measured(1 - errors / 4, {"errors": errors, "records": len(rows)})


def _scaled(values: Array) -> Array:
    spread = values.std(0)
    scaled: Array = (values[:, spread > 0] - values[:, spread > 0].mean(0)) / spread[spread > 0]
    return scaled


def _freed(inputs: Array, outputs: Array) -> Array:
    """What a least-squares fit leaves of the outputs."""
    return outputs - inputs @ np.linalg.lstsq(inputs, outputs, rcond=None)[0]


def dominated(seen: Evidence) -> Measured | None:
    """Share of the squared advantages that a hundredth of the records has, in the median round."""
    advantage, round = seen.column("advantage").astype(np.float64), seen.round
    valid = seen.column("valid") & np.isfinite(advantage)
    shares, rows = [], []
    for number in np.unique(round):
        of_round = np.flatnonzero((round == number) & valid)
        if len(of_round) < 100:
            return None
        square = np.square(advantage[of_round] - advantage[of_round].mean())
        order = of_round[np.argsort(square)[::-1]]
        most = max(len(order) // 100, 1)
        shares.append(float(np.sort(square)[::-1][:most].sum() / max(square.sum(), 1e-30)))
        rows.append(order[:most])
    value, worst = float(np.median(shares)), rows[int(np.argmax(shares))]
    figures = {"share": value, "most": max(shares)}
    episodes = tuple(dict.fromkeys(seen.column("episode")[worst[:8]].tolist())) if seen.has("episode") else ()
    return Measured(value, figures, Where(episodes=episodes, records=seen.places(worst)))


def short_discount(seen: Evidence) -> Measured | None:
    """Episode length over the horizon 1 / (1 - gamma), times three where the horizon is less than three steps."""
    gamma = seen.setting("gamma")
    if gamma is None:
        return None
    ends = np.flatnonzero(seen.last)
    age = seen.column("episode_step") + 1
    length = float(np.median(age[ends])) if len(ends) >= 4 else float(age.max())
    short = 3 if gamma < 2 / 3 else 1
    return Measured(
        short * length * (1 - gamma), {"gamma": gamma, "horizon": 1 / max(1 - gamma, 1e-9), "length": length}
    )


CHECKS = (
    Check(
        "no_signal", "advantages", no_signal, 0.8, _NEVER, "possible",
        "Advantages of {records:.0f} records do not depend on the actions ({errors:.1f} standard errors).",
        ("rewards that do not depend on the actions", "no success yet, so that advantages are errors of the values",
         "too few records in a round for so noisy a reward"),
        ("look whether any episode had another return than the rest", "take more records a round",
         "check that the reward is that of the action it stands beside"),
        explained_by=("large_feature", "odd_environment_reward", "odd_environment_resets", "dominated", "rate_too_low",
                      "entropy_collapsed", "dead_units"),
    ),
    Check(
        "dominated", "advantages", dominated, 0.6, 0.85, "likely",
        "A hundredth of the records has {share:.0%} of the squared advantages of a round.",
        ("single huge rewards", "a rare success, or a rare catastrophe", "values that are far off in a few states"),
        ("look at these records", "clip or rescale rewards", "take more records a round"),
    ),
    Check(
        "short_discount", "advantages", short_discount, 25, 60, "likely",
        "With gamma {gamma:g} the policy sees {horizon:.0f} steps ahead, and episodes last {length:.0f}.",
        ("gamma is too low for episodes of this length",),
        ("raise gamma to about 1 - 5 / length", "leave it where rewards come at once and later ones do not matter"),
    ),
)  # fmt: skip
