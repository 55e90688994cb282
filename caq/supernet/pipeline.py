"""From a data set to an artifact's model: train, learn the gates, re-estimate, lower, measure in integers."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import caq
from caq.calibration.making import CoreConfig, with_calibration_data
from caq.conditional import ConditionalGate
from caq.costs import DEFAULT_BUDGETS, Budget, check_budgets
from caq.data import Dataset
from caq.engine import Engine
from caq.errors import ConfigError, DataError
from caq.graph import Assignment, Shape
from caq.measure import score_routed
from caq.model import TASKS, Model, OperatingPoint
from caq.scaling import InputScaling, Moments
from caq.supernet import zoo
from caq.supernet.batches import Samples, training_samples
from caq.supernet.conditional import (
    RouteConfig,
    RouteData,
    check_conditional,
    estimate_branches,
    learn_branches,
    learn_gate_of,
    unrouted,
)
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.distributed import first_only, processes
from caq.supernet.flips import FlipConfig, drifts_of, train_flips
from caq.supernet.gates import GateConfig
from caq.supernet.lower import Lowered, lower
from caq.supernet.misses import MissLog, check_core
from caq.supernet.network import Supernet
from caq.supernet.points import Point, train_gated
from caq.supernet.train import Outputs, TrainConfig, predict, reestimate_norms

#: The part of the training split that conditional gates, if there are any, keep from the weights.
HELD_BACK = 0.2


@dataclass(frozen=True)
class Prepared:
    """A float network beside the data that it eats, encoded."""

    name: str
    network: nn.Module
    scaling: InputScaling
    train: Samples
    input_shape: Shape
    layout: str

    def example(self, count: int = 256) -> Tensor:
        """Samples from all over the training split, real-valued, shaped as the network's forward takes them."""
        return self.as_network_input(next(self.train.typical(count, count))[0])

    def as_network_input(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as (N, C, H, W), (N, C, T) or (N, F), whatever the network takes."""
        return {"image": x, "series": x.squeeze(2), "vector": x.flatten(1)}[self.layout]


def prepare(
    data: Dataset,
    network: str | nn.Module,
    seed: int,
    sample_shape: tuple[int, ...] | None = None,
    moments: Moments | None = None,
    step: float | None = None,
) -> Prepared:
    """Encodes the training split of `data` for a network of the zoo, built and seeded here, or of the caller's own.

    The caller's network takes images as (N, C, H, W), series as (N, C, T) and vectors as (N, F), standardised by the
    training split's mean and deviation of each channel, or by `moments`. sample_shape: (H, W, C), (T, C) or (F,), where
    the caller's network takes the data's samples as if they had that shape. step: see InputScaling.fit. Raises
    DataError if all samples are the same, or the moments fit no channels.
    """
    sample, layout = data.sample_shape, data.kind
    name = network if isinstance(network, str) else type(network).__name__
    if isinstance(network, str):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = zoo.build(network, data.sample_shape, data.num_classes)
        sample_shape = network.sample_shape
    if sample_shape is not None:
        sample, layout = sample_shape, zoo.LAYOUTS[len(sample_shape)]
    shape: Shape = (*(1,) * (3 - len(sample)), *sample)  # type: ignore[assignment]
    scaling = InputScaling.fit(data.x_train, moments, step)
    if not scaling.multiplier.any():
        raise DataError("x_train: all samples are the same, so there is nothing to learn")
    return Prepared(name, network, scaling, training_samples(data, scaling, shape), shape, layout)


def task_of(name: str) -> str:
    """What a zoo network is trained for."""
    return "reconstruct" if name == "autoencoder" else "classify"


def train_model(
    data: Dataset,
    network: str | nn.Module,
    config: TrainConfig,
    widths: Sequence[int] = DEFAULT_WIDTHS,
    budgets: Sequence[Budget] = DEFAULT_BUDGETS,
    outputs: Outputs = Outputs(),  # noqa: B008
    conditional: Sequence[Budget] = (),
    core: CoreConfig | None = None,
    flips: FlipConfig | None = None,
) -> Model:
    """Trains a network, of the zoo or the caller's own, on `data` and returns it with its operating points.

    conditional: budgets of conditional gates; with any, HELD_BACK of the training split is kept from the weights. core:
    how to draw a core set for the artifact, by misses that are counted in training; None: without one. flips: how to
    train a flip network for it; where the data have domains, HELD_BACK of them are kept from the weights for that.
    Raises ConfigError on budgets that cannot be told apart or kept, and what `prepare`, `convert` and `train_supernet`
    raise.
    """
    check_names([*budgets, *conditional], widths)
    if isinstance(network, str):
        config = replace(config, task=task_of(network))
    if core is not None and config.task != "classify":
        raise ConfigError(f"core: a network that is to {config.task} has no misses to count; ask for no core set")
    if flips is not None and (conditional or config.task != "classify"):
        raise ConfigError("flips: models that classify, without conditional points, can have a flip network")
    domains = () if data.domain_train is None else np.unique(data.domain_train)
    held = bool(conditional) or (flips is not None and len(domains) > 1)
    trained, routing = hold_back(data, HELD_BACK, config.seed) if held else (data, None)
    prepared = prepare(trained, network, config.seed)
    supernet = convert(prepared.network, prepared.example(), widths)
    check_outputs(supernet, data, config.task)
    check_budgets(supernet.graph, [*budgets, *conditional])
    check_conditional(supernet.graph, conditional)
    misses = MissLog()
    if core is not None:
        check_core(supernet, prepared.train, core)
        outputs = replace(outputs, watch=misses)
    points = train_gated(supernet, prepared.train, config, budgets, outputs)
    chosen = misses.core(prepared.train, supernet.widths, core) if core is not None and processes().first else None
    model = finish(supernet, data, prepared, config, points, outputs.quiet, conditional, routing)
    if flips is not None and processes().first:
        model = model.replace(flip_network=train_flips(model, drifts_of(model, trained, routing, flips.seed), flips))
    if chosen is None or core is None:
        return model
    return with_calibration_data(model, chosen, trained.x_train, trained.y_train, core)


def hold_back(data: Dataset, share: float, seed: int) -> tuple[Dataset, RouteData]:
    """`data` without `share` of its training split, all of some domains or some of each class; and all of the split.

    Held-back domains (people, sites) are strangers to the weights, as those that a device meets are.
    """
    of = data.domain_train
    if of is None or len(domains := np.unique(of)) < 2:
        kept, held = data.split_validation(share, seed)
    else:
        drawn = np.random.default_rng(seed).permutation(domains)[: max(1, round(share * len(domains)))]
        kept, held = np.flatnonzero(~np.isin(of, drawn)), np.flatnonzero(np.isin(of, drawn))
    part = replace(data, x_train=data.x_train[kept], y_train=data.y_train[kept], domain_train=None)
    fresh = np.zeros(len(data.y_train), bool)
    fresh[held] = True
    return part, RouteData(data.x_train, data.y_train, fresh)


def check_names(budgets: Sequence[Budget | Point], widths: Sequence[int]) -> None:
    """Raises ConfigError unless every operating point would have a name of its own."""
    names = [budget.name for budget in budgets] + [uniform_name(width) for width in widths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"budgets: {', '.join(twice)} would name two operating points; choose other names")


def check_outputs(supernet: Supernet, data: Dataset, task: str) -> None:
    """Raises DataError unless the network has as many outputs as its task needs."""
    found = math.prod(supernet.graph.shapes[-1])
    wanted = data.num_classes if task == "classify" else math.prod(supernet.input_shape)
    if found != wanted:
        what = "classes in label_names or y_train" if task == "classify" else "values in a sample"
        raise DataError(f"the network has {found} outputs, the data {wanted} {what}")


def uniform_name(width: int) -> str:
    """The name of the operating point with one width everywhere."""
    return f"w{width}a{width}"


@first_only
def finish(
    supernet: Supernet,
    data: Dataset,
    prepared: Prepared,
    config: TrainConfig,
    gated: Sequence[Point] = (),
    quiet: bool = False,
    conditional: Sequence[Budget] = (),
    routing: RouteData | None = None,
) -> Model:
    """Re-estimates batch norm of a trained supernet for every point, learns conditional gates, lowers, and measures.

    gated: what `train_gated` or `learn_points` gave; every width is a point besides. routing: what conditional gates
    learn from. Scores are measured on the test split, in integers; nothing is chosen by them. Of several processes, the
    first does this and all return what it found. Raises ConfigError on points that cannot be told apart, or are
    conditional without `routing`, DataError if outputs and classes do not match.
    """
    check_names([*gated, *conditional], supernet.widths)
    if conditional and routing is None:
        raise ConfigError("conditional: pass `routing`, the samples that its gates learn from")
    check_outputs(supernet, data, config.task)
    train, graph = prepared.train, supernet.graph
    for width in supernet.widths:
        reestimate_norms(supernet, train, graph.uniform(width))
    points: list[tuple[str, Assignment, int | None]] = []
    gates: dict[str, ConditionalGate] = {}
    own: list[tuple[Assignment, int]] = []
    gate_config = GateConfig(batch_size=config.batch_size, seed=config.seed, quiet=quiet)
    for name, assignment, row in gated:
        reestimate_norms(supernet, train, assignment, row)
        points.append((name, assignment, len(supernet.widths) + len(own)))
        own.append((assignment, row))
    for budget in conditional:
        branches = learn_branches(supernet, train, budget, gate_config, config.task)
        first_set = len(supernet.widths) + len(own)
        points.append((budget.name, branches.assignments[0], first_set))
        gates[budget.name] = unrouted(graph, branches, first_set)
        own += estimate_branches(supernet, train, branches)
    for width in reversed(supernet.widths):
        points.append((uniform_name(width), graph.uniform(width), None))
    supernet.set_assignment(graph.uniform(supernet.widths[-1]))
    largest = predict(supernet, train).abs().max()
    supernet.output_step.copy_(largest * 4 / 2**15)
    model = assemble(lower(supernet, prepared.scaling.step, own), data, prepared, points, config)
    model = model.replace(points=tuple(p._replace(gate=gates.get(p.name)) for p in model.points))
    if routing is not None:
        for budget in conditional:
            model = learn_gate_of(model, budget, routing, RouteConfig(seed=config.seed))
    return model.replace(points=tuple(_measured(model, data)))


def assemble(
    lowered: Lowered,
    data: Dataset,
    prepared: Prepared,
    points: Sequence[tuple[str, Assignment, int | None]],
    config: TrainConfig,
) -> Model:
    """Puts a lowered supernet together with its data's names and the points (name, assignment, own parameter set).

    Scores are not measured yet: they are 0 on 0 samples.
    """
    graph = lowered.graph
    return Model(
        graph,
        lowered.parameters,
        lowered.planes(),
        prepared.scaling,
        data.sample_shape,
        tuple(
            OperatingPoint(point, assignment, 0.0, TASKS[config.task], 0, graph.cost(assignment), row)
            for point, assignment, row in points
        ),
        data.label_names if config.task == "classify" else (),
        config.task,
        {
            "model": prepared.name,
            "data": data.name,
            "data_sha256": data.sha256,
            "seed": config.seed,
            "epochs": config.epochs,
            "threads": torch.get_num_threads(),
            **({"processes": count} if (count := processes().count) > 1 else {}),
            "caq": caq.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def _measured(model: Model, data: Dataset) -> list[OperatingPoint]:
    engine, count = Engine(model), len(data.y_test)
    points = []
    for p in model.points:
        value, taken = score_routed(engine, engine.build_point(p.name), data.x_test, data.y_test)
        p = p._replace(score=round(value, 6), samples=count)
        points.append(p if p.gate is None else p.measured(model.graph, taken))
    return points
