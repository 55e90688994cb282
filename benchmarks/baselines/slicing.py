"""Post-training nested slicing: 8-bit codes rounded to nearest, of which lower widths read the top bits.

The inference of MatQuant (Nair et al., "Matryoshka Quantization", 2025) without its training: one set of codes, scaled
by the largest weight of each channel, and nothing is adapted to a width but the steps of the activations, which have
the least squared error. Batch norm keeps the float network's statistics. A narrow code stands for the middle of its
interval, which is more exact than MatQuant's rounding (docs/adr/0001-nested-codes.md). Measured in integers.
"""

from __future__ import annotations

import torch

from benchmarks.baselines.given import Given, Point
from caq.engine import Engine
from caq.measure import score
from caq.supernet import DEFAULT_WIDTHS, convert
from caq.supernet.lower import lower
from caq.supernet.pipeline import assemble, uniform_name
from caq.supernet.train import TrainConfig, predict


@torch.no_grad()
def measure(given: Given) -> list[Point]:
    """One file's accuracy at every width."""
    example = given.prepared.as_network_input(next(given.calibration.typical(256, 256))[0])
    supernet = convert(given.network, example, DEFAULT_WIDTHS).eval()
    for layer in supernet.layers:
        layer.set_scale(layer.weight.abs().flatten(1).amax(1).clamp(min=1e-8) / 127)
    largest = predict(supernet, given.calibration).abs().max()
    supernet.output_step.copy_(largest * 4 / 2**15)
    lowered = lower(supernet, given.prepared.scaling.step)
    uniform = [(uniform_name(width), given.graph.uniform(width), None) for width in reversed(DEFAULT_WIDTHS)]
    engine = Engine(assemble(lowered, given.data, given.prepared, uniform, TrainConfig(seed=given.seed)))
    return [
        Point(name, score(engine, engine.build(assignment), given.data.x_test, given.data.y_test), assignment)
        for name, assignment, _ in uniform
    ]
