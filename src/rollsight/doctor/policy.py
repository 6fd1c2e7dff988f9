"""Checks of the policy and its optimisation: does it move, too far or not at all, and does it still explore?"""

from __future__ import annotations

import math

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Array, Evidence
from rollsight.doctor.finding import Where

_NEVER = math.inf


def rate_too_high(seen: Evidence) -> Measured | None:
    """The largest KL divergence of an update."""
    kl = seen.summary("approx_kl")
    order = np.argsort(np.nan_to_num(kl, nan=-1.0, posinf=1e9))[::-1]
    value = float(np.nan_to_num(kl[order[0]], nan=0.0, posinf=1e9))
    figures = {"kl": value, "median": float(np.nanmedian(kl))}
    return Measured(value, figures, Where(rounds=tuple(sorted(seen.rounds[order[:4]].tolist()))))


def rate_too_low(seen: Evidence) -> Measured | None:
    """Minus the decimal logarithm of the median KL divergence of an update, where its clip fraction is 0 too."""
    kl = np.abs(seen.summary("approx_kl"))
    kl = kl[np.isfinite(kl)]
    if len(kl) < 4:
        return None
    middle = float(np.median(kl))
    try:
        clipped = float(np.nanmax(seen.summary("clip_fraction")))
    except LookupError:
        clipped = 0.0
    entropy = seen.summary("entropy_mean")
    if seen.choices is not None and float(np.nanmedian(entropy)) < 0.05 * math.log(seen.choices):
        return Measured(0.0, {"kl": middle})  # a policy that is sure has nothing to change
    return Measured(-math.log10(max(middle, 1e-12)) if clipped < 0.01 else 0.0, {"kl": middle})


def entropy_collapsed(seen: Evidence) -> Measured | None:
    """1 less the part of the largest entropy that is left early on, where returns have not risen."""
    entropy = seen.summary("entropy_mean")
    sure = _certainty(seen, entropy)
    if sure is None or len(entropy) < 3:
        return None
    early = sure[: max(len(sure) // 2, 3)]
    at = int(np.nanargmax(early))
    returns = seen.summary("return_mean")
    known = np.isfinite(returns)
    learnt = False
    if known.sum() >= 4:
        before, after = returns[known][:2].mean(), returns[known][-2:].mean()
        learnt = after > before + 2 * max(float(np.nanmedian(seen.summary("return_std"))), 1e-9) / math.sqrt(8)
    value = 0.5 * float(early[at]) if learnt else float(early[at])
    return Measured(value, {"left": 1 - float(early[at]), "entropy": float(entropy[at])},
                    Where(rounds=(int(seen.rounds[at]),)))  # fmt: skip


def _certainty(seen: Evidence, entropy: Array) -> Array | None:
    """0 for a policy without preference, 1 for one without chance."""
    if seen.choices is not None:
        return np.asarray(1 - entropy / math.log(seen.choices)) if seen.choices > 1 else None
    if seen.discrete or seen.bounds is None:
        return None
    low, high = seen.bounds
    action = seen.column("action")
    width = 1 if action.ndim == 1 else action.shape[1]
    deviation = np.exp(entropy / width - 0.5 * math.log(2 * math.pi * math.e))
    return np.asarray(1 - np.minimum(deviation / (0.25 * (high - low)), 1.0))


def entropy_held_up(seen: Evidence) -> Measured | None:
    """How much of the largest entropy is left at the end although the policy moves; continuous: how far it rose."""
    entropy, kl = seen.summary("entropy_mean"), seen.summary("approx_kl")
    if len(entropy) < 6:
        return None
    last = float(np.nanmean(entropy[-3:]))
    if seen.choices is not None:
        if seen.choices < 2:
            return None
        value = last / math.log(seen.choices)
        bonus = seen.setting("ent_coef") or 0.0
        moved = float(np.nanmedian(kl))
        # Without a bonus, or where it is small, a policy without preference has not learnt anything yet.
        return Measured(value if bonus > 0.03 else 0.0, {"left": value, "kl": moved, "bonus": bonus})
    rise = last - float(entropy[0])
    return Measured(0.9 + rise if rise > 0.05 else 0.0, {"left": rise, "kl": float(np.nanmedian(kl)), "bonus":
                                                        seen.setting("ent_coef") or 0.0})  # fmt: skip


def stale_log_probs(seen: Evidence) -> Measured | None:
    """Mean of -log-probability less entropy over its standard error: the log-probabilities are of another policy."""
    log_prob, entropy = seen.column("log_prob").astype(np.float64), seen.column("entropy").astype(np.float64)
    good = seen.column("valid") & np.isfinite(log_prob) & np.isfinite(entropy)
    surprise = -log_prob[good] - entropy[good]
    if len(surprise) < 500 or not np.any(surprise):
        return None
    mean, error = float(surprise.mean()), float(surprise.std() / math.sqrt(len(surprise)) + 1e-12)
    return Measured(abs(mean) / error if abs(mean) > 2e-3 else 0.0, {"mean": mean, "error": error})


def saturated_actions(seen: Evidence) -> Measured | None:
    """Share of the actions that are at their bounds or beyond."""
    if seen.bounds is None or seen.discrete:
        return None
    low, high = seen.bounds
    action = seen.column("action").reshape(len(seen.round), -1)
    outside = (action <= low) | (action >= high)
    rows = np.flatnonzero(outside.all(1))
    share = float(outside.mean())
    return Measured(share, {"share": share, "low": low, "high": high}, Where(records=seen.places(rows)))


def dead_units(seen: Evidence) -> Measured | None:
    """1 where neither value nor entropy depends on the observation in most rounds, though observations differ."""
    value, entropy, round = seen.column("value"), seen.column("entropy"), seen.round
    obs = seen.observations
    constant = []
    for number in np.unique(round):
        rows = np.flatnonzero((round == number) & seen.column("valid"))
        if len(rows) < 50 or not (obs[rows] != obs[rows[0]]).any():
            continue
        size = max(float(np.abs(value[rows]).max()), 1e-3)
        continuous = not seen.discrete  # their entropy never depends on it
        constant.append(float(np.ptp(value[rows])) < 1e-5 * size
                        and (continuous or float(np.ptp(entropy[rows])) < 1e-5))  # fmt: skip
    if not constant:
        return None
    share = float(np.mean(constant))
    return Measured(share, {"share": share}, Where(rounds=tuple(np.unique(round)[:1].tolist())))


def undone(seen: Evidence) -> Measured | None:
    """The part of what was gained before that one round lost and the next did not bring back, where it is not noise."""
    returns, spread = seen.summary("return_mean"), seen.summary("return_std")
    episodes = seen.summary("episodes")
    known = np.flatnonzero(np.isfinite(returns) & (episodes > 0))
    if len(known) < 8:
        return None
    mean, rounds = returns[known], seen.rounds[known]
    error = np.nan_to_num(spread[known]) / np.sqrt(episodes[known])
    best, at = 0.0, 0
    for k in range(3, len(mean) - 1):
        first, before = float(mean[max(0, k - 11)]), float(mean[max(0, k - 3) : k].mean())
        after = float(mean[k : k + 2].mean())
        noise = float(np.hypot(error[max(0, k - 3) : k].mean(), error[k : k + 2].mean()) + np.abs(
            np.diff(mean[max(0, k - 4) : k])).mean())  # fmt: skip
        gained, lost = before - first, before - after
        if gained > 2 * noise and lost > 2 * noise and (part := min(lost / gained, 2.0)) > best:
            best, at = part, k
    figures = {"part": best, "before": float(mean[max(0, at - 1)]), "after": float(mean[at]), "round": int(rounds[at])}
    # The round whose update did it is the one before that whose episodes show it.
    return Measured(best, figures, Where(rounds=(int(rounds[max(at - 1, 0)]), int(rounds[at])) if best else ()))


CHECKS = (
    Check(
        "rate_too_high", "policy", rate_too_high, 0.1, 0.3, "likely",
        "One update moves the policy by a KL divergence of {kl:.2g}, in the median round by {median:.2g}.",
        ("the learning rate is too high", "too many epochs on the same records", "advantages of an extreme size"),
        ("lower the learning rate or the epochs", "set target_kl", "lower the clip range"),
        records=False,
    ),
    Check(
        "rate_too_low", "policy", rate_too_low, 5, 6, "likely",
        "Updates move the policy by a KL divergence of {kl:.1g}: nothing moves.",
        ("the learning rate is too low", "gradients that are clipped to nothing", "parameters that are not trained",
         "advantages that are all alike"),
        ("raise the learning rate", "look at max_grad_norm and the size of the returns"),
        records=False,
    ),
    Check(
        "entropy_collapsed", "policy", entropy_collapsed, 0.9, 0.97, "likely",
        "The policy is nearly deterministic early on ({left:.0%} of the largest entropy) and returns have not risen.",
        ("too large steps at the start", "no entropy bonus", "weights or logits that are too large"),
        ("add an entropy bonus", "lower the learning rate", "look at the initialisation"),
        records=False,
    ),
    Check(
        "entropy_held_up", "policy", entropy_held_up, 0.95, _NEVER, "likely",
        "An entropy bonus of {bonus:g} holds the policy at chance.",
        ("the entropy bonus outweighs the advantages",),
        ("lower ent_coef", "let it fall over the run"),
        records=False,
    ),
    Check(
        "stale_log_probs", "policy", stale_log_probs, 5, 8, "likely",
        "The actions' log-probabilities are {mean:+.3f} nats off what the policy's entropy says ({error:.4f} standard "
        "error): they are not of the policy that acted.",
        ("log-probabilities of an earlier policy", "another temperature or a mask in one of sampling and scoring",
         "actions that are clipped or squashed after their log-probability was taken"),
        ("compare the stored log-probability of one action with the policy's own", "refresh the sampling policy"),
    ),
    Check(
        "saturated_actions", "policy", saturated_actions, 0.5, 0.7, "certain",
        "{share:.0%} of the actions are at or beyond the bounds {low:g} and {high:g}.",
        ("a standard deviation that is wide compared with the bounds", "means that ran away", "other units of actions"),
        ("lower log_std_init", "rescale the action space to [-1, 1]", "use a squashed distribution"),
    ),
    Check(
        "dead_units", "policy", dead_units, 0.5, 0.8, "likely",
        "In {share:.0%} of the rounds policy and value are the same whatever is observed.",
        ("dead units: a ReLU layer that gives 0 for everything", "an observation that does not reach the network",
         "saturated units after unnormalised observations"),
        ("look at the first layer's outputs", "initialise anew, with a lower learning rate or tanh",
         "normalise observations"),
    ),
    Check(
        "undone", "policy", undone, 0.7, 0.9, "likely",
        "Between rounds {round:.0f} and the one before the return fell from {before:.4g} to {after:.4g}, {part:.0%} of "
        "what had been gained.",
        ("one update that went too far", "a batch of misleading records", "a change of the environment"),
        ("look at the records of that round with the lowest scores", "replay it without them: rollsight intervene",
         "set target_kl"),
        records=False,
    ),
)  # fmt: skip
