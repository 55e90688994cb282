"""Reading ONNX files: every supported operation against ONNX's own reference, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")

from google.protobuf.message import DecodeError  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from caq.errors import CaqError, DataError, MissingExtraError, UnsupportedError, WeightsError  # noqa: E402
from caq.supernet import convert, zoo  # noqa: E402
from caq.supernet.onnx_reader import read_onnx  # noqa: E402

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def model(
    nodes: list[Any], stored: dict[str, np.ndarray], shape: tuple[Any, ...], batch: Any = "n", opset: int = 17
) -> Any:
    """A file whose input is `x` (batch, *shape) and whose output is what the last node makes."""
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [])
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [source], [result], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=f"the {output}", **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


#: One image (4, 9, 10) channels first, unless a case says otherwise.
IMAGE = (4, 9, 10)
CASES: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "conv": ([node("Conv", "x w b", "y")], {"w": weights(6, 4, 3, 3), "b": weights(6)}),
    "conv with all attributes": (
        [node("Conv", "x w", "y", pads=[0, 1, 2, 1], strides=[2, 1], dilations=[1, 2], group=2, kernel_shape=[3, 2])],
        {"w": weights(6, 2, 3, 2)},
    ),
    "conv, same upper": ([node("Conv", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": weights(6, 4, 3, 2)}),
    "conv, same lower": ([node("Conv", "x w", "y", auto_pad="SAME_LOWER", strides=[2, 2])], {"w": weights(6, 4, 3, 2)}),
    "conv, valid": ([node("Conv", "x w", "y", auto_pad="VALID")], {"w": weights(6, 4, 3, 2)}),
    "batch norm": (
        [node("Conv", "x w", "c"), node("BatchNormalization", "c g o m v", "y", epsilon=1e-3)],
        {"w": weights(6, 4, 3, 3), "g": weights(6), "o": weights(6), "m": weights(6), "v": weights(6) ** 2},
    ),
    "bias by addition": (
        [node("Conv", "x w", "c"), node("Add", "c b", "y")],
        {"w": weights(6, 4, 3, 3), "b": weights(6, 1, 1)},
    ),
    "bias of bias": (
        [node("Conv", "x w b", "c"), node("Add", "b2 c", "d"), node("Relu", "d", "y")],
        {"w": weights(6, 4, 3, 3), "b": weights(6), "b2": weights(1, 6, 1, 1)},
    ),
    "residual": (
        [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Relu", "c", "r"), node("Add", "x r", "y")],
        {"w": weights(4, 4, 3, 3)},
    ),
    "relu 6": (
        [node("Conv", "x w", "c"), node("Clip", "c low high", "y")],
        {"w": weights(6, 4, 3, 3), "low": np.float32(0), "high": np.float32(0.7)},
    ),
    "pools": (
        [
            node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
            node("MaxPool", "c", "m", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            node("AveragePool", "m", "a", kernel_shape=[2, 2], pads=[1, 0, 1, 0], count_include_pad=1),
            node("GlobalAveragePool", "a", "g"),
            node("Squeeze", "g axes", "y"),
        ],
        {"w": weights(6, 4, 3, 3), "axes": ints(2, 3)},
    ),
    "mean over positions": (
        [node("Conv", "x w", "c"), node("ReduceMean", "c", "y", axes=[2, 3], keepdims=0)],
        {"w": weights(6, 4, 3, 3)},
    ),
    "concat": (
        [node("Conv", "x w", "c"), node("Conv", "x v", "d"), node("Concat", "c d", "y", axis=1)],
        {"w": weights(6, 4, 3, 3), "v": weights(2, 4, 3, 3)},
    ),
    "pad": (
        [node("Pad", "x pads", "p"), node("Conv", "p w", "y", strides=[2, 2])],
        {"w": weights(6, 4, 3, 3), "pads": ints(0, 0, 0, 1, 0, 0, 1, 2)},
    ),
    "flatten and gemm": (
        [node("Conv", "x w", "c", strides=[3, 3]), node("Flatten", "c", "f"), node("Gemm", "f m b", "y", alpha=0.5)],
        {"w": weights(6, 4, 3, 3), "m": weights(54, 5), "b": weights(5)},
    ),
    "reshape and gemm": (
        [node("Conv", "x w", "c", strides=[3, 3]), node("Reshape", "c s", "f"), node("Gemm", "f m", "y", transB=1)],
        {"w": weights(6, 4, 3, 3), "s": ints(0, -1), "m": weights(5, 54)},
    ),
    "product of two": (
        [
            node("Flatten", "x", "f"),
            node("MatMul", "f w", "h"),
            node("Add", "h b", "i"),
            node("Relu", "i", "r"),
            node("Dropout", "r", "d"),
            node("Identity", "d", "e"),
            node("MatMul", "e v", "y"),
        ],
        {"w": weights(360, 7), "b": weights(7), "v": weights(7, 3)},
    ),
    "paddings that are computed, as torch does": (
        [
            helper.make_node("ConstantOfShape", ["four"], ["zeros"], value=numpy_helper.from_array(ints(0))),
            node("Concat", "ends zeros", "all", axis=0),
            node("Reshape", "all by2", "table"),
            node("Slice", "table last first axis step", "backwards"),
            node("Transpose", "backwards", "turned", perm=[1, 0]),
            node("Reshape", "turned flat", "pads"),
            node("Cast", "pads", "whole", to=TensorProto.INT64),
            node("Pad", "x whole", "p"),
            node("Conv", "p w", "y"),
        ],
        {
            **{"four": ints(4), "ends": ints(1, 2, 0, 3), "by2": ints(-1, 2), "flat": ints(-1), "axis": ints(0)},
            **{"last": ints(-1), "first": ints(-(2**62)), "step": ints(-1), "w": weights(6, 4, 3, 3)},
        },
    ),
    "constants that are computed": (
        [
            node("DequantizeLinear", "q s z", "w"),
            helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(weights(6))),
            node("Conv", "x w b", "y"),
        ],
        {"q": RNG.integers(-99, 99, (6, 4, 3, 3)).astype(np.int8), "s": np.float32(0.01), "z": np.int8(3)},
    ),
}


def expected(file: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(file).run(None, {"x": x})[0])


def check(
    file: Any, path: Path, given: tuple[int, ...], sample: tuple[int, ...], logits: bool = True
) -> torch.nn.Module:
    """The module and the file say the same of the same samples, which lie channels last in the data."""
    onnx.save(file, path)
    imported = read_onnx(path, sample)
    data = RNG.normal(size=(8, *sample)).astype(np.float32)
    first = torch.from_numpy(np.moveaxis(data.reshape(8, *imported.sample_shape), -1, 1).copy())
    channels_last = given == sample or given[:-1] == sample
    theirs = expected(file, (data if channels_last else np.moveaxis(data, -1, 1)).reshape(8, *given))
    with torch.no_grad():
        ours = imported.network(first)
    ours = ours if logits else ours.softmax(1)
    if theirs.ndim == 4 and theirs.shape != tuple(ours.shape):
        ours = ours.permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
    supernet = convert(imported.network, first).eval()
    supernet.set_assignment(supernet.graph.uniform(8))
    return imported.network


@pytest.mark.parametrize("case", CASES)
def test_an_operation(case: str, tmp_path: Path) -> None:
    nodes, stored = CASES[case]
    # ONNX's reference knows DequantizeLinear from 19 on.
    opset = 19 if nodes[0].op_type == "DequantizeLinear" else 17
    check(model(nodes, stored, IMAGE, opset=opset), tmp_path / "m.onnx", IMAGE, (9, 10, 4))


@pytest.mark.parametrize("case", ["conv with all attributes", "pools", "flatten and gemm", "batch norm"])
def test_onnxruntime_says_the_same(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    nodes, stored = CASES[case]
    file = model(nodes, stored, IMAGE)
    session = runtime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    x = RNG.normal(size=(4, *IMAGE)).astype(np.float32)
    onnx.save(file, tmp_path / "m.onnx")
    with torch.no_grad():
        ours = read_onnx(tmp_path / "m.onnx", (9, 10, 4)).network(torch.from_numpy(x))
    np.testing.assert_allclose(ours.numpy(), session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_older_opsets(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Clip", "c", "d", min=0.0, max=6.0),
        node("Pad", "d", "p", pads=[0, 0, 0, 0, 0, 0, 1, 2]),
        node("Conv", "p v", "e", strides=[8, 8]),
        node("Squeeze", "e", "s", axes=[2]),
        node("Unsqueeze", "s", "u", axes=[2]),
        node("Flatten", "u", "y"),
    ]
    stored = [weights(5, 4, 3, 3), weights(2, 5, 3, 3)]
    file = model(nodes, dict(zip("wv", stored, strict=True)), IMAGE, opset=7)
    onnx.save(file, tmp_path / "m.onnx")
    network = read_onnx(tmp_path / "m.onnx", (9, 10, 4)).network
    x = torch.randn(3, *IMAGE)
    c = torch.nn.functional.conv2d(x, torch.from_numpy(stored[0]), padding=1)
    c = torch.nn.functional.pad(c.clamp(0, 6), (0, 2, 0, 1))
    c = torch.nn.functional.conv2d(c, torch.from_numpy(stored[1]), stride=8)
    torch.testing.assert_close(network(x), c.flatten(1))


def channels_last(*after: Any) -> list[Any]:
    """A convolution between transpositions, as tf2onnx writes it, then `after` on `t` (N, H, W, C)."""
    return [
        node("Transpose", "x", "f", perm=[0, 3, 1, 2]),
        node("Conv", "f w", "c", pads=[1, 1, 1, 1], strides=[3, 3]),
        node("Relu", "c", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 3, 1]),
        *after,
    ]


LAST = (9, 10, 4)


@pytest.mark.parametrize(
    "after",
    [
        [],
        [node("Reshape", "t s", "f2", allowzero=1), node("MatMul", "f2 m", "h"), node("Add", "h b", "y")],
        [node("Flatten", "t", "f2"), node("Gemm", "f2 m b", "y")],
        [node("Concat", "t t", "u", axis=3), node("Transpose", "u", "v", perm=[0, 3, 1, 2]), node("Conv", "v k", "y")],
        [node("Add", "t t", "u"), node("Clip", "u", "y")],
    ],
    ids=lambda nodes: nodes[0].op_type if nodes else "nothing",
)
def test_a_file_with_channels_last(after: list[Any], tmp_path: Path) -> None:
    stored = {
        "w": weights(6, 4, 3, 3),
        "s": ints(-1, 72),
        "m": weights(72, 5),
        "b": weights(5),
        "k": weights(3, 12, 1, 1),
    }
    check(model(channels_last(*after), stored, LAST), tmp_path / "m.onnx", LAST, LAST)


def test_as_many_channels_as_rows_and_columns(tmp_path: Path) -> None:
    """Only the file's transposition tells what its axes are."""
    nodes = [node("Transpose", "x", "f", perm=[0, 3, 1, 2]), node("Conv", "f w", "y")]
    check(model(nodes, {"w": weights(6, 4, 3, 3)}, (4, 4, 4)), tmp_path / "last.onnx", (4, 4, 4), (4, 4, 4))
    file = model([node("Conv", "x w", "y")], {"w": weights(6, 4, 3, 3)}, (4, 4, 4))
    onnx.save(file, tmp_path / "first.onnx")
    x = RNG.normal(size=(2, 4, 4, 4)).astype(np.float32)
    ours = read_onnx(tmp_path / "first.onnx", (4, 4, 4)).network(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(ours, expected(file, x), rtol=1e-4, atol=1e-5)


def test_a_series_as_an_image_of_one_channel(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x s", "f"), node("Conv", "f w", "y")]
    file = model(nodes, {"s": ints(-1, 1, 12, 5), "w": weights(6, 1, 3, 3)}, (12, 5, 1))
    check(file, tmp_path / "m.onnx", (12, 5, 1), (12, 5))


def test_series(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c", pads=[1, 2]), node("MaxPool", "c", "m", kernel_shape=[2], strides=[2])]
    file = model(
        [*nodes, node("GlobalAveragePool", "m", "g"), node("Flatten", "g", "y")], {"w": weights(6, 3, 4)}, (3, 16)
    )
    check(file, tmp_path / "m.onnx", (3, 16), (16, 3))


def test_vectors_of_an_image(tmp_path: Path) -> None:
    check(model([node("MatMul", "x w", "y")], {"w": weights(72, 5)}, (72,)), tmp_path / "m.onnx", (72,), (72,))
    imported = read_onnx(tmp_path / "m.onnx", (6, 4, 3))
    assert imported.sample_shape == (72,)


@pytest.mark.parametrize(
    ("name", "shape"), [("ds_cnn", (20, 10)), ("resnet8", (16, 16, 3)), ("inception_time", (32, 6)), ("mlp", (20,))]
)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = zoo.build(name, shape, 5).eval()
    x = torch.randn(4, network.sample_shape[-1], *network.sample_shape[:-1])
    torch.onnx.export(
        network, (x,), str(tmp_path / "m.onnx"), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
    )
    ours = read_onnx(tmp_path / "m.onnx", shape)
    with torch.no_grad():
        torch.testing.assert_close(ours.network(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_fixed_batch(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c", strides=[3, 3]), node("Reshape", "c s", "y")]
    file = model(nodes, {"w": weights(6, 4, 3, 3), "s": ints(1, 54)}, IMAGE, batch=1)
    onnx.save(file, tmp_path / "m.onnx")
    x = RNG.normal(size=(1, *IMAGE)).astype(np.float32)
    with torch.no_grad():
        ours = read_onnx(tmp_path / "m.onnx", (9, 10, 4)).network(torch.from_numpy(np.concatenate([x, x])))
    np.testing.assert_allclose(ours[1], expected(file, x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after", [[], [node("Identity", "p", "q")]], ids=["last", "behind it an identity"])
def test_a_final_softmax_is_left_out_and_said(after: list[Any], tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "h"), node("Softmax", "h", "p"), *after]
    file = model(nodes, {"w": weights(360, 7)}, IMAGE)
    check(file, tmp_path / "m.onnx", IMAGE, (9, 10, 4), logits=False)
    assert "Softmax 'the p'" in read_onnx(tmp_path / "m.onnx", (9, 10, 4)).notes[0]


def test_layers_have_the_names_of_nodes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="/stem/Conv"),
        helper.make_node("Relu", ["c"], ["r"], name="1st"),
        helper.make_node("Conv", ["r", "v"], ["y"], name="a" * 300),
    ]
    network = check(
        model(nodes, {"w": weights(6, 4, 3, 3), "v": weights(2, 6, 1, 1)}, IMAGE), tmp_path / "m.onnx", IMAGE, LAST
    )
    assert [name for name, _ in network.named_children()] == ["stem_Conv", "relu_1", "conv_2"]


SIGMOID = [node("Conv", "x w", "c"), node("Sigmoid", "c", "y")]
STORED = {"w": weights(6, 4, 3, 3), "b": weights(6, 1, 1), "many": weights(7, 8)}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (SIGMOID, "Sigmoid 'the y': has no integer form here. Supported: Add, "),
        (
            [node("Conv", "x w", "c"), node("Softmax", "c", "p"), node("Relu", "p", "y")],
            "Softmax 'the p': not at the end",
        ),
        ([node("Transpose", "x", "t", perm=[1, 0, 2, 3]), node("Conv", "t w", "y")], "samples must stay apart"),
        (
            [node("Transpose", "x", "t", perm=[0, 1, 3, 2]), node("Conv", "t w", "y")],
            "Conv 'the y': reads channels that",
        ),
        ([node("Reshape", "x many", "y")], "its shape are computed"),
        ([node("Reshape", "x s", "y")], "samples must stay apart"),
        ([node("Reshape", "x zero", "y", allowzero=1)], "an empty tensor"),
        ([node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Add", "r b", "y")], "Add 'the y': adds a constant"),
        ([node("Conv", "x w", "c"), node("Add", "c many", "y")], "adds a constant of (7, 8)"),
        ([node("Conv", "x w", "c"), node("Add", "x c", "y")], "that do not match"),
        ([node("Conv", "x x", "y")], "weights are constants"),
        ([node("Conv", "x many", "y")], "weights of (7, 8)"),
        ([node("Conv", "x w", "y", group=2)], "in 2 groups for 4 channels"),
        ([node("Conv", "x w", "y", strides=[0, 1])], "a window of other dimensions"),
        ([node("Conv", "x w", "y", pads=[0, 0, 70000, 0])], "too large"),
        ([node("Conv", "x w", "y", dilations=[9, 9])], "makes samples of"),
        ([node("MaxPool", "x", "y", kernel_shape=[2, 2], ceil_mode=1)], "ceil_mode=1"),
        ([node("MaxPool", "x", "y", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], "differ at the two ends"),
        ([node("AveragePool", "x", "y", kernel_shape=[2, 2], pads=[1, 1, 1, 1])], "leaves out the padding"),
        ([node("MatMul", "x many", "y")], "takes (N, features)"),
        ([node("Flatten", "x", "f"), node("MatMul", "f many", "y")], "for 360 features"),
        ([node("Clip", "x", "y"), node("Clip", "x one two", "z")], "which excludes 0"),
        ([node("Pad", "x one", "y")], "its pads are computed"),
        ([node("Flatten", "x", "y", axis=2)], "samples must stay apart"),
        ([node("Concat", "x x", "y", axis=9)], "axis 9"),
        ([node("Squeeze", "x ax", "y")], "Squeeze 'the y': axes [2]"),
        ([node("Cast", "x", "c", to=TensorProto.DOUBLE), node("Relu", "c", "y")], "Cast 'the c': has no integer form"),
        (
            [helper.make_node("Conv", ["x", "w"], ["y"], name="own", domain="mine")],
            "mine.Conv 'own': has no integer form",
        ),
    ],
)
def test_what_is_refused_is_named(nodes: list[Any], message: str, tmp_path: Path) -> None:
    stored = {
        **STORED,
        "one": np.float32(1),
        "two": np.float32(2),
        "s": ints(-1, 6, 3),
        "ax": ints(2),
        "zero": ints(0, -1),
        "huge": ints(2**20, 2**20),
    }
    file = model(nodes, stored, IMAGE)
    file.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError) as caught:
        read_onnx(tmp_path / "m.onnx", LAST)
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [("h", 9, 10), (), (4, 9, 10, 2), (70000, 1, 1)])
def test_inputs_that_are_no_samples(shape: tuple[Any, ...], tmp_path: Path) -> None:
    onnx.save(model([node("Relu", "x", "y")], {}, shape), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="input"):
        read_onnx(tmp_path / "m.onnx", LAST)


def test_two_inputs(tmp_path: Path) -> None:
    file = model([node("Add", "x z", "y")], {}, IMAGE)
    file.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", *IMAGE]))
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="2 inputs and 1 outputs"):
        read_onnx(tmp_path / "m.onnx", LAST)


def test_data_of_another_shape(tmp_path: Path) -> None:
    onnx.save(model(*CASES["conv"], IMAGE), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"takes samples of \(4, 9, 10\); the data has \(9, 10, 3\)"):
        read_onnx(tmp_path / "m.onnx", (9, 10, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    bad = weights(6, 4, 3, 3)
    bad[0, 1, 2, 0] = value
    onnx.save(model([node("Conv", "x w", "y")], {"w": bad}, IMAGE), tmp_path / "m.onnx")
    with pytest.raises(WeightsError, match="'w', read by Conv 'the y', holds NaN"):
        read_onnx(tmp_path / "m.onnx", LAST)


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    """As torch exports by default."""
    file = model(*CASES["conv"], IMAGE)
    x = RNG.normal(size=(2, *IMAGE)).astype(np.float32)
    wanted = expected(file, x)
    path = tmp_path / "m.onnx"
    onnx.save(file, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    imported = read_onnx(path, LAST)
    assert imported.files == (path, tmp_path / "w.bin")
    np.testing.assert_allclose(imported.network(torch.from_numpy(x)).detach(), wanted, rtol=1e-4, atol=1e-5)
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(WeightsError, match=r"w\.bin"):
        read_onnx(path, LAST)
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(WeightsError):
        read_onnx(path, LAST)


def test_weights_in_a_file_outside_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    onnx.save(
        model(*CASES["conv"], IMAGE), inside / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (inside / "w.bin").rename(tmp_path / "w.bin")
    file = onnx.load(inside / "m.onnx", load_external_data=False)
    for tensor in file.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../w.bin" if entry.key == "location" else entry.value
    (inside / "m.onnx").write_bytes(file.SerializeToString())
    with pytest.raises(WeightsError):
        read_onnx(inside / "m.onnx", LAST)


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'caq\[onnx\]'"):
        read_onnx(tmp_path / "m.onnx", LAST)


def test_damage_that_has_no_message_is_named_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff")

    def load(*_: object, **__: object) -> None:
        raise DecodeError("")

    monkeypatch.setattr(onnx, "load", load)
    with pytest.raises(WeightsError, match=r"m\.onnx: not a valid ONNX file: DecodeError$"):
        read_onnx(path, LAST)


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever the bytes say, the answer is a network or a CaqError."""
    path = tmp_path / "m.onnx"
    nodes, stored = CASES["constants that are computed"]
    good = model([*nodes, node("Relu", "y", "z")], stored, IMAGE).SerializeToString()
    rng = np.random.default_rng(1)
    refused = 0
    cases = [b"", b"\x00", b"no model", good[:-1], *(good[: int(n)] for n in rng.integers(0, len(good), 40))]
    for _ in range(160):
        damaged = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        cases.append(bytes(damaged))
    for case in cases:
        path.write_bytes(case)
        try:
            read_onnx(path, LAST)
        except CaqError:
            refused += 1
    assert refused > 60
    with pytest.raises(WeightsError, match="No such file"):
        read_onnx(tmp_path / "none.onnx", LAST)
