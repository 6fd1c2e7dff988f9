"""TRL: generation batches are frozen as they are trained on, and a replay without TRL ends where TRL did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from trl_zoo import lora, model, trainer

from rollsight import runs
from rollsight.adapters.trl import attach
from rollsight.analysis import culprits
from rollsight.analysis.culprits import trl_host
from rollsight.errors import RollsightError
from rollsight.snapshot import LanguageRound
from rollsight.training.language.models import LanguageModel

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

DIGITS = "select round, episode from records where round = 2 and reward > 1"


def run_of(folder: Path, adapted: bool = True, **changes: Any) -> runs.Run:
    """Three rounds that were trained with an attachment."""
    trained = trainer(folder / "out", lora=lora() if adapted else None, max_steps=3, **changes)
    attach(trained, drop=0.5, run=folder / "run")
    trained.train()
    return runs.open(folder / "run")


@pytest.fixture(autouse=True)
def base(monkeypatch: Any) -> None:
    """The base model that the runs were trained from."""
    from trl_zoo import tokenizer

    monkeypatch.setattr(trl_host.models, "load", lambda *_, **__: LanguageModel(model(), tokenizer()))


@pytest.mark.parametrize(
    ("adapted", "changes"),
    [(True, {}), (False, {"loss_type": "grpo"}), (True, {"algorithm": "rloo"}), (True, {"loss_type": "dr_grpo"})],
    ids=["dapo, lora", "grpo", "rloo", "dr_grpo"],
)
def test_a_replay_without_trl_ends_where_trl_did(tmp_path: Path, adapted: bool, changes: Any) -> None:
    run = run_of(tmp_path, adapted, **changes)
    assert run.policy_rounds == [1, 2, 3]
    kept = [float(one) for one in run.records(2)["kept"].to_pylist()]
    assert LanguageRound.load(run.policy_path(2)).weights.tolist() == kept
    behaviour = culprits.of_query(run, DIGITS)
    ended = {name: p.detach().clone() for name, p in behaviour.rounds.open(2).after(None).trainable().items()}
    started = {name: p.detach().clone() for name, p in behaviour.rounds.open(2).before().trainable().items()}
    reached = behaviour.rounds.open(3).before().trainable()
    assert ended.keys() == reached.keys()
    moved = max(float((started[name] - reached[name].detach()).abs().max()) for name in ended)
    missed = max(float((ended[name] - reached[name].detach()).abs().max()) for name in ended)
    assert moved > 1e-4
    assert missed < 0.05 * moved


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_influence_is_the_product_of_policy_gradients(tmp_path: Path, algorithm: str) -> None:
    """At the policy that made the batch: of A_i log pi(completion i), and of the behaviour's mean."""
    run = run_of(tmp_path, algorithm=algorithm)
    behaviour = culprits.of_query(run, DIGITS)
    (found,) = culprits.score_rounds(run, [behaviour])
    opened = behaviour.rounds.open(2)
    policy, records = opened.before(), opened.records

    def gradient(of: Any, row: int) -> torch.Tensor:
        one = of.take(torch.tensor([row]))
        total = one.advantages.mean() * torch.where(one.valid, policy(one).log_prob, 0.0).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, [*policy.trainable().values()])])

    direction = sum(gradient(behaviour.records, row) for row in range(len(behaviour))) / len(behaviour)
    expected = torch.stack([gradient(records, row) @ direction for row in range(len(records))]) * opened.weights
    assert expected.abs().max() > 1e-2
    assert found[1].values == pytest.approx(expected.double().numpy(), rel=1e-3, abs=1e-3 * float(expected.abs().max()))


def test_every_replay_of_a_round_begins_where_the_round_did(tmp_path: Path) -> None:
    opened = culprits.of_query(run_of(tmp_path), DIGITS).rounds.open(2)
    ends = [torch.cat([p.detach().flatten() for p in opened.after(None).trainable().values()]) for _ in range(2)]
    assert torch.equal(*ends)


def test_culprits_of_a_trl_run_are_scored_and_checked(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    behaviour = culprits.of_query(run, DIGITS)
    result = culprits.culprits_of(run, behaviour, culprits.Settings(rounds=2, draws=1, share=0.3))
    assert [one.round for one in result.rounds] == [1, 2, 3]
    assert result.check is not None
    assert result.records[0]["completion"]
    pairs = culprits.of_pairs(run, [("1+22=", "12")])
    assert pairs.log_prob(pairs.rounds.open(1).before()) < 0


def test_snapshots_are_chosen_as_elsewhere(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "out", max_steps=2)
    with pytest.raises(RollsightError, match="snapshots='often' is unknown: give auto, all, every:K or none"):
        attach(trained, run=tmp_path / "run", snapshots="often")
    attach(trained, run=tmp_path / "run", snapshots="every:2")
    trained.train()
    assert runs.open(tmp_path / "run").policy_rounds == [2]
    assert torch.isfinite(LanguageRound.load(runs.open(tmp_path / "run").policy_path(2)).records.advantages).all()
