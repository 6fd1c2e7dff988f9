"""One run of the study: an arm trains, its buffer is scored from time to time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rollsight.errors import OptionError
from rollsight.studies.replay.arms import ReplayArm
from rollsight.studies.runner import Report
from rollsight.studies.store import Columns, Key

if TYPE_CHECKING:
    from rollsight.adapters.sb3_off_policy import ReplayInfluenceCallback
    from rollsight.studies.replay.models import Flipping

KEYS = ("env", "arm", "seed")
_ROUNDS = 20  # of a whole run, by every environment's settings
_FOUND = ("auroc_influence", "auroc_influence_size", "auroc_td", "auroc_age", "auroc_reward", "flipped", "agreement")
_COPIED = ("value_bias", "value_rmse", "td_error_mean", "trust_split_half", "trust_split_half_permuted", "neg_frac")


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    corrupt: float = 0.05
    """Share of the episodes whose rewards are flipped."""
    power: float = 0.6
    """Weights are in proportion to rank to the minus this; 0 weighs all alike."""
    episodes: int = 10
    """Held-out episodes of the present policy in each round."""
    rounds: int | None = None
    """Rounds to train; all steps of the environment's settings by default."""

    def __post_init__(self) -> None:
        if not 0 <= self.corrupt < 1:
            raise OptionError("{corrupt} is not possible: give a share from 0 to below 1", corrupt=self.corrupt)
        if not self.power >= 0:
            raise OptionError("{power} is not possible: give at least 0", power=self.power)
        for name, value in (("episodes", self.episodes), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise OptionError(f"{{{name}}} is not possible: give at least 1", **{name: value})


@dataclass(frozen=True)
class Cell:
    """One run.

    env: name of the environment.
    arm: how transitions are drawn.
    seed: of every random stream.
    settings: that all runs of the study share.
    """

    env: str
    arm: ReplayArm
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.env} {self.arm} {self.seed}"

    @property
    def key(self) -> Key:
        return self.env, str(self.arm), self.seed

    @property
    def rounds(self) -> int:
        """About how many looks at the buffer there will be."""
        return self.settings.rounds or _ROUNDS

    def done(self, columns: Columns) -> bool:
        return True

    def run(self, report: Report) -> list[dict[str, Any]]:
        """Train, and return a row for each round."""
        from rollsight.adapters.sb3_off_policy import ReplayInfluenceCallback
        from rollsight.studies.replay.models import SETTINGS, clean, make_model

        setting, study = SETTINGS[self.env], self.settings
        weighs = self.arm.kind != self.arm.standard.kind
        model, flipping = make_model(self.env, study.corrupt, self.seed, weighs)
        rows: list[dict[str, Any]] = []

        def follow(summary: Mapping[str, Any]) -> None:
            rows.append(_row(summary, watch, flipping))
            report(summary["round"], summary)

        watch = ReplayInfluenceCallback(
            every=setting.every,
            episodes=study.episodes,
            make_env=partial(clean, self.env),
            selection=self.arm.rule(lambda: watch, study.power, self.seed),
            on_round=follow,
        )
        share = 1.0 if study.rounds is None else min(1.0, study.rounds / _ROUNDS)
        model.learn(int(setting.steps * share), callback=watch)
        return rows


def _row(summary: Mapping[str, Any], watch: ReplayInfluenceCallback, flipping: Flipping) -> dict[str, Any]:
    """A round's figures. auroc_*: the probability that a transition with a flipped reward stands above another one in a
    ranking; None where there is none. agreement: Spearman's correlation of influence with the TD error's magnitude."""
    import numpy as np

    from rollsight.scoring.ranks import spearman
    from rollsight.studies.metrics import auroc

    row = {"round": summary["round"], "timesteps": summary["timesteps"], "return": summary.get("evaluation_return")}
    row |= {name: summary.get(name) for name in _COPIED}
    row |= dict.fromkeys(_FOUND)
    if watch.replay is None or not watch.scores:
        return row
    records = watch.replay.records
    tagged = np.array(flipping.tags, np.bool_)[records.ids["step"].numpy()]
    error = records.advantages.abs().double().numpy()
    influence = watch.scores["calibration"].values.double().numpy()
    assert records.rewards is not None
    rankings: dict[str, Any] = {
        "influence": -influence,
        "influence_size": np.abs(influence),
        "td": error,
        "age": watch.replay.age.astype(np.float64),
        "reward": -records.rewards.double().numpy(),
    }
    some = 0 < tagged.sum() < len(tagged)
    row |= {f"auroc_{name}": auroc(ranking, tagged) if some else None for name, ranking in rankings.items()}
    return row | {"flipped": float(tagged.mean()), "agreement": spearman(influence, error)}
