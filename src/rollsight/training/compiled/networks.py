"""Stable-Baselines3's actor-critic policies as JAX functions of their own parameters, under their own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax import Array
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from rollsight.errors import RollsightError

Parameters: TypeAlias = Mapping[str, Any]
"""name -> array, with torch's names and layouts: weights are (out, in) and (out, in, height, width)."""


@dataclass(frozen=True)
class Layer:
    """One operation.

    kind: "linear", "conv", "tanh", "relu" or "flatten".
    name: of the module with its parameters; empty where it has none.
    stride: of a convolution.
    """

    kind: str
    name: str = ""
    stride: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Network:
    """What a policy computes. Hashable: compiled functions are compiled once for each network.

    classes: sizes of the one-hot blocks of (multi-)discrete observations; () for numbers.
    divide: what images are divided by.
    features: layers that both heads share.
    policy: layers up to and including the policy's head.
    value: layers up to and including the value function's head.
    choices: number of choices of each component of a (multi-)discrete action; () for a Gaussian.
    """

    classes: tuple[int, ...]
    divide: float
    features: tuple[Layer, ...]
    policy: tuple[Layer, ...]
    value: tuple[Layer, ...]
    choices: tuple[int, ...]


class Evaluation(NamedTuple):
    """What a network says of N records.

    log_prob: (N,) log pi(a given s).
    entropy: (N,) of pi(. given s).
    value: (N,) V(s).
    """

    log_prob: Array
    entropy: Array
    value: Array


def network_of(module: nn.Module) -> Network:
    """The network of a Stable-Baselines3 policy; `RollsightError` for what has no JAX counterpart here."""
    if type(module).__name__ not in ("ActorCriticPolicy", "ActorCriticCnnPolicy") or not isinstance(
        module, ActorCriticPolicy
    ):
        raise _unsupported(f"the policy class {type(module).__name__}")
    if module.use_sde or module.squash_output:
        raise _unsupported("gSDE")
    if not module.share_features_extractor:
        raise _unsupported("separate feature extractors")
    heads = module.mlp_extractor
    if not isinstance(heads, MlpExtractor):
        raise _unsupported(f"the network {type(heads).__name__}")
    space, actions = module.observation_space, module.action_space
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
        raise _unsupported(f"the observation space {space}")
    return Network(
        classes=_choices(space),
        divide=255.0 if module.normalize_images and is_image_space(space) else 1.0,
        features=_features(module.features_extractor),
        policy=(*_sequence(heads.policy_net, "mlp_extractor.policy_net"), Layer("linear", "action_net")),
        value=(*_sequence(heads.value_net, "mlp_extractor.value_net"), Layer("linear", "value_net")),
        choices=_action_choices(actions),
    )


def inputs_of(network: Network, obs: Any) -> Array:
    """(N, ...) observations as the first layer takes them: one-hot blocks, numbers, or images with channels first."""
    if network.classes:
        columns = jnp.asarray(obs).reshape(len(obs), len(network.classes)).astype(jnp.int32)
        blocks = [jax.nn.one_hot(columns[:, i], n, dtype=jnp.float32) for i, n in enumerate(network.classes)]
        return jnp.concatenate(blocks, axis=1)
    numbers = jnp.asarray(obs).astype(jnp.float32)
    return numbers if network.divide == 1.0 else numbers / network.divide


def evaluate(network: Network, parameters: Parameters, inputs: Array, actions: Array) -> Evaluation:
    """Evaluate actions (N,) or (N, D) in inputs (N, ...), as `ActorCriticPolicy.evaluate_actions` does."""
    features = forward(network.features, parameters, inputs)
    value = forward(network.value, parameters, features)[:, 0]
    scores = forward(network.policy, parameters, features)
    log_prob, entropy = _distribution(network, parameters, scores, actions)
    return Evaluation(log_prob, entropy, value)


def sample(network: Network, parameters: Parameters, inputs: Array, noise: Array) -> Array:
    """(N,) or (N, D) actions in inputs (N, ...), from noise (N, D) as `Actor.noise` draws it."""
    scores = forward(network.policy, parameters, forward(network.features, parameters, inputs))
    if not network.choices:
        return scores + jnp.exp(parameters["log_std"]) * noise
    scores = scores + noise
    columns = [part.argmax(1) for part in jnp.split(scores, np.cumsum(network.choices)[:-1].tolist(), axis=1)]
    return columns[0] if len(columns) == 1 else jnp.stack(columns, axis=1)


def forward(layers: tuple[Layer, ...], parameters: Parameters, x: Array) -> Array:
    """The layers, one after the other."""
    for layer in layers:
        match layer.kind:
            case "linear":
                x = x @ parameters[f"{layer.name}.weight"].T + parameters[f"{layer.name}.bias"]
            case "conv":
                weight, bias = parameters[f"{layer.name}.weight"], parameters[f"{layer.name}.bias"]
                x = _convolve(x, weight, layer.stride) + bias[:, None, None]
            case "tanh":
                x = jnp.tanh(x)
            case "relu":
                x = jax.nn.relu(x)
            case _:
                x = x.reshape(len(x), -1)
    return x


def _convolve(x: Array, weight: Array, stride: tuple[int, int]) -> Array:
    """(N, out, rows, columns) of (N, in, height, width) and (out, in, h, w): one matrix product over shifted slices.

    XLA's own convolution takes more than ten times as long on a CPU, most of it in the gradient of the weights.
    """
    (out, _, height, width), (down, across) = weight.shape, stride
    rows, columns = (x.shape[2] - height) // down + 1, (x.shape[3] - width) // across + 1
    x = x.transpose(0, 2, 3, 1)
    ends = (down * (rows - 1) + 1, across * (columns - 1) + 1)
    slices = [x[:, i : i + ends[0] : down, j : j + ends[1] : across] for i in range(height) for j in range(width)]
    patches = jnp.concatenate(slices, axis=3).reshape(len(x) * rows * columns, -1)
    product = patches @ weight.transpose(2, 3, 1, 0).reshape(-1, out)
    return product.reshape(len(x), rows, columns, out).transpose(0, 3, 1, 2)


def _distribution(network: Network, parameters: Parameters, scores: Array, actions: Array) -> tuple[Array, Array]:
    """Log-probability and entropy, each (N,)."""
    if not network.choices:
        log_std = parameters["log_std"]
        deviation = actions.reshape(scores.shape) - scores
        log_prob = -(deviation**2) / (2 * jnp.exp(log_std) ** 2) - log_std - 0.5 * np.log(2 * np.pi)
        entropy = jnp.sum(0.5 + 0.5 * np.log(2 * np.pi) + log_std)
        return log_prob.sum(1), jnp.broadcast_to(entropy, scores.shape[:1])
    columns = actions.reshape(len(scores), len(network.choices)).astype(jnp.int32)
    ends = np.cumsum(network.choices)[:-1].tolist()
    log_prob = entropy = jnp.zeros(len(scores))
    for i, logits in enumerate(jnp.split(scores, ends, axis=1)):
        log_p = jax.nn.log_softmax(logits)
        # A product with one-hot rows: its derivative is a product too, where that of indexing is a slow scatter.
        taken = jax.nn.one_hot(columns[:, i], logits.shape[1], dtype=log_p.dtype)
        log_prob += (log_p * taken).sum(1)
        entropy -= (jnp.exp(log_p) * log_p).sum(1)
    return log_prob, entropy


def _features(extractor: nn.Module) -> tuple[Layer, ...]:
    if isinstance(extractor, FlattenExtractor):
        return (Layer("flatten"),)
    parts = dict(extractor.named_children())
    # NatureCNN and the paper's MiniGrid network: convolutions, then a linear part, in the order of definition.
    if len(parts) == 2 and list(parts)[1] == "linear" and all(isinstance(p, nn.Sequential) for p in parts.values()):
        return tuple(layer for name, part in parts.items() for layer in _sequence(part, f"features_extractor.{name}"))
    raise _unsupported(f"the feature extractor {type(extractor).__name__}")


def _sequence(part: nn.Module, name: str) -> tuple[Layer, ...]:
    return tuple(_layer(module, f"{name}.{i}") for i, module in part.named_children())


def _layer(module: nn.Module, name: str) -> Layer:
    match module:
        case nn.Linear() if module.bias is not None:
            return Layer("linear", name)
        case nn.Conv2d() if module.bias is not None and _is_plain(module):
            return Layer("conv", name, (module.stride[0], module.stride[1]))
        case nn.Tanh():
            return Layer("tanh")
        case nn.ReLU():
            return Layer("relu")
        case nn.Flatten(start_dim=1, end_dim=-1):
            return Layer("flatten")
    raise _unsupported(f"the layer {module} ({name})")


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.groups == 1


def _choices(space: spaces.Space[Any]) -> tuple[int, ...]:
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    return tuple(space.nvec.ravel().tolist()) if isinstance(space, spaces.MultiDiscrete) else ()


def _action_choices(space: spaces.Space[Any]) -> tuple[int, ...]:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
        raise _unsupported(f"the action space {space}")
    return _choices(space)


def _unsupported(what: str) -> RollsightError:
    return RollsightError(f"The compiled engine does not cover {what}; use --engine sb3.")
