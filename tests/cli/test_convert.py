"""convert, end to end on few samples."""

import numpy as np
import pytest

from caq import artifact, data

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits, the weights of a float network on them, and the same network as ONNX."""
    import torch

    from caq.supernet.pipeline import prepare
    from caq.supernet.train import Outputs, TrainConfig, train_float

    path = tmp_path_factory.mktemp("trained")
    digits = data.load("digits")
    parts = {key: getattr(digits, key)[:400] for key in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(path / "few.npz", **parts, domain_test=np.arange(360) % 4)
    few = data.load(path / "few.npz")
    prepared = prepare(few, "mlp", 0)
    train_float(Behind(prepared), prepared.train, TrainConfig(6, 32, 1e-2), Outputs(quiet=True))
    torch.save(prepared.network.eval().state_dict(), path / "w.pt")
    write_onnx(prepared.network, path / "m.onnx")
    return path


def Behind(prepared):
    import torch

    return torch.nn.Sequential(torch.nn.Flatten(), prepared.network)


def write_onnx(network, path):
    """The perceptron with its batch norms folded into its matrix products, as exporters write it."""
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from torch.nn.utils.fusion import fuse_linear_bn_eval

    first, norm, _, second, norm2, _, last = network.layers
    layers = [fuse_linear_bn_eval(first, norm), fuse_linear_bn_eval(second, norm2), last]
    nodes, stored, source = [], [], "x"
    for i, layer in enumerate(layers):
        with torch.no_grad():
            stored += [
                numpy_helper.from_array(layer.weight.numpy(), f"w{i}"),
                numpy_helper.from_array(layer.bias.numpy(), f"b{i}"),
            ]
        nodes.append(helper.make_node("Gemm", [source, f"w{i}", f"b{i}"], [f"h{i}"], name=f"dense{i}", transB=1))
        nodes.append(helper.make_node("Relu" if i < 2 else "Softmax", [f"h{i}"], [f"r{i}"], name=f"then{i}"))
        source = f"r{i}"
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    made = helper.make_tensor_value_info(source, TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "mlp", [given], [made], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def options(folder, out, *more):
    few = ("--widths", "8,4", "--budgets", "a=0.5", "--samples", 200)
    return "--data", folder / "few.npz", "--out", out, "--standardise", *few, *more


@pytest.mark.parametrize("source", [("m.onnx",), ("w.pt", "--model", "mlp")], ids=["onnx", "state_dict"])
def test_convert_writes_what_it_prints(source, folder, tmp_path, call):
    name, *which = source
    path = tmp_path / "x.caq"
    called = call("convert", folder / name, *which, *options(folder, path, "--json", "--threads", 1))
    assert called.code == 0, called.err
    found, model = called.json, artifact.load(path)
    assert [p["score"] for p in found["points"]] == [p.score for p in model.points]
    assert found["float_score"] > 0.85 and abs(found["float_score"] - found["points"][1]["score"]) < 0.02
    assert found["source_sha256"] == model.provenance["source_sha256"] and model.provenance["source"] == name
    assert ("left out Softmax 'then2'" in called.err) == (name == "m.onnx")
    scored = call("eval", path, "--data", folder / "few.npz", "--json").json["points"]
    assert [p["score"] for p in scored] == pytest.approx([p.score for p in model.points], abs=1e-6)


def test_both_sources_are_the_same_network(folder, tmp_path, call):
    results = [
        call("convert", folder / name, *which, *options(folder, tmp_path / "x.caq", "--json")).json
        for name, which in (("m.onnx", ()), ("w.pt", ("--model", "mlp")))
    ]
    assert results[0]["float_score"] == results[1]["float_score"]


def test_fine_tuning_on_a_domain_from_a_checkpoint(folder, tmp_path, call):
    path, checkpoint = tmp_path / "x.caq", tmp_path / "c.pt"
    more = ("--finetune-epochs", 1, "--checkpoint", checkpoint, "--domain", 3)
    argv = ["convert", folder / "m.onnx", *options(folder, path, *more)]
    called = call(*argv)
    assert called.code == 0 and "the float network has accuracy" in called.out
    first, model = path.read_bytes(), artifact.load(path)
    assert model.provenance["epochs"] == 1 and model.provenance["test_domain"] == 3
    assert {p.samples for p in model.points} == {90}
    assert call(*argv).code == 0 and path.read_bytes() == first and checkpoint.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--mean", "3"), "--standardise takes mean and deviation from the data"),
        (("--out", "none/x.caq"), "none: no file can be written there"),
        (("--model", "mlp"), "no state_dict that torch.load reads"),
        (("--model", "mpl"), "did you mean 'mlp'"),
        (("--module", "no.such:thing"), "No module named 'no'"),
        (("--task", "reconstruct"), "the network has 10 outputs, the data 64 values in a sample"),
        (("--widths", "1,8"), "1"),
        (("--budgets", "a=2"), "a budget is a name and a share"),
    ],
)
def test_convert_refuses_before_it_calibrates(change, message, folder, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("caq.supernet.trained.calibrate", lambda *_: pytest.fail("calibrated"))
    called = call("convert", folder / "m.onnx", *options(folder, "x.caq", *change))
    assert called.code == 1 and message in called.err and not list(tmp_path.iterdir())


def test_numbers_that_are_none(folder, tmp_path, call):
    for text in ("nan", "1,x", ""):
        called = call("convert", folder / "m.onnx", "--data", "digits", "--out", tmp_path / "x.caq", "--mean", text)
        assert called.code == 2 and "write it like 0.5" in called.err
    called = call("convert", folder / "m.onnx", "--data", folder / "few.npz", "--out", tmp_path / "x.caq", "--std", "0")
    assert called.code == 1 and "deviation (0.0,): one or 1 (a channel each) numbers above 0" in called.err
