"""The `.caq` file: one model, all its widths. This docstring is the format's whole specification (version 1).

The layout is safetensors': 8 bytes, a little-endian length n; n bytes of JSON; then tensors of bytes, of which the
first three are always there:

    {"__metadata__": {"caq": "1", "manifest_sha256": "<base64>"},
     "manifest":   {"dtype": "U8", "shape": [m], "data_offsets": [0, m]},
     "parameters": {"dtype": "U8", "shape": [n], "data_offsets": [m, m + n]},
     "planes":     {"dtype": "U8", "shape": [w, P], "data_offsets": [m + n, m + n + w * P]},
     "core":       {"dtype": "U8", "shape": [N, B], "data_offsets": [m + n + w * P, m + n + w * P + N * B]},
     "flips":      {"dtype": "U8", "shape": [f], "data_offsets": [m + n + w * P + N * B, ...]},
     "features":   {"dtype": "U8", "shape": [M, F], "data_offsets": [...]}}

A model has one notation. The header and the manifest are what `json.dumps` writes without spaces, keys in the order of
this text, then spaces up to a multiple of 8 bytes; what could be left out, or written shorter, is refused. No byte of
the file is outside a tensor, and each is under a checksum: SHA-256 in base64, URL alphabet, unpadded.

parameters: little-endian arrays without gaps, those of 4 bytes first, so all are aligned. T tensors of the graph, L
layers, W widths, S parameter sets, C channels of all layers, C0 of a sample:

    steps        float32 (T,)       real value of one code of each tensor of the graph; the first is the input's step
    ratios       float32 (L, W)     step of a layer's input at each width over its step at 8 bits
    scaling      int32   (3, C0)    input: multiplier, offset, shift of each channel of a sample (caq.scaling)
    resolution   float32 (C0,)      input: only if its dtype is float32
    affine       int16   (2, S, C)  gain and bias of every channel of every layer, one row a parameter set (caq.plan)
    exponents    int8    (2, S, L)  their exponents

planes: bit planes, as many as the widest width, most significant first; in each, the layers of the graph one after the
other (caq.quant). Only sections that calibration alone needs come after them, so a reader of 2-bit weights reads a
prefix of the file.

core: a row for each of N samples of the training data (caq.calibration.core): its class (int16, little-endian), a byte
of misses for each width, ascending, and its input codes, H * W * C of int8.

flips: the network that decides on bit flips (caq.calibration.flips), arrays without gaps; H hidden units follow from
its size, 8 features, K outputs:

    w1           int8    (W, H, 8)  weights of the hidden units
    b1           int16   (W, H)     their biases
    w2           int8    (W, H)     weights of the output
    b2           int16   (W,)       its bias
    feedback     int8    (C, K)     what outputs gain from each channel

features: a row for each of M samples of the training data (caq.calibration.head): its class (int16, little-endian),
then for each width, ascending, the codes that the last layer reads when that width is everywhere, in as many bits as it
reads, least significant first, one code after the other from the least significant bit of a byte on; what is left of
the last byte of a width is 0.

manifest: an object.

    task         "classify", or "reconstruct" for an autoencoder
    input        sample: shape of one sample in the data; dtype; shape: [H, W, C] that the graph eats; default: `sample`
                 with ones before it
    widths       weight widths, ascending
    sets         S: the widths' own, in their order, then those of points
    ops          the graph (caq.graph), an object an operation: {kind: name}, then what is not at its default:
                   in          tensors that it reads: a list (the one made last)
                   c           output channels (0)
                   k, s        kernel and stride: [rows, columns], or one number if both are equal (1)
                   p           padding: [top, bottom, left, right], or one number if all are equal (0)
                   d, g        dilation, as k (1); groups (1)
                   low, high   lowest and highest output code (0; 255)
                   shape       of a reshape: [H, W, C]
    samples      number of test samples that all scores are of
    points       operating points: [name, w, a, score], then its parameter set, if it has its own. w: one digit a layer,
                 or one digit if all are equal. a: likewise, but layers that read the network's input, always at 8 bits,
                 do not count unless there are no others. score: a float, accuracy or R2, measured in integers. Or a
                 conditional point: [name, gate, score]
    labels       names of the classes, or []
    provenance   an object of strings and numbers: seed, versions, data hash; its order is free
    sha256       checksums of the parameters, and for each width of the planes that it adds to the next narrower one
    sections     checksums of the tensors after the planes, by name; left out where there are none

The gate of a conditional point (caq.conditional): an object.

    reads        the tensor that it reads, 8 bits: 0 is the network's input
    shift        that its sums are shifted by, 0 to 31
    weights      [[...], ...]: of each branch (2 to 16), for each channel of the tensor; -128 to 127
    bias         [...]: of each branch; no score may leave 32 bits
    branches     [w, a, taken], then its parameter set, if it has its own: widths as of a point, and by how many of the
                 scored samples it was taken, `samples` together. All branches have alike: widths, gains and biases of
                 layers before the tensor, and the activation widths of layers that say what those write

A file that begins with "caqpack1" is a packed one (caq.packing), read as the file above that it unpacks to.

Numbers are finite; names are of at most 256 characters, none of them a control character or half a surrogate pair.
A loader refuses what it does not understand, and checks sizes against the file before it allocates. Nothing here is
executed or unpickled, and no name in the file is used as a path.
"""

from __future__ import annotations

import binascii
import io
import math
import os
import reprlib
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from caq.errors import CaqError, ConfigError, FormatError, IntegrityError, SchemaError, VersionError
from caq.graph import Graph
from caq.manifest import Manifest
from caq.model import Model
from caq.plan import Parameters
from caq.quant import plane_bytes
from caq.record import NamedTuple
from caq.scaling import InputScaling
from caq.sections import (
    SECTIONS,
    StoredCore,
    StoredFeatures,
    StoredFlips,
    core_row_bytes,
    feature_row_bytes,
    hidden_units,
)
from caq.strict_json import as_ints, dump, parse

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from caq.pages import MappedPlanes

VERSION = "1"
TENSORS = ("manifest", "parameters", "planes")
#: Arrays of the parameters.
ARRAYS: dict[str, np.dtype[Any]] = {
    "steps": np.dtype("<f4"),
    "ratios": np.dtype("<f4"),
    "scaling": np.dtype("<i4"),
    "resolution": np.dtype("<f4"),
    "affine": np.dtype("<i2"),
    "exponents": np.dtype("i1"),
}
#: The module of Python's own SHA-256. To look for one that is not there takes longer than to hash a small file.
_SHA256 = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
MAX_HEADER_BYTES = 2**16
#: Parsed JSON takes up to thirty times its length, so this bounds what a small file can make a loader allocate.
MAX_MANIFEST_BYTES = 2**20


#: How a packed file begins (caq.packing). As the length of a header it would be far over the limit.
PACKED = b"caqpack1"


def save(model: Model, path: str | PathLike[str], *, packed: bool = False) -> None:
    """Writes `model` to `path` so that a crash leaves the old file or the new one, never a part of it.

    packed: in fewer bytes, as `dumps`. Raises ArtifactError on a model that breaks a rule of the format, ConfigError if
    `path` is a folder. Other OSErrors pass through: FileNotFoundError for a folder that does not exist,
    PermissionError, a disk that is full.
    """
    from caq import artifact_writer  # devices only load

    artifact_writer.save(model, path, packed)


def dumps(model: Model, *, packed: bool = False) -> bytes:
    """The bytes of `model`'s file; the same model gives the same bytes.

    packed: bit planes coded, in 2 to 6 % fewer bytes; a load decodes them, and they cannot be mapped. Raises
    ArtifactError on a model that breaks a rule of the format, ConfigError on what is no model.
    """
    from caq import artifact_writer

    return artifact_writer.dumps(model, packed)


def load(path: str | PathLike[str], *, max_width: int = 8, mapped: bool = False, sections: bool = True) -> Model:
    """Reads a model and verifies all that it reads.

    max_width: bit planes beyond this width are not read. mapped: bit planes are verified, but stay in the file, mapped
    for reading, so that the system can have their memory; the file must not be changed in place as long as the model
    lives (caq.pages has the reasons). sections: False leaves what only calibration needs unread, and the model without
    it. The model's arrays are read-only. Raises FormatError, IntegrityError, SchemaError
    or VersionError, all ArtifactError, naming the file, and ConfigError on arguments of other types and on a file that
    cannot be mapped; FileNotFoundError and PermissionError pass through.
    """
    if not isinstance(path, str | os.PathLike):
        hint = "; caq.artifact.loads reads bytes" if isinstance(path, bytes) else ""
        raise ConfigError(f"the path of a .caq file is expected, not {type(path).__name__}{hint}")
    check_max_width(max_width)
    with Reader(path) as reader:
        return reader.model(max_width, mapped, sections)


def loads(data: bytes) -> Model:
    """As `load`, from bytes."""
    with Reader(io.BytesIO(data), name="bytes") as reader:
        return reader.model()


def check_max_width(max_width: int) -> None:
    """Raises ConfigError unless it is an integer."""
    if not isinstance(max_width, int | np.integer):
        raise ConfigError(f"max_width is a number of bits, such as 4, not {max_width!r}")


class Tensor(NamedTuple):
    """Where a tensor lies: `offset` from the start of the file."""

    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Reader:
    """An open `.caq` file whose header and manifest are verified; tensors are read, and verified, on demand.

    source: a path, or a binary file that can seek. packed_bytes: what the file has if it is packed, else None; all else
    is about the file that it unpacks to. Raises ArtifactError, and ConfigError on an empty path.
    """

    def __init__(self, source: str | PathLike[str] | BinaryIO, name: str | None = None) -> None:
        if isinstance(source, str | os.PathLike):
            path = os.fsdecode(source)
            self.name, self._file = name or path, _open_regular(path)
        else:
            self.name, self._file = name or str(source), source
        try:
            self.packed_bytes = self._unpack()
            self.file_bytes = self._file.seek(0, os.SEEK_END)
            self.tensors, digest = self._read_header()
            raw = self._bytes(self.tensors["manifest"].offset, self.tensors["manifest"].nbytes)
            if checksum(raw) != digest:
                raise IntegrityError("the manifest's SHA-256 does not match the header's")
            self.manifest = Manifest.from_json(parse(raw, "manifest"))
            # Only now that every value is checked can it be written without surprises.
            if self.manifest.to_bytes() != raw:
                raise FormatError("the manifest is not in canonical form")
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
        """Bytes of the file that a reader of weights of at most `width` bits reads, without sections."""
        planes = self.tensors["planes"]
        return planes.offset + planes.shape[1] * self._rows(width)

    def model(self, max_width: int = 8, mapped: bool = False, sections: bool = True) -> Model:
        """Reads the tensors that `max_width` needs; see `load`."""
        try:
            return self._model(max_width, mapped, sections)
        except CaqError as e:
            raise type(e)(f"{self.name}: {e}") from None

    def _model(self, max_width: int, in_file: bool, sections: bool) -> Model:
        m = self.manifest
        arrays = self._read_parameters()
        affine, exponents, scaling = arrays["affine"], arrays["exponents"], arrays["scaling"]
        parameters = Parameters(affine[0], exponents[0], affine[1], exponents[1], arrays["steps"], arrays["ratios"])
        parameters.check(m.graph)
        if (scaling[0] != scaling[0].astype(np.int16)).any() or (scaling[2] != scaling[2].astype(np.uint8)).any():
            raise SchemaError("scaling: a multiplier or shift is out of range")
        channels = {
            "multiplier": scaling[0].astype(np.int16),
            "offset": scaling[1],
            "shift": scaling[2].astype(np.uint8),
            "resolution": arrays.get("resolution", np.ones(scaling.shape[1], np.float32)),
        }
        mapped = self._map_planes(max_width) if in_file else None
        planes = self._read_planes(max_width) if mapped is None else mapped.planes
        self._check_planes(planes)
        return Model(
            m.graph,
            parameters,
            planes,
            InputScaling.from_arrays(m.dtype, float(parameters.steps[0]), channels),
            m.sample_shape,
            m.points,
            m.labels,
            m.task,
            m.provenance,
            mapped,
            self._read_core() if sections and "core" in self.tensors else None,
            self._read_flips() if sections and "flips" in self.tensors else None,
            self._read_features() if sections and "features" in self.tensors else None,
        )

    def _read_parameters(self) -> dict[str, NDArray[Any]]:
        t = self.tensors["parameters"]
        raw = self._bytes(t.offset, t.nbytes)
        if checksum(raw) != self.manifest.sha256[0]:
            raise IntegrityError("parameters: their SHA-256 does not match the manifest's")
        arrays: dict[str, NDArray[Any]] = {}
        start = 0
        for name, shape in _shapes(self.manifest).items():
            arrays[name] = np.ndarray(shape, ARRAYS[name], raw, start)
            start += arrays[name].nbytes
        return arrays

    def _rows(self, max_width: int) -> int:
        return max((w for w in self.manifest.graph.widths if w <= max_width), default=0)

    def _read_core(self) -> StoredCore:
        core = StoredCore.from_rows(self._read_section("core"), self.manifest.graph)
        core.check(self.manifest.graph, self.manifest.task)
        return core

    def _read_flips(self) -> StoredFlips:
        flips = StoredFlips.from_row(self._read_section("flips"), self.manifest.graph)
        flips.check(self.manifest.graph, self.manifest.task)
        return flips

    def _read_features(self) -> StoredFeatures:
        graph, rows = self.manifest.graph, self._read_section("features")
        features = StoredFeatures.from_rows(rows, graph)
        features.check(graph, self.manifest.task)
        if not np.array_equal(features.to_rows(graph), rows):
            raise SchemaError("features: a bit after the last code of a width is not 0")
        return features

    def _read_section(self, name: str) -> NDArray[np.uint8]:
        t = self.tensors[name]
        raw = self._bytes(t.offset, t.nbytes)
        if checksum(raw) != self.manifest.sections[name]:
            raise IntegrityError(f"{name}: its SHA-256 does not match the manifest's")
        return np.ndarray(t.shape, np.uint8, raw)

    def _read_planes(self, max_width: int) -> NDArray[np.uint8]:
        rows, size = self._rows(max_width), self.manifest.graph.plane_bytes
        raw = self._bytes(self.tensors["planes"].offset, rows * size)
        if len(raw) < rows * size:
            raise IntegrityError("planes: the file was cut short while it was read")
        return np.ndarray((rows, size), np.uint8, raw)

    def _map_planes(self, max_width: int) -> MappedPlanes:
        from caq.pages import MappedPlanes

        if self.packed_bytes is not None:
            raise ConfigError("a packed file cannot be mapped; `caq pack --undo` writes one that can")
        rows, size = self._rows(max_width), self.manifest.graph.plane_bytes
        return MappedPlanes(self._file, self.tensors["planes"].offset, rows, size, self.name)

    def _check_planes(self, planes: NDArray[np.uint8]) -> None:
        g = self.manifest.graph
        for (below, width), digest in zip(plane_groups(g), self.manifest.sha256[1:], strict=True):
            if width <= len(planes) and checksum(planes[below:width].data) != digest:
                raise IntegrityError(f"planes of width {width}: their SHA-256 does not match the manifest's")
        ends = np.cumsum([plane_bytes(layer.weights) for layer in g.layers]) - 1
        filler = np.array([0xFF << (layer.weights % 8 or 8) & 0xFF for layer in g.layers], np.uint8)
        if (planes[:, ends] & filler).any():
            raise SchemaError("planes: a bit after a layer's last code is not 0")

    def _unpack(self) -> int | None:
        """Puts the file that a packed one unpacks to in its place, and returns the packed one's bytes."""
        self._file.seek(0)
        if self._file.read(len(PACKED)) != PACKED:
            return None
        from caq.packing import unpack

        data = self._file.read()
        self._file.close()
        self._file = io.BytesIO(unpack(data))
        return len(PACKED) + len(data)

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
        if metadata["caq"] != VERSION:
            raise VersionError(f"format version {reprlib.repr(metadata['caq'])}; this caq reads version {VERSION}")
        names = (*TENSORS, *(name for name in SECTIONS if name in header))
        if set(metadata) != {"caq", "manifest_sha256"} or tuple(header) != ("__metadata__", *names):
            known = f"{', '.join(TENSORS)}, and perhaps {', '.join(SECTIONS)}"
            raise FormatError(f"the header must be __metadata__ {{caq, manifest_sha256}}, {known}")
        if not isinstance(metadata["manifest_sha256"], str):
            raise FormatError("manifest_sha256 must be a text")
        tensors: dict[str, Tensor] = {}
        position = 0
        for name in names:
            tensors[name] = _tensor(name, header[name], position, start=8 + length)
            position += tensors[name].nbytes
        # Only now that every value is known to be a short text or list can it be written without surprises.
        if dump(header) != raw:
            raise FormatError("the header is not in canonical form")
        if 8 + length + position != self.file_bytes:
            raise FormatError(f"the tensors end at byte {8 + length + position}, the file at {self.file_bytes}")
        if tensors["manifest"].nbytes > MAX_MANIFEST_BYTES:
            raise FormatError(f"the manifest has {tensors['manifest'].nbytes} bytes, at most {MAX_MANIFEST_BYTES}")
        return tensors, metadata["manifest_sha256"]

    def _check_tensors(self) -> None:
        """The tensors have the shapes that the manifest asks for."""
        g, shapes = self.manifest.graph, _shapes(self.manifest)
        expected: dict[str, tuple[int, ...]] = {
            "manifest": (self.tensors["manifest"].nbytes,),
            "parameters": (sum(math.prod(shape) * ARRAYS[name].itemsize for name, shape in shapes.items()),),
            "planes": (g.widths[-1], g.plane_bytes),
        }
        found = list(self.tensors)[len(TENSORS) :]
        if found != list(self.manifest.sections):
            wanted = ", ".join(self.manifest.sections) or "none"
            raise SchemaError(f"sections: the header has {', '.join(found) or 'none'}, the manifest {wanted}")
        if "core" in found:
            expected["core"] = (*self.tensors["core"].shape[:1], core_row_bytes(g))
        if "flips" in found:
            nbytes = self.tensors["flips"].nbytes
            hidden_units(nbytes, g)
            expected["flips"] = (nbytes,)
        if "features" in found:
            expected["features"] = (*self.tensors["features"].shape[:1], feature_row_bytes(g))
        for name, shape in expected.items():
            if self.tensors[name].shape != shape:
                raise SchemaError(f"{name}: shape {self.tensors[name].shape}, where the manifest asks for {shape}")

    def _bytes(self, offset: int, nbytes: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(nbytes)


def _shapes(m: Manifest) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in the parameters, in the file's order."""
    layers, channels = len(m.graph.layers), m.sample_shape[-1]
    return {
        "steps": (len(m.graph.shapes),),
        "ratios": (layers, len(m.graph.widths)),
        "scaling": (3, channels),
        **({"resolution": (channels,)} if m.dtype == "float32" else {}),
        "affine": (2, m.sets, m.graph.channels),
        "exponents": (2, m.sets, layers),
    }


def plane_groups(graph: Graph) -> list[tuple[int, int]]:
    """For each width the planes that it adds to the next narrower one: the first, and the one after the last."""
    return list(zip((0, *graph.widths), graph.widths, strict=False))


def _open_regular(path: str) -> BinaryIO:
    """Opens a regular file. A pipe or device is refused, and without waiting for its other end."""
    if path == "" or "\0" in path:
        raise ConfigError(f"the path of a .caq file is expected, not {path!r}")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FormatError(f"{path}: not a regular file")
    return os.fdopen(handle, "rb")


def _tensor(name: str, entry: object, position: int, start: int) -> Tensor:
    if not isinstance(entry, dict) or list(entry) != ["dtype", "shape", "data_offsets"]:
        raise FormatError(f"tensor {name!r}: dtype, shape and data_offsets are required, in this order")
    if entry["dtype"] != "U8":
        raise FormatError(f"tensor {name!r}: dtype {reprlib.repr(entry['dtype'])} is not U8")
    try:
        shape, offsets = as_ints(entry["shape"], "shape"), as_ints(entry["data_offsets"], "data_offsets")
    except SchemaError as e:
        raise FormatError(f"tensor {name!r}: {e}") from None
    nbytes = math.prod(shape)
    if not all(size > 0 for size in shape) or list(offsets) != [position, position + nbytes]:
        raise FormatError(f"tensor {name!r}: shape {shape} at {offsets}, where bytes {position} on are due")
    return Tensor(shape, start + position, nbytes)


def checksum(raw: bytes | memoryview) -> str:
    """SHA-256 in base64, URL alphabet, without its padding: a third shorter than in hexadecimal."""
    text = binascii.b2a_base64(_sha256(raw), newline=False).decode()
    return text.rstrip("=").replace("+", "-").replace("/", "_")


def _sha256(raw: bytes | memoryview) -> bytes:
    """SHA-256: Python's own, which `random` uses likewise, unless there is so much to do that OpenSSL's pays off.

    hashlib loads OpenSSL, which takes 3 ms and 4 MiB; a MiB takes it 1 ms, and Python's own 3 ms.
    """
    if memoryview(raw).nbytes < 2**20:
        with suppress(ImportError):
            return __import__(_SHA256).sha256(raw).digest()
    import hashlib

    return hashlib.sha256(raw).digest()
