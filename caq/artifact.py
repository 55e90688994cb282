"""The `.caq` file: one model, all its widths. This docstring is the format's whole specification (version 1).

The layout is safetensors': 8 bytes, a little-endian length n; n bytes of JSON; then the tensors' bytes, and no others.

    {"__metadata__": {"caq": "1", "manifest_sha256": "<base64>"},
     "manifest": {"dtype": "U8", "shape": [m], "data_offsets": [0, m]}, "<tensor>": ...}

The header is canonical: exactly what `json.dumps` writes without spaces, padded with spaces to a multiple of 8. Tensors
lie in the header's order without gaps, so no byte of the file is outside a tensor, and every byte is under a checksum:

    manifest        U8    JSON, below; its SHA-256 stands in the header
    steps           F32   (T,)       real value of one code of each tensor of the graph; the first is the input's step
    ratios          F32   (L, W)     step of a layer's input at each width over its step at 8 bits
    scaling         I32   (3, C0)    input: multiplier, offset, shift of each channel of a sample (caq.scaling)
    resolution      F32   (C0,)      input: only if its dtype is float32
    affine          I16   (2, S, C)  gain and bias of every channel of every layer, one row a parameter set (caq.plan)
    exponents       I8    (2, S, L)  their exponents
    planes.<w>      U8    (k, P)     the bit planes that width w adds to the next narrower one, most significant first;
                                     the layers of the graph one after the other (caq.quant)

Planes come last and from the narrowest width to the widest: a reader of 2-bit weights reads a prefix of the file.

The manifest:

    version      1
    task         "classify", or "reconstruct" for an autoencoder
    input        sample: shape of one sample in the data; shape: [H, W, C] that the graph eats; dtype; step
    widths       weight widths, ascending
    ops          the graph (caq.graph), fields at their defaults left out
    points       operating points: name; w and a, one digit a layer; score (accuracy, or R2 when reconstructing) as
                 measured in integers on `samples` test samples; cost, [weight_bytes, bit_macs]; set, its parameter
                 set, if it has its own
    labels       names of the classes, or []
    provenance   an object of strings and numbers: seed, versions, data hash
    sha256       of every tensor but the manifest; base64 with the URL alphabet, unpadded

Numbers are finite; names are of at most 256 characters, none of them a control character or half a surrogate pair.
A loader refuses what it does not understand, and checks sizes against the file before it allocates. Nothing here is
executed or unpickled, and no name in the file is used as a path.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import math
import os
import reprlib
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from caq.errors import CaqError, ConfigError, FormatError, IntegrityError, SchemaError, VersionError
from caq.manifest import VERSION, Manifest, manifest_bytes, point_to_json
from caq.model import Model
from caq.plan import Parameters, naming
from caq.quant import plane_bytes
from caq.scaling import InputScaling
from caq.strict_json import as_ints, dump, parse

MAX_HEADER_BYTES = 2**16
#: Parsed JSON takes up to thirty times its length, so this bounds what a small file can make a loader allocate.
MAX_MANIFEST_BYTES = 2**20
MAX_SETS = 1024
DTYPES = {"U8": np.uint8, "I8": np.int8, "I16": np.int16, "I32": np.int32, "F32": np.float32}


def save(model: Model, path: str | Path) -> None:
    """Writes `model` to `path` so that a crash leaves the old file or the new one, never a part of it.

    Raises ArtifactError on a model that breaks a rule of the format, ConfigError if `path` is a folder. Other OSErrors
    pass through: FileNotFoundError for a folder that does not exist, PermissionError, a disk that is full.
    """
    data = dumps(model)
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def dumps(model: Model) -> bytes:
    """The bytes of `model`'s file; the same model gives the same bytes.

    Raises ArtifactError on a model that breaks a rule of the format, ConfigError on what is no model.
    """
    if not isinstance(model, Model):
        raise ConfigError(f"a caq.Model is expected, not {type(model).__name__}")
    name = "this model cannot be saved"
    with naming(name):
        data = _bytes_of(model)
    # What this module writes, it reads: a model that breaks a rule is refused here.
    with Reader(io.BytesIO(data), name) as reader:
        reader.model()
    return data


def _bytes_of(model: Model) -> bytes:
    tensors = _tensors(model)
    manifest = manifest_bytes(
        {
            "version": VERSION,
            "task": model.task,
            "input": {
                "sample": list(model.sample_shape),
                "shape": list(model.graph.input_shape),
                "dtype": model.scaling.dtype,
                "step": model.scaling.step,
            },
            "widths": list(model.graph.widths),
            "ops": [op.to_json() for op in model.graph.ops],
            "points": [point_to_json(p, model.graph) for p in model.points],
            "labels": list(model.label_names),
            "provenance": model.provenance,
            "sha256": {name: _digest(a.tobytes()) for name, a in tensors.items()},
        }
    )
    manifest += b" " * (-len(manifest) % 8)
    tensors = {"manifest": np.frombuffer(manifest, np.uint8), **tensors}
    header: dict[str, Any] = {"__metadata__": {"caq": str(VERSION), "manifest_sha256": _digest(manifest)}}
    codes = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
    end = 0
    for name, a in tensors.items():
        header[name] = {"dtype": codes[a.dtype], "shape": list(a.shape), "data_offsets": [end, end + a.nbytes]}
        end += a.nbytes
    head = _header_bytes(header)
    return len(head).to_bytes(8, "little") + head + b"".join(a.tobytes() for a in tensors.values())


def load(path: str | Path, *, max_width: int = 8) -> Model:
    """Reads a model and verifies all that it reads.

    max_width: bit planes beyond this width are not read. The model's arrays are read-only. Raises FormatError,
    IntegrityError, SchemaError or VersionError, all ArtifactError, naming the file, and ConfigError on arguments of
    other types; FileNotFoundError and PermissionError pass through.
    """
    if not isinstance(path, str | Path):
        hint = "; caq.artifact.loads reads bytes" if isinstance(path, bytes) else ""
        raise ConfigError(f"the path of a .caq file is expected, not {type(path).__name__}{hint}")
    check_max_width(max_width)
    with Reader(path) as reader:
        return reader.model(max_width)


def loads(data: bytes) -> Model:
    """As `load`, from bytes."""
    with Reader(io.BytesIO(data), name="bytes") as reader:
        return reader.model()


def check_max_width(max_width: int) -> None:
    """Raises ConfigError unless it is an integer."""
    if not isinstance(max_width, int | np.integer):
        raise ConfigError(f"max_width is a number of bits, such as 4, not {max_width!r}")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `offset` from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Reader:
    """An open `.caq` file whose header and manifest are verified; tensors are read, and verified, on demand.

    source: a path, or a binary file that can seek. Raises ArtifactError, and ConfigError on an empty path.
    """

    def __init__(self, source: str | Path | BinaryIO, name: str | None = None) -> None:
        self.name = name or str(source)
        self._file = source if not isinstance(source, str | Path) else _open_regular(source)
        try:
            self.file_bytes = self._file.seek(0, os.SEEK_END)
            self.tensors, digest = self._read_header()
            raw = self._bytes(self.tensors["manifest"])
            if _digest(raw) != digest:
                raise IntegrityError("the manifest's SHA-256 does not match the header's")
            self.manifest = Manifest(parse(raw, "manifest"))
            self._check_tensors()
        except CaqError as e:
            self._file.close()
            raise type(e)(f"{self.name}: {e}") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def bytes_for(self, width: int) -> int:
        """Bytes of the file that a reader of weights of at most `width` bits reads."""
        return max(t.offset + t.nbytes for name, t in self.tensors.items() if _plane_width(name) <= width)

    def model(self, max_width: int = 8) -> Model:
        """Reads the tensors that `max_width` needs; see `load`."""
        try:
            return self._model(max_width)
        except CaqError as e:
            raise type(e)(f"{self.name}: {e}") from None

    def _model(self, max_width: int) -> Model:
        m, g = self.manifest, self.manifest.graph
        affine, exponents = self._read("affine"), self._read("exponents")
        parameters = Parameters(
            affine[0], exponents[0], affine[1], exponents[1], self._read("steps"), self._read("ratios")
        )
        parameters.check(g)
        if parameters.steps[0] != m.step:
            raise SchemaError(f"input.step is {m.step}, steps begin with {parameters.steps[0]}")
        for p in m.points:
            if p.parameter_set is not None and not len(g.widths) <= p.parameter_set < affine.shape[1]:
                raise SchemaError(f"point {p.name!r}: no parameter set {p.parameter_set}")
        scaling = self._read("scaling")
        if (scaling[0] != scaling[0].astype(np.int16)).any() or (scaling[2] != scaling[2].astype(np.uint8)).any():
            raise SchemaError("scaling: a multiplier or shift is out of range")
        arrays = {
            "multiplier": scaling[0].astype(np.int16),
            "offset": scaling[1],
            "shift": scaling[2].astype(np.uint8),
            "resolution": self._read("resolution")
            if "resolution" in self.tensors
            else np.ones(scaling.shape[1], np.float32),
        }
        parts = [self._read(f"planes.{w}") for w in g.widths if w <= max_width]
        planes = np.concatenate(parts) if parts else np.zeros((0, g.plane_bytes), np.uint8)
        planes.flags.writeable = False
        ends = np.cumsum([plane_bytes(layer.weights) for layer in g.layers]) - 1
        filler = np.array([0xFF << (layer.weights % 8 or 8) & 0xFF for layer in g.layers], np.uint8)
        if (planes[:, ends] & filler).any():
            raise SchemaError("planes: a bit after a layer's last code is not 0")
        return Model(
            g,
            parameters,
            planes,
            InputScaling.from_arrays(m.dtype, m.step, arrays),
            m.sample_shape,
            m.points,
            m.labels,
            m.task,
            m.provenance,
        )

    def _read_header(self) -> tuple[dict[str, Tensor], str]:
        if self.file_bytes < 8:
            raise FormatError(f"{self.file_bytes} bytes are no .caq file")
        self._file.seek(0)
        length = int.from_bytes(self._file.read(8), "little")
        if not 0 < length <= min(MAX_HEADER_BYTES, self.file_bytes - 8):
            raise FormatError(f"a header of {length} bytes does not fit the file or the limit of {MAX_HEADER_BYTES}")
        raw = self._file.read(length)
        header = parse(raw, "header")
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or "caq" not in metadata:
            raise FormatError("no caq metadata in the header: this is not a .caq file")
        if metadata["caq"] != str(VERSION):
            raise VersionError(f"format version {reprlib.repr(metadata['caq'])}; this caq reads version {VERSION}")
        if set(metadata) != {"caq", "manifest_sha256"} or list(header)[:2] != ["__metadata__", "manifest"]:
            raise FormatError("the header must begin with __metadata__ {caq, manifest_sha256} and the manifest")
        if not isinstance(metadata["manifest_sha256"], str):
            raise FormatError("manifest_sha256 must be a text")
        tensors: dict[str, Tensor] = {}
        position = 0
        for name, entry in list(header.items())[1:]:
            tensors[name] = _tensor(name, entry, position, start=8 + length)
            position += tensors[name].nbytes
        # Only now that every value is known to be a short text or list can it be written without surprises.
        if _header_bytes(header) != raw:
            raise FormatError("the header is not in canonical form")
        if 8 + length + position != self.file_bytes:
            raise FormatError(f"the tensors end at byte {8 + length + position}, the file at {self.file_bytes}")
        if tensors["manifest"].dtype != "U8" or tensors["manifest"].nbytes > MAX_MANIFEST_BYTES:
            raise FormatError(f"the manifest must be U8, at most {MAX_MANIFEST_BYTES} bytes")
        return tensors, metadata["manifest_sha256"]

    def _check_tensors(self) -> None:
        """Every tensor that the manifest's graph asks for, with its dtype and shape, in order, and no other."""
        m, g = self.manifest, self.manifest.graph
        affine = self.tensors.get("affine")
        sets = affine.shape[1] if affine and len(affine.shape) == 3 else 0
        if not len(g.widths) <= sets <= MAX_SETS:
            raise SchemaError(f"affine: {sets} parameter sets, not {len(g.widths)} to {MAX_SETS}")
        layers, channels = len(g.layers), m.sample_shape[-1]
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            "steps": ("F32", (len(g.shapes),)),
            "ratios": ("F32", (layers, len(g.widths))),
            "scaling": ("I32", (3, channels)),
            **({"resolution": ("F32", (channels,))} if m.dtype == "float32" else {}),
            "affine": ("I16", (2, sets, g.channels)),
            "exponents": ("I8", (2, sets, layers)),
        }
        for lower, width in zip((0, *g.widths), g.widths, strict=False):
            expected[f"planes.{width}"] = ("U8", (width - lower, g.plane_bytes))
        found = {name: (t.dtype, t.shape) for name, t in self.tensors.items() if name != "manifest"}
        for got, wanted in itertools.zip_longest(found.items(), expected.items()):
            if got != wanted:
                raise SchemaError(f"tensor {got}, where the manifest asks for {wanted}")
        if set(m.sha256) != set(expected):
            raise SchemaError("sha256 must name every tensor but the manifest")

    def _bytes(self, t: Tensor) -> bytes:
        self._file.seek(t.offset)
        return self._file.read(t.nbytes)

    def _read(self, name: str) -> NDArray[Any]:
        t = self.tensors[name]
        raw = self._bytes(t)
        if _digest(raw) != self.manifest.sha256[name]:
            raise IntegrityError(f"tensor {name!r}: its SHA-256 does not match the manifest's")
        return np.frombuffer(raw, np.dtype(DTYPES[t.dtype]).newbyteorder("<")).reshape(t.shape)


def _tensors(model: Model) -> dict[str, NDArray[Any]]:
    """The tensors by name, in the file's order, little-endian and contiguous.

    Raises SchemaError where that would change a value, or drop one, without a word.
    """
    p, s, rows = model.parameters, model.scaling, model.graph.widths[-1]
    p.check(model.graph)
    if model.planes.dtype != np.uint8 or model.planes[:rows].shape != (rows, model.graph.plane_bytes):
        raise SchemaError(f"planes: {rows} of {model.graph.plane_bytes} bytes are needed, not {model.planes.shape}")
    arrays: dict[str, tuple[NDArray[Any], str]] = {
        "steps": (p.steps, "F32"),
        "ratios": (p.ratios, "F32"),
        "scaling": (np.stack([s.multiplier, s.offset, s.shift]), "I32"),
        **({"resolution": (s.resolution, "F32")} if s.dtype == "float32" else {}),
        "affine": (np.stack([p.gain, p.bias]), "I16"),
        "exponents": (np.stack([p.gain_exponent, p.bias_exponent]), "I8"),
    }
    for lower, width in zip((0, *model.graph.widths), model.graph.widths, strict=False):
        arrays[f"planes.{width}"] = (model.planes[lower:width], "U8")
    return {n: np.ascontiguousarray(a, np.dtype(DTYPES[d]).newbyteorder("<")) for n, (a, d) in arrays.items()}


def _open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file. A pipe or device is refused, and without waiting for its other end."""
    if path == "" or "\0" in str(path):
        raise ConfigError(f"the path of a .caq file is expected, not {str(path)!r}")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FormatError(f"{path}: not a regular file")
    return os.fdopen(handle, "rb")


def _plane_width(name: str) -> int:
    """The narrowest width that needs a tensor: 0 for all but bit planes."""
    return int(name.removeprefix("planes.")) if name.startswith("planes.") else 0


def _tensor(name: str, entry: object, position: int, start: int) -> Tensor:
    if not isinstance(entry, dict) or list(entry) != ["dtype", "shape", "data_offsets"]:
        raise FormatError(f"tensor {name!r}: dtype, shape and data_offsets are required, in this order")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise FormatError(f"tensor {name!r}: dtype {reprlib.repr(entry['dtype'])} is none of {', '.join(DTYPES)}")
    try:
        shape, offsets = as_ints(entry["shape"], "shape"), as_ints(entry["data_offsets"], "data_offsets")
    except SchemaError as e:
        raise FormatError(f"tensor {name!r}: {e}") from None
    nbytes = math.prod(shape) * np.dtype(DTYPES[entry["dtype"]]).itemsize
    if not all(size > 0 for size in shape) or list(offsets) != [position, position + nbytes]:
        raise FormatError(f"tensor {name!r}: shape {shape} at {offsets}, where bytes {position} on are due")
    return Tensor(entry["dtype"], shape, start + position, nbytes)


def _digest(raw: bytes) -> str:
    """SHA-256 in base64, URL alphabet, without its padding: a third shorter than in hexadecimal."""
    return base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def _header_bytes(header: dict[str, Any]) -> bytes:
    raw = dump(header)
    return raw + b" " * (-len(raw) % 8)
