"""A rollout buffer that hands out survivors only. The callback swaps a buffer's class for the length of one `learn`."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer

from rollsight.update import repack

if TYPE_CHECKING:
    _Base = RolloutBuffer
else:
    # Not object: Python swaps the class of a living buffer only between classes that extend the same base in the same
    # way, and the host's buffers extend ABC.
    _Base = ABC


class SelectingMixin(_Base):
    """In front of any rollout buffer class.

    keep:     (N,) booleans in the buffer's flat, env-major order; None hands out everything, exactly as the host does.
    on_train: called once per round, when `train()` asks for its first minibatch; by then the host has set learning
    rate, training mode and progress, and has not yet drawn a random number.
    """

    keep: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    on_train: Callable[[], None] | None = None

    def reset(self) -> None:
        super().reset()
        self.keep = self.on_train = None

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        self._start_of_train()
        if self.keep is None:
            yield from super().get(batch_size)
            return
        self._flatten()
        for index in repack(np.random.permutation(np.flatnonzero(self.keep)), batch_size):
            yield self._get_samples(index)

    def _start_of_train(self) -> None:
        if self.on_train is not None:
            on_train, self.on_train = self.on_train, None
            on_train()

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


def install(model: Any) -> None:
    """Swap the class of the model's buffer; buffers hold nothing but attributes, so that is all there is to it."""
    remove(model)  # a `learn` that raised left the class it had
    kind: type[RolloutBuffer] = type(model.rollout_buffer)
    model.rollout_buffer.__class__ = selecting(kind)


def remove(model: Any) -> None:
    """Give the buffer its own class back."""
    buffer = model.rollout_buffer
    if isinstance(buffer, SelectingMixin):
        buffer.__class__ = type(buffer).__bases__[1]
        for name in ("keep", "on_train"):
            buffer.__dict__.pop(name, None)
