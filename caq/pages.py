"""Memory that goes back to the system at once: bit planes in a mapped file, and blocks with a mapping of their own.

Mapped planes are pages of the file itself. The kernel drops clean ones whenever it needs memory, and reads them again
when they are touched; `MappedPlanes.give_back` drops at once those that are not needed.

What mapping costs in trust: pages that are read again are not verified again. So the file must not be changed in place
while it is mapped. To replace it, as `caq.save` does, is safe: the old file lives on as long as it is mapped. If it is
cut short, its bytes are gone, and whoever touches them gets SIGBUS, which ends the process; so does a disk that cannot
be read. `check` finds a change before that, unless it comes in the very moment in which bytes are read, or from one who
sets the file's time back. Therefore mapping is asked for, never the default.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from caq.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: From this size on numpy asks for huge pages, which are faulted in faster, and so does `block`.
HUGE_BYTES = 2**22


def block(size: int) -> NDArray[np.uint8]:
    """`size` > 0 bytes, aligned to a page, that leave the process when they are freed. Raises MemoryError."""
    try:
        if hasattr(mmap, "MAP_ANONYMOUS"):
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:  # Windows
            memory = mmap.mmap(-1, size)
    except OSError as e:
        raise MemoryError(f"{size} bytes: {e.strerror}") from None
    if size >= HUGE_BYTES:
        _advise(memory, "MADV_HUGEPAGE", 0, size)
    return np.frombuffer(memory, np.uint8)


class MappedPlanes:
    """Bit planes (rows, size) uint8 that stay in their file, from its byte `offset` on; read-only.

    file: open for reading; a descriptor of its own is kept as long as this object lives. name: for messages. Raises
    ConfigError where the file cannot be mapped, and IntegrityError if it ends before the planes do.
    """

    def __init__(self, file: BinaryIO, offset: int, rows: int, size: int, name: str) -> None:
        self.name, self.offset, self.end = name, offset, offset + rows * size
        try:
            self._handle = os.dup(file.fileno())
        except OSError as e:
            raise ConfigError(f"only a file can be mapped ({e}); load it without mapped=True") from None
        weakref.finalize(self, os.close, self._handle)
        self._state = self._present_state()
        if self._state[0] < self.end:
            raise IntegrityError("planes: the file was cut short while it was read")
        try:
            self._map = mmap.mmap(self._handle, self.end, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        except OSError as e:
            raise ConfigError(f"the file cannot be mapped ({e.strerror}); load it without mapped=True") from None
        # A huge page would keep what is not needed beside what is.
        _advise(self._map, "MADV_NOHUGEPAGE", 0, self.end)
        self.planes: NDArray[np.uint8] = np.ndarray((rows, size), np.uint8, self._map, offset)

    def check(self) -> None:
        """Raises IntegrityError if the file was written to or cut short since it was mapped."""
        if self._present_state() != self._state:
            raise IntegrityError(f"{self.name}: was changed in place after it was verified and mapped; load it again")

    def give_back(self, needed: Iterable[tuple[int, int]]) -> None:
        """Drops every page that holds no `needed` bytes: pairs (first, length), counted from the first plane's start.

        A page that is touched later is read from the file again. Does nothing where the system has no madvise; systems
        other than Linux may take it as a hint.
        """
        page = mmap.PAGESIZE
        kept = np.zeros(-(-self.end // page) + 2, np.bool_)
        kept[[0, -1]] = True  # no pages of the file, but ends for the first and the last run of pages to drop
        for first, length in needed:
            start = self.offset + first
            kept[1 + start // page : 2 + (start + length - 1) // page] = True
        edges = np.flatnonzero(kept[1:] != kept[:-1]) * page
        for start, end in edges.reshape(-1, 2).tolist():
            _advise(self._map, "MADV_DONTNEED", start, end - start)
            if hasattr(os, "posix_fadvise"):  # out of the page cache, too: a container is charged for it
                os.posix_fadvise(self._handle, start, end - start, os.POSIX_FADV_DONTNEED)

    def _present_state(self) -> tuple[int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns


def _advise(memory: mmap.mmap, advice: str, start: int, length: int) -> None:
    """madvise, where the system and its kernel know the advice."""
    if hasattr(mmap, advice):
        with suppress(OSError):
            memory.madvise(getattr(mmap, advice), start, length)
