"""A language run measured: how rankings find the tagged completions, and what leaving their first ones out does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs
from rollsight.analysis.culprits import of_completions, score_rounds
from rollsight.analysis.culprits.groups import columns, flat
from rollsight.arrays import Floats
from rollsight.streams import Purpose, stream
from rollsight.studies.culprits.comparing import NothingLearntError, compared
from rollsight.studies.culprits.planted_language import LanguageCell, shows

REPLAYED = (5, 10, 15)  # rounds
_AT = 50  # precision at so many
_USED = ("round", "episode", "reward", "advantage", "completion")


def measure(cell: LanguageCell, folder: Path) -> dict[str, Any]:
    """Train the run, rank its completions without their tags, and compare with the tags. The behaviour is the style in
    the last round's completions, whatever the prompt.

    Raises:
        NothingLearntError: none of them has it.
    """
    tagged = cell.train(folder)
    run = runs.open(folder)
    last = run.rounds[-1]
    texts = run.records(last)["completion"].to_pylist()
    shown = [(last, row) for row, text in enumerate(texts) if shows(cell.cause, text)]
    if not shown:
        raise NothingLearntError(f"no completion of the last round shows {cell.cause}, so there is nothing to explain")
    # The adapter-free GRPO run keeps all weights by round, so that any miniature will do.
    behaviour = of_completions(run, shown, model="miniature" if cell.trainer == "GRPO" else None)
    (influences,) = score_rounds(run, [behaviour])
    of = {name: np.array(column.to_pylist()) for name, column in _table(run, influences).items()}
    rankings = {
        "influence": flat(influences)[0],
        "reward": of["reward"].astype(float),
        "|advantage|": np.abs(of["advantage"]).astype(float),
        "text similarity": similarity(of["completion"].tolist(), [texts[row] for _, row in behaviour.places]),
        "recency": of["round"] * 1e6 + of["episode"],
        "random": stream(cell.seed, Purpose.RANDOM_RANKING).random(len(tagged)),
    }
    row = {"env": cell.env, "cause": cell.cause, "seed": cell.seed, "tagged": int(tagged.sum()), "records": len(tagged)}
    return {**row, **compared(behaviour, rankings, tagged, of["round"], REPLAYED, _AT)}


def similarity(texts: Sequence[str], like: Sequence[str]) -> Floats:
    """(N,) cosine of each text's TF-IDF (characters and pairs of them) with the mean of the others'."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), lowercase=False)
    found = vectorizer.fit_transform(texts)  # rows of length 1
    mean = np.asarray(vectorizer.transform(like).mean(0)).ravel()
    near: Floats = found @ mean / max(float(np.linalg.norm(mean)), 1e-12)
    return near


def _table(run: runs.Run, influences: Sequence[Any]) -> dict[str, Any]:
    table = columns(run, influences, _USED)
    return {name: table[name] for name in _USED}
