"""How a hostile file is made from a sound one: small edits of its header, its manifest, its tensors or its bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from caq.errors import ArtifactError
from tests.hostile.make import Draft, base, graph_of, take_apart

Edit = Callable[[Draft], Any]

#: More than any field may hold.
HUGE = 10**400


@dataclass(frozen=True)
class Case:
    """`match` is a regular expression that the error's message fits."""

    name: str
    edit: Edit
    error: type[ArtifactError]
    match: str
    base: str = "uint8"

    def build(self) -> bytes:
        """The hostile file."""
        draft = take_apart(base(self.base))
        self.edit(draft)
        return draft.build()


def put(*path: str | int, value: Any) -> Edit:
    """Sets one value of the manifest."""

    def edit(d: Draft) -> None:
        *parents, last = path
        target: Any = d.manifest
        for key in parents:
            target = target[key]
        target[last] = value

    return edit


def drop(*path: str | int) -> Edit:
    """Removes one value of the manifest."""

    def edit(d: Draft) -> None:
        *parents, last = path
        target: Any = d.manifest
        for key in parents:
            target = target[key]
        del target[last]

    return edit


def op(kind: str, /, **fields: Any) -> Edit:
    """Sets fields of the manifest's first operation of a kind."""
    return lambda d: next(o for o in d.manifest["ops"] if kind in o).update(fields)


def point(index: int = 0, /, **values: Any) -> Edit:
    """Sets values of one of the manifest's operating points."""

    def edit(d: Draft) -> None:
        row = d.manifest["points"][index]
        row += [None] * ("set" in values and len(row) == 4)
        for key, value in values.items():
            row[("name", "w", "a", "score", "set").index(key)] = value

    return edit


def array(name: str, index: Any, value: float) -> Edit:
    """Sets one element of an array; the checksum follows."""
    return lambda d: d.arrays[name].__setitem__(index, value)


def reshaped(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Replaces an array; the tensor's shape, offsets and checksum follow."""
    return lambda d: d.arrays.__setitem__(name, change(d.arrays[name]))


def header(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Changes the header's object after offsets and checksums are right."""
    return lambda d: setattr(d, "header", change)


def entry(name: str, **fields: Any) -> Edit:
    """Sets fields of one tensor's header entry."""
    return header(lambda h: h[name].update(fields))


def head_text(change: Callable[[bytes], bytes]) -> Edit:
    """Changes the header's bytes; the length before it follows."""
    return lambda d: setattr(d, "header_text", change)


def manifest_text(change: Callable[[bytes], bytes]) -> Edit:
    """Changes the manifest's bytes; its checksum follows."""
    return lambda d: setattr(d, "manifest_text", change)


def whole(change: Callable[[bytes], bytes]) -> Edit:
    """Changes the finished file."""
    return lambda d: setattr(d, "file", change)


def moved(name: str, begin: int, end: int) -> Edit:
    """Shifts a tensor's offsets."""

    def change(h: dict[str, Any]) -> None:
        first, last = h[name]["data_offsets"]
        h[name]["data_offsets"] = [first + begin, last + end]

    return header(change)


def renamed(old: str, new: str) -> Edit:
    """Renames a tensor in the header, in its place."""

    def change(h: dict[str, Any]) -> None:
        entries = [(new if key == old else key, value) for key, value in h.items()]
        h.clear()
        h.update(entries)

    return header(change)


def swapped_offsets(h: dict[str, Any]) -> None:
    """Two tensors of the header claim each other's bytes."""
    a, b = h["parameters"], h["planes"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def manifest_last(h: dict[str, Any]) -> None:
    """The manifest's entry at the header's end."""
    h["manifest"] = h.pop("manifest")


def extra_tensor(h: dict[str, Any]) -> None:
    """A tensor that the format does not have, at the end."""
    end = h["planes"]["data_offsets"][1]
    h["weights"] = {"dtype": "U8", "shape": [8], "data_offsets": [end, end + 8]}


def wrong_sha(index: int, value: object = "A" * 43) -> Edit:
    """Sets a checksum that stays as it is."""
    return lambda d: (put("sha256", index, value=value)(d), d.wrong_sha.add(index))


def reordered(*path: str | int) -> Edit:
    """Moves the first key of an object of the manifest to its end."""

    def edit(d: Draft) -> None:
        target: Any = d.manifest
        for key in path:
            target = target[key]
        first = next(iter(target))
        target[first] = target.pop(first)

    return edit


def repeat_key(raw: bytes, key: str) -> bytes:
    """Writes the object's key a second time, at its front."""
    return b'{"' + key.encode() + b'":1,' + raw.strip()[1:]


def zipped(data: bytes = b"") -> bytes:
    """A ZIP archive with one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("payload", data or b"x")
    return out.getvalue()


class Exploit:
    """Unpickling this would raise KeyboardInterrupt, which no test would mistake for a refusal."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise KeyboardInterrupt",)


def nested(depth: int) -> str:
    """JSON lists, one inside the other."""
    return "[" * depth + "]" * depth


def long_point(d: Draft) -> None:
    """An assignment with a layer too many."""
    row = d.manifest["points"][3]
    row[1:3] = [row[1] + "8", row[2] + "8"]


def many_points(d: Draft) -> None:
    """More points than a file may have."""
    first = d.manifest["points"][0]
    d.manifest["points"] = [[str(i), *first[1:]] for i in range(1025)]


def dangling(d: Draft) -> None:
    """An operation whose output nobody reads."""
    last = len(d.manifest["ops"]) - 1
    d.manifest["ops"].insert(-1, {"clamp": "", "in": [0], "low": -128, "high": 127})
    d.manifest["ops"][-1]["in"] = [last]


def series(**source: Any) -> Edit:
    """Samples (T, C) of 112 values; the operations are not reached."""
    return put("input", value={"sample": [8, 14], "dtype": "uint8", **source})


def vector(**source: Any) -> Edit:
    """Samples (F,) of 112 values; the operations are not reached."""
    return put("input", value={"sample": [112], "dtype": "uint8", **source})


def one_layer(a: str) -> Edit:
    """A graph whose only layer reads the input, and one point, with activations `a`."""

    def edit(d: Draft) -> None:
        d.manifest.update(ops=[{"conv": "c", "c": 3, "k": [8, 7]}], points=[["x", "2", a, 0.5]])

    return edit


def filler(d: Draft) -> None:
    """Sets a bit after the last code of the first layer that does not fill its last byte."""
    layer = next(layer for layer in graph_of(d.manifest).layers if layer.weights % 8)
    d.arrays["planes"][0, layer.first_byte + layer.weights // 8] |= 0x80


def set_version(h: dict[str, Any], value: object) -> None:
    """Sets the header's version."""
    h["__metadata__"]["caq"] = value
