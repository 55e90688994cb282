"""The integer contract: reference engine and torch's integer simulation, logit for logit.

    python -m benchmarks.contract [--assignments 500] [--samples 1]

Every zoo network at its standard shape, and some whose outputs have positions, with random weights, batch-norm
statistics and inputs, goes through lowering, the artifact's bytes and the engine's plans on one side, and through
`caq.supernet.simulate` on the other: all operating points and random assignments. Prints how many logits differ (0 is
right) and fails if any does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from caq import artifact
from caq.data import Dataset, from_arrays
from caq.engine import Engine
from caq.model import Model
from caq.supernet.conversion import convert
from caq.supernet.lower import Lowered, lower
from caq.supernet.network import Supernet
from caq.supernet.pipeline import assemble, prepare, task_of
from caq.supernet.simulate import simulate
from caq.supernet.train import TrainConfig, random_assignment
from caq.supernet.zoo import MODELS

#: Shapes of one sample, as in MLPerf Tiny where the network is from there.
SHAPES = {
    "resnet8": (32, 32, 3),
    "ds_cnn": (49, 10, 1),
    "mobilenet_v1_025": (96, 96, 3),
    "autoencoder": (640,),
    "inception_time": (128, 6),
    "mlp": (8, 8, 1),
    "image_autoencoder": (8, 10, 3),
    "segmentation": (8, 10, 3),
    "series_filter": (24, 5),
}

#: Networks whose outputs have positions; they eat images (N, C, H, W) or series (N, C, T).
POSITIONAL: dict[str, Callable[[], nn.Module]] = {
    "image_autoencoder": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 5, 16),
        nn.ReLU(),
        nn.Linear(16, 6 * 8 * 10),
        nn.ReLU(),
        nn.Unflatten(1, (6, 8, 10)),
        nn.Conv2d(6, 3, 3, padding=1),
    ),
    "segmentation": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.MaxPool2d(2)
    ),
    "series_filter": lambda: nn.Sequential(
        nn.Conv1d(5, 8, 3, padding=1, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 5, 5, padding=2)
    ),
}
NETWORKS = (*MODELS, *POSITIONAL)


@dataclass(frozen=True)
class Subject:
    """A network on both sides of the contract."""

    data: Dataset
    supernet: Supernet
    lowered: Lowered
    model: Model


def subject(name: str, seed: int, samples: int) -> Subject:
    """A network with random parameters, every width's own, and one operating point with its own statistics."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (16, *SHAPES[name])).astype(np.uint8)
    y = np.arange(16) % 4
    arrays = {"x_train": x, "y_train": y, "x_test": x[:samples], "y_test": y[:samples]}
    if x.ndim == 3:
        arrays["kind"] = np.array("series")
    data = from_arrays(name, arrays)
    torch.manual_seed(seed)
    prepared = prepare(data, POSITIONAL[name]() if name in POSITIONAL else name, seed)
    supernet = convert(prepared.network, prepared.example())
    mixed = random_assignment(supernet.graph, rng)
    row = supernet.add_row(mixed)
    with torch.no_grad():
        for layer in supernet.layers:
            if layer.norm is not None:
                layer.norm.gamma.normal_(1, 0.3)
                layer.norm.beta.normal_(0, 0.3)
                layer.norm.mean.normal_(0, 0.3)
                layer.norm.var.uniform_(0.3, 3)
    lowered = lower(supernet, prepared.scaling.step, [(mixed, row)])
    points = [("mixed", mixed, len(supernet.widths))]
    points += [(f"w{w}a{w}", supernet.graph.uniform(w), None) for w in supernet.widths]
    config = TrainConfig(epochs=1, seed=seed, task="reconstruct" if name in POSITIONAL else task_of(name))
    model = assemble(lowered, data, prepared, points, config)
    return Subject(data, supernet, lowered, artifact.loads(artifact.dumps(model)))


def differing_logits(s: Subject, assignments: int, seed: int) -> tuple[int, int]:
    """Logits that differ, and logits compared, over all points and `assignments` random assignments."""
    engine = Engine(s.model)
    rng = np.random.default_rng(seed)
    work = [(p.assignment, p.parameter_set) for p in s.model.points]
    work += [(random_assignment(s.model.graph, rng), None) for _ in range(assignments)]
    x = s.data.x_test
    codes = torch.from_numpy(s.model.encode(x)[0]).permute(0, 3, 1, 2)
    differing = compared = 0
    for assignment, parameter_set in work:
        ours = engine.run_plan(engine.build(assignment, parameter_set), x)
        theirs = simulate(s.supernet, s.lowered, codes, assignment, parameter_set).numpy()
        differing += int((ours != theirs).sum())
        compared += ours.size
    return differing, compared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assignments", type=int, default=500)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    total = 0
    for name in NETWORKS:
        differing, compared = differing_logits(subject(name, args.seed, args.samples), args.assignments, args.seed)
        total += differing
        print(f"{name:18} {compared:9,} logits compared, {differing} differ", flush=True)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
