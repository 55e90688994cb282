"""Packed files: the same model in fewer bytes, and nothing else comes of one that is damaged or hostile."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from caq import packing
from caq.artifact import PACKED, Reader, dumps, load, loads, save
from caq.engine import Engine
from caq.errors import ArtifactError, ConfigError, FormatError
from caq.graph import Graph, Op
from caq.quant import pack as pack_codes
from tests import models

HEAD = b"what comes before"


def bell(seed: int = 0, filters: int = 64) -> models.Model:
    """A model of one layer whose codes are as trained ones are: most of them small."""
    rng = np.random.default_rng(seed)
    ops = (Op("conv", (0,), "f", channels=filters, low=-(2**15), high=2**15 - 1),)
    model = models.from_graph(Graph((1, 1, 300), ops, (2, 4, 8)), rng)
    codes = np.clip(np.round(rng.normal(0, 30, model.graph.weights)), -128, 127).astype(np.int8)
    planes = pack_codes(codes)
    assert planes.shape == model.planes.shape
    return model.replace(planes=planes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.with_core(models.model(0)),
        lambda: models.model(3),
        lambda: models.model(1, widths=(2, 4)),
        models.tiny,
        bell,
    ],
)
def test_what_is_packed_is_what_is_loaded(make, tmp_path):
    model = make()
    save(model, tmp_path / "packed.caq", packed=True)
    save(model, tmp_path / "plain.caq")
    packed, plain = (tmp_path / name for name in ("packed.caq", "plain.caq"))
    assert packed.read_bytes() == dumps(model, packed=True) != plain.read_bytes() == dumps(load(packed))
    x = models.samples(model, 2)
    for point in (p.name for p in model.points):
        a, b = Engine(packed), Engine(plain)
        a.select(point)
        b.select(point)
        np.testing.assert_array_equal(a.run(x), b.run(x))
    with Reader(packed) as reader:
        assert reader.packed_bytes == packed.stat().st_size and reader.file_bytes == plain.stat().st_size
    assert len(load(packed, max_width=2).planes) == 2


def test_small_codes_make_a_small_file():
    planes = bell().planes
    # The entropy of these codes is 6.95 of 8 bits.
    assert 6.95 / 8 < len(packing.pack(b"", planes)) / planes.nbytes < 7.2 / 8


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 1000, 3000])
def test_every_number_of_planes_and_blocks(rows, size, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK", 1000)
    rng = np.random.default_rng(size)
    planes = pack_codes(np.clip(rng.normal(0, 20, 8 * size), -128, 127).astype(np.int8))[:rows]
    packed = packing.pack(HEAD, planes)
    assert packing.unpack(packed) == HEAD + planes.tobytes()
    assert packing.unpack(packing.pack(HEAD, planes, b"tail")) == HEAD + planes.tobytes() + b"tail"
    if size > 1 and rows > 1:
        assert len(packed) < len(HEAD) + planes.nbytes


def test_a_packed_file_cannot_be_mapped(tmp_path):
    save(models.tiny(), tmp_path / "x.caq", packed=True)
    with pytest.raises(ConfigError, match=r"x\.caq: a packed file cannot be mapped; `caq pack --undo`"):
        load(tmp_path / "x.caq", mapped=True)


def test_damage_is_refused_or_changes_nothing():
    """Bits that fill up the last byte of a DEFLATE stream may be either."""
    model = bell(filters=2)
    data, plain = bytearray(dumps(model, packed=True)), dumps(model)
    assert packing.unpack(bytes(data[len(PACKED) :])) == plain
    rng = np.random.default_rng(0)
    same = 0
    for i in range(len(data)):
        bit = 1 << rng.integers(8)
        data[i] ^= bit
        try:
            same += dumps(loads(bytes(data))) == plain
        except ArtifactError:
            same -= 1
        data[i] ^= bit
        with pytest.raises(ArtifactError):
            loads(bytes(data[:i]))
    assert -len(data) <= same < 8 - len(data)
    for tail in (b"\0", bytes(data)):
        with pytest.raises(ArtifactError):
            loads(bytes(data) + tail)


def deflated(raw: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(raw) + deflate.flush()


def built(size: int, *rows: bytes, count: int | None = None, head: bytes = HEAD) -> bytes:
    count = len(rows) if count is None else count
    return struct.pack(f"<III{len(rows)}I", len(head), count, size, *map(len, rows)) + head + b"".join(rows)


PLANE = bytes(100)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "fewer bytes than its own header"),
        (built(100, PLANE)[:11], "fewer bytes than its own header"),
        (built(100, PLANE)[:13], "cannot hold 1 planes of 100"),
        (built(100, PLANE, count=0), "cannot hold 0 planes"),
        (built(100, *[PLANE] * 9), "cannot hold 9 planes"),
        (built(100, PLANE, count=2**32 - 1), "cannot hold 4294967295 planes"),
        (built(0, b""), "planes of 0 bytes"),
        (built(100, PLANE) + b"\0", "a header of"),
        (built(100, PLANE, PLANE)[:-1], "planes of 200 do not fit a file of"),
        (built(2**31, PLANE), "plane 0: 100 bytes, where 2147483648 are due"),
        (built(100, deflated(PLANE)), r"plane 0: \d+ bytes, where 100 are due"),
        (built(100, *[PLANE] * 5, deflated(PLANE)), r"plane 5: \d+ bytes, where 100 are due"),
        (built(100, PLANE, PLANE * 2), "plane 1: 200 bytes, where 100 are due"),
        (built(100, PLANE, b""), "plane 1: what is coded is not one stream of 100 bytes"),
        (built(100, PLANE, deflated(PLANE)[:-1]), "plane 1: what is coded is not one stream"),
        (built(100, PLANE, deflated(PLANE) + b"\0"), "plane 1: what is coded is not one stream"),
        (built(100, PLANE, deflated(PLANE * 2)), "plane 1: what is coded is not one stream"),
        (built(100, PLANE, deflated(PLANE[1:])), "plane 1: what is coded is not one stream"),
        (built(100, PLANE, b"\xff" * 20), "plane 1: .*invalid block type"),
        # 2 GiB of zeros from 2 MB: no more than the plane is ever made.
        (built(100, PLANE, deflated(bytes(60_000))), "plane 1: what is coded is not one stream"),
    ],
)
def test_hostile(data, match, tmp_path):
    path = tmp_path / "x.caq"
    path.write_bytes(PACKED + data)
    with pytest.raises(FormatError, match=match) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_plane_that_claims_more_than_the_file_has_is_not_allocated():
    """The sign plane is not coded, so that a file cannot ask for more than eight times its length."""
    with pytest.raises(FormatError, match="plane 0"):
        packing.unpack(built(2**32 - 1, PLANE, *[deflated(PLANE)] * 4))
