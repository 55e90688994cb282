"""Data sets: scikit-learn's digits, or an .npz file of plain arrays.

    x_train, x_test            samples first, channels last; uint8, int16 or float32, the same dtype in both
                               (N, H, W[, C]) images, (N, T, C) series, (N, F) vectors
    y_train, y_test            (N,) integers, classes counted from 0
    domain_train, domain_test  optional (N,) integers: the subject, the site, the noise level, ...
    label_names                optional strings, one per class
    kind                       optional string "image", "series" or "vector"

Without `kind`, 3-D uint8 arrays are images (N, H, W), and other 3-D arrays are series (N, T, C).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from caq.errors import ConfigError, DataError, MissingExtraError, nearest
from caq.scaling import check_finite

SAMPLE_DTYPES = ("uint8", "int16", "float32")
KIND_NDIMS = {"image": (3, 4), "series": (3,), "vector": (2,)}
REQUIRED_KEYS = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL_KEYS = ("domain_train", "domain_test", "label_names", "kind")
NAMES = ("digits",)
DIGITS_TEST_COUNT = 360
DIGITS_SEED = 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Checked arrays; make one with `load` or `from_arrays`.

    x_train, x_test            (N, H, W, C), (N, T, C) or (N, F) by `kind`; uint8, int16 or float32
    y_train, y_test            (N,) int64 in 0..num_classes-1
    domain_train, domain_test  (N,) int64 or None
    label_names                one per class
    kind                       "image", "series" or "vector"
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    domain_train: np.ndarray | None
    domain_test: np.ndarray | None
    label_names: tuple[str, ...]
    kind: str

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample, channels last."""
        return self.x_train.shape[1:]

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the data: the same arrays give the same digest whatever file they came from."""
        digest = hashlib.sha256(json.dumps({"kind": self.kind, "label_names": self.label_names}).encode())
        for name in ("x_train", "y_train", "x_test", "y_test", "domain_train", "domain_test"):
            array = getattr(self, name)
            if array is None:
                continue
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def domain(self, value: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns x and y of the test rows whose domain is `value`; DataError if there are none."""
        if self.domain_test is None:
            raise DataError(f"{self.name}: domain_test: the data set has no domains")
        rows = self.domain_test == value
        if not rows.any():
            known = np.unique(self.domain_test).tolist()
            raise DataError(f"{self.name}: domain_test: no row has domain {value!r}; known: {known}")
        return self.x_test[rows], self.y_test[rows]

    def tested_on(self, domain: int | None) -> Dataset:
        """The same with the test rows of one domain only; itself for None. Raises as `domain` does."""
        if domain is None:
            return self
        x, y = self.domain(domain)
        return replace(self, x_test=x, y_test=y, domain_test=None)

    def split_validation(self, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns sorted int64 indices (training, validation) into x_train, stratified by class.

        The same `seed` gives the same split on every platform. Raises ConfigError when `fraction` is not
        between 0 and 1, or leaves one side empty.
        """
        held_out = round(fraction * len(self.y_train)) if 0 < fraction < 1 else 0
        if not 0 < held_out < len(self.y_train):
            raise ConfigError(f"fraction {fraction!r} of {len(self.y_train)} samples leaves one side empty")
        return _stratified(self.y_train, held_out, seed)


def load(name_or_path: str | Path) -> Dataset:
    """Loads "digits", or the `.npz` file at a path.

    "digits" is scikit-learn's 8x8 images, uint8 0..16, split 1437/360 by a fixed stratified split.
    Raises DataError naming file and key, and MissingExtraError for "digits" without scikit-learn.
    """
    if name_or_path == "digits":
        return _digits()
    path = Path(name_or_path)
    if not path.is_file():
        known = f"; give the path of an .npz file, or a name{nearest(path.name, NAMES)}"
        hint = "" if path.suffix else known
        raise DataError(f"{path}: no such file{hint}")
    return from_arrays(path.stem, _read_npz(path), where=str(path))


def from_arrays(name: str, arrays: Mapping[str, np.ndarray], where: str | None = None) -> Dataset:
    """Checks arrays under the keys of an .npz file and returns the data set that they make.

    `where` (default: `name`) opens every message. Raises DataError on what the module's text rules out.
    """
    where = where or name
    for key in arrays:
        if key not in REQUIRED_KEYS + OPTIONAL_KEYS:
            raise DataError(f"{where}: unknown key {key!r}{nearest(key, REQUIRED_KEYS + OPTIONAL_KEYS)}")
    for key in REQUIRED_KEYS:
        if key not in arrays:
            raise DataError(f"{where}: {key} is missing; needed: {', '.join(REQUIRED_KEYS)}")
    wanted_kind = _kind_key(arrays, where)
    x_train, kind = _samples(arrays["x_train"], wanted_kind, f"{where}: x_train")
    x_test, _ = _samples(arrays["x_test"], wanted_kind, f"{where}: x_test")
    if x_test.dtype != x_train.dtype:
        raise DataError(f"{where}: x_test: dtype {x_test.dtype} differs from {x_train.dtype} of x_train")
    if x_test.shape[1:] != x_train.shape[1:]:
        raise DataError(f"{where}: x_test: samples of {x_test.shape[1:]}, those of x_train {x_train.shape[1:]}")
    rows = {"train": len(x_train), "test": len(x_test)}
    labels = {
        key: _integers(arrays[key], rows[part], f"{where}: {key}")
        for part in rows
        for key in (f"y_{part}", f"domain_{part}")
        if key in arrays
    }
    label_names = _label_names(arrays, labels["y_train"], where)
    for key in ("y_train", "y_test"):
        _check_labels(labels[key], len(label_names), "label_names" in arrays, f"{where}: {key}")
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=labels["y_train"],
        x_test=x_test,
        y_test=labels["y_test"],
        domain_train=labels.get("domain_train"),
        domain_test=labels.get("domain_test"),
        label_names=label_names,
        kind=kind,
    )


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "train") from None
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    train, test = _stratified(y, DIGITS_TEST_COUNT, DIGITS_SEED)
    arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    return from_arrays("digits", arrays)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file; write it with numpy.savez")
    key = "the directory"
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                arrays[key] = archive[key]
                if not isinstance(arrays[key], np.ndarray):
                    raise DataError(f"{path}: {key}: not a numpy array")
    except (
        ValueError,
        OSError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        if isinstance(error, DataError):
            raise
        # numpy refuses Python objects here, because reading them would run code from the file.
        raise DataError(f"{path}: {key}: cannot be read: {error}") from error
    return arrays


def _kind_key(arrays: Mapping[str, np.ndarray], where: str) -> str | None:
    if "kind" not in arrays:
        return None
    kind = np.asarray(arrays["kind"])
    if kind.dtype.kind != "U" or kind.size != 1:
        raise DataError(f"{where}: kind: must be one string, not {kind.dtype} of shape {kind.shape}")
    value = str(kind.item())
    if value not in KIND_NDIMS:
        raise DataError(f"{where}: kind: unknown {value!r}{nearest(value, KIND_NDIMS)}")
    return value


def _samples(x: np.ndarray, wanted_kind: str | None, where: str) -> tuple[np.ndarray, str]:
    """Checks one x array; returns it in native byte order, images with their channel axis, and its kind."""
    dtype = x.dtype.newbyteorder("=")
    if dtype.name not in SAMPLE_DTYPES:
        raise DataError(f"{where}: dtype {x.dtype} is none of {', '.join(SAMPLE_DTYPES)}; use astype")
    guesses = {2: "vector", 3: "image" if dtype == np.uint8 else "series", 4: "image"}
    kind = wanted_kind or guesses.get(x.ndim)
    if kind is None or x.ndim not in KIND_NDIMS[kind]:
        wanted = " or ".join(f"{n}-D" for n in (KIND_NDIMS[kind] if kind else (2, 3, 4)))
        what = kind or "samples"
        raise DataError(f"{where}: {what} must be {wanted}, samples first; the shape is {x.shape}")
    if x.size == 0:
        raise DataError(f"{where}: empty, the shape is {x.shape}")
    check_finite(x, where)
    x = np.ascontiguousarray(x, dtype)
    return (x[..., np.newaxis] if kind == "image" and x.ndim == 3 else x), kind


def _integers(values: np.ndarray, count: int, where: str) -> np.ndarray:
    if values.dtype.kind not in "iu":
        raise DataError(f"{where}: must be integers, not {values.dtype}")
    if values.shape != (count,):
        raise DataError(f"{where}: shape {values.shape} does not match {count} samples")
    return values.astype(np.int64)


def _label_names(arrays: Mapping[str, np.ndarray], y_train: np.ndarray, where: str) -> tuple[str, ...]:
    if "label_names" in arrays:
        names = np.asarray(arrays["label_names"])
        if names.dtype.kind != "U" or names.ndim != 1 or names.size == 0:
            raise DataError(f"{where}: label_names: must be a non-empty 1-D array of strings")
        return tuple(names.tolist())
    largest = int(y_train.max())
    # Labels count from 0, so a label beyond the number of samples is an identifier and no class.
    if largest >= len(y_train):
        raise DataError(f"{where}: y_train: label {largest} is out of range for {len(y_train)} samples")
    return tuple(str(i) for i in range(largest + 1))


def _check_labels(y: np.ndarray, num_classes: int, named: bool, where: str) -> None:
    if (y < 0).any():
        row = int(np.argmax(y < 0))
        raise DataError(f"{where}: label {y[row]} in row {row} is negative")
    if (y >= num_classes).any():
        row = int(np.argmax(y >= num_classes))
        known = f"label_names has only {num_classes} names" if named else f"y_train ends at {num_classes - 1}"
        raise DataError(f"{where}: label {y[row]} in row {row} is out of range: {known}")


def _stratified(y: np.ndarray, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (kept, held out): `held_out` in all, shared between the classes in proportion."""
    # numpy keeps the raw stream of a bit generator the same for ever, but not that of Generator.permutation.
    keys = np.random.PCG64(seed).random_raw(len(y))
    classes, counts = np.unique(y, return_counts=True)
    quotas, remainders = np.divmod(held_out * counts, len(y))
    largest_first = np.argsort(-remainders, kind="stable")
    quotas[largest_first[: held_out - quotas.sum()]] += 1
    held = np.zeros(len(y), bool)
    for label, quota in zip(classes, quotas, strict=True):
        rows = np.flatnonzero(y == label)
        held[rows[np.argsort(keys[rows], kind="stable")[:quota]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
