"""Records: values by name that do not change."""

from __future__ import annotations

import pickle

import pytest

from caq.record import NamedTuple, Record


class Pair(Record):
    """Two values."""

    left: int
    right: int = 2

    def __post_init__(self) -> None:
        if self.left < 0:
            raise ValueError("left is negative")


def test_fields_are_given_in_order_by_name_or_not_at_all():
    for pair in (Pair(1), Pair(1, 2), Pair(left=1), Pair(1, right=2)):
        assert (pair.left, pair.right) == (1, 2) and repr(pair) == "Pair(left=1, right=2)"
    assert pickle.loads(pickle.dumps(Pair(3))).left == 3


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"left": 1}), ((1,), {"top": 1})])
def test_each_field_once(values, named):
    with pytest.raises(TypeError, match=r"Pair.* left"):
        Pair(*values, **named)


def test_what_it_checks_holds_for_what_replaces_it():
    assert Pair(1).replace(right=5).right == 5
    with pytest.raises(ValueError, match="negative"):
        Pair(1).replace(left=-1)
    with pytest.raises(TypeError, match="top"):
        Pair(1).replace(top=1)


def test_nothing_can_be_set():
    pair = Pair(1)
    with pytest.raises(AttributeError, match=r"Pair\.left cannot be set"):
        pair.left = 2
    with pytest.raises(AttributeError, match=r"Pair\.left cannot be deleted"):
        del pair.left


class Point(NamedTuple):
    """Two items."""

    x: int
    y: int = 2

    @property
    def sum(self) -> int:
        return self.x + self.y


def test_a_named_tuple_is_a_tuple_with_names():
    for point in (Point(1), Point(1, 2), Point(x=1), Point(1, y=2), Point._make([1, 2]), Point(5)._replace(x=1)):
        assert point == (1, 2) and hash(point) == hash((1, 2)) and (point.x, point.y, point.sum) == (1, 2, 3)
        assert repr(point) == "Point(x=1, y=2)" and point._asdict() == {"x": 1, "y": 2}
    x, y = Point(3, 4)
    assert (x, y) == (3, 4) and Point._fields == ("x", "y")
    again = pickle.loads(pickle.dumps(Point(3)))
    assert type(again) is Point and again == (3, 2)


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_each_item_once(values, named):
    with pytest.raises(TypeError, match=r"Point has x, y"):
        Point(*values, **named)
    with pytest.raises(TypeError, match=r"Point has x, y"):
        Point(1)._replace(z=1)


def test_no_item_can_be_set():
    with pytest.raises(AttributeError):
        Point(1).x = 2
    with pytest.raises(AttributeError):
        Point(1).z = 2
