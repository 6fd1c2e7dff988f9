"""Scores are of autograd's gradient, also where a forward and its backward disagree, or a backend refuses by name."""

import re

import pytest
import torch
import zoo
from odd_zoo import ODD

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg
from rollsight.scoring.covering import NoBackend

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BACKENDS = ("layerwise", "jvp", "double_backward")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ODD, ids=repr)
def test_a_backend_follows_autograd_or_refuses(kind, dtype):
    policy = kind.policy(dtype)
    records = kind.records(policy, 24, garbage=False)
    for target, objective in ((tg.Return(), ob.PPO()), (tg.Objective(ob.PPO(value=0.5)), ob.PPO(value=0.5))):
        expected = rs.score_records(policy, records, target, objective, backend="oracle").values
        assert expected.abs().max() > 1e-6
        took = []
        for backend in BACKENDS:
            try:
                scores = rs.score_records(policy, records, target, objective, backend=backend)
            except (rs.RollsightError, RuntimeError):
                continue
            assert zoo.relative_error(scores.values, expected) <= TOLERANCE[dtype], backend
            took.append(backend)
        if kind.auto is None:
            assert not took
            with pytest.raises(NoBackend) as refusal:
                rs.score_records(policy, records, target, objective)
            assert re.search(kind.reason, str(refusal.value), re.S), refusal.value
            continue
        scores = rs.score_records(policy, records, target, objective)
        assert (scores.backend, took[0]) == (kind.auto, kind.auto), scores.reason
        assert re.search(kind.reason, scores.reason, re.S), scores.reason
        assert zoo.relative_error(scores.values, expected) <= TOLERANCE[dtype]
