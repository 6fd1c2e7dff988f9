"""The study as Markdown: where the arms end, what they did, and what was written."""

from __future__ import annotations

from rollsight.studies.arms import used_kinds
from rollsight.studies.grpo.results import MEASURES, Results
from rollsight.studies.grpo.settings import PHASES
from rollsight.studies.markdown import numbers, table

_DONE = ("train_reward", "silent_groups", "negative", "kept", "update_norm")


def markdown(results: Results) -> str:
    """All tables."""
    s = results.settings
    head = (
        f"# GRPO on one-digit {s.task}, {s.model}\n\n"
        f"{s.shots} solved before each; {s.prompts} prompts a round, {s.generations} completions each, {s.rounds} "
        f"rounds; Adam at {s.lr:g}, LoRA of rank {s.lora_rank} on the last {s.lora_layers} layers. Reward: 1 for a "
        "right answer. Accuracy is the probability of a right answer to a sample, greedy the share of right ones "
        f"without sampling, on {s.evaluation} problems that are neither trained nor scored on, others for each seed. "
        f"Mean ± 95 % t-interval over seeds; in brackets the difference to {results.standard}, paired by seed."
    )
    legend = "\n".join(f"- `{kind}`: {text}" for kind, text in used_kinds(one.arm for one in results.arms).items())
    return "\n\n".join((head, legend, _accuracy(results), _rounds(results))) + "\n"


def _accuracy(results: Results) -> str:
    columns = ["arm", "seeds", *(name.replace("_", " ") for name in MEASURES)]
    accuracy, greedy = (f"{value:.3g}" for value in results.start)
    rows = [["before training", "", accuracy, "", greedy, ""]]
    rows += [[f"`{one.arm}`", str(len(one.curves)), *map(str, one.measures.values())] for one in results.arms]
    text = (
        "The area is the mean over the evaluations after the start; the train reward that of the rounds before the "
        "last evaluation, each completion written before the round's update."
    )
    return f"## Accuracy\n\n{text}\n\n" + table(columns, rows)


def _rounds(results: Results) -> str:
    columns = ["arm", *(name.replace("_", " ") for name in _DONE), *(f"{phase} s" for phase in PHASES), "all s"]
    rows = []
    for one in results.arms:
        seconds = [one.seconds(phase) for phase in PHASES]
        cells = [*(one.mean(name) for name in _DONE), *seconds, sum(seconds)]
        rows.append([f"`{one.arm}`", *numbers(cells)])
    text = (
        "Means; silent groups are those without advantage, all of whose completions are right or all wrong; processor "
        "seconds, without evaluation."
    )
    return f"## A round\n\n{text}\n\n" + table(columns, rows)
