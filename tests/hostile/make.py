"""Takes small models apart, breaks one thing, and puts them together with every checksum right again.

`python -m tests.hostile.make FOLDER` writes the whole corpus of tests/hostile/cases.py, for other readers.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caq.artifact import dumps
from caq.graph import Graph, Op
from caq.sections import SECTIONS
from tests import models
from tests.conditional_models import with_gate


@dataclass
class Draft:
    """The parts of a file, before it is put together; each edit is applied where its part exists.

    arrays: those of the parameters by name, and the planes. manifest_text, header, header_text and file: edits of the
    manifest's bytes (its checksum follows), of the header's object, of the header's bytes (its length follows) and of
    the whole file. wrong_sha: places in sha256, and sections, that keep what the manifest says.
    """

    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]
    widths: tuple[int, ...]
    manifest_text: Callable[[bytes], bytes] = lambda raw: raw
    header: Callable[[dict[str, Any]], Any] = lambda header: None
    header_text: Callable[[bytes], bytes] = lambda raw: raw
    file: Callable[[bytes], bytes] = lambda data: data
    wrong_sha: set[int | str] = field(default_factory=set)

    def build(self) -> bytes:
        """The file."""
        planes = self.arrays["planes"]
        parameters = b"".join(a.tobytes() for name, a in self.arrays.items() if name not in ("planes", *SECTIONS))
        sections = [name for name in SECTIONS if name in self.arrays]
        groups = [planes[below:w].tobytes() for below, w in zip((0, *self.widths), self.widths, strict=False)]
        known = self.manifest.get("sha256")
        if isinstance(known, list):
            for i, raw in enumerate([parameters, *groups][: len(known)]):
                known[i] = known[i] if i in self.wrong_sha else digest(raw)
        for name in self.manifest["sections"] if isinstance(self.manifest.get("sections"), dict) else ():
            if name in self.arrays and name not in self.wrong_sha:
                self.manifest["sections"][name] = digest(self.arrays[name].tobytes())
        # NaN and infinity are written as Python writes them, because a hostile file may hold them.
        manifest = self.manifest_text(to_json(self.manifest))
        header: dict[str, Any] = {"__metadata__": {"caq": "1", "manifest_sha256": digest(manifest)}}
        end = 0
        for name, raw, shape in (
            ("manifest", manifest, [len(manifest)]),
            ("parameters", parameters, [len(parameters)]),
            ("planes", planes.tobytes(), list(planes.shape)),
            *((name, self.arrays[name].tobytes(), list(self.arrays[name].shape)) for name in sections),
        ):
            header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [end, end + len(raw)]}
            end += len(raw)
        self.header(header)
        head = self.header_text(to_json(header))
        tensors = [manifest, parameters, planes.tobytes(), *(self.arrays[name].tobytes() for name in sections)]
        return self.file(len(head).to_bytes(8, "little") + head + b"".join(tensors))


def digest(raw: bytes) -> str:
    """As the format writes it: SHA-256 in base64 with the URL alphabet, unpadded."""
    return base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def to_json(data: object) -> bytes:
    """Without spaces, then spaces up to a multiple of 8."""
    raw = json.dumps(data, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % 8)


@functools.cache
def base(name: str) -> bytes:
    """A sound file with all operations: "uint8", "conditional", "core", "flips" and so on; or "reconstruct"."""
    if name == "flips":
        return dumps(models.with_flip_network(models.with_core(models.model(0))))
    if name == "features":
        return dumps(models.with_features(models.with_core(models.model(0))))
    if name == "core":
        return dumps(models.with_core(models.model(0)))
    if name == "conditional":
        return dumps(with_gate(models.model(0), 0, 3))
    if name == "reconstruct":
        return dumps(models.model(2, "float32", task="reconstruct"))
    return dumps(models.model(0, name))


def graph_of(manifest: dict[str, Any]) -> Graph:
    """The graph that a sound manifest describes."""
    sample = manifest["input"]["sample"]
    ops = tuple(Op.from_json("", i, o) for i, o in enumerate(manifest["ops"]))
    return Graph(tuple(manifest["input"].get("shape", sample)), ops, tuple(manifest["widths"]))  # type: ignore[arg-type]


def take_apart(data: bytes) -> Draft:
    """The parts of a sound file; the layout of its parameters is written here a second time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    parts = {}
    for name in header.keys() - {"__metadata__"}:
        begin, end = (8 + length + v for v in header[name]["data_offsets"])
        parts[name] = data[begin:end]
    manifest = json.loads(parts["manifest"])
    graph, sets, channels = graph_of(manifest), manifest["sets"], manifest["input"]["sample"][-1]
    layers, widths = len(graph.layers), manifest["widths"]
    shapes: dict[str, tuple[str, list[int]]] = {
        "steps": ("<f4", [len(graph.ops) + 1]),
        "ratios": ("<f4", [layers, len(widths)]),
        "scaling": ("<i4", [3, channels]),
        **({"resolution": ("<f4", [channels])} if manifest["input"]["dtype"] == "float32" else {}),
        "affine": ("<i2", [2, sets, graph.channels]),
        "exponents": ("i1", [2, sets, layers]),
    }
    arrays = {}
    start = 0
    for name, (dtype, shape) in shapes.items():
        arrays[name] = np.frombuffer(parts["parameters"], dtype, math.prod(shape), start).reshape(shape).copy()
        start += arrays[name].nbytes
    assert start == len(parts["parameters"])
    arrays["planes"] = np.frombuffer(parts["planes"], np.uint8).reshape(header["planes"]["shape"]).copy()
    for name in SECTIONS:
        if name in parts:
            arrays[name] = np.frombuffer(parts[name], np.uint8).reshape(header[name]["shape"]).copy()
    return Draft(manifest, arrays, tuple(widths))


def main(folder: Path) -> None:
    """Writes one file a case, named after it."""
    from tests.hostile.cases import CASES

    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (folder / f"{case.name}.caq").write_bytes(case.build())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
