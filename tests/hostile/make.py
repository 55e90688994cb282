"""Takes small models apart, breaks one thing, and puts them together with every checksum right again.

`python -m tests.hostile.make FOLDER` writes the whole corpus of tests/hostile/cases.py, for other readers.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caq.artifact import dumps
from tests import models

DTYPES = {"U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "F32": "<f4"}


@dataclass
class Draft:
    """The parts of a file, before it is put together; each edit is applied where its part exists.

    manifest_text, header, header_text and file: edits of the manifest's bytes (its checksum follows), of the header's
    object, of the header's bytes (its length follows) and of the whole file.
    """

    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]
    dtypes: dict[str, str]
    manifest_text: Callable[[bytes], bytes] = lambda raw: raw
    header: Callable[[dict[str, Any]], Any] = lambda header: None
    header_text: Callable[[bytes], bytes] = lambda raw: raw
    file: Callable[[bytes], bytes] = lambda data: data
    wrong_sha: set[str] = field(default_factory=set)

    def build(self) -> bytes:
        """The file."""
        tensors = {name: np.ascontiguousarray(a).tobytes() for name, a in self.arrays.items()}
        known = self.manifest.get("sha256")
        if isinstance(known, dict):
            known.update({n: digest(raw) for n, raw in tensors.items() if n in known and n not in self.wrong_sha})
        # NaN and infinity are written as Python writes them, because a hostile file may hold them.
        manifest = self.manifest_text(to_json(self.manifest))
        header: dict[str, Any] = {"__metadata__": {"caq": "1", "manifest_sha256": digest(manifest)}}
        end = 0
        for name, raw, dtype, shape in (
            ("manifest", manifest, "U8", [len(manifest)]),
            *((n, raw, self.dtypes[n], list(self.arrays[n].shape)) for n, raw in tensors.items()),
        ):
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(raw)]}
            end += len(raw)
        self.header(header)
        head = self.header_text(to_json(header))
        return self.file(len(head).to_bytes(8, "little") + head + manifest + b"".join(tensors.values()))


def digest(raw: bytes) -> str:
    """As the format writes it: SHA-256 in base64 with the URL alphabet, unpadded."""
    return base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def to_json(data: object) -> bytes:
    """Without spaces, then spaces up to a multiple of 8."""
    raw = json.dumps(data, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % 8)


@functools.cache
def base(name: str) -> bytes:
    """A sound file: "uint8" and "float32" hold every kind of operation, "reconstruct" has no labels."""
    if name == "reconstruct":
        return dumps(models.model(2, "float32", task="reconstruct"))
    return dumps(models.model(0, name))


def take_apart(data: bytes) -> Draft:
    """The parts of a sound file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    draft = Draft({}, {}, {})
    for name, entry in list(header.items())[1:]:
        begin, end = (8 + length + v for v in entry["data_offsets"])
        if name == "manifest":
            draft.manifest = json.loads(data[begin:end])
        else:
            draft.arrays[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
            draft.dtypes[name] = entry["dtype"]
    return draft


def main(folder: Path) -> None:
    """Writes one file a case, named after it."""
    from tests.hostile.cases import CASES

    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (folder / f"{case.name}.caq").write_bytes(case.build())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
