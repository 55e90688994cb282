"""Files of arrays that policies are kept in: uncompressed .npz without pickled objects, read without trust."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caq.errors import ConfigError, VersionError, WeightsError
from policies.points import PointTable

MAX_BYTES = 4 << 20


class Arrays:
    """What a file holds; every method raises WeightsError that names the file and the array."""

    def __init__(self, path: str | Path, arrays: dict[str, NDArray[Any]]) -> None:
        self.path, self._arrays = path, arrays

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def expect(self, names: set[str], layers: bool = False) -> None:
        """These, and no others; with `layers` also what `layers` returns."""
        if layers:
            names = names | {f"{kind}_{i}" for i in range(self._layer_count()) for kind in ("weight", "bias")}
        if wrong := sorted(names ^ set(self._arrays)):
            self._fail(wrong[0], "is missing" if wrong[0] in names else "is unknown")

    def floats(self, name: str) -> NDArray[Any]:
        if self._get(name).dtype.kind != "f":
            self._fail(name, f"floats are expected, not {self._get(name).dtype}")
        return self._get(name)

    def integers(self, name: str) -> NDArray[Any]:
        if self._get(name).dtype.kind != "i":
            self._fail(name, f"whole numbers are expected, not {self._get(name).dtype}")
        return self._get(name)

    def texts(self, name: str) -> tuple[str, ...]:
        array = self._get(name)
        if array.ndim != 1 or array.dtype.kind != "U":
            self._fail(name, "a list of texts is expected")
        return tuple(array.tolist())

    def text(self, name: str) -> str:
        array = self._get(name)
        if array.ndim != 0 or array.dtype.kind != "U":
            self._fail(name, "one text is expected")
        return str(array)

    def number(self, name: str) -> float:
        array = self._get(name)
        if array.ndim != 0 or array.dtype.kind not in "fi":
            self._fail(name, "one number is expected")
        return float(array)

    def points(self) -> PointTable:
        """Of the arrays `points`, `accuracy`, `energy_j` and `memory`. Raises ConfigError too."""
        return PointTable(self.texts("points"), *(self.floats(name) for name in ("accuracy", "energy_j", "memory")))

    def layers(self) -> tuple[tuple[NDArray[Any], ...], tuple[NDArray[Any], ...]]:
        """The arrays `weight_0`, `weight_1`, ... and `bias_0`, `bias_1`, ..."""
        indices = range(self._layer_count())
        weights = tuple(self.floats(f"weight_{i}") for i in indices)
        return weights, tuple(self.floats(f"bias_{i}") for i in indices)

    def _layer_count(self) -> int:
        return sum(name.startswith("weight_") for name in self)

    def _get(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            self._fail(name, "is missing")
        return self._arrays[name]

    def _fail(self, name: str, what: str) -> None:
        raise WeightsError(f"{self.path}: {name}: {what}")


def read_arrays(path: str | Path) -> Arrays:
    """Raises WeightsError that names the file: cannot be read, too large, no .npz, with pickled objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        if sum(part.file_size for part in parts) > MAX_BYTES:
            raise WeightsError(f"{path}: is larger than {MAX_BYTES} bytes")
        if len({part.filename for part in parts}) != len(parts):
            raise WeightsError(f"{path}: an array stands there twice")
        with np.load(path, allow_pickle=False) as found:
            return Arrays(path, {name: found[name] for name in found.files})
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile and numpy have a dozen ways to refuse hostile bytes
        raise WeightsError(f"{path}: is no file of a policy: {error}") from error


@contextmanager
def read_network_file(path: str | Path, version: int, names: tuple[str, ...]) -> Iterator[Arrays]:
    """What the file of a network holds: `names`, of which `version` is checked, and layers.

    Raises WeightsError that names the file, also on a ConfigError while it lasts; VersionError on another version.
    """
    arrays = read_arrays(path)
    if (found := arrays.number("version")) != version:
        raise VersionError(f"{path}: version {found:g} is not read by this caq, which reads version {version}")
    arrays.expect(set(names), layers=True)
    try:
        yield arrays
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None


def write_arrays(path: str | Path, **arrays: Any) -> None:
    """Writes what `read_arrays` reads."""
    with open(path, "wb") as file:  # np.savez would append .npz to a name without it
        np.savez(file, **arrays)
