"""Graphs that tests.models does not make: special ones, each a case of its own for the kernels, and random ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caq.errors import SchemaError
from caq.graph import Graph, Op, Shape
from caq.model import Model
from tests import models

SIGNED, RELU, WIDE = (-128, 127), (0, 255), (-(2**15), 2**15 - 1)


class Net:
    """A graph, an operation at a time; each gives the number of the tensor that it writes."""

    def __init__(self, *shape: int) -> None:
        self.shapes: list[Shape] = [(shape[0], shape[1], shape[2])]
        self.ops: list[Op] = []

    def add(self, kind: str, *inputs: int, codes: tuple[int, int] | None = None, **fields: object) -> int:
        if codes is not None:
            fields |= {"low": codes[0], "high": codes[1]}
        op = Op(kind, inputs, f"{kind}{len(self.ops)}", **fields)  # type: ignore[arg-type]
        (h, w, c), (top, bottom, left, right) = self.shapes[inputs[0]], op.padding
        h = (h + top + bottom - op.dilation[0] * (op.kernel[0] - 1) - 1) // op.stride[0] + 1
        w = (w + left + right - op.dilation[1] * (op.kernel[1] - 1) - 1) // op.stride[1] + 1
        if kind == "concat":
            c = sum(self.shapes[t][2] for t in inputs)
        self.shapes.append(op.shape if kind == "reshape" else (h, w, op.channels or c))  # type: ignore[arg-type]
        self.ops.append(op)
        return len(self.ops)

    def conv(self, source: int, channels: int, k: int = 1, *, codes: tuple[int, int] = SIGNED, **fields: object) -> int:
        """As large as its input, if nothing else is said."""
        fields = {"kernel": (k, k), "padding": ((k - 1) // 2, k // 2) * 2} | fields
        return self.add("conv", source, channels=channels, codes=codes, **fields)

    def depthwise(self, source: int, k: int = 3, **fields: object) -> int:
        channels = self.shapes[source][2]
        return self.conv(source, channels, k, groups=channels, **fields)  # type: ignore[arg-type]

    def head(self, source: int) -> int:
        """The whole tensor to a few 16-bit outputs."""
        flat = self.add("reshape", source, shape=(1, 1, math.prod(self.shapes[source])))
        return self.conv(flat, 5, codes=WIDE)

    def model(self, seed: int) -> Model:
        graph = Graph(self.shapes[0], tuple(self.ops), (2, 4, 7, 8))
        return models.from_graph(graph, np.random.default_rng(seed))


def residual_of_two_convs(n: Net) -> None:
    a = n.conv(0, 16)
    b, c = n.conv(a, 24, 3, codes=RELU), n.conv(a, 24, 1)
    n.head(n.add("add", c, b, codes=RELU))


def residual_of_the_convs_own_input(n: Net) -> None:
    a = n.conv(0, 16, 3)
    n.head(n.add("add", n.conv(a, 16, 3), a, codes=SIGNED))


def residual_of_the_networks_input(n: Net) -> None:
    n.head(n.add("add", 0, n.conv(0, 3, 3), codes=(-90, 100)))


def residual_into_a_halo(n: Net) -> None:
    a = n.conv(0, 16)
    n.head(n.conv(n.add("add", a, n.conv(a, 16, 3), codes=SIGNED), 8, 3))


def residual_of_a_depthwise(n: Net) -> None:
    a = n.conv(0, 32)
    n.head(n.add("add", a, n.depthwise(a), codes=SIGNED))


def three_terms(n: Net) -> None:
    a = n.conv(0, 7, codes=RELU)
    b, c = n.conv(a, 7, 3), n.conv(a, 7)
    n.head(n.add("add", a, b, c, codes=SIGNED))


def the_same_term_twice(n: Net) -> None:
    a = n.conv(0, 7)
    twice = n.add("add", a, a, codes=SIGNED)
    n.head(n.add("add", twice, a, twice, codes=RELU))


def adds_in_place(n: Net) -> None:
    """Terms that die in an add which no conv does, as a clamp stands before it."""
    a = n.conv(0, 6)
    b, c = n.add("clamp", a, codes=SIGNED), n.add("clamp", a, codes=(-20, 90))
    n.head(n.add("clamp", n.add("add", b, c, codes=SIGNED), codes=(-100, 30)))


def read_at_several_widths(n: Net) -> None:
    a = n.conv(0, 12, codes=RELU)
    parts = [n.conv(a, 5, k) for k in (1, 3, 5)]
    parts.append(n.add("max_pool", a, kernel=(3, 3), padding=(1, 1, 1, 1)))
    n.head(n.add("concat", *parts, codes=SIGNED))


def narrowed_by_whoever_writes(n: Net) -> None:
    """Every kind of step before a layer that is its only reader."""
    a = n.conv(0, 6, codes=RELU)
    a = n.conv(n.add("max_pool", a, kernel=(2, 2), padding=(0, 1, 0, 1)), 6, 3)
    a = n.conv(n.add("avg_pool", a, kernel=(2, 2), padding=(0, 1, 0, 1), codes=SIGNED), 6, 3)
    a = n.conv(n.add("clamp", a, codes=RELU), 6, 3)
    a = n.conv(n.add("concat", a, a, codes=RELU), 6, 3)
    a = n.conv(n.add("add", a, a, codes=RELU), 6, 3)
    n.head(a)


def reshapes_that_rename(n: Net) -> None:
    a = n.conv(0, 1)
    h, w, _ = n.shapes[0]
    flat = n.add("reshape", a, shape=(1, 1, h * w))
    b = n.conv(flat, h * w, codes=RELU)
    image = n.add("reshape", b, shape=(w, h, 1))
    n.head(n.add("concat", image, n.conv(image, 2), codes=RELU))


def reshape_to_a_padded_layer(n: Net) -> None:
    """It moves no code, but the layer wants a halo."""
    h, w, _ = n.shapes[0]
    b = n.conv(n.add("reshape", n.conv(0, 1), shape=(1, 1, h * w)), h * w)
    n.head(n.conv(n.add("reshape", b, shape=(h, w, 1)), 3, 3))


def reshapes_that_move(n: Net) -> None:
    h, w, _ = n.shapes[0]
    a = n.conv(0, 6)
    b = n.add("reshape", a, shape=(w * 2, h, 3))
    n.head(n.conv(n.add("reshape", n.conv(b, 6, 3), shape=(h, w * 4, 3)), 4, 3))


def reshaped_input(n: Net) -> None:
    h, w, c = n.shapes[0]
    n.head(n.conv(n.add("reshape", 0, shape=(c, h, w)), 4, 3))


def outputs_with_positions(n: Net) -> None:
    n.conv(n.conv(0, 9, 3), 4, 3, codes=WIDE)


def output_of_8_bits(n: Net) -> None:
    n.conv(n.conv(0, 9), 20, 3, codes=RELU)


def output_of_a_reshape(n: Net) -> None:
    h, w, _ = n.shapes[0]
    n.add("reshape", n.conv(0, 3, codes=WIDE), shape=(1, 1, h * w * 3))


def output_of_a_renaming(n: Net) -> None:
    h, w, _ = n.shapes[0]
    n.add("reshape", n.conv(0, 1, codes=SIGNED), shape=(1, 1, h * w))


def output_of_max_pool(n: Net) -> None:
    n.add("max_pool", n.conv(0, 70), kernel=(3, 2), stride=(2, 1), padding=(1, 1, 1, 1), dilation=(1, 2))


def output_of_add(n: Net) -> None:
    a = n.conv(0, 5)
    n.add("add", a, n.conv(a, 5), codes=WIDE)


def output_of_add_of_8_bits(n: Net) -> None:
    a = n.conv(0, 5)
    n.add("add", a, n.conv(a, 5), codes=RELU)


def output_of_avg_pool(n: Net) -> None:
    n.add("avg_pool", n.conv(0, 70), kernel=(2, 3), padding=(0, 1, 1, 1), codes=WIDE)


def output_of_clamp(n: Net) -> None:
    n.add("clamp", n.conv(0, 5), codes=WIDE)


def output_of_concat(n: Net) -> None:
    a = n.conv(0, 5)
    n.add("concat", a, n.conv(a, 2, codes=RELU), 0, codes=WIDE)


def grouped_16_bits(n: Net) -> None:
    n.conv(n.conv(0, 12, codes=RELU), 18, 3, groups=3, codes=WIDE)


def depthwise_16_bits(n: Net) -> None:
    n.depthwise(n.conv(0, 20), codes=WIDE)


def channel_multiplier(n: Net) -> None:
    n.head(n.conv(n.conv(0, 6), 18, 3, groups=6))


def one_channel(n: Net) -> None:
    n.head(n.depthwise(n.conv(0, 1)))


def many_taps(n: Net) -> None:
    n.head(n.depthwise(n.conv(0, 20), 9, stride=(2, 1)))


def most_taps(n: Net) -> None:
    n.head(n.depthwise(n.conv(0, 16), 8))


def strided_convs(n: Net) -> None:
    a = n.conv(0, 33, 3, stride=(2, 3), dilation=(1, 2), codes=RELU)
    n.head(n.conv(a, 17, 2, stride=(3, 1)))


SPECIAL: list[Callable[[Net], None]] = [
    residual_of_two_convs, residual_of_the_convs_own_input, residual_of_the_networks_input, residual_into_a_halo,
    residual_of_a_depthwise, three_terms, the_same_term_twice, adds_in_place, read_at_several_widths,
    narrowed_by_whoever_writes, reshapes_that_rename, reshape_to_a_padded_layer, reshapes_that_move, reshaped_input,
    outputs_with_positions, output_of_8_bits, output_of_a_reshape, output_of_a_renaming, output_of_max_pool,
    output_of_add, output_of_add_of_8_bits, output_of_avg_pool, output_of_clamp, output_of_concat, grouped_16_bits,
    depthwise_16_bits, channel_multiplier, one_channel, many_taps, most_taps, strided_convs,
]  # fmt: skip


def random_model(seed: int) -> Model:
    """Operations of any kind over any earlier tensors; what nobody has read is put together at the end."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            return random_net(rng).model(seed)
        except SchemaError:  # a window larger than its input, a pool that sees padding only
            continue


def random_net(rng: np.random.Generator) -> Net:
    channels = [1, 2, 3, 4, 7, 8, 12, 16, 17, 24, 32, 33, 48, 64, 66, 80]
    n = Net(*(int(v) for v in rng.choice([1, 2, 3, 5, 6, 8, 9, 13], 2)), int(rng.integers(1, 5)))
    n.conv(0, int(rng.choice(channels)), 3, codes=RELU)
    for _ in range(int(rng.integers(2, 9))):
        source = int(rng.integers(0, len(n.shapes))) if rng.integers(3) == 0 else len(n.ops)
        (h, w, c), codes = n.shapes[source], [SIGNED, RELU, (-100, 90)][rng.integers(3)]
        kernel = [int(v) for v in rng.integers(1, 4, 2)]
        window = {
            "kernel": tuple(kernel),
            "stride": tuple(int(v) for v in rng.integers(1, 3, 2)),
            "padding": tuple(int(rng.integers(0, k)) for k in kernel for _ in range(2)),
            "dilation": tuple(int(v) for v in rng.integers(1, 3, 2)),
        }

        def others(like: slice) -> list[int]:
            same = [t for t, s in enumerate(n.shapes) if s[like] == (h, w, c)[like]]  # noqa: B023
            return [int(t) for t in rng.choice(same, int(rng.integers(2, 4)))]

        kind = rng.choice(["conv", "same", "depthwise", "grouped", "add", "add", "pool", "clamp", "concat", "reshape"])
        if kind == "conv":
            n.conv(source, int(rng.choice(channels)), codes=codes, **window)
        elif kind == "same":
            n.conv(source, c, int(rng.integers(1, 5)), codes=codes)
        elif kind == "depthwise":
            n.depthwise(source, codes=codes, **window)
        elif kind == "grouped":
            groups = int(rng.choice([g for g in (1, 2, 3, 4) if c % g == 0]))
            n.conv(source, groups * int(rng.integers(1, 20)), groups=groups, codes=codes, **window)
        elif kind == "add":
            n.add("add", *others(slice(3)), codes=codes)
        elif kind == "concat":
            n.add("concat", *others(slice(2)), codes=codes)
        elif kind == "pool":
            pool = str(rng.choice(["max_pool", "avg_pool"]))
            n.add(pool, source, codes=codes if pool == "avg_pool" else None, **window)
        elif kind == "clamp":
            n.add("clamp", source, codes=codes)
        else:
            n.add("reshape", source, shape=tuple(int(v) for v in rng.permutation([h, w, c])))
    read = {t for op in n.ops for t in op.inputs}
    idle = [t for t in range(len(n.shapes)) if t not in read]
    flat = [n.add("reshape", t, shape=(1, 1, max(1, math.prod(n.shapes[t])))) for t in idle]
    while len(flat) > 1:
        flat = [n.add("concat", *flat[:8], codes=SIGNED), *flat[8:]]
    if rng.integers(4):
        n.conv(flat[0], 3, codes=WIDE)
    return n
