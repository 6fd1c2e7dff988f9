"""Policy inference in NumPy: no framework stands between an observation and its action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from rollsight.arrays import Array
from rollsight.training.compiled.networks import Layer, Network, Parameters

_Function: TypeAlias = Callable[[Array], Array]


class Actor:
    """A policy at fixed parameters.

    Sampling takes its random numbers from outside, drawn for many steps at once: Gumbel noise for discrete actions (the
    largest of logits plus noise has the softmax's probabilities), normal noise for Gaussian ones.
    """

    def __init__(self, network: Network, parameters: Parameters, observation_shape: tuple[int, ...]) -> None:
        self._network = network
        numbers = {name: np.asarray(p) for name, p in parameters.items()}
        size, shape = sum(network.classes) or int(np.prod(observation_shape)), observation_shape
        features, shape = _functions(network.features, numbers, shape)
        if size and network.classes:
            self._eyes = [np.eye(n, dtype=np.float32) for n in network.classes]
        self._features = features
        self._policy, _ = _functions(network.policy, numbers, shape)
        self._value, _ = _functions(network.value, numbers, shape)
        self._std = np.exp(numbers["log_std"]) if not network.choices else None
        self._ends = np.cumsum(network.choices)[:-1].tolist()

    def noise(self, rng: np.random.Generator, *shape: int) -> Array:
        """(*shape, D) noise for that many actions: D choices in all, or D dimensions of a Gaussian action."""
        if self._std is not None:
            return rng.standard_normal((*shape, len(self._std)), dtype=np.float32)
        uniform = rng.random((*shape, sum(self._network.choices)), dtype=np.float32)
        return -np.log(-np.log(np.maximum(uniform, np.float32(1e-30))))

    def act(self, obs: Array, noise: Array) -> Array:
        """(N,) or (N, D) sampled actions for observations (N, ...) with noise (N, D)."""
        scores = self._see(obs)
        for function in self._policy:
            scores = function(scores)
        if self._std is not None:
            sampled: Array = scores + self._std * noise
            return sampled
        scores = scores + noise
        if not self._ends:
            return np.asarray(scores.argmax(1))
        return np.stack([part.argmax(1) for part in np.split(scores, self._ends, axis=1)], axis=1)

    def values(self, obs: Array) -> Array:
        """(N,) values of observations (N, ...)."""
        x = self._see(obs)
        for function in self._value:
            x = function(x)
        return x[:, 0]

    def _see(self, obs: Array) -> Array:
        network = self._network
        if network.classes:
            columns = obs.reshape(len(obs), -1)
            blocks = [eye[columns[:, i]] for i, eye in enumerate(self._eyes)]
            x = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
        else:
            x = obs.reshape(len(obs), -1)
            if x.dtype != np.float32:
                x = x.astype(np.float32)
            if network.divide != 1.0:
                x = x / np.float32(network.divide)
        for function in self._features:
            x = function(x)
        return x


def executable(actions: Any, space: spaces.Space[Any]) -> Any:
    """Sampled actions (N, ...) as the environment takes them: Gaussian ones clipped to the space, in its shape.

    For arrays of NumPy and of JAX.
    """
    if isinstance(space, spaces.Box):
        return actions.reshape((-1, *space.shape)).clip(space.low, space.high)
    return actions


def _functions(
    layers: tuple[Layer, ...], numbers: dict[str, Array], shape: tuple[int, ...]
) -> tuple[list[_Function], tuple[int, ...]]:
    """One function for each layer, from (N, inputs) to (N, outputs); images stay flat, with channels first."""
    functions: list[_Function] = []
    for layer in layers:
        match layer.kind:
            case "linear":
                functions.append(_linear(numbers[f"{layer.name}.weight"], numbers[f"{layer.name}.bias"]))
            case "conv":
                weight = numbers[f"{layer.name}.weight"]
                functions.append(_convolution(weight, numbers[f"{layer.name}.bias"], layer.stride, shape))
                shape = (len(weight), *_positions(shape, weight.shape, layer.stride))
            case "tanh":
                functions.append(np.tanh)
            case "relu":
                functions.append(_relu)
    return functions, shape


def _linear(weight: Array, bias: Array) -> _Function:
    across = np.ascontiguousarray(weight.T)
    return lambda x: x @ across + bias


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _positions(shape: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int]) -> tuple[int, int]:
    return (shape[1] - kernel[2]) // stride[0] + 1, (shape[2] - kernel[3]) // stride[1] + 1


def _convolution(weight: Array, bias: Array, stride: tuple[int, int], shape: tuple[int, ...]) -> _Function:
    """A matrix product over patches, gathered with indices that are worked out once."""
    out, _, height, width = weight.shape
    rows, columns = _positions(shape, weight.shape, stride)
    cells = np.arange(int(np.prod(shape))).reshape(shape)
    windows = np.lib.stride_tricks.sliding_window_view(cells, (height, width), axis=(1, 2))
    windows = windows[:, :: stride[0], :: stride[1]][:, :rows, :columns]
    index = windows.transpose(1, 2, 0, 3, 4).reshape(rows * columns, -1)
    across = np.ascontiguousarray(weight.reshape(out, -1).T)

    def apply(x: Array) -> Array:
        return np.ascontiguousarray((x[:, index] @ across + bias).transpose(0, 2, 1)).reshape(len(x), -1)

    return apply
