"""Calibration state as bytes: named arrays and a few notes, bound to one artifact by its checksum.

The layout is safetensors': 8 bytes, a little-endian length n; n bytes of JSON; then the arrays, little-endian:

    {"artifact": "<SHA-256 of the factory artifact's manifest, in hexadecimal>",
     "notes":    {"reason": "drift", "accuracy": 0.93, ...},
     "arrays":   {"core/x": {"dtype": "I8", "shape": [20, 128, 6], "data_offsets": [0, 15360]}, ...}}

notes: strings, integers of 64 bits and finite floats. arrays: of 1 to 8 dimensions, one after the other without gaps,
the widest items first, so that all are aligned; floats are finite. A name is its owner's, a slash, and the owner's own
name for it: whoever has state to keep adds arrays under a name of its own, and reads back what it wrote with `part`.

A reader refuses what it does not understand, and takes arrays as views of the bytes: nothing in them sizes an
allocation, is executed or is unpickled.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.artifact import Reader
from caq.errors import FormatError, SchemaError, StateFormatError, StateMismatchError
from caq.strict_json import as_ints, as_object, as_text, dump, parse, with_keys

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

Arrays = Mapping[str, "NDArray[Any]"]
Notes = Mapping[str, "str | int | float"]

#: Names of safetensors.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        **{"F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "U32": "<u4"},
        **{"I16": "<i2", "U16": "<u2", "I8": "i1", "U8": "u1"},
    }.items()
}
MAX_HEADER_BYTES = 2**16
#: A state is far smaller; this bounds what a reader takes into memory.
MAX_STATE_BYTES = 2**26
MAX_TEXT = 256
_NAME = re.compile(r"[a-z0-9_]{1,32}(/[a-z0-9_.]{1,64}){1,4}")
_CHECKSUM = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class State:
    """What calibration keeps. artifact: `artifact_checksum` of the factory artifact; arrays, notes: see the module.

    Arrays that were read are read-only.
    """

    artifact: str
    arrays: Arrays = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)

    def part(self, owner: str) -> dict[str, NDArray[Any]]:
        """The arrays of one owner, under the names that it gave them; empty if it kept none."""
        return {name[len(owner) + 1 :]: a for name, a in self.arrays.items() if name.startswith(f"{owner}/")}


def owned(owner: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """`arrays` under the names that they have in a state: the inverse of `State.part`."""
    return {f"{owner}/{name}": array for name, array in arrays.items()}


def artifact_checksum(path: str | PathLike[str]) -> str:
    """SHA-256 (hexadecimal) of an artifact's manifest, which holds the checksums of everything else in the file.

    Raises ArtifactError on a file whose header or manifest cannot be trusted.
    """
    import hashlib  # not before calibration: it loads OpenSSL

    with Reader(path) as reader:
        return hashlib.sha256(reader.manifest.to_bytes()).hexdigest()


def to_bytes(state: State) -> bytes:
    """The bytes of `state`; the same state gives the same bytes. Raises StateFormatError on what cannot be kept."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    by_width = sorted(state.arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, array in by_width:
        dtype = array.dtype.newbyteorder("<")
        if dtype not in names:
            raise StateFormatError(f"{name}: {array.dtype} is none of {', '.join(str(d) for d in names)}")
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": names[dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        parts.append(array.astype(dtype, copy=False).tobytes())
    try:
        header = dump({"artifact": state.artifact, "notes": dict(state.notes), "arrays": entries})
    except (TypeError, ValueError, RecursionError) as e:
        raise StateFormatError(f"a note is not JSON: {e}") from None
    data = b"".join([len(header).to_bytes(8, "little"), header, *parts])
    from_bytes(data)  # what this module writes, it reads: a state that breaks a rule is refused here
    return data


def from_bytes(data: bytes) -> State:
    """Reads what `to_bytes` wrote. Raises StateFormatError that names the array or the field."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise StateFormatError(f"{len(data)} bytes do not hold a header")
    try:
        header = with_keys(parse(data[8 : 8 + length], "header"), "header", {"artifact", "notes", "arrays"})
        artifact = as_text(header["artifact"], "artifact", 64)
        notes = as_object(header["notes"], "notes")
        arrays = _arrays(as_object(header["arrays"], "arrays"), memoryview(data)[8 + length :])
    except (FormatError, SchemaError) as e:
        raise StateFormatError(str(e)) from None
    if not _CHECKSUM.fullmatch(artifact):
        raise StateFormatError(f"artifact: {artifact!r} is no SHA-256")
    for key, value in notes.items():
        if not (_is_text(key) and (_is_text(value) or type(value) is float or _is_int64(value))):
            raise StateFormatError(f"notes: {reprlib.repr(key)}: {reprlib.repr(value)} is no text and no number")
    return State(artifact, arrays, notes)


def check_artifact(state: State, artifact: str) -> None:
    """Raises StateMismatchError unless `state` belongs to the artifact with that checksum."""
    if state.artifact != artifact:
        raise StateMismatchError(
            f"this state was learnt on artifact {state.artifact[:12]}..., not on {artifact[:12]}...; "
            "give each artifact a folder of its own, or remove the old state"
        )


def array_in(arrays: Arrays, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """The float64 array of that name and shape, where None is any length. Raises StateFormatError without it."""
    found = arrays.get(name)
    if found is None or found.dtype != np.float64 or found.ndim != len(shape):
        raise StateFormatError(f"{name}: {len(shape)} dimensions of float64 are expected")
    if any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)) or not np.isfinite(found).all():
        raise StateFormatError(f"{name}: {shape} finite values are expected, not {found.shape}")
    return found


def floats_in(arrays: Arrays, name: str, count: int) -> list[float]:
    """The `count` numbers of the float64 array of that name. Raises StateFormatError without them."""
    return [float(value) for value in array_in(arrays, name, (count,))]


def random_to_array(rng: np.random.Generator) -> NDArray[np.uint64]:
    """The state of a generator (PCG64, which `np.random.default_rng` makes) as (6,) uint64.

    Raises StateFormatError on a generator of another kind.
    """
    found = rng.bit_generator.state
    if found["bit_generator"] != "PCG64":
        raise StateFormatError(f"random state: PCG64 is kept, not {found['bit_generator']}")
    wide = [found["state"]["state"], found["state"]["inc"]]
    words = [word for value in wide for word in (value & (2**64 - 1), value >> 64)]
    return np.array([*words, found["has_uint32"], found["uinteger"]], np.uint64)


def random_from_array(array: NDArray[np.uint64]) -> np.random.Generator:
    """The generator whose state `random_to_array` took. Raises StateFormatError on another array."""
    words = [int(word) for word in array.ravel()]
    if array.dtype != np.uint64 or array.shape != (6,) or not words[2] & 1 or words[4] > 1 or words[5] >= 2**32:
        raise StateFormatError("random state: these are not the six words of a PCG64")
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": words[0] | words[1] << 64, "inc": words[2] | words[3] << 64},
        "has_uint32": words[4],
        "uinteger": words[5],
    }
    return np.random.Generator(bits)


def _arrays(entries: dict[str, Any], data: memoryview) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    end = 0
    for name, entry in entries.items():
        if not _NAME.fullmatch(name):
            raise StateFormatError(f"{reprlib.repr(name)} is no name of an array; write owner/name")
        with_keys(entry, name, {"dtype", "shape", "data_offsets"})
        dtype = DTYPES.get(as_text(entry["dtype"], f"{name}.dtype", MAX_TEXT))
        if dtype is None:
            raise StateFormatError(f"{name}.dtype: {entry['dtype']!r} is none of {', '.join(DTYPES)}")
        shape = as_ints(entry["shape"], f"{name}.shape")
        # The product without zeros too: numpy refuses (2**62, 0) later, and in other words.
        if min(shape) < 0 or math.prod(max(size, 1) for size in shape) > MAX_STATE_BYTES:
            raise StateFormatError(f"{name}.shape: {shape} is none that a state may have")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        if as_ints(entry["data_offsets"], f"{name}.data_offsets") != (begin, end) or end > len(data):
            raise StateFormatError(f"{name}: {shape} does not lie in bytes {begin} to {end} of {len(data)}")
        array: NDArray[Any] = np.ndarray(shape, dtype, data, begin)
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise StateFormatError(f"{name}: a value is not finite")
        arrays[name] = array
    if end != len(data):
        raise StateFormatError(f"{len(data) - end} bytes belong to no array")
    return arrays


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_int64(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63
