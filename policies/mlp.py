"""The multilayer perceptron that learned policies are made of, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError, nearest

MAX_LAYERS = 8
#: In place.
_ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "tanh": lambda x: np.tanh(x, out=x),
    "relu": lambda x: np.maximum(x, np.float32(0), out=x),
}

Floats = NDArray[np.float32]


def forward(x: Floats, weights: Sequence[Floats], biases: Sequence[Floats], activation: str) -> Floats:
    """(N, outputs) of inputs (N, inputs): linear layers with the activation between them."""
    activate = _ACTIVATIONS[activation]
    for i in range(len(weights)):
        if i:
            activate(x)
        x = x.dot(weights[i])  # faster than @ for one row
        x += biases[i]
    return x


def named(weights: Sequence[Floats], biases: Sequence[Floats]) -> dict[str, Floats]:
    """Layers by the names that they have in a file."""
    found = {f"weight_{i}": weight for i, weight in enumerate(weights)}
    return found | {f"bias_{i}": bias for i, bias in enumerate(biases)}


def check_layers(
    weights: Sequence[Floats], biases: Sequence[Floats], activation: str, inputs: int, outputs: int
) -> None:
    """Raises ConfigError that names the array, unless they are what `forward` takes: (inputs, width), (width,), ... up
    to (width, outputs), (outputs,), finite float32."""
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"activation: {activation!r}{nearest(activation, _ACTIVATIONS)}")
    if not 1 <= len(weights) == len(biases) <= MAX_LAYERS:
        raise ConfigError(f"layers: 1 to {MAX_LAYERS} are expected, not {len(weights)}")
    width = inputs
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.ndim != 2 or weight.shape[0] != width or bias.shape != weight.shape[1:]:
            raise ConfigError(f"weight_{i}, bias_{i}: shapes {weight.shape} and {bias.shape} after {width} values")
        width = weight.shape[1]
    if width != outputs:
        raise ConfigError(f"weight_{len(weights) - 1}: {width} outputs, not {outputs}")
    for name, array in named(weights, biases).items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ConfigError(f"{name}: finite float32 are expected")
