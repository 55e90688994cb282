"""Values by name that do not change, as frozen dataclasses are.

`dataclasses` writes and compiles the methods of each class: with its own import, 4 ms of every start of a device's
process. A `Record` has its methods from here. What needs no method at construction is a NamedTuple.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


R = TypeVar("R", bound="Record")


@dataclass_transform(frozen_default=True, eq_default=False)
class Record:
    """Fields are the annotations of the class; a value in the class is the default.

    Raises TypeError for a field that is missing, unknown or given twice, AttributeError where one is set later.
    """

    def __init__(self, *values: Any, **named: Any) -> None:
        cls = type(self)
        names = tuple(cls.__annotations__)
        given = dict(zip(names, values), **named)  # noqa: B905  too many are refused below
        if len(given) != len(values) + len(named) or not given.keys() <= set(names):
            raise TypeError(f"{cls.__name__} has {', '.join(names)}, not {len(values)} values and {', '.join(named)}")
        for name in names:
            if name not in given and not hasattr(cls, name):
                raise TypeError(f"{cls.__name__}: {name} is missing")
        self.__dict__.update(given)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Checks, and what follows from the fields."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set; `replace` makes another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in type(self).__annotations__)
        return f"{type(self).__name__}({', '.join(fields)})"

    def replace(self: R, **changes: Any) -> R:
        """The same but for `changes`. Raises TypeError for a field that there is not."""
        return type(self)(**{name: getattr(self, name) for name in type(self).__annotations__} | changes)
