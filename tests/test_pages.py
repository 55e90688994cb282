"""Mapped planes: the same answers, pages that really leave, and a file that is replaced, changed or cut short."""

from __future__ import annotations

import errno
import gc
import io
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import caq
from caq.artifact import Reader, dumps
from caq.context import RecordedContext
from caq.engine import Engine
from caq.errors import ConfigError, IntegrityError
from caq.graph import Graph, LayerWidths, Op
from caq.model import Model
from caq.pages import HUGE_BYTES, block
from caq.program import aligned_empty
from policies import ThresholdPolicy
from tests import models

PROC = Path("/proc/self/smaps").exists()
needs_proc = pytest.mark.skipif(not PROC, reason="needs /proc/self/smaps")
MODES = [(lean, kernels) for kernels in ("native", "reference") for lean in (False, True)]


def large() -> Model:
    """Two layers whose planes have 36,864 bytes each."""
    ops = (
        Op("conv", (0,), "a", channels=128, kernel=(3, 3), low=0, high=255),
        Op("conv", (1,), "b", channels=256, kernel=(3, 3), low=0, high=255),
        Op("conv", (2,), "head", channels=5, low=-(2**15), high=2**15 - 1),
    )
    graph = Graph((5, 5, 256), ops, (2, 4, 8))
    assert [layer.weights // 8 for layer in graph.layers[:2]] == [36864, 36864]
    return models.from_graph(graph, np.random.default_rng(0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "large.caq"
    caq.save(large(), path)
    return path


def resident(path: Path) -> int:
    """Bytes of the file's mapping that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.split()[-1] == str(path)
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def anonymous() -> int:
    """Bytes of this process that are in no file."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def pages_read(path: Path, m: Model, point: str) -> int:
    """Bytes of the pages that an inference without panels has to read."""
    with Reader(path) as reader:
        start = reader.tensors["planes"].offset
    pages: set[int] = set()
    for layer, pair in zip(m.graph.layers, {p.name: p for p in m.points}[point].assignment, strict=True):
        for plane in range(pair.weight):
            first = start + plane * m.graph.plane_bytes + layer.first_byte
            pages.update(at // mmap.PAGESIZE for at in range(first, first + -(-layer.weights // 8)))
    return len(pages) * mmap.PAGESIZE


# --- answers


@pytest.mark.parametrize(("lean", "kernels"), MODES)
@pytest.mark.parametrize("seed", range(6))
def test_mapped_planes_give_the_same_answers_before_and_after_a_trim(seed, lean, kernels, tmp_path):
    m = models.model(seed, ("uint8", "float32")[seed % 2], (2, 3, 4, 5, 6, 8))
    path = tmp_path / "m.caq"
    caq.save(m, path)
    x = models.samples(m, 3)
    wanted = Engine(m)
    mapped = Engine(path, lean=lean, kernels=kernels, mapped=True)
    assert mapped.model.mapped is not None and Engine(path).model.mapped is None
    for name in (*wanted.points, *reversed(wanted.points)):
        wanted.select(name)
        mapped.select(name)
        for _ in range(2):
            np.testing.assert_array_equal(mapped.run(x), wanted.run(x))
            mapped.trim()
        np.testing.assert_array_equal(mapped.run(x[0]), wanted.run(x[0]))


def test_what_is_mapped_is_what_is_read(tmp_path):
    path = tmp_path / "m.caq"
    caq.save(models.model(0), path)
    mapped = caq.load(path, mapped=True)
    np.testing.assert_array_equal(mapped.planes, caq.load(path).planes)
    assert dumps(mapped) == path.read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        mapped.planes[0, 0] = 1
    assert mapped.mapped is not None and mapped.replace(planes=mapped.planes.copy()).mapped is None


def test_planes_outlive_the_model_that_mapped_them(path):
    planes = caq.load(path, mapped=True).planes
    gc.collect()
    np.testing.assert_array_equal(planes, large().planes)


def test_no_descriptor_is_left_open(path):
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/dev/fd"))

    before = descriptors()
    engine = Engine(path, mapped=True)
    assert descriptors() > before
    del engine
    assert descriptors() == before


@pytest.mark.parametrize(("width", "planes"), [(1, 0), (2, 2), (3, 2), (4, 4), (8, 8)])
def test_planes_beyond_the_width_are_neither_mapped_nor_read(width, planes, path):
    with Reader(path) as reader:
        needed = reader.bytes_for(width)
    data = path.read_bytes()
    path.write_bytes(data[:needed] + bytes(len(data) - needed))
    m = caq.load(path, max_width=width, mapped=True)
    assert len(m.planes) == planes and m.mapped is not None and m.mapped.end == needed
    if planes in (2, 4):
        with pytest.raises(IntegrityError, match="planes of width"):
            caq.load(path, mapped=True)


@pytest.mark.parametrize("lean", [False, True])
def test_pages_leave_and_come_back_while_others_infer(lean, path):
    engine = Engine(path, lean=lean, mapped=True)
    x = models.samples(engine.model, 1)[0]
    offline = {}
    for name in engine.points:
        engine.select(name)
        offline[name] = engine.run(x).tobytes()
    done, failures = threading.Event(), []

    def infer() -> None:
        while not done.is_set():
            y, name = engine.run_at(x)
            if y.tobytes() != offline[name]:
                failures.append(name)

    threads = [threading.Thread(target=infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(100):
        engine.select(list(offline)[i % len(offline)])
        engine.trim()
    done.set()
    for thread in threads:
        thread.join()
    assert not failures


# --- memory


@needs_proc
@pytest.mark.parametrize("name", ["w2a2", "w4a4", "w8a8", "mixed"])
def test_a_lean_engine_keeps_the_pages_that_its_point_reads(name, path):
    m = large()
    engine = Engine(path, lean=True, mapped=True)
    x = models.samples(m, 1)
    whole = resident(path)
    assert whole >= 8 * m.graph.plane_bytes
    engine.select(name)
    engine.run(x)
    engine.trim()
    # Had the kernel needed memory meanwhile, it would be less.
    kept = resident(path)
    assert 0 < kept <= pages_read(path, m, name) and (name == "w8a8" or kept < whole)
    for _ in range(3):
        engine.run(x)
    assert resident(path) == kept, "an inference touched what the trim took for not needed"


@needs_proc
def test_two_bits_take_a_quarter(path):
    engine = Engine(path, lean=True, mapped=True)
    x = models.samples(engine.model, 1)
    found = {}
    for name in ("w8a8", "w4a4", "w2a2"):
        engine.select(name)
        engine.run(x)
        engine.trim()
        engine.run(x)
        found[name] = resident(path)
    assert found["w2a2"] <= 0.3 * found["w8a8"] and found["w4a4"] <= 0.55 * found["w8a8"]


@needs_proc
def test_with_panels_no_plane_stays(path):
    engine = Engine(path, mapped=True)
    x = models.samples(engine.model, 1)
    wanted = engine.run(x)
    engine.trim()
    np.testing.assert_array_equal(engine.run(x), wanted)
    assert resident(path) == 0
    engine.select("w8a8")
    assert resident(path) > 0
    engine.trim()
    assert resident(path) == 0


@needs_proc
def test_large_blocks_leave_the_process_when_they_are_freed():
    size = 2 * HUGE_BYTES  # malloc would keep the second one
    before = anonymous()
    for _ in range(3):
        memory = aligned_empty(size)
        assert memory.ctypes.data % 64 == 0 and len(memory) == size
        memory[:] = 1
        assert anonymous() > before + size // 2
        del memory
        assert anonymous() < before + size // 4


def test_what_no_system_has():
    with pytest.raises(MemoryError, match="bytes"):
        block(2**61)


def test_a_system_without_advice(path, monkeypatch):
    """There a trim frees plans only; and a kernel may refuse what its headers name."""
    x = models.samples(large(), 1)
    wanted = Engine(path).run(x)
    with monkeypatch.context() as patch:
        for name in ("MADV_DONTNEED", "MADV_NOHUGEPAGE", "MADV_HUGEPAGE"):
            patch.delattr(mmap, name, raising=False)
        patch.delattr(os, "posix_fadvise", raising=False)
        patch.delattr(mmap, "MAP_ANONYMOUS")
        engine = Engine(path, lean=True, mapped=True)
        before = resident(path) if PROC else 0
        engine.trim()
        assert not PROC or resident(path) == before
        np.testing.assert_array_equal(engine.run(x), wanted)
        assert len(block(100)) == 100
    monkeypatch.setattr(mmap, "MADV_DONTNEED", 12345, raising=False)
    engine.trim()
    np.testing.assert_array_equal(engine.run(x), wanted)


# --- the file


def test_a_file_that_is_replaced_stays_what_it_was(path):
    x = models.samples(large(), 1)
    engine = Engine(path, lean=True, mapped=True)
    wanted = {}
    for name in engine.points:
        engine.select(name)
        wanted[name] = engine.run(x)
    caq.save(models.tiny(), path)
    engine.trim()
    for name in engine.points:
        engine.select(name)
        np.testing.assert_array_equal(engine.run(x), wanted[name])
    path.unlink()
    engine.trim()
    np.testing.assert_array_equal(engine.run(x), wanted[name])


def cut_short(path: Path) -> None:
    os.truncate(path, 5000)


def written_to(path: Path) -> None:
    with path.open("r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\0")
    os.utime(path, ns=(0, 1))  # the clock of a file system may be coarse


@pytest.mark.parametrize("change", [cut_short, written_to])
@pytest.mark.parametrize(("lean", "kernels"), MODES)
def test_a_file_that_is_changed_in_place(lean, kernels, change, path):
    x = models.samples(large(), 2)
    engine = Engine(path, lean=lean, kernels=kernels, mapped=True)
    wanted = engine.run(x)
    change(path)
    words = f"^{path}: was changed in place after it was verified and mapped; load it again$"
    if lean and kernels == "native":  # it reads planes at every inference
        for samples in (x, x[0]):
            with pytest.raises(IntegrityError, match=words):
                engine.run(samples)
    else:
        with pytest.raises(IntegrityError, match=words):
            engine.select("w8a8")
        assert engine.point == "w2a2"
        np.testing.assert_array_equal(engine.run(x), wanted)
    with pytest.raises(IntegrityError, match=words):
        engine.build(engine.model.graph.uniform(4))
    with pytest.raises(IntegrityError, match=words):
        Engine(engine.model)
    engine.trim()


def test_a_file_in_memory_does_not_mind(path):
    x = models.samples(large(), 1)
    engine = Engine(path, lean=True)
    cut_short(path)
    np.testing.assert_array_equal(engine.run(x), Engine(large()).run(x))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signals")
def test_without_the_check_a_file_that_is_cut_short_ends_the_process(path):
    """Why there is a check, and why nothing is mapped unless it is asked for."""
    code = """
import os, sys
import numpy as np
import caq
from caq.model import Model
engine = caq.Engine(sys.argv[1], lean=True, mapped=True)
x = np.zeros(engine.model.sample_shape, np.uint8)
engine.run(x)
os.truncate(sys.argv[1], 5000)
if sys.argv[2] == "unchecked":
    Model.check_file = lambda self: None
try:
    engine.run(x)
except caq.CaqError as e:
    print(type(e).__name__)
"""
    for mode, wanted in (("checked", (0, b"IntegrityError\n")), ("unchecked", (-signal.SIGBUS, b""))):
        copy = path.with_name(mode)
        shutil.copy(path, copy)
        run = subprocess.run([sys.executable, "-c", code, copy, mode], capture_output=True, check=False)
        assert (run.returncode, run.stdout) == wanted, run.stderr


def test_a_file_that_is_cut_short_while_it_is_read(path):
    with Reader(path) as reader:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(IntegrityError, match=f"^{path}: planes: the file was cut short while it was read$"):
            reader.model(mapped=True)


def test_what_cannot_be_mapped(path, monkeypatch):
    words = r"^bytes: only a file can be mapped .*; load it without mapped=True$"
    with Reader(io.BytesIO(path.read_bytes()), "bytes") as reader, pytest.raises(ConfigError, match=words):
        reader.model(mapped=True)
    with pytest.raises(ConfigError, match=r"mapped: this model is in memory; pass its path, or caq\.load"):
        Engine(large(), mapped=True)
    assert Engine(caq.load(path, mapped=True), mapped=True).model.mapped is not None

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    wanted = r"large\.caq: the file cannot be mapped \(No such device\); load it without mapped=True"
    with pytest.raises(ConfigError, match=wanted):
        Engine(path, mapped=True)
    assert Engine(path).point == "w2a2"


def test_lean_mixed_widths_are_kept_layer_by_layer(path):
    """One layer at 8 bits does not keep the others' lower planes."""
    m = large()
    widths = (LayerWidths(8, 8), LayerWidths(2, 2), LayerWidths(2, 2))
    point = m.points[0]._replace(name="one", assignment=widths, cost=m.graph.cost(widths))
    caq.save(m.replace(points=(*m.points, point)), path)
    engine = Engine(path, lean=True, mapped=True)
    engine.select("one")
    x = models.samples(m, 1)
    wanted = engine.run(x)
    engine.trim()
    np.testing.assert_array_equal(engine.run(x), wanted)
    if PROC:
        kept, pages = resident(path), pages_read(path, engine.model, "one")
        assert kept <= pages < 0.75 * 8 * m.graph.plane_bytes


@needs_proc
@pytest.mark.parametrize("lean", [False, True])
def test_the_runtime_gives_planes_back_when_a_recording_says_that_memory_is_short(lean, path):
    trace = RecordedContext({"t_s": [0, 60, 120], "charging": [1, 1, 1], "memory_available": [0.5, 0.05, 0.5]})
    engine = Engine(path, lean=lean, mapped=True)
    x = models.samples(engine.model, 1)
    policy = ThresholdPolicy.default(engine.points)
    wanted = Engine(large())
    held = {}
    with caq.Runtime(engine, policy, trace) as runtime:
        for t_s, point in ((0, "w8a8"), (60, "w2a2"), (120, "w8a8")):
            runtime.step(t_s)
            wanted.select(point)
            y, ran_at = runtime.run_at(x)
            assert ran_at == point
            np.testing.assert_array_equal(y, wanted.run(x))
            held[t_s] = resident(path)
    narrow = pages_read(path, engine.model, "w2a2") if lean else 0
    assert held[60] <= narrow < held[0] and held[120] > held[60]
