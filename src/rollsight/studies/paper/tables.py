"""The study as Markdown: what the arms reach, what they save, what they did."""

from __future__ import annotations

from collections.abc import Sequence

from rollsight.analysis.intervals import Interval
from rollsight.escaping import visible
from rollsight.studies.markdown import bracketed, mean, numbers, percent, table
from rollsight.studies.paper.results import EnvResult
from rollsight.training.paper import EnvSettings, settings_for

_SHOWN = {"se_ave": "SE_ave", "se_peak": "SE_peak", "rt_paper": "RT_peak (paper's)", "rt_peak": "RT_peak"}
_PHASES = ("collect", "score", "train", "evaluate")


def markdown(results: Sequence[EnvResult]) -> str:
    """All tables, an environment after the other."""
    return "\n\n".join(_environment(result) for result in results) + "\n"


def _environment(result: EnvResult) -> str:
    settings = settings_for(result.env)
    rounds = int(next(iter(result.arms[0].curves.values()))["round"][-1])
    head = (
        f"## {visible(result.env)}\n\n{rounds} rounds of 2048 records, {settings.optimizer} at {settings.lr:g}, "
        f"paper's p {100 * settings.drop:g} %. Mean ± 95 % t-interval over seeds; IQM with bootstrap interval; gains "
        "are paired by seed. A diverged run counts, from there to its end, with its lowest return. RT is left out "
        "where collection took over a quarter more or less time than the PPO's: another machine, or another load.\n\n"
    )
    compared = [_savings(result, settings)] if any(one.contrast for one in result.arms) else []
    return head + "\n\n".join((_returns(result, settings), *compared, _updates(result)))


def _returns(result: EnvResult, settings: EnvSettings) -> str:
    columns = ["arm", "seeds", "final return", "IQM", "area", "final gain", "area gain", "P(better)"]
    rows = []
    for one in result.arms:
        s, c = one.summary, one.contrast
        gains = ["", "", ""] if c is None else [_t(c.final), _t(c.area), bracketed(c.probability, ".2f", ".2f")]
        seeds = f"{s.seeds}, {one.diverged} diverged" if one.diverged else str(s.seeds)
        rows.append([f"`{one.arm}`", seeds, _t(s.final), bracketed(s.final_iqm, ".4g", ".4g"), _t(s.area), *gains])
    for optimizer, reported in settings.reported.items():
        if gain := reported.get("final_gain"):
            rows.append([f"the paper, {optimizer}", "", "", "", "", f"{gain[0]:g} to {gain[1]:g}", "", ""])
    return table(columns, rows)


def _savings(result: EnvResult, settings: EnvSettings) -> str:
    columns = ["per cent less", "against", *(f"{n}, mean curves" for n in _SHOWN.values())]
    columns += [f"{n}, by seed" for n in list(_SHOWN.values())[:2]] + ["unreached, by seed"]
    rows = []
    for one in result.arms:
        if (c := one.contrast) is None:
            continue
        cells = [percent(c.mean_curve[name]) for name in _SHOWN]
        cells += [percent(c.pairs[name]) for name in ("se_ave", "se_peak")]
        rows.append([f"`{one.arm}`", f"`{one.against}`", *cells, f"{100 * c.pairs['unreached'].value:.0f}"])
    for arm, null in result.nulls.items():
        cells = [_moments(null.mean_curve[name]) for name in _SHOWN]
        cells += [_moments(null.pairs[name]) for name in ("se_ave", "se_peak")]
        rows.append([f"null: `{arm}`, mean (sd)", "itself", *cells, f"{100 * null.pairs['unreached'][0]:.0f}"])
    for optimizer, reported in settings.reported.items():
        if reported:
            known = [_reported(reported.get(name)) for name in ("se_ave", "se_peak", "rt_peak")]
            rows.append([f"the paper, {optimizer}", "PPO", *known, "", "", "", ""])
    return table(columns, rows)


def _updates(result: EnvResult) -> str:
    columns = ["arm", "kept", "steps", "update norm", "KL", "gradient ratio", "split half", "permuted"]
    columns += [f"{phase} s" for phase in _PHASES]
    rows = []
    for one in result.arms:
        means = [one.mean(name) for name in ("kept", "steps", "update_norm", "kl", "gradient_ratio", "split_half")]
        means += [one.mean("split_half_permuted"), *(one.seconds(phase) for phase in _PHASES)]
        rows.append([f"`{one.arm}`", *numbers(means)])
    return table(columns, rows)


def _t(interval: Interval) -> str:
    return mean(interval, ".4g", ".3g")


def _moments(found: tuple[float, float]) -> str:
    return f"{100 * found[0]:.1f} ({100 * found[1]:.0f})"


def _reported(value: float | Sequence[float] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float | int):
        return f"{value:g}"
    return " ± ".join(f"{number:g}" for number in value)
