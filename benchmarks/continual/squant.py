"""SQuant: data-free flips of rounding by a diagonal approximation of the Hessian.

Guo et al., "SQuant: on-the-fly data-free quantization via diagonal Hessian approximation", 2022. With d the errors that
rounding makes, in codes, its objective is the sum over a layer of |d|, over kernels of |sum d| and over output channels
of |sum d| (equation 8); each is at most 1/2 (1 where a later one takes from it) after three passes: rounding, flips in
each kernel, and one flip a kernel in each channel. A flip takes the code on the other side of the weight.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.continual.start import Codes, Labels, Start
from caq.model import Model
from caq.quant import TOP_WIDTH
from caq.supernet.lower import lower


class SQuant:
    """Codes of each width by themselves, chosen anew from the float weights; what streams is not read."""

    def __init__(self, start: Start) -> None:
        supernet, model = start.supernet(), start.model
        lowered = lower(supernet, model.scaling.step)
        self._models = {}
        for width in start.widths:
            codes = []
            for layer in supernet.layers:
                with torch.no_grad():
                    target = (layer.weight / layer.scale[:, None, None, None]).double().numpy()
                outputs, inputs = target.shape[:2]
                found = stored_codes(flipped(target.reshape(outputs, inputs, -1), width), width)
                codes.append(np.ascontiguousarray(found.reshape(target.shape).transpose(0, 2, 3, 1)))
            self._models[width] = model.replace(planes=replace(lowered, codes=tuple(codes)).planes())

    def step(self, x: Codes, y: Labels) -> None:
        pass

    def model(self, width: int) -> Model:
        return self._models[width]


def flipped(target: NDArray[np.float64], width: int) -> NDArray[np.int64]:
    """Codes (O, C, K) of `width` bits for weights (O, C, K) in units of 8-bit codes, K elements to a kernel."""
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    size = 2.0 ** (TOP_WIDTH - width)
    # Below 8 bits a code stands for the middle of what its lower bits span (caq.quant).
    exact = np.clip(target if width == TOP_WIDTH else target / size - 0.5, low, high)
    codes = np.floor(exact + 0.5).astype(np.int64)
    error = codes - exact
    for kernels in error.reshape(-1, error.shape[2]):
        _flip_elements(kernels)
    for channel in error:
        _flip_kernels(channel)
    return np.clip(np.rint(exact + error), low, high).astype(np.int64)


def stored_codes(codes: NDArray[np.int64], width: int) -> NDArray[np.int8]:
    """8-bit codes whose top `width` bits are `codes`."""
    size = 1 << (TOP_WIDTH - width)
    return (codes * size + size // 2).astype(np.int8)


def _flips(total: float) -> tuple[float, int]:
    """Sign of a sum of errors, and how many flips bring it to 1/2 or less."""
    return float(np.sign(total)), int(np.ceil(abs(total) - 0.5))


def _flip_elements(error: NDArray[np.float64]) -> None:
    """Flips, in place, the elements of a kernel (K,) that are furthest off in the direction of their sum."""
    sign, count = _flips(float(error.sum()))
    error[np.argsort(-sign * error, kind="stable")[:count]] -= sign


def _flip_kernels(error: NDArray[np.float64]) -> None:
    """Flips, in place, one element of each of the kernels (C, K) of a channel that are furthest off."""
    sums = error.sum(1)
    sign, count = _flips(float(sums.sum()))
    for i in np.argsort(-sign * sums, kind="stable")[:count]:
        error[i, np.argmax(sign * error[i])] -= sign
