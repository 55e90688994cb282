"""How a hostile file is made from a sound one: small edits of its header, its manifest, its tensors or its bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from caq.errors import ArtifactError
from tests.hostile.make import Draft, base, take_apart

Edit = Callable[[Draft], Any]


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


def op(kind: str, **fields: Any) -> Edit:
    """Sets fields of the manifest's first operation of a kind."""
    return lambda d: next(o for o in d.manifest["ops"] if o["kind"] == kind).update(fields)


def point(**fields: Any) -> Edit:
    """Sets fields of the manifest's first operating point."""
    return lambda d: d.manifest["points"][0].update(fields)


def array(name: str, index: Any, value: float) -> Edit:
    """Sets one element of a tensor; the checksum follows."""
    return lambda d: d.arrays[name].__setitem__(index, value)


def reshaped(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Replaces a tensor; its shape, offsets and checksum follow."""
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


def swapped_tensors(d: Draft) -> None:
    """Two tensors in each other's place, offsets right."""
    d.arrays = {"ratios": d.arrays["ratios"], **d.arrays}


def swapped_offsets(h: dict[str, Any]) -> None:
    """Two tensors of the header claim each other's bytes."""
    a, b = h["affine"], h["exponents"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def manifest_last(h: dict[str, Any]) -> None:
    """The manifest's entry at the header's end."""
    h["manifest"] = h.pop("manifest")


def extra_tensor(d: Draft) -> None:
    """A tensor that no manifest asks for, at the end."""
    d.arrays["weights"] = np.zeros(8, np.uint8)
    d.dtypes["weights"] = "U8"


def without(name: str) -> Edit:
    """Leaves a tensor out."""
    return lambda d: d.arrays.pop(name)


def retyped(name: str, code: str, dtype: type) -> Edit:
    """The same values in another dtype."""

    def edit(d: Draft) -> None:
        d.arrays[name] = d.arrays[name].astype(dtype)
        d.dtypes[name] = code

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
    p = d.manifest["points"][0]
    p["w"], p["a"] = p["w"] + "8", p["a"] + "8"


def many_points(d: Draft) -> None:
    """More points than a file may have."""
    first = d.manifest["points"][0]
    d.manifest["points"] = [{**first, "name": str(i)} for i in range(1025)]


def dangling(d: Draft) -> None:
    """An operation whose output nobody reads."""
    d.manifest["ops"].insert(-1, {"kind": "clamp", "inputs": [0], "low": -128, "high": 127})
    d.manifest["ops"][-1]["inputs"] = [len(d.manifest["ops"]) - 2]


def filler(d: Draft) -> None:
    """Sets a bit after the last code of the first layer that does not fill its last byte."""
    planes = d.arrays["planes.2"]
    start = 0
    for count in layer_weights(d.manifest):
        start += -(-count // 8)
        if count % 8:
            planes[0, start - 1] |= 0x80
            return
    raise AssertionError("the base model needs a layer with a number of weights that 8 does not divide")


def layer_weights(manifest: dict[str, Any]) -> list[int]:
    """Weights of each conv, from the shapes that caq's own graph finds."""
    from caq.graph import Graph, Op

    ops = tuple(Op.from_json("", o) for o in manifest["ops"])
    graph = Graph(tuple(manifest["input"]["shape"]), ops, tuple(manifest["widths"]))  # type: ignore[arg-type]
    return [layer.weights for layer in graph.layers]


def set_version(h: dict[str, Any], value: object) -> None:
    """Sets the header's version."""
    h["__metadata__"]["caq"] = value
