"""Writes `.caq` files, as `caq.artifact` specifies them; imported when its `save` or `dumps` is called."""

from __future__ import annotations

import io
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caq.artifact import ARRAYS, PACKED, TENSORS, VERSION, Reader, checksum, plane_groups
from caq.errors import ConfigError, SchemaError
from caq.manifest import Manifest
from caq.model import Model
from caq.packing import pack
from caq.plan import naming
from caq.strict_json import dump

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray


def save(model: Model, path: str | PathLike[str], packed: bool) -> None:
    """See `caq.artifact.save`."""
    data = dumps(model, packed)
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


def dumps(model: Model, packed: bool) -> bytes:
    """See `caq.artifact.dumps`."""
    if not isinstance(model, Model):
        raise ConfigError(f"a caq.Model is expected, not {type(model).__name__}")
    name = "this model cannot be saved"
    with naming(name):
        data = _bytes_of(model)
    # What is written can be read: a model that breaks a rule is refused here.
    with Reader(io.BytesIO(data), name) as reader:
        for point, again in zip(model.points, reader.model().points, strict=True):
            if point != again:
                raise SchemaError(f"{name}: point {point.name!r} has a cost or metric that is not its assignment's")
        if packed:
            planes = reader.tensors["planes"]
            head, tail = data[: planes.offset], data[planes.offset + planes.nbytes :]
            data = PACKED + pack(head, model.planes[: model.graph.widths[-1]], tail)
    return data


def _bytes_of(model: Model) -> bytes:
    graph = model.graph
    parameters, planes, sections = _parameters(model), _planes(model), _sections(model)
    manifest = Manifest(
        model.task,
        model.sample_shape,
        model.scaling.dtype,
        graph,
        len(model.parameters.gain),
        model.points,
        model.label_names,
        model.provenance,
        (checksum(parameters), *(checksum(planes[below:width].tobytes()) for below, width in plane_groups(graph))),
        {name: checksum(rows.tobytes()) for name, rows in sections.items()},
    ).to_bytes()
    header: dict[str, Any] = {"__metadata__": {"caq": VERSION, "manifest_sha256": checksum(manifest)}}
    end = 0
    shapes = (len(manifest),), (len(parameters),), planes.shape, *(rows.shape for rows in sections.values())
    for name, shape in zip((*TENSORS, *sections), shapes, strict=True):
        begin, end = end, end + math.prod(shape)
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [begin, end]}
    head = dump(header)
    parts = [manifest, parameters, planes.tobytes(), *(rows.tobytes() for rows in sections.values())]
    return len(head).to_bytes(8, "little") + head + b"".join(parts)


def _parameters(model: Model) -> bytes:
    """The parameters as the file holds them. Raises SchemaError where a value would change without a word."""
    p, s = model.parameters, model.scaling
    p.check(model.graph)
    if p.flips is not None or p.head is not None:
        raise SchemaError("codes of a set's own are a device's state, which a file does not hold; leave them out")
    if p.steps[0] != s.step:
        raise SchemaError(f"steps begin with {p.steps[0]}, the step of the input is {s.step}")
    arrays = {
        "steps": p.steps,
        "ratios": p.ratios,
        "scaling": np.stack([s.multiplier, s.offset, s.shift]),
        **({"resolution": s.resolution} if s.dtype == "float32" else {}),
        "affine": np.stack([p.gain, p.bias]),
        "exponents": np.stack([p.gain_exponent, p.bias_exponent]),
    }
    return b"".join(a.astype(ARRAYS[name]).tobytes() for name, a in arrays.items())


def _planes(model: Model) -> NDArray[np.uint8]:
    """The planes as the file holds them. Raises SchemaError where one is missing."""
    rows, size = model.graph.widths[-1], model.graph.plane_bytes
    planes = model.planes[:rows]
    if planes.dtype != np.uint8 or planes.shape != (rows, size):
        raise SchemaError(f"planes: {rows} of {size} bytes are needed, not {model.planes.shape} {planes.dtype}")
    return planes


def _sections(model: Model) -> dict[str, NDArray[np.uint8]]:
    """The sections that the file has. Raises SchemaError on ones that do not fit the model."""
    found = {}
    if model.core is not None:
        model.core.check(model.graph, model.task)
        found["core"] = model.core.to_rows()
    if model.flip_network is not None:
        model.flip_network.check(model.graph, model.task)
        found["flips"] = model.flip_network.to_row(model.graph)
    if model.features is not None:
        model.features.check(model.graph, model.task)
        found["features"] = model.features.to_rows(model.graph)
    return found
