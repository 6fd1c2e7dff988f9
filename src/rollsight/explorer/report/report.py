"""The report of a run: the verdict first, then what it rests on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rollsight import runs
from rollsight.doctor import Finding, examine
from rollsight.errors import RollsightError
from rollsight.escaping import plain_html
from rollsight.explorer.context import Context
from rollsight.explorer.figures.scores import against_advantage, histogram
from rollsight.explorer.pages import overview, trust
from rollsight.explorer.reading import Reading
from rollsight.explorer.report import culprits
from rollsight.explorer.report.comparison import compared_runs
from rollsight.explorer.report.document import Figures, Section, document, table
from rollsight.explorer.report.records import record_tables, worst_records
from rollsight.explorer.tables import column, has, signal_of, task_of, trained_by
from rollsight.explorer.theme import percent
from rollsight.explorer.verdict import dropped_sentence, harm_sentence, harmful_groups, learned
from rollsight.runs import is_language

_FINDINGS = 5  # of the doctor's, in the verdict
_WARNINGS = 3  # of the run's, in the verdict
_GROUPS = 8  # rows of the table of harmful groups


def write_report(run: Path, out: Path, *, compare: Sequence[Path] = (), round: int | None = None) -> Path:
    """Write the report of a run as one HTML file.

    Args:
        run: the run folder.
        out: the file; replaced where it is there.
        compare: runs whose learning curves are drawn next to its own.
        round: which round's records are shown; the last scored one by default.

    Raises:
        RollsightError: a folder is not a run, the run has no complete round, a file is damaged or cannot be written.
    """
    for path in (run, *compare):
        runs.open(path)  # says what is wrong with the folder
    reading = Reading([run, *compare])
    names = reading.names()
    context, name = Context(reading), names[0]
    rounds = reading.rounds(name)
    if not len(rounds):
        raise RollsightError(f"{run} has no complete round yet: wait for its first round")
    figures = Figures()
    shown = _shown_round(rounds, round, run)
    findings = [finding for finding in examine(reading.path(name)) if finding.severity != "note"]
    sections = [_top(context, name, shown, findings)]
    if findings:
        sections.append(_found(findings))
    sections.append(_curves(reading, name, names, rounds, figures))
    if shown is not None:
        sections += _records(context, name, shown, figures)
    sections += [culprits.section(run, is_language(context.reading.metadata(name)), figures)]
    sections += [_trust(rounds, figures), _how(context, name)]
    with runs.whole_file(out) as temporary:
        temporary.write_text(document(f"{name}: report", sections, figures), "utf-8")
    return out


def _shown_round(rounds: pa.Table, wanted: int | None, run: Path) -> int | None:
    numbers = [int(value) for value in column(rounds, "round")]
    if wanted is not None:
        if wanted not in numbers:
            raise RollsightError(f"{run} has no round {wanted}: its rounds are {runs.spell(numbers)}")
        return wanted
    scored = column(rounds, "scored")
    known = [value for value, has_scores in zip(numbers, scored, strict=True) if has_scores == 1]
    return known[-1] if known else None


def _top(context: Context, name: str, shown: int | None, findings: Sequence[Finding]) -> Section:
    """What was trained, the verdict, and the records that hurt most."""
    reading = context.reading
    metadata, rounds = reading.metadata(name), reading.rounds(name)
    facts = [task_of(metadata), str(metadata.get("algo") or ""), trained_by(metadata), f"{len(rounds)} rounds"]
    if metadata.get("seed") is not None:
        facts.append(f"seed {metadata['seed']}")
    sentences, worst = [("Did it learn?", learned(rounds))], ""
    if shown is not None:
        verdict = context.trust(name, shown)
        believed = verdict.sentence[:1].upper() + verdict.sentence[1:]
        sentences.append(("Can its scores be believed?", f"In round {shown}: {believed} {verdict.caution}".strip()))
        records = reading.records(name, shown)
        target = (reading.targets(name, shown) or [""])[0]
        if target:
            groups = harmful_groups(records, f"score_{target}")
            sentences.append(("What hurt most?", f"In round {shown}: {harm_sentence(groups)}"))
            worst = worst_records(reading.run(name), shown, records, f"score_{target}", metadata)
        sentences.append(("What was left out?", f"In round {shown}: {dropped_sentence(context.summary(name, shown))}"))
    else:
        sentences.append(("Can its scores be believed?", "No round was scored."))
    warnings = (
        sorted({text for text in rounds["warnings"].to_pylist() if text}) if "warnings" in rounds.column_names else []
    )
    said = [*warnings, *reading.problems(name)]
    sentences += [("Warning", text) for text in said[:_WARNINGS]]
    if len(said) > _WARNINGS:
        sentences.append(("Warning", f"and {len(said) - _WARNINGS} further ones: rollsight sql, column warnings"))
    sentences += [(f"Found ({finding.sure})", finding.wrong) for finding in findings[:_FINDINGS]]
    advice = findings[0].tries[0] if findings and findings[0].tries else _try(context, name, shown)
    sentences.append(("What to try", _sentence(advice)))
    items = "\n".join(
        f"<li><strong>{plain_html(question)}</strong> {plain_html(answer)}</li>" for question, answer in sentences
    )
    lead = " · ".join(fact for fact in facts if fact)
    return Section(
        "",
        f'<h1>{plain_html(name)}</h1><p class="soft">{plain_html(lead)}</p><div class="verdict"><ul>{items}</ul></div>'
        + worst,
    )


def _found(findings: Sequence[Finding]) -> Section:
    """What the doctor found, with what to try."""
    parts = []
    for finding in findings:
        tries = "".join(f"<li>{plain_html(_sentence(text))}</li>" for text in finding.tries)
        causes = f'<p class="soft small">Likely: {plain_html("; ".join(finding.causes))}</p>' if finding.causes else ""
        style = "hurt" if finding.severity == "severe" else "dropped"
        parts.append(
            f'<div class="finding"><p><span class="{style}">{finding.severity}, {finding.sure}</span> '
            f"<strong>{plain_html(finding.wrong)}</strong></p>{causes}<ol>{tries}</ol></div>"
        )
    return Section("What to try", "\n".join(parts))


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _try(context: Context, name: str, shown: int | None) -> str:
    """The next step that the figures ask for."""
    if shown is None:
        return "Score the run: attach the callback, or train with rollsight train."
    verdict = context.trust(name, shown).verdict
    if verdict == "noise":
        return "More records a round, or whole episodes as units; until then compare sums, not records."
    if context.summary(name, shown).get("dropped"):
        return "Train with a larger learning rate and without dropping, and compare: it often gains as much."
    if stored := context.reading.run(name).snapshot_rounds:
        command = shlex.join(["rollsight", "intervene", str(context.reading.path(name)), "--rounds", str(stored[-1])])
        return f"Replay a round without its harmful records, and see whether it helps: {command}"
    return "Train with snapshots (snapshots='all'): then rounds can be replayed without their harmful records."


def _curves(reading: Reading, name: str, names: Sequence[str], rounds: pa.Table, figures: Figures) -> Section:
    parts = [figures.place(overview.figure(rounds), "Everything that the run measured, by round.")]
    if len(names) > 1:
        parts.insert(0, compared_runs(reading, names, figures))
    return Section("Over rounds", "\n".join(parts))


def _records(context: Context, name: str, shown: int, figures: Figures) -> list[Section]:
    """Scores of one round, where the harm lies, and the records at both ends."""
    reading = context.reading
    records = reading.records(name, shown)
    target = (reading.targets(name, shown) or [""])[0]
    if not target:
        return []
    scores = column(records, f"score_{target}")
    kept = column(records, "kept")
    status = np.where(kept == 0, "dropped", "kept")
    parts = []
    dropped = scores[(kept == 0) & np.isfinite(scores)]
    cut = float(dropped.max()) if len(dropped) and float(dropped.max()) < 0 else None
    parts.append(figures.place(histogram(scores, status, cut), f"Scores of round {shown} for the target {target}."))
    signal, called = signal_of(records)
    if has(records, signal):
        scatter = against_advantage(scores, column(records, signal), status, name=called)
        parts.append(figures.place(scatter, f"Score against {called}, a point a record."))
    groups = harmful_groups(records, f"score_{target}")[:_GROUPS]
    if groups:
        rows = [[plain_html(group.name), percent(group.harm), percent(group.records)] for group in groups]
        parts.append(
            "<h3>Where the harm lies</h3>"
            + table(["records of", "share of the harm", "share of the records"], rows, (1, 2))
        )
    ends = record_tables(reading.run(name), shown, records, f"score_{target}", reading.metadata(name))
    return [
        Section(f"Round {shown}: what helped and what hurt", "\n".join(parts)),
        Section("Records at both ends", ends),
    ]


def _trust(rounds: pa.Table, figures: Figures) -> Section:
    text = (
        '<p class="soft">Rank correlation of the scores when each half of a round gives the target of the other. '
        "Permuted: by chance. A ranking whose agreement is within chance is mostly noise.</p>"
    )
    return Section(
        "Can the scores be believed?", text + figures.place(trust.figure(rounds), "The trust line over rounds.")
    )


def _how(context: Context, name: str) -> Section:
    path = context.reading.path(name)
    metadata = context.reading.metadata(name)
    commands = [["rollsight", "view", str(path)], ["rollsight", "top", str(path), "--bottom"]]
    if not is_language(metadata):
        commands.append(["rollsight", "fidelity", str(path), "--round", "K"])
    items = "\n".join(f"<li><code>{plain_html(shlex.join(command))}</code></li>" for command in commands)
    made = metadata.get("command")
    trained = f"<p>Made by <code>{plain_html(shlex.join(map(str, made)))}</code>.</p>" if isinstance(made, list) else ""
    versions = " · ".join(f"{package} {version}" for package, version in (metadata.get("versions") or {}).items())
    return Section(
        "Look further",
        f"<ul>{items}</ul>{trained}<p class='soft small'>{plain_html(versions)}</p>"
        "<p class='soft small'>A positive score helped the target, a negative one hurt it. Scores say "
        "what the update does to first order, from the same parameters and buffer (counterfactual: replay).</p>",
    )
