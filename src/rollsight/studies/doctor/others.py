"""What rlprobe and rl-doctor (PyPI `rldoctor`) say of a run of a language model, from the figures that they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs

TOOLS = ("rlprobe", "rl-doctor")
# Our fault -> what names its cause in each of them; an empty set: they have no check of it.
RIGHT: Mapping[str, Mapping[str, set[str]]] = {
    "length rewarded": {"rlprobe": {"REWARD_HACK_LENGTH"}, "rl-doctor": {"length_pathology"}},
    "flat groups": {"rlprobe": {"DEGENERATE_GROUPS"}, "rl-doctor": {"advantage_collapse"}},
    "truncation": {"rlprobe": {"TRUNCATION_STARVE"}, "rl-doctor": {"length_pathology"}},
    "no end of text": {"rlprobe": {"TRUNCATION_STARVE"}, "rl-doctor": {"length_pathology"}},
    "KL runaway": {"rlprobe": {"KL_BLOWUP"}, "rl-doctor": {"kl_drift"}},
    "repetition": {"rlprobe": {"REPETITION_SPIRAL"}, "rl-doctor": set()},
    "phrase": {"rlprobe": {"FORMAT_GAMING"}, "rl-doctor": {"reward_composition"}},
}


def findings(folder: Path) -> dict[str, list[str]]:
    """Names of the findings of each tool that is installed, those it calls warnings or worse."""
    series = _series(folder)
    found: dict[str, list[str]] = {}
    try:
        from rlprobe.doctor import RunView, diagnose_view
        from rlprobe.schemas import RunManifest, StepRecord

        manifest = RunManifest(run_id=folder.name, created_at="2026-01-01", algorithm="ppo")
        view = RunView(manifest, [StepRecord(**row) for row in series])
        found["rlprobe"] = [one.signature_id for one in diagnose_view(view) if one.severity != "info"]
    except ImportError:
        pass
    try:
        from rl_doctor import Severity, diagnose, run_from_records

        names = {"reward_mean": "reward", "kl_mean": "kl", "zero_variance_group_frac": "frac_reward_zero_std",
                 "completion_len_mean": "completions/mean_length", "entropy_mean": "entropy",
                 "truncation_rate": "completions/clipped_ratio", "clip_fraction": "clip_ratio"}  # fmt: skip
        rows = [{names.get(name, name): value for name, value in row.items()} for row in series]
        diagnosis = diagnose(run_from_records(rows))
        found["rl-doctor"] = [one.detector for one in diagnosis.problems if one.severity > Severity.INFO]
    except ImportError:
        pass
    return found


def _series(folder: Path) -> list[dict[str, Any]]:
    """A row of figures for each round, by rlprobe's names."""
    run = runs.open(folder)
    limit = run.metadata["run_settings"]["options"]["max_new_tokens"]
    names = ["round", "reward_mean", "reward_std", "kl_mean", "length_mean", "clip_fraction", "value_loss",
             "explained_variance", "distinct_2"]  # fmt: skip
    rows = []
    for summary in run.rows("rounds", names).to_pylist():
        records = run.records(summary["round"])
        length, reward = records["length"].to_numpy(), records["reward"].to_numpy()
        group = records["group"].to_numpy()
        flat = [np.ptp(reward[group == one]) == 0 for one in np.unique(group) if (group == one).sum() > 1]
        repeated = None if summary["distinct_2"] is None else 1 - summary["distinct_2"]
        sampled = np.concatenate([np.asarray(one) for one in records["token_log_probs"].to_pylist()])
        rows.append(
            {
                "step": summary["round"],
                "reward_mean": summary["reward_mean"],
                "reward_std": summary["reward_std"],
                "kl_mean": summary["kl_mean"],
                "entropy_mean": float(-sampled.mean()),
                "clip_fraction": summary["clip_fraction"],
                "value_loss": summary["value_loss"],
                "value_explained_variance": summary["explained_variance"],
                "completion_len_mean": summary["length_mean"],
                "truncation_rate": float((length >= limit).mean()),
                "max_len_hit_frac": float((length >= limit).mean()),
                "eos_rate": float((length < limit).mean()),
                "repetition_rate": repeated,
                "zero_variance_group_frac": float(np.mean(flat)) if flat else None,
            }
        )
    return rows
