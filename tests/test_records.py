"""`Records`: what is taken, what is refused and how it is said."""

import numpy as np
import pytest
import torch

import rollsight as rs

NAN, INF = float("nan"), float("inf")


def columns(n=4, **changes):
    given = {
        "obs": torch.zeros(n, 2),
        "actions": torch.zeros(n, dtype=torch.long),
        "log_probs": torch.zeros(n),
        "advantages": torch.arange(float(n)),
    }
    return {**given, **changes}


def test_numpy_arrays_and_lists_become_tensors():
    records = rs.Records(
        np.zeros((3, 2), dtype=np.float32),
        [0, 1, 2],
        [0.0, -1.0, -2.0],
        np.array([1, 2, 3]),
        returns=np.array([1.0, 2.0, 3.0], dtype=np.float64)[::-1],
        ids={"episode": np.array([5, 5, 6], dtype=np.int32), "env": [0, 0, 0]},
        valid=[True, False, True],
    )
    assert records.obs.dtype == torch.float32
    assert records.actions.tolist() == [0, 1, 2]
    assert records.log_probs.tolist() == [0.0, -1.0, -2.0]
    assert records.advantages.dtype == torch.float32, "whole numbers become floats"
    assert records.returns.tolist() == [3.0, 2.0, 1.0]
    assert records.ids["episode"].dtype == torch.int64
    assert records.valid.tolist() == records.valid_rows.tolist() == [True, False, True]
    assert len(records) == 3


@pytest.mark.parametrize("actions", [torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.long), {"move": torch.zeros(4)}])
def test_observations_and_actions_may_be_dicts_and_of_many_dimensions(actions):
    obs = {"image": torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "mask": torch.ones(4, 5, dtype=torch.bool)}
    part = rs.Records(**columns(obs=obs, actions=actions, ids={"env": [0, 1, 2, 3]})).take(torch.tensor([3, 1]))
    assert part.obs["image"].shape == (2, 3, 8, 8)
    assert part.obs["image"].dtype == torch.uint8
    assert part.ids["env"].tolist() == [3, 1]
    assert part.advantages.tolist() == [3.0, 1.0]


def test_sequences_are_valid_by_record_or_by_token():
    per_token = torch.tensor([[True, False], [False, False], [True, True]])
    both = columns(3, log_probs=torch.zeros(3, 2))
    assert rs.Records(**both, valid=per_token).valid_rows.tolist() == [True, False, True]
    by_record = rs.Records(**both, valid=[True, False, True])
    assert by_record.valid.tolist() == [[True, True], [False, False], [True, True]]
    assert by_record.advantages.shape == (3,), "one advantage for a sequence is allowed"


WRONG = {
    "empty": (columns(0), r"empty \(0 records\)"),
    "unequal actions": (columns(actions=torch.zeros(3)), "`actions` has 3 rows but `obs` has 4"),
    "unequal log_probs": (columns(log_probs=torch.zeros(5)), "`log_probs` has 5 rows but `obs` has 4"),
    "unequal advantages": (columns(advantages=torch.zeros(3)), "`advantages` has 3 rows but `obs` has 4"),
    "unequal ids": (columns(ids={"env": [1, 2]}), r"`ids\['env'\]` has 2 rows but `obs` has 4"),
    "unequal valid": (columns(valid=[True] * 3), "`valid` has 3 rows but `obs` has 4"),
    "unequal valid of sequences": (
        columns(log_probs=torch.zeros(4, 2), valid=[True]),
        "`valid` has 1 rows but `obs` has 4",
    ),
    "unequal entries": (
        columns(obs={"a": torch.zeros(4), "b": torch.zeros(3)}),
        r"`obs` has entries of unequal length \{'a': 4, 'b': 3\}",
    ),
    "no entries": (columns(obs={}), "`obs` is an empty dict"),
    "scalar column": (columns(returns=torch.tensor(1.0)), "`returns` has 0 rows but `obs` has 4"),
    "three dimensions": (columns(log_probs=torch.zeros(4, 2, 2)), r"`log_probs` has shape \(4, 2, 2\).*\(N, T\)"),
    "no dimension": (columns(log_probs=torch.tensor(0.0)), r"`log_probs` has shape \(\)"),
    "advantages by dimension": (
        columns(advantages=torch.zeros(4, 1)),
        r"`advantages` has shape \(4, 1\) but `log_probs` has \(4,\)",
    ),
    "valid by dimension": (
        columns(valid=torch.ones(4, 2, dtype=torch.bool)),
        r"`valid` has shape \(4, 2\) but `log_probs` has \(4,\)",
    ),
    "valid as numbers": (columns(valid=[1, 0, 1, 1]), r"`valid` has dtype torch\.int64; give booleans"),
    "NaN advantage": (columns(advantages=[0.0, 1.0, NAN, NAN]), r"`advantages` is nan in 2 .*index 2"),
    "infinite advantage": (columns(advantages=[0.0, INF, 1.0, 1.0]), r"`advantages` is inf in 1 .*index 1"),
    "infinite log-probability": (columns(log_probs=[0.0, 0.0, 0.0, -INF]), "`log_probs` is -inf in 1 .*index 3"),
    "NaN return": (columns(returns=[NAN, 0.0, 0.0, 0.0]), "`returns` is nan in 1 .*index 0"),
    "NaN value": (columns(values=[NAN, 0.0, 0.0, 0.0]), "`values` is nan in 1 .*index 0"),
    "infinite token next to a NaN that is padding": (
        columns(
            1,
            log_probs=[[NAN, INF]],
            advantages=torch.zeros(1, 2),
            valid=torch.tensor([[False, True]]),
        ),
        "`log_probs` is inf in 1 .*index 0",
    ),
    "float ids": (columns(ids={"episode": [0.0, 1.0, 2.0, 3.0]}), r"ids\['episode'\] has dtype torch\.float32"),
    "boolean ids": (columns(ids={"episode": [True] * 4}), r"ids\['episode'\] has dtype torch\.bool"),
    "ids of two dimensions": (columns(ids={"env": [[0], [1], [2], [3]]}), r"ids\['env'\] .* shape \(4, 1\)"),
    "unknown id": (columns(ids={"agent": [0] * 4}), "unknown identity 'agent'; .*round, env, step, episode, group"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_columns_are_refused_in_one_sentence_with_the_value(case):
    given, message = WRONG[case]
    with pytest.raises(rs.RollsightError, match=message) as refusal:
        rs.Records(**given)
    text = str(refusal.value)
    assert "\n" not in text
    assert text.endswith((".", "fix the buffer."))


def test_what_is_not_finite_in_invalid_rows_is_let_in_as_zero():
    records = rs.Records(
        **columns(advantages=[1.0, NAN, 3.0, INF], log_probs=[-1.0, -INF, -3.0, NAN], returns=[1.0, NAN, 3.0, 4.0]),
        valid=[True, False, True, False],
    )
    assert records.advantages.tolist() == [1.0, 0.0, 3.0, 0.0]
    assert records.log_probs.tolist() == [-1.0, 0.0, -3.0, 0.0]
    assert records.returns.tolist() == [1.0, 0.0, 3.0, 4.0]


def test_columns_carry_no_graph():
    weight = torch.ones(4, requires_grad=True)
    records = rs.Records(**columns(log_probs=weight * 2, obs={"x": weight * 3}))
    assert not records.log_probs.requires_grad
    assert not records.obs["x"].requires_grad
