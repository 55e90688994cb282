"""Keeps freed memory while training.

glibc hands freed megabytes back to the kernel, and every activation of every step then costs page faults again: more
than half of a step's time where an activation has 8 MB.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h>: the parameters of mallopt, and the values that a process starts with.
M_TRIM_THRESHOLD, TRIM_THRESHOLD = -1, 128 * 1024
M_MMAP_MAX, MMAP_MAX = -4, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, what is freed stays with the process; afterwards the kernel gets it back. No effect but on glibc."""
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, MMAP_MAX)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        malloc_trim(0)
