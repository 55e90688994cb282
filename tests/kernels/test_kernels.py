"""The native kernels on random cases: on every instruction set, under sanitizers and on emulated CPUs.

fuzz.c compares each kernel with naive.c; here naive.c is compared with caq.kernels.reference and caq.quant.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from caq.errors import SchemaError
from caq.kernels import reference
from caq.kernels.build_ffi import FLAGS, HERE, SOURCES
from caq.plan import narrowing
from caq.quant import (
    FixedPoint,
    activation_range,
    fixed_point,
    multiplicand_limit,
    multiplicands,
    pack,
    requantize,
    unpack,
)
from caq.scaling import InputScaling

SOAK = bool(os.environ.get("CAQ_SOAK"))
CASES = 10_000_000 if SOAK else 20_000  # a path
EMULATED = CASES if SOAK else 2_000
SANITIZED = 1_000_000 if SOAK else 5_000
REPLAYED = 60_000 if SOAK else 600
AT_ONCE = 500_000  # cases of one process

FUZZ = [Path(__file__).parent / f"{name}.c" for name in ("fuzz", "generate", "naive")]
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
AARCH64 = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user")
ARM = ("gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross", "qemu-user")
# Optimizing takes longer than few cases do without it.
SANITIZERS = ("-O1" if SOAK else "-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def tool(name: str, *packages: str) -> str:
    """Path of a program; skips the test if it is not installed, and says which Debian packages bring it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: apt-get install {' '.join(packages)}")
    return path


def compile_kernels(
    folder: Path, cc: str, *flags: str, names: Sequence[str] = SOURCES, more: Sequence[Path] = ()
) -> list[Path]:
    """Compiles kernels, and `more`, as the package compiles them. Returns the objects, the kernels' first."""

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([cc, *FLAGS, *WARNINGS, *flags, f"-I{HERE}", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, [*(HERE / f"{name}.c" for name in names), *more]))


def build(folder: Path, cc: str, *flags: str) -> Path:
    """Builds fuzz."""
    target = folder / "fuzz"
    objects = compile_kernels(folder, cc, *flags, more=FUZZ)
    subprocess.run([cc, *flags, *objects, "-o", target, "-lm", "-pthread"], check=True)
    return target


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("host"), tool("cc", "gcc"))


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory) -> tuple[str, Path]:
    """An emulator and what it runs."""
    emulator, cc = tool("qemu-aarch64", *AARCH64), tool("aarch64-linux-gnu-gcc", *AARCH64)
    return emulator, build(tmp_path_factory.mktemp("aarch64"), cc, "-static")


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> tuple[str, Path]:
    """An emulator and what it runs."""
    emulator, cc = tool("qemu-arm", *ARM), tool("arm-linux-gnueabihf-gcc", *ARM)
    return emulator, build(tmp_path_factory.mktemp("arm"), cc, "-static", "-mfpu=neon")


def run(*command: str | Path) -> dict[str, str]:
    """The digest of each instruction set, all of whose cases went well."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    assert re.search(r"^[1-9][0-9]* steps were cut$", done.stdout, re.MULTILINE)
    return dict(re.findall(r"^(\w+) [0-9]+ cases, 0 differences, .* digest ([0-9a-f]{16})$", done.stdout, re.MULTILINE))


def shares(count: int) -> Iterator[tuple[str, str]]:
    """Seeds and counts of processes that run `count` cases in all."""
    for first in range(0, count, AT_ONCE):
        yield str(first), str(min(AT_ONCE, count - first))


@pytest.mark.soak
def test_every_path_of_this_machine(fuzz):
    for share in shares(CASES):
        digests = run(fuzz, *share)
        assert "portable" in digests and len(set(digests.values())) == 1


@pytest.mark.soak
def test_sanitizers(tmp_path):
    sanitized = build(tmp_path, tool("cc", "gcc"), *SANITIZERS)
    for share in shares(SANITIZED):
        assert "portable" in run(sanitized, *share)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("machine", "paths"), [("aarch64", {"portable", "neon", "neon_dot"}), ("arm", {"portable", "neon"})]
)
def test_emulated(request, fuzz, machine, paths):
    emulator, emulated = request.getfixturevalue(machine)
    for share in shares(EMULATED):
        digests = run(emulator, "-cpu", "max", emulated, *share)
        assert set(digests) == paths
        assert set(digests.values()) == set(run(fuzz, *share, "portable").values())


def test_a_cpu_without_dot_product(aarch64):
    emulator, emulated = aarch64
    assert set(run(emulator, "-cpu", "cortex-a53", emulated, "0", "100")) == {"portable", "neon"}


def needs(nm: str, objects: Sequence[Path]) -> set[str]:
    """What objects want from libraries."""
    listing = subprocess.run([nm, "-u", *objects], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^ +U (\w+)$", listing, re.MULTILINE))


def test_nothing_is_allocated_or_printed(fuzz):
    needed = needs(tool("nm", "binutils"), [fuzz.parent / f"{name}.o" for name in SOURCES])
    assert "memset" in needed
    assert not needed & {"malloc", "calloc", "realloc", "free", "printf", "fprintf", "puts", "abort", "exit"}


def test_only_one_file_knows_of_threads(fuzz):
    nm = tool("nm", "binutils")
    system = {name for name in SOURCES if any("pthread" in need for need in needs(nm, [fuzz.parent / f"{name}.o"]))}
    assert system == {"threads"}


def test_a_microcontroller(tmp_path):
    cc = tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    names = ("prepare", "run", "threads", "isa_portable")
    objects = compile_kernels(tmp_path, cc, "-mcpu=cortex-m4", "-mthumb", names=names)
    needed = {name for name in needs("arm-none-eabi-nm", objects) if not name.startswith(("__aeabi_", "caq_"))}
    assert needed <= {"memcpy", "memmove", "memset", "floor", "frexp", "ldexp"}


class Dump:
    """What `fuzz dump` writes: one case after another."""

    def __init__(self, data: bytes) -> None:
        self._items, self._at = np.frombuffer(data, np.int64), 0

    def cases(self) -> Iterator[SimpleNamespace]:
        while self._at < len(self._items):
            yield self._case()

    def _take(self, count: int) -> NDArray[np.int64]:
        self._at += count
        return self._items[self._at - count : self._at]

    def _ints(self, count: int) -> list[int]:
        return self._take(count).tolist()

    def _numbers(self, count: int) -> NDArray[np.float64]:
        mantissa, exponent = self._take(2 * count).reshape(-1, 2).T
        return np.ldexp(mantissa.astype(np.float64), exponent.astype(np.int32))

    def _tensor(self) -> SimpleNamespace:
        h, w, c, item, signed, low, high = self._ints(7)
        codes = self._take(h * w * c).reshape(1, h, w, c).astype(np.int32)
        return SimpleNamespace(codes=codes, bits=8 * item, signed=bool(signed), limit=max(high, -low))

    def _case(self) -> SimpleNamespace:
        c = SimpleNamespace()
        number, c.low, c.high, c.refused, *window, has_table, encoded, count = self._ints(17)
        c.kind = ("conv", "add", "lookup", "max_pool", "avg_pool", "reshape")[number]
        c.kernel, c.stride, c.dilation = (tuple(window[i : i + 2]) for i in (0, 2, 4))
        c.padding = tuple(window[6:])
        c.inputs, c.out = [self._tensor() for _ in range(count)], self._tensor()
        c.table = self._take(256) if has_table else None
        c.raw = self._samples(c.inputs[0].codes) if encoded else None
        if c.kind == "conv":
            self._layer(c)
        c.multipliers, (c.offset, c.shift, *c.limits) = tuple(self._ints(8)[:count]), self._ints(4)
        c.scales = self._numbers(count)
        return c

    def _samples(self, codes: NDArray[np.int32]) -> tuple[InputScaling, NDArray[np.generic]]:
        dtype, channels = self._ints(2)
        multiplier, offset, shift = self._take(3 * channels).reshape(3, channels)
        name = ("uint8", "int16", "float32")[dtype]
        resolution = self._numbers(channels).astype(np.float32)
        scaling = InputScaling(
            name, 1.0, multiplier.astype(np.int16), offset.astype(np.int32), shift.astype(np.uint8), resolution
        )
        return scaling, self._numbers(codes.size).astype(name).reshape(-1, channels)

    def _layer(self, c: SimpleNamespace) -> None:
        c.groups, c.weight, c.activation, c.narrows, gain_exponent, bias_exponent = self._ints(6)
        c.ratio, c.output_ratio = self._numbers(2)
        channels, per_group = c.out.codes.shape[3], c.inputs[0].codes.shape[3] // c.groups
        c.gain = np.ldexp(self._take(channels).astype(np.float64), gain_exponent)
        c.bias = np.ldexp(self._take(channels).astype(np.float64), bias_exponent)
        c.q = self._take(channels * c.kernel[0] * c.kernel[1] * per_group).astype(np.int8)
        c.shape = (channels, *c.kernel, per_group)


def rescaled(c: SimpleNamespace, index: int, size: int = 1) -> FixedPoint:
    """As plan.rescaling makes it."""
    scale = c.scales[index : index + 1] / size
    return fixed_point(scale, np.zeros(1), c.inputs[index].limit * size, c.out.bits)


def convolved(c: SimpleNamespace) -> NDArray[np.int32]:
    """As plan and engine do it."""
    x, signed = c.inputs[0].codes, c.inputs[0].signed
    m = multiplicands(unpack(pack(c.q)[: c.weight], c.q.size), c.weight).reshape(c.shape)
    gain = c.gain if c.activation == 8 else c.gain * c.ratio
    most = max(map(abs, activation_range(c.activation, signed)))
    limit = m[0].size * most * multiplicand_limit(c.weight)
    f = fixed_point(gain / c.output_ratio, c.bias / c.output_ratio, limit, c.out.bits)
    if c.activation < 8:
        narrow, limits = narrowing(float(c.ratio), c.activation, signed)
        x = requantize(x, narrow, *limits) if c.narrows else x
    total = reference.conv_accumulate(x, m, c.stride, c.padding, c.dilation, c.groups, limit)
    y = requantize(total, f, c.low, c.high)
    if len(c.inputs) == 1:
        return y
    return reference.add([y, c.inputs[1].codes], c.multipliers, c.offset, c.shift, *c.limits)


def computed(c: SimpleNamespace) -> NDArray[np.int32]:
    """What the reference makes of a case. Raises SchemaError."""
    codes = [t.codes for t in c.inputs]
    window = (c.kernel, c.stride, c.padding, c.dilation)
    if c.kind == "conv":
        return convolved(c)
    if c.kind == "add":
        return reference.add(codes, c.multipliers, c.offset, c.shift, c.low, c.high)
    if c.kind == "lookup":
        return np.concatenate([requantize(x, rescaled(c, i), c.low, c.high) for i, x in enumerate(codes)], axis=3)
    if c.kind == "max_pool":
        return reference.max_pool(codes[0], *window)
    if c.kind == "avg_pool":
        f = rescaled(c, 0, c.kernel[0] * c.kernel[1])
        return requantize(reference.sum_pool(codes[0], *window), f, c.low, c.high)
    return reference.reshape(codes[0], c.out.codes.shape[1:])


@pytest.mark.soak
def test_what_fuzz_compares_with_is_the_reference(fuzz):
    seen: Counter[str] = Counter()
    for first in range(0, REPLAYED, 600):
        data = subprocess.run([fuzz, "dump", str(first), "600"], capture_output=True, check=True).stdout
        for c in Dump(data).cases():
            if c.raw is not None:
                scaling, raw = c.raw
                np.testing.assert_array_equal(scaling.encode(raw).reshape(-1), c.inputs[0].codes.reshape(-1))
            try:
                y = computed(c)
            except SchemaError:
                assert c.refused
                seen["refused"] += 1
                continue
            if c.table is not None:
                zero = 128 if c.out.signed else 0
                y = c.table[y + zero] - zero
            assert not c.refused
            np.testing.assert_array_equal(y, c.out.codes)
            seen[c.kind] += 1
    assert seen.total() == REPLAYED and min(seen.values()) >= 10 and len(seen) == 7
