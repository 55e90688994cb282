"""Streams with a known moment of drift, from real data, and the models that they are fed to (for benchmarks.drift).

usc_had: a model of one subject, trained on trials 1 to 3 of each activity; thresholds see trial 4, and a stream is
trial 5 of the same subject and then another subject. kws12: a model of clean speech, trained on the data's training
speakers; thresholds see its validation speakers, a stream is clean speech of its test speakers and then other words of
theirs in noise. Streams of usc_had keep the windows of a trial together and in order, as a sensor delivers them; trials
are shuffled. Words are shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import caq
from caq.data import Dataset, from_arrays
from caq.model import Model
from caq.supernet.pipeline import train_model
from caq.supernet.train import Outputs, TrainConfig

#: Two widths are enough to see whether a detector depends on them.
WIDTHS = (2, 8)
EPOCHS = {"usc_had": 10, "kws12": 6}
FILES = {"usc_had": "usc_had/usc_had_50hz_w128.npz", "kws12": "speech_commands_kws12/kws12_logmel.npz"}
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Domain:
    """Samples of one subject, or of one noise level: x, y, and the bout (an uninterrupted recording) of each."""

    x: NDArray[np.generic]
    y: NDArray[np.integer]
    bout: NDArray[np.integer]

    def stream(self, rng: np.random.Generator, count: int | None = None) -> NDArray[np.int64]:
        """Indices of up to `count` samples: bouts shuffled, what is in a bout in its order."""
        order = [np.flatnonzero(self.bout == b) for b in rng.permutation(np.unique(self.bout))]
        return np.concatenate(order)[:count]


@dataclass(frozen=True)
class Case:
    """One source: its model, what thresholds may see, and the streams' parts."""

    name: str
    model: Model
    train: Domain
    validation: Domain
    same: Domain
    others: dict[str, Domain]


def _cached(path: Path, data: Dataset, epochs: int) -> Model:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = train_model(data, "resnet8", TrainConfig(epochs=epochs), WIDTHS, (), Outputs(quiet=True))
        caq.save(model, path)
    return caq.load(path)


def usc_had(folder: Path, cache: Path, source: int, targets: list[int]) -> Case:
    """A subject's case, with other subjects to drift to."""
    with np.load(folder / FILES["usc_had"]) as z:
        x, y = (z["x_q"] * z["scale"]).astype(np.float32), z["activity"].astype(np.int64)
        subject, trial = z["subject"], z["trial"].astype(np.int64)
    bout = y * 10 + trial

    def part(rows: Bool) -> Domain:
        return Domain(x[rows], y[rows], bout[rows])

    own = subject == source
    train, validation = part(own & (trial <= 3)), part(own & (trial == 4))
    arrays = {"x_train": train.x, "y_train": train.y, "x_test": validation.x, "y_test": validation.y}
    model = _cached(cache / f"usc_had-{source}.caq", from_arrays("usc_had", arrays), EPOCHS["usc_had"])
    others = {f"subject {t}": part(subject == t) for t in targets}
    return Case(f"subject {source}", model, train, validation, part(own & (trial == 5)), others)


def kws12(folder: Path, cache: Path) -> Case:
    """Clean speech, with noise to drift to; half of the test speakers' words are heard clean, the others in noise."""
    with np.load(folder / FILES["kws12"]) as z:
        y, split = z["y"].astype(np.int64), z["split"]
        clean, noisy = z["x_clean"], {snr: z[f"x_snr{snr}"] for snr in (20, 10, 0)}

    def part(x: NDArray[np.uint8], rows: NDArray[np.int64]) -> Domain:
        return Domain(x[rows], y[rows], np.arange(len(rows)))

    train, validation, test = (np.flatnonzero(split == i) for i in range(3))
    test = np.random.default_rng(0).permutation(test)
    first, second = test[: len(test) // 2], test[len(test) // 2 :]
    arrays = {"x_train": clean[train], "y_train": y[train], "x_test": clean[validation], "y_test": y[validation]}
    data = from_arrays("kws12", {**arrays, "kind": np.array("series")})
    model = _cached(cache / "kws12.caq", data, EPOCHS["kws12"])
    others = {f"{snr} dB": part(x, second) for snr, x in noisy.items()}
    return Case("clean speech", model, part(clean, train), part(clean, validation), part(clean, first), others)
