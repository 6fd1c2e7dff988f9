"""A rollout buffer that hands out survivors only.

A buffer has this class from the end of a rollout to the end of the update that uses it. Nobody is called where an
exception ends `learn` in between; what is left then leaves with the buffer's next `reset`, which the host calls before
it collects anything, and is in no copy and no file of the model.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from torch.utils.hooks import RemovableHandle

from rollsight.arrays import Bools
from rollsight.update import repack

if TYPE_CHECKING:
    _Base = RolloutBuffer
else:
    # Not object: Python swaps the class of a living buffer only between classes that extend the same base in the same
    # way, and the host's buffers extend ABC.
    _Base = ABC

_OWN = ("keep", "on_train", "handles")


class SelectingMixin(_Base):
    """In front of any rollout buffer class.

    keep:     (N,) booleans in the buffer's flat, env-major order; None hands out everything, exactly as the host does.
    on_train: called once per round, when `train()` asks for its first minibatch; by then the host has set learning
    rate, training mode and progress, and has not yet drawn a random number.
    handles:  the hooks of the optimiser that leave with this class.
    """

    keep: Bools | None
    on_train: list[Callable[[], None]]
    handles: list[RemovableHandle]

    def reset(self) -> None:
        release(self)
        self.reset()  # the host's own

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy, and what a file holds, is the host's own buffer.
        plain = object.__new__(_host_class(self))
        plain.__dict__ = {name: value for name, value in self.__dict__.items() if name not in _OWN}
        return object.__new__, (type(plain),), plain.__getstate__()

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        self._start_of_train()
        if self.keep is None:
            yield from super().get(batch_size)
            return
        self._flatten()
        for index in repack(np.random.permutation(np.flatnonzero(self.keep)), batch_size):
            yield self._get_samples(index)

    def _start_of_train(self) -> None:
        on_train, self.on_train = self.on_train, []
        for call in on_train:
            call()

    def _flatten(self) -> None:
        """Let the host's own `get` flatten its columns, whatever they are, without consuming a random number."""
        if not self.generator_ready:
            state = np.random.get_state()
            next(iter(super().get(1)))
            np.random.set_state(state)


class SelectingRecurrentMixin(SelectingMixin):
    """For recurrent buffers: sequences stay whole, because the LSTM needs every step; dropped records leave the loss
    through the mask. A minibatch with fewer than two survivors is not handed out; where none has two, all survivors
    come in one minibatch.
    """

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        self._start_of_train()
        hand_out = super(SelectingMixin, self).get
        if self.keep is None:
            yield from hand_out(batch_size)
            return
        handed_out = False
        for samples in hand_out(batch_size):
            if int(samples.mask.sum()) >= 2:  # type: ignore[attr-defined]
                handed_out = True
                yield samples
        if not handed_out:
            yield from hand_out(None)

    def _get_samples(self, batch_inds: Any, *args: Any, **kwargs: Any) -> Any:
        samples = super()._get_samples(batch_inds, *args, **kwargs)
        if self.keep is None:
            return samples
        keep = self.pad_and_flatten(self.keep[batch_inds].astype(np.float32))  # type: ignore[attr-defined]
        return samples._replace(mask=samples.mask * keep)  # type: ignore[attr-defined,call-arg]


@cache
def selecting(kind: type[RolloutBuffer]) -> type[RolloutBuffer]:
    """The buffer class with the mixin in front."""
    # By name, because sb3-contrib need not be installed.
    recurrent = any("Recurrent" in base.__name__ for base in kind.__mro__)
    mixin = SelectingRecurrentMixin if recurrent else SelectingMixin
    return type(f"Selecting{kind.__name__}", (mixin, kind), {})


def install(model: Any, on_train: Callable[[], None], on_step: Callable[[], None]) -> Any:
    """Swap the class of the model's full buffer until the update is over; buffers hold nothing but attributes, so that
    is all there is to it. The buffer is returned.

    on_train: called at the beginning of the update; on_step: after each step of the optimiser. Both are bound methods,
    held weakly: a callback that is gone needs no calls.
    """
    buffer: Any = model.rollout_buffer
    if not isinstance(buffer, SelectingMixin):
        buffer.__class__ = selecting(buffer.__class__)
        buffer.keep, buffer.on_train, buffer.handles = None, [], []
    buffer.on_train.append(_weakly(on_train))
    buffer.handles.append(model.policy.optimizer.register_step_post_hook(_weakly(on_step)))
    return buffer


def selects(buffer: Any) -> bool:
    """Whether the buffer leaves records out of the update to come."""
    return isinstance(buffer, SelectingMixin) and buffer.keep is not None


def release(buffer: Any) -> None:
    """Give the buffer its own class back, and take the hooks off the optimiser. Harmless where there is nothing."""
    if isinstance(buffer, SelectingMixin):
        for handle in buffer.handles:
            handle.remove()
        buffer.__class__ = _host_class(buffer)  # type: ignore[assignment]
        for name in _OWN:
            buffer.__dict__.pop(name, None)


def _host_class(buffer: SelectingMixin) -> type[RolloutBuffer]:
    kind: type[RolloutBuffer] = type(buffer).__bases__[1]
    return kind


def _weakly(method: Callable[[], None]) -> Callable[..., None]:
    reference = WeakMethod(method)

    def call(*_: Any) -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call
