"""TRL: training equals training on the kept completions, and nothing dropped equals the stock trainer, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl")

from torch import Tensor  # noqa: E402
from trl_zoo import LOSSES, dropping, generation, gradient, lora, parameters, parity, shifted, trainer  # noqa: E402

import rollsight as rs  # noqa: E402
from rollsight.adapters.trl import attach  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize("loss", LOSSES)
def test_dropping_equals_training_without_the_rows(tmp_path: Any, loss: str) -> None:
    trained = trainer(tmp_path, loss_type=loss, num_iterations=2)
    assert parity(trained, (0, 3, 6)) < 1e-5


@pytest.mark.parametrize("changes", [{}, {"importance_sampling_level": "sequence"}, {"use_bias_correction_kl": True}])
@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_the_kl_term_of_dropped_rows_leaves_too(tmp_path: Any, loss: str, changes: Any) -> None:
    trained = trainer(tmp_path, loss_type=loss, num_iterations=2, beta=0.5, lora=lora(), **changes)
    assert parity(trained, (0, 3, 6)) < 1e-5


def test_the_entropy_term_of_dropped_rows_leaves_too(tmp_path: Any) -> None:
    """It is a mean per micro-batch, so one micro-batch holds the whole batch here."""
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_iterations": 2}
    for changes in ({"entropy_coef": 0.5}, {"top_entropy_quantile": 0.5, "entropy_coef": 0.5}):
        assert parity(trainer(tmp_path, loss_type="grpo", **whole, **changes), (0, 3, 6)) < 1e-5


def test_bnpo_is_exact_where_micro_batches_have_equally_many_tokens(tmp_path: Any) -> None:
    """Its normaliser is each micro-batch's own number of tokens, which the shuffle decides."""
    one = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    equal = {"generation_kwargs": {"min_new_tokens": 8}}
    for changes in (one, equal):
        assert parity(trainer(tmp_path, loss_type="bnpo", num_iterations=2, **changes), (0, 3, 6)) < 1e-5
    assert parity(trainer(tmp_path, loss_type="bnpo", num_iterations=2), (0, 3, 6)) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"beta": 0.5, "lora": lora()}])
def test_rloo_without_the_rows(tmp_path: Any, changes: Any) -> None:
    assert parity(trainer(tmp_path, "rloo", num_iterations=2, **changes), (0, 3, 6)) < 1e-5


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": lora(), "num_iterations": 2}, {"steps_per_generation": 4, "per_device_train_batch_size": 2}],
    ids=["full", "lora, 2 iterations", "2 updates per generation"],
)
def test_scoring_and_dropping_nothing_are_bit_identical(tmp_path: Any, algorithm: str, changes: Any) -> None:
    stock = trainer(tmp_path / "stock", algorithm, **changes)
    stock.train()
    scored = trainer(tmp_path / "scored", algorithm, **changes)
    start = parameters(scored)
    attachment = attach(scored, drop=0.0, target=["sequence", "return"])
    scored.train()
    assert attachment.round >= 1
    assert all(one.values.abs().min() > 0 for one in attachment.scores.values())
    assert not torch.equal(parameters(scored), start)
    assert torch.equal(parameters(scored), parameters(stock))


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_whole_run_equals_a_run_on_the_kept_rows(tmp_path: Any, algorithm: str) -> None:
    """Against the stock trainer on physically smaller batches, through generation and optimiser."""
    rows: tuple[int, ...] = (1, 2, 5)
    whole: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 0.3}
    whole["optim"] = "sgd"  # Adam makes whole steps of what rounding leaves of a gradient of zero

    def run(folder: str, change: Any) -> Tensor:
        trained = trainer(tmp_path / folder, algorithm, **whole)
        made = trained._generate_and_score_completions

        def generate(inputs: Any) -> Any:
            torch.manual_seed(trained.state.global_step)  # shuffling fewer rows takes fewer random numbers
            return change(made(inputs))

        trained._generate_and_score_completions = generate
        if folder == "attached":
            attach(trained, selection=dropping(*rows))
        trained.train()
        return parameters(trained)

    def smaller(batch: dict[str, Any]) -> dict[str, Any]:
        kept = torch.tensor([i for i in range(8) if i not in rows])
        batch = {k: v[kept] if v.dim() else v for k, v in batch.items()}
        return batch | {"num_items_in_batch": batch["completion_mask"].sum()}

    attached, without = run("attached", lambda batch: batch), run("smaller", smaller)
    assert (attached - run("stock", lambda batch: batch)).abs().max() > 1e-3
    assert (attached - without).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [("grpo", {"loss_type": "grpo"}), ("grpo", {"loss_type": "dapo", "temperature": 0.7}), ("rloo", {})],
)
@pytest.mark.parametrize("adapter", [None, lora()], ids=["full", "lora"])
def test_scores_are_inner_products_of_the_trainers_own_gradients(
    tmp_path: Any, algorithm: str, changes: Any, adapter: Any
) -> None:
    """Each row's gradient from TRL's loss on that row alone, the target's from TRL's own log-probabilities."""
    trained = trainer(tmp_path, algorithm, lora=adapter, **changes)
    shifted(trained)
    attachment = attach(trained, target=["sequence", "return", "reward"])
    whole, _ = generation(trained)
    trained.args.steps_per_generation = 1
    rows = []
    for i in range(8):
        one = {k: v[i : i + 1] if v.dim() else v.new_ones(()) for k, v in whole.items()}
        rows.append(-gradient(trained, [one]).double())
    both = torch.cat([whole["prompt_ids"], whole["completion_ids"]], 1)
    attended = torch.cat([whole["prompt_mask"], whole["completion_mask"]], 1)
    length = whole["completion_ids"].shape[1]
    log_probs = trained._get_per_token_logps_and_entropies(trained.model, both, attended, length)[0]
    mask, advantages = whole["completion_mask"], whole["advantages"]
    sums = (log_probs * mask).sum(1)
    rewards = torch.tensor(list(trained._logs["rewards"]["digits"]))
    targets = {
        "sequence": (sums * advantages).mean(),
        "return": (sums * advantages).sum() / mask.sum(),
        "reward": (sums * (rewards - rewards.mean()) / (rewards.std() + 1e-8)).mean(),
    }
    for name, target in targets.items():
        trained.model.zero_grad()
        target.backward(retain_graph=True)
        direction = torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.grad is not None]).double()
        expected = torch.stack([row @ direction for row in rows])
        assert (attachment.scores[name].values - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("loss", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "luspo"])
@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_the_objective_is_the_trainers_loss(tmp_path: Any, loss: str, importance: str) -> None:
    """Off the policy that generated, where ratios and clipping matter."""
    settings = {"loss_type": loss, "importance_sampling_level": importance, "num_iterations": 2}
    one = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    trained = trainer(tmp_path, epsilon=0.05, epsilon_high=0.1, **settings, **one)
    whole, _ = generation(trained)
    shifted(trained)
    trained.current_gradient_accumulation_steps = 1
    expected = -trained.compute_loss(trained.model, whole)
    objective = rs.objectives.GRPO(loss, 0.05, 0.1, importance, max_length=8)
    assert float(mean_loss(trained, objective, whole, loss in ("dapo", "bnpo", "cispo"))) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_the_rloo_objective_is_the_trainers_loss(tmp_path: Any) -> None:
    trained = trainer(tmp_path, "rloo", epsilon=0.05, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    whole, _ = generation(trained)
    shifted(trained)
    objective = rs.objectives.RLOO(0.05, 0.05)
    expected = -trained.compute_loss(trained.model, whole)
    mask = whole["completion_mask"]  # TRL keeps the sum over a sequence only: any split over its tokens will do
    whole["old_per_token_logps"] = (whole["old_logps"] / mask.sum(1))[:, None].expand(mask.shape)
    assert float(mean_loss(trained, objective, whole, False)) == pytest.approx(float(expected), rel=1e-4)


def mean_loss(trained: Any, objective: Any, whole: dict[str, Any], over_tokens: bool) -> Tensor:
    columns = [whole[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
    records = rs.language.completion_records(*columns, whole["old_per_token_logps"], whole["advantages"])
    evaluation = rs.Policy(trained.model, rs.language.Completions())(records)
    terms = objective.terms(evaluation, objective.prepare(records)).sum()
    return terms / (records.valid.sum() if over_tokens else len(records))
