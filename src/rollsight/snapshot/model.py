"""A policy and its optimiser, frozen together: as data where that tells all of them, else as a pickle."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.snapshot.plain import Encoder, NotPlainError, decode

# The evaluations that a policy rebuilt from data may use.
_EVALUATIONS = (
    "rollsight.adapters.sb3.translate:evaluate_actions",
    "rollsight.adapters.sb3.translate:evaluate_masked",
    "rollsight.adapters.sb3_contrib:evaluate_sequences",
)
_NO_ATTRIBUTES = {"_parameters", "_buffers", "_modules", "training", "optimizer"}  # compared, or kept, elsewhere
_GSDE = ("squash_output", "full_std", "use_expln")  # a policy without gSDE gives them as None, and takes them as False

Pair = tuple[Policy, torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class Model:
    """A frozen policy with its optimiser.

    described: as JSON, with its tensors; None where only a pickle can hold them.
    tensors: parameters and optimiser state by name.
    pickled: policy and optimiser where `described` is None.
    """

    described: dict[str, Any] | None
    tensors: Mapping[str, Tensor]
    pickled: bytes | None = None

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of it: another for another policy, optimiser or state of them."""
        digest = hashlib.sha256(self.pickled or json.dumps(self.described, sort_keys=True).encode())
        for name in sorted(self.tensors):
            digest.update(self.tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.digest()

    @classmethod
    def freeze(cls, policy: Policy, optimizer: torch.optim.Optimizer) -> Model:
        """Copy both; they stay connected, so that the copy of the optimiser holds the copy's parameters."""
        try:
            return _describe(policy, optimizer)
        except NotPlainError:
            buffer = io.BytesIO()
            torch.save((policy, optimizer), buffer, pickle_module=_pickler())
            return cls(None, {}, buffer.getvalue())

    def build(self) -> Pair:
        """A new policy, and an optimiser over its parameters.

        Raises:
            Exception: of any kind, where the frozen one is damaged or its classes cannot be imported here.
        """
        if self.described is not None:
            return _build(self.described, self.tensors)
        assert self.pickled is not None
        built: Pair = torch.load(io.BytesIO(self.pickled), weights_only=False)
        return built


def _describe(policy: Policy, optimizer: torch.optim.Optimizer) -> Model:
    module, encode = policy.module, Encoder(copy=True)
    evaluate = f"{policy.evaluate.__module__}:{getattr(policy.evaluate, '__qualname__', '')}"
    if type(policy) is not Policy or evaluate not in _EVALUATIONS or _function(evaluate) is not policy.evaluate:
        raise NotPlainError(f"the policy is evaluated by {evaluate}")
    names = {id(p): name for name, p in module.named_parameters()}
    if any(id(p) not in names for p in (*optimizer.state, *(p for g in optimizer.param_groups for p in g["params"]))):
        raise NotPlainError("the optimiser holds parameters that are not the policy's")
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    distribution = vars(module.action_dist) if hasattr(module, "action_dist") else {}
    noise = {name: value for name, value in distribution.items() if name.startswith("exploration_mat")}  # of gSDE
    described = {
        "evaluate": evaluate,
        "class": encode(type(module), "class"),
        "arguments": encode(_arguments(module), "arguments"),
        "state": encode(dict(module.state_dict()), "policy"),
        "noise": encode(noise, "noise"),
        "training": [name for name, part in module.named_modules() if part.training],
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "optimizer": encode(type(optimizer), "optimizer"),
        "is_the_policys": getattr(module, "optimizer", None) is optimizer,
        "defaults": encode(optimizer.defaults, "defaults"),
        "groups": encode(groups, "groups"),
        "moments": encode({names[id(p)]: dict(state) for p, state in optimizer.state.items()}, "optimizer"),
    }
    model = Model(described, encode.tensors)
    try:
        built, _ = model.build()
    except Exception as error:  # whatever a class raises that is called with other arguments than it was made with
        raise NotPlainError(f"the policy cannot be made from its arguments: {error}") from error
    if not _alike(module, built.module) or "step" in vars(optimizer):
        raise NotPlainError("the policy is not as its class makes it")
    return model


def _arguments(module: nn.Module) -> dict[str, Any]:
    """What the policy's class is to be called with, but for the learning rate."""
    if not hasattr(module, "_get_constructor_parameters"):
        raise NotPlainError(f"{type(module).__name__} does not say how it was made")
    given: dict[str, Any] = dict(module._get_constructor_parameters())  # type: ignore[operator]
    if hasattr(module, "share_features_extractor"):
        given["share_features_extractor"] = module.share_features_extractor
    takes = inspect.signature(type(module)).parameters
    return {
        name: value
        for name, value in given.items()
        if name in takes and name != "lr_schedule" and not (value is None and name in _GSDE)
    }


def _build(described: dict[str, Any], tensors: Mapping[str, Tensor]) -> Pair:
    if described["evaluate"] not in _EVALUATIONS:
        raise ValueError(f"{described['evaluate']} is not an evaluation of Rollsight's")
    mine = {name: tensor.clone() for name, tensor in tensors.items()}  # what is built is trained, and built again
    parts = {key: decode(value, mine) for key, value in described.items()}
    if not issubclass(parts["class"], nn.Module) or not issubclass(parts["optimizer"], torch.optim.Optimizer):
        raise ValueError("the policy's class is not a module's")
    module = _new_module(parts["class"], parts["arguments"])
    held = module.state_dict(keep_vars=True)
    if held.keys() != parts["state"].keys():
        raise NotPlainError("the policy holds other tensors than its class makes")
    for name, tensor in held.items():
        if tensor.shape != parts["state"][name].shape:
            raise NotPlainError(f"{name} has another shape than its class makes")
        tensor.data = parts["state"][name]
    for name, value in parts["noise"].items():
        setattr(module.action_dist, name, value)
    training, parameters = set(parts["training"]), dict(module.named_parameters())
    for name, part in module.named_modules():
        part.training = name in training
    for name in parts["frozen"]:
        parameters[name].requires_grad_(False)
    rate = {"lr": parts["defaults"]["lr"]} if "lr" in parts["defaults"] else {}
    groups = [{"params": [parameters[name] for name in group["params"]]} for group in parts["groups"]]
    optimizer = parts["optimizer"](groups, **rate)
    optimizer.defaults = parts["defaults"]
    for group, saved in zip(optimizer.param_groups, parts["groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    for name, state in parts["moments"].items():
        optimizer.state[parameters[name]] = state
    if parts["is_the_policys"]:
        module.optimizer = optimizer
    return Policy(module, _function(described["evaluate"])), optimizer


def _new_module(kind: type, arguments: dict[str, Any]) -> nn.Module:
    """As the class makes it; its first parameters are replaced, so that they need not be orthogonal."""
    takes, changed = inspect.signature(kind).parameters, dict[str, Any]()
    if "lr_schedule" in takes:
        changed["lr_schedule"] = _no_learning
    if "ortho_init" in arguments:
        changed["ortho_init"] = False
    with torch.random.fork_rng(devices=[]):
        module: Any = kind(**{**arguments, **changed})
    if "ortho_init" in arguments:
        module.ortho_init = arguments["ortho_init"]
    built: nn.Module = module
    return built


def _no_learning(progress: float) -> float:
    return 0.0


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules differ in nothing but numbers that are kept apart."""
    parts = [list(module.named_modules(remove_duplicate=False)) for module in (one, other)]
    if [(name, type(part)) for name, part in parts[0]] != [(name, type(part)) for name, part in parts[1]]:
        return False
    return all(
        list(a._parameters) == list(b._parameters)
        and list(a._buffers) == list(b._buffers)
        and _same(_attributes(a), _attributes(b))
        for (_, a), (_, b) in zip(*parts, strict=True)
    ) and _sharing(one) == _sharing(other)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds apart from its parts, parameters and stored buffers."""
    held = {name: value for name, value in vars(module).items() if name not in _NO_ATTRIBUTES}
    return {**held, **{name: module._buffers[name] for name in module._non_persistent_buffers_set}}


def _sharing(module: nn.Module) -> list[int]:
    """Which parameters and buffers are one: for each name the place of the first one."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, int] = {}
    return [first.setdefault(id(tensor), place) for place, (_, tensor) in enumerate(named)]


def _same(a: Any, b: Any) -> bool:
    """Whether two attributes are the same, as far as they outlast a forward pass."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, (str, int, float, bool, type, set, frozenset, torch.dtype, np.generic, types.NoneType)):
        return bool(a == b)
    module = type(a).__module__
    if module.startswith("gymnasium.spaces."):
        return bool(a == b)
    if module.startswith(("stable_baselines3.common.distributions", "sb3_contrib.common.maskable.distributions")):
        first, second = ({k: v for k, v in vars(x).items() if not _passes(v)} for x in (a, b))
        return _same(first, second)
    return a is b


def _passes(value: Any) -> bool:
    """Whether a distribution's attribute is of its last forward pass."""
    if isinstance(value, (list, tuple)):
        return all(map(_passes, value))
    return isinstance(value, (Tensor, torch.distributions.Distribution))


def _pickler() -> Any:
    """cloudpickle where it is installed (hosts bring it): it also carries classes defined in the user's script."""
    try:
        import cloudpickle
    except ImportError:
        import pickle

        return pickle
    return cloudpickle


def cannot_be_built(round: int, error: Exception) -> RollsightError:
    """The sentence for a frozen policy that cannot be built."""
    if isinstance(error, (ImportError, AttributeError)):
        return RollsightError(
            f"The policy of round {round} cannot be rebuilt here ({error}); import the module that defines its classes "
            "first."
        )
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    return RollsightError(f"The policy of round {round} cannot be rebuilt ({reason}); take the snapshot again.")
