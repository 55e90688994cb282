"""Protocols of continual calibration on real data, with their models (for benchmarks.calibrate_stream).

usc_had: a model of a few people streams another one. Half of a person's windows, drawn by whole trials so that
neighbouring windows do not lie on both sides, is the stream, in 10 batches of shuffled windows; the other half is what
is tested on. Sources train on trials 1 to 4 of each activity and are tested on trial 5. Choices are made with DEV, and
the figures are those of REPORTED: other people on both sides.

kws12: a model of clean speech streams speech in noise of 20, then 10, then 0 dB. Choices are made on words of the
validation speakers, figures are those of the test speakers; of either, half is the stream, half is tested on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.continual.sources import Source
from caq.data import from_arrays
from caq.model import Model

WIDTHS = (2, 4, 8)
EPOCHS = {"usc_had": 8, "kws12": 8}
NETWORKS = {"usc_had": "resnet8", "kws12": "ds_cnn"}
FILES = {"usc_had": "usc_had/usc_had_50hz_w128.npz", "kws12": "speech_commands_kws12/kws12_logmel.npz"}
BATCHES = 10
#: People that train, and people that stream.
DEV, REPORTED = ((1, 2, 3), (4, 5, 6)), ((7, 8, 9, 10), (11, 12, 13, 14))


@dataclass(frozen=True)
class Part:
    """Samples x (N, ...) and labels y (N,)."""

    x: NDArray[np.generic]
    y: NDArray[np.integer]

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Part:
        """Some of its samples."""
        return Part(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Phase:
    """A domain that streams: its batches, and what is tested on."""

    name: str
    batches: tuple[Part, ...]
    test: Part


@dataclass(frozen=True)
class Protocol:
    """A model, what it was trained on, the source's test half, and the streams, each of phases one after the other.

    source: where the model comes from, None if it was not trained.
    """

    name: str
    model: Model
    train: Part
    source_test: Part
    streams: tuple[tuple[Phase, ...], ...]
    source: Source | None = None


def phase_of(name: str, stream: Part, test: Part, batches: int) -> Phase:
    """A phase whose stream is cut into batches of the same size, but for one sample."""
    parts = np.array_split(np.arange(len(stream.y)), batches)
    return Phase(name, tuple(stream.take(rows) for rows in parts), test)


def usc_had(
    folder: Path,
    cache: Path,
    people: tuple[tuple[int, ...], tuple[int, ...]],
    seed: int,
    network: str = NETWORKS["usc_had"],
) -> Protocol:
    """Sources and targets of usc_had: see the module. seed: of the training and of the streams' order."""
    sources, targets = people
    with np.load(folder / FILES["usc_had"]) as z:
        x, y = (z["x_q"] * z["scale"]).astype(np.float32), z["activity"].astype(np.int64)
        subject, trial = z["subject"], z["trial"].astype(np.int64)
    everything, own = Part(x, y), np.isin(subject, sources)
    train, test = everything.take(own & (trial <= 4)), everything.take(own & (trial == 5))
    names = np.array([str(i) for i in range(int(y.max()) + 1)])
    arrays = {"x_train": train.x, "y_train": train.y, "x_test": test.x, "y_test": test.y, "label_names": names}
    of = "" if network == NETWORKS["usc_had"] else f"{network}-"
    path = cache / f"usc_had-{of}{'-'.join(map(str, sources))}-{seed}.caq"
    source = Source(path, from_arrays("usc_had", arrays), network, EPOCHS["usc_had"], seed, WIDTHS)
    streams = []
    for target in targets:
        rng = np.random.default_rng([seed, target])
        streamed = np.flatnonzero((subject == target) & (trial % 2 == 1))
        tested = (subject == target) & (trial % 2 == 0)
        phase = phase_of(
            f"person {target}", everything.take(rng.permutation(streamed)), everything.take(tested), BATCHES
        )
        streams.append((phase,))
    return Protocol("usc_had", source.model(), train, test, tuple(streams), source)


def kws12(folder: Path, cache: Path, dev: bool, seed: int) -> Protocol:
    """Clean speech with noise to come. dev: words of the validation speakers. seed: as of usc_had."""
    with np.load(folder / FILES["kws12"]) as z:
        y, split = z["y"].astype(np.int64), z["split"]
        clean = Part(z["x_clean"], y)
        noisy = {f"{snr} dB": Part(z[f"x_snr{snr}"], y) for snr in (20, 10, 0)}
    train, validation, test = (np.flatnonzero(split == i) for i in range(3))
    arrays = {"x_train": clean.x[train], "y_train": y[train], "x_test": clean.x[validation], "y_test": y[validation]}
    data = from_arrays("kws12", {**arrays, "kind": np.array("series")})
    source = Source(cache / f"kws12-{seed}.caq", data, NETWORKS["kws12"], EPOCHS["kws12"], seed, WIDTHS)
    rng = np.random.default_rng(seed)
    words = rng.permutation(validation if dev else test)
    streamed, tested = words[: len(words) // 2], words[len(words) // 2 :]
    phases = [
        phase_of(name, part.take(rng.permutation(streamed)), part.take(tested), BATCHES) for name, part in noisy.items()
    ]
    return Protocol("kws12", source.model(), clean.take(train), clean.take(tested), (tuple(phases),), source)
