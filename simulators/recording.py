"""Recordings from an .npz file, with errors that name the file, the array and the row."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from caq.errors import TraceError

Array = np.ndarray[Any, Any]


class Recording:
    """Named arrays of one file. Raises TraceError if it cannot be read or one of `names` is missing."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as data:
                if missing := [name for name in names if name not in data.files]:
                    raise TraceError(f"{path}: has no array {missing[0]!r}; it has {', '.join(data.files)}")
                self._arrays = {name: np.asarray(data[name]) for name in names}
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, TraceError):
                raise
            raise TraceError(f"{path}: is no .npz file of plain arrays: {error}") from error

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def series(self, name: str, dimensions: int = 1) -> Array:
        """A numeric array as float64, finite, with that many dimensions and at least one row."""
        array = self._arrays[name]
        if array.ndim != dimensions or array.dtype.kind not in "iuf" or not len(array):
            self.fail(name, None, f"must be numbers in {dimensions} dimensions, not {array.dtype} {array.shape}")
        values = array.astype(np.float64)
        self.check(name, np.isfinite(values), values, "must be finite")
        return values

    def check(self, name: str, good: Array, values: Array, rule: str) -> None:
        """Raises TraceError with the first row (from 0) that is not good."""
        if not good.all():
            row = int(np.argwhere(~good)[0][0])
            self.fail(name, row, f"{rule}, not {values[row]}")

    def fail(self, name: str, row: int | None, what: str) -> NoReturn:
        raise TraceError(f"{self.path}: {name}{'' if row is None else f', row {row}'}: {what}")
