"""Tables of operating points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caq.errors import ConfigError
from policies import PointTable

TABLE = PointTable(
    ("dear", "middle", "dull", "cheap"),
    np.array([0.9, 0.8, 0.7, 0.5]),
    np.array([4.0, 2.0, 3.0, 1.0]),
    np.array([0.6, 0.4, 0.5, 0.3]),
)


def test_the_hull_leaves_out_what_a_mix_of_others_beats() -> None:
    assert [TABLE.names[i] for i in TABLE.hull()] == ["cheap", "middle", "dear"]
    sagging = PointTable(("a", "b", "c"), np.array([0.1, 0.2, 0.9]), np.array([1.0, 2.0, 3.0]), np.full(3, 0.1))
    assert sagging.hull().tolist() == [0, 2]


@pytest.mark.parametrize(
    ("wanted", "free", "taken"),
    [("dear", 1.0, "dear"), ("dear", 0.55, "middle"), ("dull", 0.4, "middle"), ("middle", 0.3, "cheap")],
)
def test_what_does_not_fit_is_replaced(wanted: str, free: float, taken: str) -> None:
    found = TABLE.fitting(np.array([TABLE.names.index(wanted)]), np.array([free]))
    assert TABLE.names[found[0]] == taken


def test_the_smallest_is_taken_where_nothing_fits_and_unknown_memory_is_enough() -> None:
    assert TABLE.fitting(np.array([0, 0]), np.array([0.1, np.nan])).tolist() == [3, 0]


@given(st.integers(0, 3), st.floats(0, 1))
def test_a_replacement_fits_if_any_does(wanted: int, free: float) -> None:
    found = TABLE.fitting(np.array([wanted]), np.array([free]))[0]
    assert TABLE.memory[found] <= free or free < TABLE.memory.min()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("names", ("a", "a", "b", "c"), "each name once"),
        ("accuracy", np.array([0.9, 0.8, 0.7, 1.5]), "accuracy of 'cheap'"),
        ("energy_j", np.array([0.0, 1, 1, 1]), "energy_j of 'dear'"),
        ("memory", np.array([1.0, np.nan, 1, 1]), "memory of 'middle'"),
        ("memory", np.ones(3), r"shape \(3,\)"),
    ],
)
def test_impossible_tables(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PointTable(
            **{name: getattr(TABLE, name) for name in ("names", "accuracy", "energy_j", "memory")} | {field: value}
        )
