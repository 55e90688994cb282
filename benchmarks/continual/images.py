"""The cifar10 protocol: a model of clean images streams corrupted ones, kind after kind (benchmarks.corruptions).

Sources train on the first TRAINED images of the training split, for few epochs. Choices are made on images of the
training split that they did not train on; figures are those of the test split. Of either, STREAMED images stream,
and TESTED others are tested on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.calibrate_streams import BATCHES, WIDTHS, Part, Protocol, phase_of
from benchmarks.continual.sources import Source
from benchmarks.corruptions import SEVERITIES, write
from caq.data import from_arrays, load

TRAINED, EPOCHS = 6_000, 6
STREAMED, TESTED = 300, 1000
SEVERITY = 3


def cifar10(data: Path, cache: Path, dev: bool, seed: int) -> Protocol:
    """data: cifar10.npz. dev: images that choices are made on. seed: of training, noise and the stream's order."""
    images = load(data)
    x, y = images.x_train[:TRAINED], images.y_train[:TRAINED]
    arrays = {"x_train": x, "y_train": y, "x_test": images.x_train[-1000:], "y_test": images.y_train[-1000:]}
    names = np.array(images.label_names)
    network = from_arrays("cifar10", {**arrays, "label_names": names})
    source = Source(cache / f"cifar10-{seed}.caq", network, "resnet8", EPOCHS, seed, WIDTHS)
    split, there = ("train", len(images.y_train)) if dev else ("test", len(images.y_test))
    rng = np.random.default_rng(seed)
    rows = (TRAINED if dev else 0) + rng.permutation(there - (TRAINED + 1000 if dev else 0))[: STREAMED + TESTED]
    corrupted = cache / f"cifar10-{split}-{len(rows)}-{SEVERITY}-{seed}.npz"
    if not corrupted.exists():
        write(data, corrupted, split, rows, SEVERITY, seed)
    with np.load(corrupted) as z:
        clean, kinds = Part(z["x_clean"], z["y"]), {name: Part(z[f"x_{name}"], z["y"]) for name in SEVERITIES}
    streamed, tested = np.arange(STREAMED), np.arange(STREAMED, STREAMED + TESTED)
    phases = tuple(
        phase_of(name, part.take(rng.permutation(streamed)), part.take(tested), BATCHES) for name, part in kinds.items()
    )
    return Protocol("cifar10", source.model(), Part(x, y), clean.take(tested), (phases,), source)
