"""The replay memory of methods with back-propagation: the core set's bytes, half of which the source keeps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caq.calibration.core import CoreSet, bytes_per_sample


class Memory:
    """Codes, labels and, for some methods, outputs of few samples.

    As many samples of the core set as have room in its bytes, drawn at random. One half of them stays, as in ours; the
    other gives way to a reservoir of the stream (Vitter, "Random sampling with a reservoir", 1985). outputs: (N, K) of
    the core set's samples, float32, which are kept too, and take room from samples.
    """

    def __init__(self, core: CoreSet, outputs: Tensor | None, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        each = bytes_per_sample(core.x.shape[1:], core.x.dtype, len(core.widths))
        more = 0 if outputs is None else outputs.element_size() * outputs.shape[1]
        kept = self._rng.permutation(len(core))[: core.nbytes // (each + more)]
        self.x = as_inputs(core.x[kept])
        self.y = torch.from_numpy(core.y[kept].astype(np.int64))
        self.outputs = None if outputs is None else outputs[kept]
        self._first, self._seen = len(kept) - len(kept) // 2, 0

    def __len__(self) -> int:
        return len(self.y)

    def draw(self, count: int) -> Tensor:
        """Indices of some samples."""
        return torch.from_numpy(self._rng.permutation(len(self))[:count])

    def add(self, x: Tensor, y: Tensor, outputs: Tensor | None) -> None:
        """Offers samples of the stream (n, C, H, W), labels (n,) and, if they are kept, outputs (n, K)."""
        room = len(self) - self._first
        for i in range(len(y)):
            slot = self._seen if self._seen < room else int(self._rng.integers(self._seen + 1))
            self._seen += 1
            if slot < room:
                self.x[self._first + slot], self.y[self._first + slot] = x[i], y[i]
                if self.outputs is not None and outputs is not None:
                    self.outputs[self._first + slot] = outputs[i]


def as_inputs(x: np.ndarray) -> Tensor:
    """Codes (N, H, W, C) as a supernet has them, (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
