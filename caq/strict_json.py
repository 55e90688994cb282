"""JSON from strangers: parsed without surprises, and taken apart with errors that name the field.

The `as_` functions return their argument, checked, and raise SchemaError that begins with `at`, the field's path.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, NoReturn

from caq.errors import FormatError, SchemaError


def dump(data: object) -> bytes:
    """The bytes of `data`: ASCII, no spaces but those that pad it to a multiple of 8. Raises ValueError on NaN."""
    raw = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    return raw + b" " * (-len(raw) % 8)


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """The object in `raw`; `where` names it in errors. Raises FormatError: not JSON, a repeated key, NaN, infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise FormatError(f"the {where} repeats a key")
        return dict(pairs)

    def refuse(constant: str) -> NoReturn:
        raise FormatError(f"the {where} holds {constant[:40]}")

    def finite(number: str) -> float:
        return float(number) if math.isfinite(float(number)) else refuse(number)

    try:
        data = json.loads(raw.decode("ascii"), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except FormatError:
        raise
    except (ValueError, RecursionError) as e:
        raise FormatError(f"the {where} is not JSON in ASCII: {e}") from None
    if not isinstance(data, dict):
        raise FormatError(f"the {where} is not a JSON object")
    return data


def as_object(data: object, at: str) -> dict[str, Any]:
    """Any object."""
    return _typed(data, at, dict, "an object", lambda _: True)


def with_keys(data: object, at: str, keys: set[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """An object of these keys, and perhaps of optional ones, and no other."""
    found = set(as_object(data, at))
    missing, unknown = keys - found, found - keys - set(optional)
    if missing or unknown:
        raise SchemaError(f"{at}: missing keys {sorted(missing)}, unknown keys {reprlib.repr(sorted(unknown))}")
    return data  # type: ignore[return-value]


def as_list(data: object, at: str, most: int) -> list[Any]:
    """A list of at most `most`."""
    return _typed(data, at, list, f"a list of at most {most}", lambda d: len(d) <= most)


def as_text(data: object, at: str, most: int) -> str:
    """A text that can be printed and encoded: no control characters, no lone surrogates."""
    good: Callable[[str], bool] = lambda d: 0 < len(d) <= most and _printable(d)  # noqa: E731
    return _typed(data, at, str, f"a text of 1 to {most} characters, all printable,", good)


def as_choice(data: object, at: str, known: Iterable[str]) -> str:
    """One of the known texts."""
    return _typed(data, at, str, f"one of {', '.join(known)}", lambda d: d in known)


def as_count(data: object, at: str) -> int:
    """An integer from 0 to 2**63 - 1."""
    return _typed(data, at, int, "a count", lambda d: type(d) is int and 0 <= d < 2**63)


def as_ints(data: object, at: str) -> tuple[int, ...]:
    """A list of 1 to 8 integers of 64 bits."""
    good: Callable[[Any], bool] = lambda d: 0 < len(d) <= 8 and all(type(v) is int and abs(v) < 2**63 for v in d)  # noqa: E731
    return tuple(_typed(data, at, list, "a list of 1 to 8 integers", good))


def as_row(data: object, at: str, most: int) -> tuple[int, ...]:
    """A list of at most `most` integers of 32 bits."""
    good: Callable[[Any], bool] = lambda d: len(d) <= most and all(type(v) is int and -(2**31) <= v < 2**31 for v in d)  # noqa: E731
    return tuple(_typed(data, at, list, f"a list of at most {most} integers of 32 bits", good))


def as_real(data: object, at: str) -> float:
    """A number with a fraction: 1.0, because 1 would be a second notation of it."""
    return _typed(data, at, float, "a number like 0.5 or 1.0", lambda _: True)


def _printable(text: str) -> bool:
    if text.isascii():
        return text.isprintable()
    return not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text)


def _typed(data: Any, at: str, kind: Any, what: str, good: Callable[[Any], bool]) -> Any:
    if not isinstance(data, kind) or not good(data):
        raise SchemaError(f"{at}: {what} is expected, not {reprlib.repr(data)}")
    return data
