"""What every post-training baseline starts from: a trained float network, samples to calibrate on, and a test split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy import FloatNetwork
from caq.data import Dataset
from caq.graph import Assignment, Graph
from caq.supernet import DEFAULT_WIDTHS, convert
from caq.supernet.batches import Samples, samples
from caq.supernet.pipeline import Prepared, prepare, uniform_name
from caq.supernet.train import Outputs, TrainConfig, accuracy, predict, train_float

#: Of the training split, labels apart, that every baseline may look at.
CALIBRATION = 1024


@dataclass(frozen=True)
class Point:
    """Test accuracy (0..1) of a network at an operating point; assignment: its widths, None of a float network."""

    name: str
    accuracy: float
    assignment: Assignment | None = None


@dataclass(frozen=True, eq=False)
class Given:
    """A trained network of the zoo, float32 in evaluation mode, with its data, encoded as int8 codes.

    graph: of the network with every width of DEFAULT_WIDTHS, to name assignments and count costs.
    """

    data: Dataset
    prepared: Prepared
    network: nn.Module
    calibration: Samples
    test: Samples
    graph: Graph
    seed: int

    def inputs(self, split: Samples, batch_size: int = 256) -> list[Tensor]:
        """Batches of `split` as the network's forward takes them."""
        return [self.prepared.as_network_input(x) for x, _ in split.plain(batch_size)]

    @torch.no_grad()
    def accuracy(self, network: Callable[[Tensor], Tensor]) -> float:
        """Test accuracy of something that maps the network's inputs to its outputs."""
        return accuracy(predict(lambda x: network(self.prepared.as_network_input(x)), self.test), self.test.labels)

    def uniform(self, quantized: Callable[[int], Callable[[Tensor], Tensor]]) -> list[Point]:
        """A point for each width, of what `quantized` makes of the network at it."""
        return [
            Point(uniform_name(width), self.accuracy(quantized(width)), self.graph.uniform(width))
            for width in reversed(DEFAULT_WIDTHS)
        ]

    def copy(self) -> nn.Module:
        """The network, for a baseline to change."""
        return copy.deepcopy(self.network)


def quantized_modules(network: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """What has widths, by its name, in the order of the modules: the first reads the input."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]


def train(data: Dataset, model: str, config: TrainConfig, checkpoint: Path) -> Given:
    """Trains the float network as benchmarks.accuracy does, or takes it from where that has left it."""
    prepared = prepare(data, model, config.seed)
    trained = FloatNetwork(prepared)
    train_float(trained, prepared.train, config, Outputs(checkpoint))
    chosen = np.sort(np.random.default_rng([config.seed, 2]).permutation(len(data.y_train))[:CALIBRATION])
    return Given(
        data,
        prepared,
        trained.network.eval(),
        prepared.train.subset(chosen),
        samples(data.x_test, data.y_test, prepared.scaling, prepared.input_shape, data.kind),
        convert(trained.network, prepared.example(), DEFAULT_WIDTHS).graph,
        config.seed,
    )
