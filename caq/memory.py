"""Static memory planning: where in one arena each buffer of a program lies, known before the first inference."""

from __future__ import annotations

from collections.abc import Sequence

from caq.record import NamedTuple

ALIGNMENT = 64


class Buffer(NamedTuple):
    """`size` bytes that are in use from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are in use at some step."""
        return self.first <= other.last and other.first <= self.last


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes that are in use at one step: no plan can need less."""
    return max((sum(b.size for b in buffers if b.first <= s <= b.last) for s in {b.first for b in buffers}), default=0)


def place(buffers: Sequence[Buffer]) -> tuple[list[int], int]:
    """Offsets of the buffers, multiples of ALIGNMENT, and the arena's size.

    Greedy by size: the largest buffer first, each in the lowest gap between those already placed that it meets.
    """
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, buffers[i].first)):
        at = 0
        for j in sorted((j for j in placed if buffers[i].meets(buffers[j])), key=lambda j: offsets[j]):
            if at + buffers[i].size <= offsets[j]:
                break
            at = max(at, aligned(offsets[j] + buffers[j].size))
        offsets[i] = at
        placed.append(i)
    return offsets, max((o + b.size for o, b in zip(offsets, buffers, strict=True)), default=0)


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT
