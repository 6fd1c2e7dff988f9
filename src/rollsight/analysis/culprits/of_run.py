"""The whole answer for one behaviour of a run: when it was learnt, what taught it, and whether replays agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.analysis.culprits.groups import Group, check_columns, coded, columns, flat, gather
from rollsight.analysis.culprits.replays import Check, check
from rollsight.analysis.culprits.scores import AnyBehaviour, Report, RoundInfluence, folder_of, score_rounds
from rollsight.arrays import Bools
from rollsight.errors import OptionError, RollsightError
from rollsight.runs import Run, is_language, jsonable, keep_result

_SHOWN = ("round", "env", "step", "episode", "group", "action", "reward", "advantage", "prompt", "completion")


@dataclass(frozen=True)
class Settings:
    """How culprits are gathered and checked.

    by: what records are gathered by: "record" or columns of the records; None: env and episode, or of completions
        prompt and round.
    top: so many of the first groups and records are kept in the result.
    check: replay rounds without the culprits.
    without: what is left out in the check: "record", the share of each round's records with the highest influence, or
        a column of the records, the group of the highest influence.
    share: of a round's records that "record" leaves out; only records of positive influence are.
    rounds: at most so many rounds are replayed, those with the most positive influence.
    draws: of as many random records, for each round.
    seed: of the draws.
    """

    by: Sequence[str] | None = None
    top: int = 10
    check: bool = True
    without: str = "record"
    share: float = 0.1
    rounds: int = 10
    draws: int = 3
    seed: int = 0

    def checked(self) -> Settings:
        """The settings themselves; `OptionError` where a value cannot be used."""
        for name in ("top", "rounds", "draws"):
            if getattr(self, name) < 1:
                raise OptionError(f"{{{name}}} must be at least 1", **{name: getattr(self, name)})
        if not 0 < self.share < 1:
            raise OptionError("{share} must lie between 0 and 1: give the share of a round's records", share=self.share)
        if self.seed < 0:
            raise OptionError("{seed} must be at least 0", seed=self.seed)
        return self


@dataclass(frozen=True)
class Learnt:
    """What a round did to the behaviour.

    round: its number.
    before: mean log-probability of the pairs before the update.
    after: after it; None where neither the next frozen round nor a replay says.
    predicted: sum of the influences of the records that were trained on.
    positive: of those above 0 alone.
    negative: of those below 0 alone.
    records: that were trained on.
    """

    round: int
    before: float
    after: float | None
    predicted: float
    positive: float
    negative: float
    records: int


@dataclass(frozen=True)
class Culprits:
    """Which records of a run taught a behaviour.

    run: its folder.
    behaviour: in words.
    key: of the behaviour; the result is kept under it.
    pairs: state-action pairs, or prompts with completions, whose mean log-probability is explained.
    found: how many show the behaviour; more where some of them were drawn.
    rounds: when it was learnt.
    groups: by each of `Settings.by`, the first ones.
    records: the top records with their influence and their place in the buffer (`row`).
    check: None where it was not asked for.
    note: why there is no check although it was asked for; empty otherwise.
    """

    run: str
    behaviour: str
    key: str
    pairs: int
    found: int
    rounds: Sequence[Learnt]
    groups: Mapping[str, Sequence[Group]]
    records: Sequence[Mapping[str, Any]]
    check: Check | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """What is kept of it."""
        plain: dict[str, Any] = jsonable(self, non_finite_as_null=True)
        return plain


def culprits_of(
    run: Run, behaviour: AnyBehaviour, settings: Settings | None = None, report: Report | None = None
) -> Culprits:
    """Score every record for the behaviour, gather, check, and keep the result next to the run.

    An interrupted call goes on where it was: finished rounds are kept.

    Raises:
        RollsightError: a setting or column is wrong, or the run has no frozen rounds that can be scored.
    """
    settings = (Settings() if settings is None else settings).checked()
    by = columns_by(run, settings)
    check_columns(run, [*by, settings.without])
    numbers = behaviour.rounds.numbers
    replays = min(settings.rounds, len(numbers)) * (2 + settings.draws) if settings.check else 0

    def scoring(done: int, total: int) -> None:
        if report is not None:
            report(done, total + replays)

    def replaying(done: int, total: int) -> None:
        if report is not None:
            report(len(numbers) + done, len(numbers) + total)

    (influences,) = score_rounds(run, [behaviour], scoring)
    groups = {name: gather(run, influences, name, settings.top) for name in by if name != "record"}
    checked, note = None, ""
    if settings.check:
        chosen, words = _left_out(run, influences, settings)
        try:
            checked = check(
                run, behaviour, chosen, draws=settings.draws, seed=settings.seed, left_out=words, report=replaying
            )
        except RollsightError as error:
            note = str(error)
    result = Culprits(
        str(run.path),
        behaviour.name,
        behaviour.key,
        len(behaviour),
        behaviour.found,
        _learnt(influences, checked),
        groups,
        _top_records(run, influences, settings.top),
        checked,
        note,
    )
    keep_result(folder_of(run, behaviour), {**result.as_json(), "records_of_behaviour": _first(behaviour)})
    return result


def columns_by(run: Run, settings: Settings) -> Sequence[str]:
    """What the records of a run are gathered by."""
    if settings.by is not None:
        return settings.by
    return ("prompt", "round") if is_language(run.metadata) else ("env", "episode")


def _left_out(run: Run, influences: Sequence[RoundInfluence], settings: Settings) -> tuple[dict[int, Bools], str]:
    """Which records of which rounds the check leaves out, and what they are in words."""
    if settings.without == "record":
        chosen = {one.round: _most_influential(one, settings.share) for one in influences}
        words = f"the {settings.share:.0%} of the records with the highest influence"
    else:
        best = gather(run, influences, settings.without, 1)[0]
        code, known = coded(columns(run, influences, [settings.without])[settings.without])
        mine = code == known.index(best.value)
        ends = np.cumsum([len(one.values) for one in influences])[:-1]
        chosen = {one.round: part for one, part in zip(influences, np.split(mine, ends), strict=True)}
        words = f"the records of {settings.without} {best.value}"
    taught = {one.round: float(np.maximum(one.values[chosen[one.round]], 0).sum()) for one in influences}
    most = sorted(taught, key=lambda number: -taught[number])[: settings.rounds]
    return {number: chosen[number] for number in sorted(most) if taught[number] > 0}, words


def _most_influential(one: RoundInfluence, share: float) -> Bools:
    count = max(1, round(share * int((one.weights > 0).sum())))
    chosen = np.zeros(len(one.values), np.bool_)
    chosen[np.argsort(-one.values, kind="stable")[:count]] = True
    return chosen & (one.values > 0)


def _learnt(influences: Sequence[RoundInfluence], checked: Check | None) -> list[Learnt]:
    start = {one.round: one.log_prob for one in influences}
    replayed = {} if checked is None else {one.round: one.trained for one in checked.rounds}
    return [
        Learnt(
            one.round,
            one.log_prob,
            start.get(one.round + 1, replayed.get(one.round)),
            float(one.values.sum()),
            float(np.maximum(one.values, 0).sum()),
            float(np.minimum(one.values, 0).sum()),
            int((one.weights > 0).sum()),
        )
        for one in influences
    ]


def _top_records(run: Run, influences: Sequence[RoundInfluence], top: int) -> list[dict[str, Any]]:
    values, trained = flat(influences)
    order = np.flatnonzero(trained)
    order = order[np.argsort(-values[order], kind="stable")[:top]]
    total = float(np.maximum(values, 0).sum())
    starts = np.concatenate([[0], np.cumsum([len(one.values) for one in influences])])
    place = np.searchsorted(starts, order, side="right") - 1
    stored = run.records(influences[0].round).schema.names
    rows = columns(run, influences, [name for name in _SHOWN if name in stored]).take(order).to_pylist()
    return [
        {
            "rank": rank,
            **row,
            "row": int(index - starts[which]),
            "influence": float(values[index]),
            "share": float(max(values[index], 0) / total) if total > 0 else 0.0,
        }
        for rank, (index, which, row) in enumerate(zip(order.tolist(), place.tolist(), rows, strict=True), 1)
    ]


def _first(behaviour: AnyBehaviour, most: int = 20) -> list[str]:
    """Where the first pairs are."""
    return [":".join(map(str, place)) for place in behaviour.places[:most]]
