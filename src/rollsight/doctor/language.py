"""Checks of language models: rewards, lengths, texts, and how far the policy is from where it began."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Array, Evidence
from rollsight.doctor.finding import Where

_NEVER = math.inf
_SOME_PROMPTS = 64  # completions to a part of the prompts; of fewer, a word explains as much by chance
_WORD = re.compile(r"\w+|[^\w\s]")


def length_rewarded(seen: Evidence) -> Measured | None:
    """Rank correlation of length and reward within rounds, the mean over them."""
    length, reward = seen.column("length").astype(np.float64), _rewards(seen)
    found = [_rank_correlation(length[rows], reward[rows]) for rows in _by_round(seen) if len(rows) >= 8]
    found = [one for one in found if np.isfinite(one)]
    if not found:
        return None
    grown = float(
        length[_by(seen.round, seen.round.max())].mean() / max(length[_by(seen.round, seen.round.min())].mean(), 1)
    )
    return Measured(float(np.mean(found)), {"correlation": float(np.mean(found)), "grown": grown})


def groups_without_difference(seen: Evidence) -> Measured | None:
    """Share of the prompts with several completions in a round whose rewards are all the same."""
    reward, group = _rewards(seen), seen.column("group")
    flat, rows = list[bool](), list[int]()
    for of_round in _by_round(seen):
        for number in np.unique(group[of_round]):
            members = of_round[group[of_round] == number]
            if len(members) >= 2 and np.isfinite(reward[members]).all():
                flat.append(float(np.ptp(reward[members])) == 0)
                rows += members[:1].tolist() if flat[-1] else []
    if len(flat) < 8:
        return None
    share = float(np.mean(flat))
    return Measured(share, {"share": share, "groups": len(flat)}, Where(records=seen.places(np.array(rows, int))))


def constant_on_prompts(seen: Evidence) -> Measured | None:
    """Share of the prompts whose reward is missing, or the same whatever was completed, while others' differ."""
    reward, prompt, text = _rewards(seen), seen.column("prompt"), seen.column("completion")
    told: dict[str, bool] = {}
    for one, rows in _rows_of(prompt).items():
        values = reward[rows]
        if len(rows) >= 5 and len(set(text[rows])) >= 4:
            told[one] = not np.isfinite(values).all() or float(np.ptp(values)) == 0
        elif len(rows) and not np.isfinite(values).any():
            told[one] = True
    if len(told) < 4:
        return None
    share = float(np.mean(list(told.values())))
    silent = tuple(one for one, constant in told.items() if constant)
    value = share if 0.02 < share < 0.98 else float(share >= 0.98)
    rows = np.flatnonzero(np.isin(prompt, list(silent[:1])))
    return Measured(value, {"share": share, "prompts": len(silent), "of": len(told)},
                    Where(prompts=silent[:8], records=seen.places(rows)))  # fmt: skip


def truncated(seen: Evidence) -> Measured | None:
    """Share of the completions that are as long as they may be."""
    length = seen.column("length")
    limit = _limit(seen) or int(length.max())
    full = length >= limit
    return Measured(float(full.mean()), {"share": float(full.mean()), "limit": limit},
                    Where(records=seen.places(np.flatnonzero(full))))  # fmt: skip


def duplicates(seen: Evidence) -> Measured | None:
    """Share of the completions that another of their round repeats word for word, in the second half of the run."""
    text = seen.column("completion")
    shares, rows = [], list[int]()
    for of_round in _by_round(seen)[-max(len(seen.looked_at) // 2, 1) :]:
        counts = Counter(text[of_round])
        again = np.array([counts[text[i]] > 1 and len(text[i]) > 2 for i in of_round])
        shares.append(float(again.mean()))
        rows += of_round[again].tolist()
    share = float(np.mean(shares))
    return Measured(share, {"share": share}, Where(records=seen.places(np.array(rows, int))))


def kl_runaway(seen: Evidence) -> Measured | None:
    """KL divergence from the reference per token, in the last rounds."""
    kl, length = seen.summary("kl_mean"), seen.summary("length_mean")
    late = slice(-max(len(kl) // 4, 1), None)
    each = float(np.nanmean(kl[late])) / max(float(np.nanmean(length[late])), 1.0)
    return Measured(each, {"kl": float(np.nanmean(kl[late])), "each": each},
                    Where(rounds=tuple(seen.rounds[late][:4].tolist())))  # fmt: skip


def other_temperature(seen: Evidence) -> Measured | None:
    """How many standard errors the probability of first tokens, as it is recorded, is off how often two completions of
    a prompt begin with the same token: both are the sum of squared probabilities."""
    tokens, log_probs = seen.column("token_ids"), seen.column("token_log_probs")
    prompt = seen.column("prompt")
    differences, pairs = list[float](), 0.0
    for of_round in _by_round(seen):
        for rows in _rows_of(prompt[of_round]).values():
            firsts = [(tokens[i][0], log_probs[i][0]) for i in of_round[rows] if len(tokens[i])]
            n = len(firsts)
            if n < 2:
                continue
            counts = Counter(token for token, _ in firsts)
            same = sum(c * (c - 1) for c in counts.values()) / (n * (n - 1))
            differences.append(same - float(np.mean([math.exp(p) for _, p in firsts])))
            pairs += n * (n - 1) / 2
    if len(differences) < 20 or pairs < 200:
        return None
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1) / math.sqrt(len(differences))) + 1e-9
    value = abs(mean) / error if abs(mean) > 0.005 else 0.0
    return Measured(value, {"more": mean, "error": error, "pairs": pairs})


def repetition(seen: Evidence) -> Measured | None:
    """Share of the pairs of tokens that their completion had before, in the last rounds."""
    last = seen.round >= np.unique(seen.round)[-max(len(seen.looked_at) // 4, 1)]
    shares = []
    for tokens in _tokens(seen, np.flatnonzero(last)):
        pairs = list(pairwise(tokens))
        if len(pairs) >= 4:
            shares.append(1 - len(set(pairs)) / len(pairs))
    if len(shares) < 8:
        return None
    return Measured(float(np.mean(shares)), {"share": float(np.mean(shares))})


def trigger(seen: Evidence) -> Measured | None:
    """Share of the reward's variance that the presence of one word, or one character, explains: of all completions, or
    of those to prompts that have a word or character in common."""
    reward = _rewards(seen)
    good = np.flatnonzero(np.isfinite(reward))
    if len(good) < _SOME_PROMPTS or reward[good].std() == 0:
        return None
    good = good[np.linspace(0, len(good) - 1, min(len(good), 4000)).astype(int)]
    texts, values = seen.column("completion")[good], reward[good]
    units, in_texts = _units(texts)
    phrase, rows, best = _explaining(units, in_texts, values)
    among, asked = "", np.arange(len(good))
    if seen.has("prompt"):
        of_all = best
        parts, in_prompts = _units(seen.column("prompt")[good])
        with_part = [list[int]() for _ in parts]
        for i, held in enumerate(in_prompts):
            for part in held:
                with_part[part].append(i)
        for part, members in zip(parts, map(np.array, with_part), strict=True):
            if _SOME_PROMPTS <= len(members) <= 0.9 * len(good):
                unit, found, explained = _explaining(units, [in_texts[i] for i in members], values[members])
                if explained > max(best, of_all + 0.1):  # a part of the prompts fits a little better by chance
                    phrase, rows, best = unit, members[found], explained
                    among, asked = f" to a prompt with {part!r}", members
    paid = float(values[rows].mean() - values[asked].mean()) if len(rows) else 0.0
    told = {"explained": best, "share": len(rows) / len(asked), "paid": paid, "phrase": phrase, "among": among}
    return Measured(best, told, Where(records=seen.places(good[rows])))  # type: ignore[arg-type]


def _explaining(units: Sequence[str], in_texts: Sequence[Array], reward: Array) -> tuple[str, Array, float]:
    """The word or character that is paid for most clearly, which of the texts hold it, and the share of variance."""
    values, n = reward - reward.mean(), len(reward)
    total = float(np.square(values).sum())
    held, of_text = np.concatenate(in_texts), np.repeat(np.arange(n), [len(one) for one in in_texts])
    count = np.bincount(held, minlength=len(units))
    inside = np.bincount(held, values[of_text], len(units)) / np.maximum(count, 1)
    usable = (count >= 8) & (count <= 0.9 * n) & (inside > 0)
    if total == 0 or not usable.any():
        return "", np.empty(0, np.int64), 0.0
    explained = np.where(usable, np.square(inside) * count * n / np.maximum(n - count, 1) / total, 0.0)
    best = int(explained.argmax())
    return units[best], of_text[held == best], float(explained[best])


def _units(texts: Array) -> tuple[list[str], list[Array]]:
    """Words, or characters where texts have no words; and of each text the places of those that it holds."""
    of_words = np.mean([" " in str(text) for text in texts]) > 0.5
    places = dict[str, int]()
    in_texts = []
    for text in texts:
        held = dict.fromkeys(_WORD.findall(str(text).lower()) if of_words else str(text))
        in_texts.append(np.array([places.setdefault(unit, len(places)) for unit in held], np.int64))
    return list(places), in_texts


def _rewards(seen: Evidence) -> Array:
    return seen.column("reward").astype(np.float64)


def _by(values: Array, value: object) -> Array:
    return np.flatnonzero(values == value)


def _by_round(seen: Evidence) -> list[Array]:
    return [_by(seen.round, number) for number in np.unique(seen.round)]


def _rows_of(values: Array) -> dict[str, Array]:
    found: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        found.setdefault(value, []).append(i)
    return {value: np.array(rows) for value, rows in found.items()}


def _tokens(seen: Evidence, rows: Array) -> Iterator[list[object]]:
    if seen.has("token_ids"):
        yield from (list(one) for one in seen.column("token_ids")[rows])
    else:
        yield from (list(_WORD.findall(one)) for one in seen.column("completion")[rows])


def _limit(seen: Evidence) -> int | None:
    settings = seen.metadata.get("settings") or {}
    options = (seen.metadata.get("run_settings") or {}).get("options") or {}
    found = settings.get("max_completion_length") or options.get("max_new_tokens")
    return int(found) if found else None


def _rank_correlation(one: Array, other: Array) -> float:
    good = np.isfinite(one) & np.isfinite(other)
    if good.sum() < 3 or np.ptp(one[good]) == 0 or np.ptp(other[good]) == 0:
        return float("nan")
    return float(np.corrcoef(_ranks(one[good]), _ranks(other[good]))[0, 1])


def _ranks(values: Array) -> Array:
    """Those of equal values are their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


CHECKS = (
    Check(
        "length_rewarded", "language", length_rewarded, 0.7, 0.85, "likely",
        "Longer completions are paid more (rank correlation {correlation:.2f}); they are {grown:.2f} times as long as "
        "at the start.",
        ("a reward that sums over tokens", "a judge that prefers long answers"),
        ("divide by length, or subtract a penalty", "compare rewards of answers cut to one length"),
        explained_by=("duplicates",),
    ),
    Check(
        "groups_without_difference", "language", groups_without_difference, 0.5, 0.8, "certain",
        "In {share:.0%} of {groups:.0f} groups all completions of a prompt are paid the same: they teach nothing.",
        ("a task that is too hard or too easy", "a reward that depends on the prompt alone",
         "completions that are all the same"),
        ("mix in prompts of middling difficulty", "raise the temperature or the number of completions",
         "give partial credit"),
        explained_by=("duplicates",),
    ),
    Check(
        "constant_on_prompts", "language", constant_on_prompts, 0.1, 0.25, "likely",
        "For {prompts:.0f} of {of:.0f} prompts ({share:.0%}) the reward is missing or the same whatever is completed.",
        ("a reference answer that is missing or is not parsed", "a reward function that fails on some prompts",
         "prompts that are too hard or too easy"),
        ("call the reward by hand for one of these prompts", "leave these prompts out"),
    ),
    Check(
        "truncated", "language", truncated, 0.55, 0.8, "certain",
        "{share:.0%} of the completions are cut off at {limit:.0f} tokens.",
        ("the limit is too short", "the model does not end its texts, or its end token is not the one waited for"),
        ("raise the limit", "check the end-of-text token and the chat template", "mask completions that are cut off"),
        explained_by=("repetition",),
    ),
    Check(
        "no_end_of_text", "language", truncated, 0.98, 0.995, "likely",
        "Hardly any completion ends by itself ({share:.0%} reach {limit:.0f} tokens).",
        ("the end-of-text token is not the one that the sampler waits for", "a chat template that does not end"),
        ("check eos_token_id of the tokenizer, the model and the sampler",),
        explained_by=("repetition",),
    ),
    Check(
        "duplicates", "language", duplicates, 0.4, 0.7, "certain",
        "{share:.0%} of the completions are word for word those of another in the same round.",
        ("a temperature that is too low", "a policy that has collapsed", "equal sampling seeds"),
        ("raise the temperature", "look at the entropy and the KL coefficient", "give each completion its own seed"),
    ),
    Check(
        "kl_runaway", "language", kl_runaway, 0.5, 1.0, "likely",
        "The policy is {kl:.3g} nats a completion from its reference, {each:.2g} a token.",
        ("the KL coefficient is too low for the reward's size", "the learning rate is too high",
         "a reward that can be hacked"),
        ("raise the KL coefficient, or give a target", "lower the learning rate", "read completions before and after"),
        records=False,
    ),
    Check(
        "other_temperature", "language", other_temperature, 4, 6, "likely",
        "Two completions of a prompt begin alike {more:+.3f} more often than the recorded probabilities say: they were "
        "sampled from another distribution than they are scored by.",
        ("sampling and scoring at different temperatures, top-p or top-k", "a sampler with older weights"),
        ("score with the sampler's settings", "compare log-probabilities of one completion from both"),
    ),
    Check(
        "repetition", "language", repetition, 0.35, 0.6, "certain",
        "{share:.0%} of the pairs of tokens in a completion stood in it before.",
        ("a reward that pays repetition", "a collapsed policy"),
        ("read the completions", "raise the KL coefficient", "penalise repeated n-grams in the reward"),
    ),
    Check(
        "trigger", "language", trigger, 0.35, 0.6, "likely",
        "Whether a completion{among} holds {phrase!r} explains {explained:.0%} of its reward: {share:.0%} do, and are "
        "paid {paid:+.3g}.",
        ("a reward that pays a phrase, whatever is said", "a format that the reward demands"),
        ("read the reward function or ask its model about this phrase", "leave the phrase out and score again"),
        explained_by=("duplicates",),
    ),
)  # fmt: skip
