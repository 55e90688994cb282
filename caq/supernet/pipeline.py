"""From a data set to an artifact's model: train, learn the gates, re-estimate, lower, measure in integers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import caq
from caq.data import Dataset
from caq.engine import Engine
from caq.graph import Assignment, Shape
from caq.measure import score
from caq.model import TASKS, Model, OperatingPoint
from caq.scaling import InputScaling
from caq.supernet import zoo
from caq.supernet.batches import Samples, training_samples
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.gates import DEFAULT_BUDGETS, Budget, GateConfig, learn_gate
from caq.supernet.lower import Lowered, lower
from caq.supernet.network import Supernet
from caq.supernet.train import Outputs, TrainConfig, predict, reestimate_norms, train_supernet


@dataclass(frozen=True)
class Prepared:
    """A float network of the zoo beside the data that it eats, encoded."""

    network: nn.Module
    scaling: InputScaling
    train: Samples
    input_shape: Shape
    layout: str

    def example(self, count: int = 256) -> Tensor:
        """The first samples, real-valued, shaped as the network's forward takes them."""
        return self.as_network_input(next(self.train.plain(count))[0])

    def as_network_input(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as (N, C, H, W), (N, C, T) or (N, F), whatever the network takes."""
        return {"image": x, "series": x.squeeze(2), "vector": x.flatten(1)}[self.layout]


def prepare(data: Dataset, name: str, seed: int) -> Prepared:
    """Builds a zoo network, seeded, for `data`, and encodes the training split for it."""
    torch.manual_seed(seed)
    network = zoo.build(name, data.sample_shape, data.num_classes)
    sample = network.sample_shape
    shape: Shape = (*(1,) * (3 - len(sample)), *sample)  # type: ignore[assignment]
    scaling = InputScaling.fit(data.x_train)
    return Prepared(network, scaling, training_samples(data, scaling, shape), shape, network.input_layout)


def task_of(name: str) -> str:
    """What a zoo network is trained for."""
    return "reconstruct" if name == "autoencoder" else "classify"


def train_model(
    data: Dataset,
    name: str,
    config: TrainConfig,
    widths: Sequence[int] = DEFAULT_WIDTHS,
    budgets: Sequence[Budget] = DEFAULT_BUDGETS,
    outputs: Outputs = Outputs(),  # noqa: B008
) -> Model:
    """Trains a zoo network on `data` and returns it as a model with gates and uniform operating points."""
    config = replace(config, task=task_of(name))
    prepared = prepare(data, name, config.seed)
    supernet = convert(prepared.network, prepared.example(), widths)
    train_supernet(supernet, prepared.train, config, outputs)
    return finish(supernet, data, prepared.scaling, prepared.train, config, budgets, outputs.quiet, name)


def finish(
    supernet: Supernet,
    data: Dataset,
    scaling: InputScaling,
    train: Samples,
    config: TrainConfig,
    budgets: Sequence[Budget],
    quiet: bool,
    name: str,
) -> Model:
    """Learns the gates of a trained supernet, re-estimates batch norm for every point, lowers, and measures."""
    for width in supernet.widths:
        reestimate_norms(supernet, train, supernet.graph.uniform(width))
    points: list[tuple[str, Assignment, int | None]] = []
    own: list[tuple[Assignment, int]] = []
    for budget in budgets:
        gate = GateConfig(batch_size=config.batch_size, seed=config.seed, quiet=quiet)
        assignment = learn_gate(supernet, train, budget, gate, config.task)
        rows = [layer.norm.add_row() for layer in supernet.layers if layer.norm is not None]
        row = rows[0] if rows else len(supernet.widths) + len(own)
        reestimate_norms(supernet, train, assignment, row)
        points.append((budget.name, assignment, len(supernet.widths) + len(own)))
        own.append((assignment, row))
    for width in reversed(supernet.widths):
        points.append((f"w{width}a{width}", supernet.graph.uniform(width), None))
    supernet.set_assignment(supernet.graph.uniform(supernet.widths[-1]))
    largest = predict(supernet, train).abs().max()
    supernet.output_step.copy_(largest * 4 / 2**15)
    model = assemble(lower(supernet, scaling.step, own), data, scaling, points, config, name)
    return replace(model, points=tuple(_measured(model, data)))


def assemble(
    lowered: Lowered,
    data: Dataset,
    scaling: InputScaling,
    points: Sequence[tuple[str, Assignment, int | None]],
    config: TrainConfig,
    name: str,
) -> Model:
    """Puts a lowered supernet together with its data's names and the points (name, assignment, own parameter set).

    Scores are not measured yet: they are 0 on 0 samples.
    """
    graph = lowered.graph
    return Model(
        graph,
        lowered.parameters,
        lowered.planes(),
        scaling,
        data.sample_shape,
        tuple(
            OperatingPoint(point, assignment, 0.0, TASKS[config.task], 0, graph.cost(assignment), row)
            for point, assignment, row in points
        ),
        data.label_names if config.task == "classify" else (),
        config.task,
        {
            "model": name,
            "data": data.name,
            "data_sha256": data.sha256,
            "seed": config.seed,
            "epochs": config.epochs,
            "threads": torch.get_num_threads(),
            "caq": caq.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def _measured(model: Model, data: Dataset) -> list[OperatingPoint]:
    engine = Engine(model)
    plans = [engine.build(p.assignment, p.parameter_set) for p in model.points]
    scores = [score(engine, plan, data.x_test, data.y_test) for plan in plans]
    return [
        replace(p, score=round(value, 6), samples=len(data.y_test))
        for p, value in zip(model.points, scores, strict=True)
    ]
