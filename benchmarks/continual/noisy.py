"""Protocols whose domains come one after the other in a single stream: speech in noise, and corrupted images.

kws12: a model of clean speech streams words of other speakers at 20, then 10, then 0 dB of noise. Half of the test
split's words stream, the other half is what is tested on. Sources are those of

    python -m benchmarks.accuracy --data kws12.npz --model ds_cnn --epochs 12 --domain 0

cifar10: a model of clean images streams images of the test split with noise, then blur, less contrast, and JPEG's
blocks (benchmarks.corruptions). Sources train on the first TRAINED images, for few epochs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.calibrate_streams import BATCHES, WIDTHS, Part, Phase, Protocol, phase_of
from benchmarks.continual.sources import Source
from benchmarks.corruptions import SEVERITIES, write
from caq.data import from_arrays, load
from caq.supernet.conversion import DEFAULT_WIDTHS

#: Domains of kws12.npz beside 0, which is clean.
NOISE = {1: "20 dB", 2: "10 dB", 3: "0 dB"}
WORDS_EPOCHS = 12
TRAINED, IMAGES_EPOCHS = 6_000, 6
STREAMED, TESTED = 300, 1000
SEVERITY = 3


def kws12(data: Path, cache: Path, seed: int) -> Protocol:
    """data: kws12.npz. seed: of training and of the stream's order."""
    words = load(data)
    source = Source(
        cache / f"kws12-spoken-{seed}.caq", words.tested_on(0), "ds_cnn", WORDS_EPOCHS, seed, DEFAULT_WIDTHS
    )
    clean, noisy = Part(*words.domain(0)), {name: Part(*words.domain(i)) for i, name in NOISE.items()}
    rng = np.random.default_rng(seed)
    streamed, tested = np.array_split(rng.permutation(len(clean.y)), 2)
    phases = _phases(noisy, streamed, tested, rng)
    return Protocol("kws12", source.model(), Part(words.x_train, words.y_train), clean.take(tested), (phases,), source)


def cifar10(data: Path, cache: Path, seed: int) -> Protocol:
    """data: cifar10.npz. seed: of training, noise and the stream's order."""
    images = load(data)
    train = Part(images.x_train[:TRAINED], images.y_train[:TRAINED])
    arrays = {
        "x_train": train.x,
        "y_train": train.y,
        "x_test": images.x_train[-1000:],
        "y_test": images.y_train[-1000:],
    }
    network = from_arrays("cifar10", {**arrays, "label_names": np.array(images.label_names)})
    source = Source(cache / f"cifar10-{seed}.caq", network, "resnet8", IMAGES_EPOCHS, seed, WIDTHS)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(images.y_test))[: STREAMED + TESTED]
    corrupted = cache / f"cifar10-test-{len(rows)}-{SEVERITY}-{seed}.npz"
    if not corrupted.exists():
        write(data, corrupted, "test", rows, SEVERITY, seed)
    with np.load(corrupted) as z:
        clean, kinds = Part(z["x_clean"], z["y"]), {name: Part(z[f"x_{name}"], z["y"]) for name in SEVERITIES}
    streamed, tested = np.arange(STREAMED), np.arange(STREAMED, len(rows))
    phases = _phases(kinds, streamed, tested, rng)
    return Protocol("cifar10", source.model(), train, clean.take(tested), (phases,), source)


def _phases(
    parts: dict[str, Part], streamed: np.ndarray, tested: np.ndarray, rng: np.random.Generator
) -> tuple[Phase, ...]:
    """A phase for each part, of the same rows in another order."""
    return tuple(
        phase_of(name, part.take(rng.permutation(streamed)), part.take(tested), BATCHES) for name, part in parts.items()
    )
