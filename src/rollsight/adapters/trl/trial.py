"""A few made-up completions, tried on the model before training: is its training forward random, can it be scored?"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rollsight import targets
from rollsight.adapters.trl.scoring import measured_as_trained
from rollsight.adapters.trl.translate import objective_of, policy_of
from rollsight.errors import RollsightError
from rollsight.language import completion_records
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring import score_records
from rollsight.scoring.gradients import gradient_of
from rollsight.scoring.in_backward import RecordGradients, score_captured
from rollsight.scoring.layers import Layers

_ROWS, _LENGTH = 4, 4  # completions, and tokens of a prompt and of a completion
_NOISE = re.compile(r"drop|jitter", re.IGNORECASE)
_OTHER_HEADS = re.compile(r"classifier|summary", re.IGNORECASE)  # entries that a language model's forward does not read


def check_not_random(trainer: Any) -> None:
    """`RollsightError` where the model's forward draws random numbers in training, naming the config entries.

    Scores are of the forward without them. Layers of dropout show themselves (`checks`), a number in the config that
    the forward hands to a function does not: the random streams tell.
    """
    model = trainer.model
    policy, records = policy_of(trainer), _completions(model)
    with _told(model), _in_training(model):
        before = _random_states(model)
        first = _log_probs(policy, records)
        if _same(before, _random_states(model)):
            return
        # Drawn, but perhaps without effect: OPT draws for its layerdrop of 0 too.
        numbers = _numbers(model)
        if not numbers and all(torch.equal(first, _log_probs(policy, records)) for _ in range(8)):
            return
    entries = _entries(model, set(numbers.values()))
    named = entries or numbers
    shown = ", ".join(f"{name}={value}" for name, value in named.items()) or "no entry of its config says why"
    remedy = ", ".join(f"{name}=0" for name in entries)
    raise RollsightError(
        f"The model's forward is random in training ({shown}): the gradients that are scored, without it, would not be "
        f"those of training; {f'load the model with {remedy}' if remedy else 'make it deterministic'}."
    )


def check_scorable(trainer: Any, algorithm: str, scoring: Mapping[str, Any]) -> None:
    """`RollsightError` where the settings of `score_records` do not go with this model."""
    with _told(trainer.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records, objective = _completions(trainer.model), objective_of(trainer, algorithm)
        score_records(policy_of(trainer), records, targets.Sequence(), objective, **scoring)


def check_captured(trainer: Any, algorithm: str, explained: Sequence[targets.Target]) -> None:
    """`RollsightError` where a training forward and backward do not give each completion's own gradient, and from it
    the scores for these targets."""
    policy, records = policy_of(trainer), _completions(trainer.model)
    objective, layers = objective_of(trainer, algorithm), Layers(policy)
    gradients = RecordGradients(layers, len(records))
    with _told(trainer.model), _in_training(trainer.model), torch.enable_grad():
        gradients.open()
        try:
            gradients.begin(torch.arange(len(records), device=policy.device))
            evaluation = policy(records)
            gradients.watch(evaluation.log_prob)
            trained = gradient_of(objective.terms(evaluation, records).sum(), layers.parameters)
        finally:
            gradients.close()
        gradients.check(trained, None)
        for target in explained:
            measured = measured_as_trained(target, objective)
            if score_captured(gradients, policy, records, measured, objective) is None:
                raise RollsightError(f"the target {target.name!r} needs other gradients than training's.")


@contextmanager
def _told(model: nn.Module) -> Iterator[None]:
    """What a model raises on these completions, as one sentence."""
    try:
        yield
    except RollsightError:
        raise
    except Exception as error:
        line = str(error).partition("\n")[0]
        raise RollsightError(
            f"Completions of a {type(model).__name__} cannot be scored with these settings: {type(error).__name__}: "
            f"{line}"
        ) from error


def _completions(model: nn.Module) -> Records:
    """Rows that differ, with advantages of both signs."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary, device = int(embedding.weight.shape[0]), next(model.parameters()).device
    tokens = torch.arange(_ROWS * 2 * _LENGTH, device=device).view(_ROWS, -1)
    tokens = 3 + tokens % max(vocabulary - 3, 1) if vocabulary > 3 else tokens % vocabulary  # past pad, start and end
    mask = torch.ones(_ROWS, _LENGTH, dtype=torch.long, device=device)
    prompts, completions = tokens[:, :_LENGTH], tokens[:, _LENGTH:]
    advantages = torch.tensor([1.0, -1.0] * (_ROWS // 2), device=device)
    group = torch.arange(_ROWS, device=device) // 2
    log_probs = torch.zeros(_ROWS, _LENGTH, device=device)  # not read: the objective is on-policy
    columns = prompts, mask, completions, mask
    return completion_records(*columns, log_probs, advantages, rewards=advantages, ids={"group": group})


def _log_probs(policy: Policy, records: Records) -> Tensor:
    with torch.no_grad():
        return policy(records).log_prob


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Training mode; modes, buffers and random streams afterwards as before."""
    modes = {part: part.training for part in model.modules()}
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    with torch.random.fork_rng(devices), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model.train()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
            for buffer, value in buffers.items():
                buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)


def _random_states(model: nn.Module) -> list[Any]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    torchs = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return [*torchs, random.getstate(), str(np.random.get_state(legacy=False))]


def _same(before: list[Any], after: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b) for a, b in zip(before, after, strict=True))


def _numbers(model: nn.Module) -> dict[str, float]:
    """The numbers above 0 that the model's modules keep under a name of noise: `LlamaAttention.attention_dropout`."""
    return {
        f"{type(part).__name__}.{name}": value
        for part in model.modules()
        for name, value in vars(part).items()
        if _is_noise(name, value)
    }


def _entries(model: nn.Module, values: set[float]) -> dict[str, float]:
    """The config's entries above 0 with a name of noise, those with these values where there are any."""
    config = getattr(model, "config", None)
    found = {} if config is None else dict(_flat(config.to_dict()))
    kept = {name: value for name, value in found.items() if not _OTHER_HEADS.search(name)}
    return {name: value for name, value in kept.items() if not values or value in values}


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif _is_noise(str(name), value):
            yield str(name), value


def _is_noise(name: str, value: Any) -> bool:
    return bool(_NOISE.search(name)) and isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
