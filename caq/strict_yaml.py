"""YAML from strangers: read without surprises, and taken apart with errors that name the file and the field.

No aliases, which can swell without limit; no keys that silently replace each other; no object but dicts, lists, texts,
numbers and booleans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from caq.errors import ConfigError, nearest

# Configuration is a page of text; anything larger is none.
MAX_BYTES = 1 << 20


def read(path: str | Path) -> object:
    """The document in a file. Raises ConfigError that names it: cannot be read, too large, no YAML."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed{self.peek_event().start_mark}")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for at, key in enumerate(keys):
                if key in keys[:at]:
                    raise yaml.YAMLError(f"the key {key!r} stands there twice{node.start_mark}")
        return node


class Fields:
    """Checks plain data from the file `source`; `at` is the path of a field within it. All raise ConfigError."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, at: str, what: str) -> NoReturn:
        raise ConfigError(f"{self.source}: {at}: {what}")

    def mapping(self, data: object, at: str, known: Iterable[str], needed: Iterable[str] = ()) -> Mapping[str, Any]:
        known = tuple(known)
        if not isinstance(data, Mapping):
            self.fail(at, f"must be a mapping with the keys {', '.join(known)}")
        for key in data:
            if key not in known:
                self.fail(at, f"unknown key {key!r}{nearest(str(key), known)}")
        for key in needed:
            if key not in data:
                self.fail(at, f"the key {key!r} is missing")
        return data

    def items(self, data: object, at: str) -> list[Any]:
        if not isinstance(data, list):
            self.fail(at, "must be a list")
        return data

    def flag(self, data: object, at: str) -> bool:
        if not isinstance(data, bool):
            self.fail(at, "must be true or false")
        return data

    def number(self, data: object, at: str) -> float:
        # Beyond 1e300 a YAML integer has no float; no field has such values.
        if isinstance(data, bool) or not isinstance(data, (int, float)) or not -1e300 < data < 1e300:
            self.fail(at, f"must be a finite number, not {data!r}")
        return float(data)

    def text(self, data: object, at: str) -> str:
        if not isinstance(data, str) or not data.strip():
            self.fail(at, f"must be a text, not {data!r}")
        return data.strip()

    def choice(self, data: object, at: str, known: Iterable[str]) -> str:
        known = tuple(known)
        if not isinstance(data, str) or data not in known:
            self.fail(at, f"must be one of {', '.join(known)}, not {data!r}")
        return data
