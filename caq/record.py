"""Values by name that do not change: as frozen dataclasses are (`Record`), and as tuples are (`NamedTuple`).

`dataclasses` and `typing.NamedTuple` write and compile methods for each class: 6 ms of every start of a device's
process. The classes here have their methods from this file.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing import NamedTuple

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls

    class _Named(type):
        """Makes the annotations of a class the names of a tuple's items, and their values the defaults."""

        def __new__(cls, name, bases, body):
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body.pop(field) for field in fields if field in body}
            items = {field: property(itemgetter(i)) for i, field in enumerate(fields)}
            own = {"__slots__": (), "_fields": fields, "_field_defaults": defaults}
            return type.__new__(cls, name, bases, body | own | items)

    class NamedTuple(tuple, metaclass=_Named):
        """`typing.NamedTuple`, as far as the package uses it."""

        def __new__(cls, *values, **named):
            fields = cls._fields
            if named or len(values) != len(fields):
                first = dict(zip(fields, values))  # noqa: B905  too many are refused below
                given = cls._field_defaults | first | named
                if len(first) < len(values) or first.keys() & named.keys() or given.keys() != set(fields):
                    raise TypeError(f"{cls.__name__} has {', '.join(fields)}, not {values} and {named}")
                values = (given[field] for field in fields)
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes):
            return type(self)(**self._asdict() | changes)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._asdict().items())})"


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
