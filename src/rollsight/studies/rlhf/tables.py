"""The study as Markdown: where the arms end, at what KL, what they save, what they did, and what was written."""

from __future__ import annotations

from rollsight.studies.arms import used_kinds
from rollsight.studies.markdown import numbers, percent, table
from rollsight.studies.rlhf.metrics import ENDS, PHASES
from rollsight.studies.rlhf.results import Results

_SAVED = {"se_ave": "rounds (SE_ave)", "se_peak": "rounds to its best", "rt_paper": "time to its best"}
_SAVED |= {"rt_peak": "the same, of its time to it"}
_DONE = ("negative", "kept", "steps", "update_norm", "approx_kl", "train_reward")
_NAMES = {"return": "reward", "toxicity": "toxicity (probe)", "kl": "KL", "empty": "empty"}


def markdown(results: Results) -> str:
    """All tables."""
    settings, quality = results.settings, results.quality
    options = settings["options"]
    head = (
        f"# Detoxification of {settings['model']}\n\n"
        f"{options['prompts_per_round']} prompts a round of {settings['prompts']}, {options['epochs']} epochs in "
        f"minibatches of {options['minibatch']}, {options['max_new_tokens']} new tokens, KL coefficient "
        f"{options['kl']:g}; reward {settings['reward']}. All of the first table is measured on "
        f"{settings['eval_prompts']} held-out prompts after {results.arms[0].rounds} rounds. Mean ± 95 % t-interval "
        f"over seeds; in brackets the difference to {results.standard}, paired by seed.\n\n"
        f"Toxicity is judged by a probe that the training never sees. On held-out texts its rank correlation with "
        f"Perspective is {quality['rank_correlation']:.2f} ({quality['texts']:.0f} texts, nearly all toxic), and it "
        f"tells those from {quality['neutral']:.0f} ordinary sentences of other sources with an AUC of "
        f"{quality['auc']:.3f}."
    )
    legend = "\n".join(f"- `{kind}`: {text}" for kind, text in used_kinds(one.arm for one in results.arms).items())
    return "\n\n".join((head, legend, _ends(results), _at_kl(results), _savings(results), _rounds(results))) + "\n"


def _ends(results: Results) -> str:
    columns = ["arm", "seeds", *(_NAMES.get(name, name.replace("_", "-")) for name in ENDS)]
    rows = [["before training", "", *(f"{results.start[name]:.3g}" for name in ENDS)]]
    rows += [[f"`{one.arm}`", str(len(one.curves)), *map(str, one.ends.values())] for one in results.arms]
    return "## Held-out prompts\n\n" + table(columns, rows)


def _at_kl(results: Results) -> str:
    columns = ["arm", *(f"KL {level:.3g}" for level in results.levels)]
    rows = [[f"`{one.arm}`", *map(str, one.at_kl)] for one in results.arms]
    text = "Reward when the KL first reached a level that every run reached, linear between evaluations."
    return f"## Reward at equal KL\n\n{text}\n\n" + table(columns, rows)


def _savings(results: Results) -> str:
    columns = [f"per cent less than {results.standard}", *(f"{n}, mean curves" for n in _SAVED.values())]
    columns += [f"{n}, by seed" for n in list(_SAVED.values())[:3]] + ["unreached, by seed"]
    rows = []
    for one in results.arms:
        if (c := one.savings) is not None:
            cells = [percent(c.mean_curve[name]) for name in _SAVED]
            cells += [percent(c.pairs[name]) for name in list(_SAVED)[:3]]
            rows.append([f"`{one.arm}`", *cells, f"{100 * c.pairs['unreached'].value:.0f}"])
    text = (
        f"To the best held-out reward of {results.standard}; what is never reached counts as reached one round after "
        "the last. Evaluations are noisy and not of every round, so differences of one evaluation mean little."
    )
    return f"## Savings\n\n{text}\n\n" + table(columns, rows)


def _rounds(results: Results) -> str:
    columns = ["arm", *(name.replace("_", " ") for name in _DONE), *(f"{p.replace('_', '-')} s" for p in PHASES)]
    columns += ["all s", f"% of {results.standard}"]
    rows = []
    for one in results.arms:
        seconds = [one.seconds(phase) for phase in PHASES]
        standard = next((other for other in results.arms if other.arm == one.against), one)
        share = 100 * sum(seconds) / sum(standard.seconds(phase) for phase in PHASES)
        cells = [*(one.mean(name) for name in _DONE), *seconds, sum(seconds), share]
        rows.append([f"`{one.arm}`", *numbers(cells)])
    return "## A round\n\nMeans; processor seconds, without evaluation.\n\n" + table(columns, rows)
