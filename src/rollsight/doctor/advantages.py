"""Checks of advantages: is there a signal, and does it rest on few records?"""

from __future__ import annotations

import math

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Evidence
from rollsight.doctor.finding import Where

_NEVER = math.inf


def no_signal(seen: Evidence) -> Measured | None:
    """How near the scores from two halves of a round are to agreeing at chance: 1 is chance, 0 is 0.2 above it."""
    gain = seen.summary("trust_split_half") - seen.summary("trust_split_half_permuted")
    gain = gain[np.isfinite(gain)]
    if len(gain) < 5:
        return None
    error = float(gain.std(ddof=1) / np.sqrt(len(gain)))
    value = 1 - 5 * (float(gain.mean()) + error)  # the upper end of what it may be
    return Measured(value, {"gain": float(gain.mean()), "error": error, "rounds": len(gain)})


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
    """Episode length over the horizon 1 / (1 - gamma)."""
    gamma = seen.setting("gamma")
    if gamma is None:
        return None
    ends = np.flatnonzero(seen.last)
    age = seen.column("episode_step") + 1
    length = float(np.median(age[ends])) if len(ends) >= 4 else float(age.max())
    return Measured(length * (1 - gamma), {"gamma": gamma, "horizon": 1 / max(1 - gamma, 1e-9), "length": length})


CHECKS = (
    Check(
        "no_signal", "advantages", no_signal, 0.9, _NEVER, "possible",
        "Scores from two halves of a round agree {gain:.3f} above chance in {rounds:.0f} rounds: advantages say "
        "nothing that holds for other records.",
        ("rewards that do not depend on the actions", "no success yet, so that advantages are errors of the values",
         "too few records in a round for so noisy a reward"),
        ("look whether any episode had another return than the rest", "take more records a round",
         "check that the reward is that of the action it stands beside"),
        records=False,
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
