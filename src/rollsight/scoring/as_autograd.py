"""Forward mode as autograd sees the policy. A forward can hide parts from autograd that forward mode would follow, or
give it a derivative that is not its own; inside `AsAutograd` forward mode does as autograd does, or refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from rollsight.policy import Policy
from rollsight.scoring.covering import NotCovered

_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class AsAutograd(TorchFunctionMode):
    """For a forward with dual parameters, gradients enabled.

    What runs under `no_grad` has no tangent, and neither do the padding rows of an embedding. A custom
    `autograd.Function` and a gradient hook raise `NotCovered`: their backward need not be the derivative.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _REQUIRES_GRAD:  # hooks are registered where a gradient will come
            return func(*args) or _moves(args[0])
        if func is Tensor.register_hook and _moves(args[0]):
            raise NotCovered("jvp", "a gradient hook on a tensor of the forward, which may change the gradient")
        if not torch.is_grad_enabled():
            return _hidden(func, args, kwargs)
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        return func(*args, **kwargs)


def check_hooks(policy: Policy) -> None:
    """Raise `NotCovered` for gradient hooks that forward mode passes by."""
    for name, p in policy.trainable().items():
        if p._backward_hooks:
            raise NotCovered("jvp", f"{name!r}: it has a gradient hook, which may change its gradient")
    everywhere = nn.modules.module
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        raise NotCovered("jvp", "the backward hooks of all modules, which may change gradients")
    for name, module in policy.module.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise NotCovered("jvp", f"the module {name!r}: it has a backward hook, which may change gradients")


def _moves(x: Any) -> bool:
    """Whether a tensor has a tangent."""
    if not isinstance(x, Tensor):
        return False
    if torch._C._is_fwd_grad_enabled():
        return forward_ad.unpack_dual(x).tangent is not None
    with forward_ad._set_fwd_grad_enabled(True):
        return forward_ad.unpack_dual(x).tangent is not None


def _hidden(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The function where autograd does not look."""
    if not torch._C._is_fwd_grad_enabled():  # in the forward of a custom Function
        if any(map(_moves, (*args, *kwargs.values()))):
            raise NotCovered("jvp", "a custom autograd.Function, whose backward need not be the derivative")
        return func(*args, **kwargs)
    with forward_ad._set_fwd_grad_enabled(False):
        out = func(*args, **kwargs)
    if isinstance(out, tuple | list) and any(isinstance(part, Tensor) for part in out):
        return type(out)(_still(part, args) for part in out) if type(out) in (tuple, list) else out
    return _still(out, args)


def _still(out: Any, args: tuple[Any, ...]) -> Any:
    """Without the tangent that a view would take from its base; an in-place operation's tensor as it is."""
    if not isinstance(out, Tensor) or any(out is arg for arg in args):
        return out
    return out.detach()


def _embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *rest: Any, **more: Any) -> Tensor:
    """`F.embedding`, whose rows of padding have no gradient."""
    out = F.embedding(input, weight, padding_idx, *rest, **more)
    if padding_idx is None:
        return out
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), out.detach(), out)
