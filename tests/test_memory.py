"""Static memory planning against a check of every pair of buffers at every step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caq.memory import ALIGNMENT, Buffer, aligned, lower_bound, place
from caq.program import Program
from tests import models

buffers = st.lists(
    st.builds(
        lambda size, first, length: Buffer(size, first, first + length),
        st.integers(0, 1000),
        st.integers(-1, 12),
        st.integers(0, 8),
    ),
    max_size=12,
)


def in_use(found: list[Buffer], step: int) -> list[int]:
    return [i for i, b in enumerate(found) if b.first <= step <= b.last]


@given(buffers)
def test_no_two_buffers_share_a_byte_at_any_step(found):
    offsets, peak = place(found)
    assert len(offsets) == len(found)
    assert all(offset >= 0 and offset % ALIGNMENT == 0 for offset in offsets)
    for step in range(-1, 22):
        taken: set[int] = set()
        for i in in_use(found, step):
            own = set(range(offsets[i], offsets[i] + found[i].size))
            assert not own & taken
            taken |= own
        assert len(taken) <= lower_bound(found) <= peak
        assert max(taken, default=-1) < peak
    assert peak == max((o + b.size for o, b in zip(offsets, found, strict=True)), default=0)
    assert lower_bound(found) == max(sum(found[i].size for i in in_use(found, step)) for step in range(-1, 22))


@given(buffers, buffers)
def test_meeting_is_being_in_use_at_one_step(some, others):
    for a in some:
        for b in others:
            together = any(a.first <= s <= a.last and b.first <= s <= b.last for s in range(-1, 22))
            assert a.meets(b) == b.meets(a) == together


@pytest.mark.parametrize(
    ("found", "offsets", "peak", "bound"),
    [
        ([], [], 0, 0),
        ([Buffer(100, 0, 0)], [0], 100, 100),
        ([Buffer(100, 0, 1), Buffer(50, 1, 2)], [0, 128], 178, 150),
        ([Buffer(100, 0, 1), Buffer(50, 2, 3)], [0, 0], 100, 100),  # the second begins when the first is gone
        ([Buffer(64, 0, 2), Buffer(64, 1, 1), Buffer(64, 2, 3)], [0, 64, 64], 128, 128),  # a gap is used again
        ([Buffer(10, 0, 9), Buffer(300, 0, 1), Buffer(200, 2, 3), Buffer(100, 2, 3)], [384, 0, 0, 256], 394, 310),
        ([Buffer(0, 0, 5), Buffer(64, 0, 5)], [0, 0], 64, 64),
    ],
)
def test_places(found, offsets, peak, bound):
    assert place(found) == (offsets, peak)
    assert lower_bound(found) == bound


def test_aligned():
    assert [aligned(size) for size in (0, 1, 63, 64, 65, 128, 129)] == [0, 64, 64, 64, 128, 128, 192]


@pytest.mark.parametrize("seed", range(10))
def test_a_program_tells_its_peak_and_its_bound(seed):
    program = Program(models.model(seed))
    assert 0 < program.lower_bound_bytes <= program.peak_bytes <= program.arena_bytes
