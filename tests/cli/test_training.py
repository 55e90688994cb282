"""train and demo, end to end on few samples."""

import subprocess
import sys

import numpy as np
import pytest

from caq import artifact, data
from caq.cli import demo

DAY = "t_s,state_of_charge,charging\n0,0.9,0\n60,0.4,0\n120,0.1,0\n180,0.15,1\n"


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    pytest.importorskip("torch")
    digits = data.load("digits")
    path = tmp_path_factory.mktemp("digits") / "few.npz"
    parts = {key: getattr(digits, key)[:100] for key in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(path, **parts, domain_test=np.arange(100) % 4)
    return path


def options(few_digits, out):
    return "--data", few_digits, "--model", "mlp", "--out", out, "--epochs", 1, "--widths", "8,2", "--budgets", "a=0.5"


def test_train_writes_what_it_prints(few_digits, tmp_path, call):
    path = tmp_path / "x.caq"
    called = call("train", *options(few_digits, path), "--threads", 1, "--json")
    model = artifact.load(path)
    assert [p.name for p in model.points] == ["a", "w8a8", "w2a2"] and model.graph.widths == (2, 8)
    found = called.json
    assert [p["score"] for p in found["points"]] == [p.score for p in model.points]
    assert found["points"][1]["bit_macs_share"] == 1.0 > found["points"][0]["bit_macs_share"]
    assert found["file_bytes"] == path.stat().st_size and model.provenance["epochs"] == 1
    scored = call("eval", path, "--data", few_digits, "--json").json["points"]
    assert [p["score"] for p in scored] == pytest.approx([p.score for p in model.points], abs=1e-6)


def test_train_learns_conditional_points(few_digits, tmp_path, call):
    path = tmp_path / "x.caq"
    called = call("train", *options(few_digits, path), "--conditional", "smart=0.6:bytes", "--json")
    assert called.code == 0, called.err
    point = artifact.load(path).points[1]
    assert point.name == "smart" and sum(b.taken for b in point.branches) == point.samples == 100
    assert len(called.json["points"][1]["gate"]["branches"]) == len(point.branches)
    scored = call("eval", path, "--data", few_digits, "--point", "smart", "--json").json["points"][0]
    assert scored["score"] == pytest.approx(point.score) and scored["bit_macs"] == point.cost.bit_macs


def test_train_on_a_domain_from_a_checkpoint(few_digits, tmp_path, call):
    checkpoint, path = tmp_path / "c.pt", tmp_path / "x.caq"
    argv = ["train", *options(few_digits, path), "--domain", 3, "--checkpoint", checkpoint]
    text = call(*argv)
    assert text.code == 0 and "gates, each layer's widths chosen for a budget: a; one width" in text.out
    first = path.read_bytes()
    model = artifact.load(path)
    assert model.provenance["test_domain"] == 3 and {p.samples for p in model.points} == {25}
    assert model.provenance["data_sha256"] == data.load(few_digits).sha256
    assert call(*argv).code == 0 and path.read_bytes() == first
    other = call(*argv, "--seed", 5)
    assert other.code == 1 and "is of another model" in other.err and "TrainConfig(" not in other.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model", "resnet9"), "did you mean 'resnet8'"),
        (("--conditional", "a=0.3"), "a would name two operating points"),
        (("--conditional", "b=0.001"), "and the gate 0.0188; give a larger share"),
        (("--conditional", "b=2"), "a share from 0 to 1"),
        (("--out", "none/x.caq"), "none: no file can be written there"),
        (("--out", "."), "is a folder"),
        (("--data", "none.npz"), "no such file"),
        (("--domain", "9"), "known: [0, 1, 2, 3]"),
        (("--budgets", "a=2"), "a budget is a name and a share"),
        (("--budgets", "a=0.5:byte"), "did you mean 'bytes'"),
        (("--budgets", "a=0.5:latency@cortex-m8"), "no device profile 'cortex-m8'; did you mean 'cortex-m"),
        (("--budgets", "a=0.5:latency@cortex-m7"), "narrower widths save next to nothing"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--rotation", "200"), "rotation: 0 to 180 degrees"),
        (("--masking", "2"), "masking: a share between 0 and 1"),
        (("--widths", "1,8"), "1"),
    ],
)
def test_train_refuses_before_it_trains(change, message, few_digits, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("caq.supernet.pipeline.train_gated", lambda *_: pytest.fail("trained"))
    called = call("train", *options(few_digits, "x.caq"), *change)
    assert called.code == 1 and message in called.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [("train", "--data", "{data}", "--model", "mlp", "--out", "x.caq"), ("demo",)])
def test_without_torch_the_extra_is_named(argv, few_digits, tmp_path):
    argv = [part.format(data=few_digits) for part in argv]
    code = "import sys; sys.modules['torch'] = None; from caq.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "pip install 'caq[train]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_rolling_accuracy_begins_when_its_window_is_full(monkeypatch):
    monkeypatch.setattr(demo, "WINDOW", 2)
    right = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool)
    assert demo._rolling(right)[1:].tolist() == [0.75, 0.25, 0.5] and np.isnan(demo._rolling(right)[0])


def test_shares_are_of_time_and_not_of_rows():
    shares = demo._shares(np.array([0.0, 10, 100, 110]), ["full", "saver", "full", "full"])
    assert list(shares.items()) == [("saver", 0.75), ("full", 0.25)]


@pytest.fixture
def quick_demo(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("caq.cli.demo.MODEL", "mlp")


def test_demo_over_a_recording(quick_demo, tmp_path, call):
    trace, out = tmp_path / "few.csv", tmp_path / "demo"
    trace.write_text(DAY)
    found = call("demo", "--out", out, "--trace", trace, "--epochs", 1, "--json").json
    points = {p["point"]: p for p in found["points"]}
    adaptive, eight, two = found["strategies"]
    assert [s["to"] for s in found["switches"]] == ["balanced", "saver", "full"] and adaptive["switches"] == 3
    assert adaptive["time_shares"] == {"full": 0.5, "balanced": 0.25, "saver": 0.25}
    expected = sum(points[name]["bit_macs"] for name in ("full", "balanced", "saver", "full")) / 4
    assert adaptive["bit_macs_mean"] == expected and eight["bit_macs_share"] == 1.0
    assert two["bit_macs_mean"] == points["w2a2"]["bit_macs"] and two["weight_bytes_share"] == pytest.approx(0.25, 0.01)
    assert [s["inferences"] for s in found["strategies"]] == [16, 16, 16] and not found["trace_generated"]
    page = (out / "report.html").read_text()
    assert all(
        note in page for note in ("few.csv, a recording", "own draw does not move them", "no measurement of energy")
    )
    assert artifact.load(out / "digits.caq").points[0].score == found["points"][0]["score"]


def test_demo_says_that_a_trace_has_nothing_for_the_policy(quick_demo, tmp_path, call):
    trace, out = tmp_path / "bright.csv", tmp_path / "demo"
    trace.write_text("t_s,screen_brightness\n0,0.5\n60,0.6\n")
    called = call("demo", "--out", out, "--trace", trace, "--epochs", 1)
    note = "the recording has none of the fields that the policy reads"
    assert note in called.out and note in (out / "report.html").read_text()


def test_demo_of_a_generated_day(quick_demo, tmp_path, call):
    called = call("demo", "--out", tmp_path / "new" / "demo", "--epochs", 1, "--seed", 3)
    assert called.code == 0, called.err
    folder = tmp_path / "new" / "demo"
    assert {path.name for path in folder.iterdir()} == {"day.csv", "digits.caq", "report.html"}
    assert (folder / "day.csv").read_text().startswith("# generated: true\n# seed: 3\n")
    assert "is generated" in called.out and "energy" in called.out and "5760" in called.out


def test_demo_refuses_a_folder_that_is_a_file_and_a_wrong_trace(quick_demo, tmp_path, call, monkeypatch):
    monkeypatch.setattr("caq.supernet.pipeline.train_gated", lambda *_: pytest.fail("trained"))
    file = tmp_path / "file"
    file.write_text("t_s,charge\n0,1\n")
    assert "file: File exists" in call("demo", "--out", file).err
    called = call("demo", "--out", tmp_path / "demo", "--trace", file, "--json")
    assert called.code == 1 and called.json["error"]["type"] == "TraceError"
