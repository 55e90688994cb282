"""Counts quantization misses while a supernet is trained: what its core set is drawn by (caq.calibration.core)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caq.calibration.core import CoreSet, MissCounter
from caq.calibration.making import CoreConfig, check_features
from caq.supernet.batches import Samples
from caq.supernet.network import Supernet
from caq.supernet.train import predict, reestimate_norms

#: Logs of a training, as many as QCore takes: every 5 of 50 epochs.
LOGS = 10


class MissLog:
    """Logs, LOGS times in a training, which samples each width gets right, in evaluation mode.

    For `Outputs.watch`. Statistics of batch norm are re-estimated for each width, and then put back, so that the
    supernet trains on as if nobody had looked.
    """

    def __init__(self) -> None:
        self._counter: MissCounter | None = None

    def after(self, epoch: int, epochs: int, supernet: Supernet, train: Samples) -> None:
        """Takes a log after some epochs, the last one among them."""
        every = -(-epochs // LOGS)
        if (epochs - 1 - epoch) % every:
            return
        if self._counter is None:
            self._counter = MissCounter(len(train), supernet.widths)
        norms = [layer.norm for layer in supernet.layers if layer.norm is not None]
        saved = [(norm.mean.clone(), norm.var.clone()) for norm in norms]
        labels = train.labels.numpy()
        correct = np.zeros((len(supernet.widths), len(train)), bool)
        for i, width in enumerate(supernet.widths):
            reestimate_norms(supernet, train, supernet.graph.uniform(width))
            correct[i] = predict(supernet, train).argmax(1).numpy() == labels
        for norm, (mean, var) in zip(norms, saved, strict=True):
            norm.mean.copy_(mean)
            norm.var.copy_(var)
        supernet.train()
        self._counter.update(correct)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; empty before the first log."""
        arrays = {} if self._counter is None else self._counter.to_arrays()
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` gave. Raises StateFormatError on anything else."""
        self._counter = MissCounter.from_arrays({k: v.numpy() for k, v in state.items()}) if state else None

    def core(self, train: Samples, widths: tuple[int, ...], config: CoreConfig) -> CoreSet:
        """The core set of the samples that were trained on. Raises ConfigError as CoreSet.select."""
        assert self._counter is not None  # each training has a last epoch
        return _drawn(train, self._counter.misses(config.penalty), widths, config)


def check_core(supernet: Supernet, train: Samples, config: CoreConfig) -> None:
    """Raises ConfigError if no core set can be drawn so, whatever is missed, or no features be kept beside it, and
    UnsupportedError if the network has none: before hours of training, not after."""
    widths = supernet.widths
    core = _drawn(train, np.zeros((len(widths), len(train)), np.uint8), widths, config)
    check_features(supernet.graph, len(train) - len(core), config)


def _drawn(train: Samples, misses: NDArray[np.uint8], widths: tuple[int, ...], config: CoreConfig) -> CoreSet:
    codes = train.codes.permute(0, 2, 3, 1).contiguous().numpy()
    return config.select(codes, train.labels.numpy(), misses, widths)
