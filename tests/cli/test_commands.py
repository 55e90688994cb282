"""eval, info, run and doctor: are the figures right?"""

import time

import numpy as np
import pytest

from caq import artifact, program
from caq.cli import doctor
from caq.cli.output import Output
from caq.cli.points import explain_points
from caq.costs import load_profile
from caq.engine import Engine
from caq.graph import parse_assignment
from tests import models
from tests.conditional_models import with_gate


@pytest.fixture
def engine(files):
    return Engine(files.artifact)


def eval_json(call, files, *options):
    return call("eval", files.artifact, "--data", files.data, "--json", *options).json


def accuracy(engine, files, plan, rows=slice(None)):
    data = np.load(files.data)
    return float((engine.run_plan(plan, data["x_test"][rows]).argmax(1) == data["y_test"][rows]).mean())


def test_eval_measures_every_point(engine, files, call):
    result = eval_json(call, files)
    assert [p["point"] for p in result["points"]] == list(engine.points)
    for found in result["points"]:
        point = engine.points[found["point"]]
        assert found["score"] == accuracy(engine, files, engine.build(point.assignment, point.parameter_set))
        assert tuple(parse_assignment(",".join(found["widths"]))) == point.assignment
        assert (found["samples"], found["bit_macs"]) == (40, point.cost.bit_macs)
    scores = {p["point"]: p["score"] for p in result["points"]}
    assert scores["w8a8"] == 1.0 > scores["w2a2"]
    assert result["layers"] == [layer.name for layer in engine.model.graph.layers]


def test_eval_of_one_point_other_widths_and_an_assignment(engine, files, call):
    [point] = eval_json(call, files, "--point", "mixed")["points"]
    assert point["point"] == "mixed"
    [uniform] = eval_json(call, files, "--widths", "4")["points"]
    assert uniform["score"] == accuracy(engine, files, engine.build(engine.model.graph.uniform(4)))
    text = ",".join(uniform["widths"])
    [given] = eval_json(call, files, "--assignment", text)["points"]
    assert (given["score"], given["widths"]) == (uniform["score"], uniform["widths"])
    assert given["widths"][0] == "w4a8" and set(given["widths"][1:]) == {"w4a4"}


def test_eval_of_a_domain_of_few_samples_and_of_narrow_weights(engine, files, call):
    plan = engine.build(engine.points["w2a2"].assignment)
    [odd] = eval_json(call, files, "--point", "w2a2", "--domain", "1")["points"]
    assert (odd["samples"], odd["score"]) == (20, accuracy(engine, files, plan, slice(1, None, 2)))
    [few] = eval_json(call, files, "--point", "w2a2", "--samples", "2")["points"]
    assert (few["samples"], few["score"]) == (2, accuracy(engine, files, plan, [0, 39]))
    narrow = eval_json(call, files, "--max-width", "4")
    names = {p["point"] for p in narrow["points"]}
    assert {"w2a2", "w4a4"} <= names and "w8a8" not in names


def test_eval_warns_of_labels_in_another_order(files, call, caplog):
    data = dict(np.load(files.data))
    path = files.folder / "swapped.npz"
    np.savez(path, **{**data, "label_names": data["label_names"][::-1]})
    assert call("eval", files.artifact, "--data", path).code == 0
    assert "are not those of the model" in caplog.text


def test_info(files, call):
    found = call("info", files.artifact, "--json").json
    model = artifact.load(files.artifact)
    sizes = found["sizes"]
    assert sizes["file_bytes"] == files.artifact.stat().st_size == sizes["read_bytes_by_width"]["8"]
    assert sizes["weight_code_bytes"] == sum(np.prod(layer["weight_shape"]) for layer in found["layers"])
    p, s = model.parameters, model.scaling
    arrays = [p.gain, p.bias, p.gain_exponent, p.bias_exponent, p.steps, p.ratios, *[s.offset] * 3]
    assert sizes["parameter_bytes"] == sum(a.nbytes for a in arrays)
    ratio = sizes["file_bytes"] / (sizes["weight_code_bytes"] + sizes["parameter_bytes"])
    assert sizes["file_over_codes_and_parameters"] == pytest.approx(ratio)
    # Six planes more of 8-bit weights than of 2-bit ones, to the byte.
    assert sizes["read_bytes_by_width"]["8"] - sizes["read_bytes_by_width"]["2"] == 6 * model.graph.plane_bytes
    assert found["input"] == {"shape": list(model.sample_shape), "dtype": "uint8"}
    assert found["provenance"] == {"seed": 1, "note": "random"} and len(found["labels"]) == 3
    assert [p["score"] for p in found["points"]] == [p.score for p in model.points]
    assert found["layers"][0]["activation_bits"] == [8] and found["layers"][0]["weight_bits"][0] == 2
    text = call("info", files.artifact).out
    assert f"{sizes['file_bytes']}\n" in text and "2,4,8" in text and "class 0, class 1, class 2" in text
    line = (
        "gates, each layer's widths chosen for a budget: mixed; "
        "one width everywhere (the input always has 8 bits): w2a2, w4a4, w8a8"
    )
    assert line in text.splitlines()


def test_points_that_are_neither_gates_nor_uniform_are_not_explained(engine, capsys):
    graph, mixed = engine.model.graph, engine.points["mixed"]._replace(parameter_set=None)
    explain_points(Output(False), graph, [mixed])
    assert capsys.readouterr().out == ""
    explain_points(Output(False), graph, [mixed, engine.points["w2a2"]])
    assert capsys.readouterr().out == "one width everywhere (the input always has 8 bits): w2a2\n"


def run_json(call, files, *options):
    return call("run", files.artifact, "--data", files.data, "--json", *options)


def test_run_of_a_trace(engine, files, call):
    called = run_json(call, files, "--trace", files.trace, "--per-row", "3")
    found = called.json
    by_cost = sorted(engine.points.values(), key=lambda p: p.cost.bit_macs)
    least, middle, most = by_cost[0].name, by_cost[len(by_cost) // 2].name, by_cost[-1].name
    route = [(60.0, most, middle), (120.0, middle, least), (180.0, least, most)]
    first = [] if next(iter(engine.points)) == most else [(0.0, next(iter(engine.points)), most)]
    assert [(s["time_s"], s["from"], s["to"]) for s in found["switches"]] == first + route
    assert "state_of_charge 0.1 is below 0.2" in called.err and "charging is true" in found["switches"][-1]["reason"]
    assert {p["point"]: p["inferences"] for p in found["points"]} == {least: 3, middle: 3, most: 6}
    assert found["inferences"] == 12 and found["policy_failures"] == []
    right = sum(round(p["accuracy"] * p["inferences"]) for p in found["points"])
    assert found["accuracy"] == pytest.approx(right / 12)
    for p in found["points"]:
        assert p["widths"] == [str(pair) for pair in engine.points[p["point"]].assignment]


@pytest.mark.parametrize(
    ("options", "inferences"),
    [((), 4), (("--period", "30"), 7), (("--seconds", "100"), 2), (("--period", "10", "--seconds", "30"), 3)],
)
def test_run_of_a_trace_decides_at_rows_or_periods(options, inferences, files, call):
    assert run_json(call, files, "--trace", files.trace, *options).json["inferences"] == inferences


def test_run_of_a_trace_at_a_speed(files, call):
    start_s = time.monotonic()
    run_json(call, files, "--trace", files.trace, "--speed", "900")
    assert time.monotonic() - start_s >= 180 / 900


def test_run_at_a_fixed_point(files, call):
    found = run_json(call, files, "--trace", files.trace, "--policy", "w8a8").json
    assert found["accuracy"] == 1.0 and [p["point"] for p in found["points"]] == ["w8a8"]
    assert found["switches"] == []


def test_run_by_rules(files, call):
    path = files.folder / "rules.yaml"
    path.write_text("rules:\n- point: w2a2\n  when: {state_of_charge: {below: 0.5}}\notherwise: w8a8\n")
    found = run_json(call, files, "--trace", files.trace, "--policy", path).json
    assert {p["point"]: p["inferences"] for p in found["points"]} == {"w2a2": 3, "w8a8": 1}
    assert found["switches"][-1]["reason"].startswith("rule 1: state_of_charge 0.4 is below 0.5")


def test_run_says_that_a_trace_has_nothing_for_the_policy(files, call, caplog):
    path = files.folder / "bright.csv"
    path.write_text("t_s,screen_brightness\n0,0.5\n60,0.6\n")
    note = "the recording has none of the fields that the policy reads: it has screen_brightness, the policy reads temp"
    argv = ("run", files.artifact, "--data", files.data, "--trace", path)
    assert note in call(*argv).out and caplog.text.count(note) == 1
    [found] = call(*argv, "--json").json["notes"]
    assert found.startswith(note)
    for other in (call(*argv[:-1], files.trace, "--json"), call(*argv, "--policy", "w8a8", "--json")):
        assert other.json["notes"] == []


def test_live_run(files, call):
    found = run_json(call, files, "--samples", "5", "--policy", "w4a4").json
    assert (found["context"], found["inferences"], found["samples"]) == ("live", 5, 5)
    longer = run_json(call, files, "--samples", "1", "--seconds", "0.5", "--period", "0.1").json
    assert longer["inferences"] > 5 and longer["samples"] == 1
    # The first decision knows this machine already: no reading is still to come.
    assert "no value yet" not in str(longer["switches"])
    assert all(0 <= switch["time_s"] < 30 for switch in longer["switches"])


def test_doctor(files, call, monkeypatch):
    found = call("doctor", "--json").json
    assert {"state_of_charge", "temperature_c", "memory_available"} <= {row["field"] for row in found["context"]}
    assert all(row["reason"] for row in found["context"] if row["value"] is None)
    assert found["numpy"] == np.__version__
    monkeypatch.setattr("caq.cli.doctor.EXTRAS", {"no-such-package": "sim", "numpy": "train"})
    extras = call("doctor", "--json").json["extras"]
    assert extras[0] == {"package": "no-such-package", "version": None, "install": "pip install 'caq[sim]'"}
    assert extras[1]["version"] == np.__version__
    assert "pip install 'caq[sim]'" in call("doctor").out


def test_doctor_says_which_instruction_set_runs_and_why(call, monkeypatch):
    monkeypatch.delenv("CAQ_ISA", raising=False)
    sets = {row["name"]: row for row in call("doctor", "--json").json["instruction_sets"]}
    assert {name: row["reason"] for name, row in sets.items()} == program.isa_names()
    runs = [name for name, row in sets.items() if row["runs"]]
    assert "portable" in runs and all(row["runs"] == (not row["reason"]) for row in sets.values())

    def engine():
        return call("doctor", "--json").json["engine"]

    assert engine() == f"native kernels, {runs[-1]}: the best that runs here"
    monkeypatch.setenv("CAQ_ISA", "portable")
    assert engine() == "native kernels, portable: CAQ_ISA asks for it"
    monkeypatch.setenv("CAQ_ISA", "sse9")
    assert "CAQ_ISA=sse9 is set" in engine() and "choose one of portable" in engine() and "unset it" in engine()
    assert "CAQ_ISA=sse9 is set" in call("doctor").out


def test_doctor_names_what_the_cpu_lacks(call, monkeypatch):
    sets = {"portable": "", "avx2": "", "avx512vnni": program.CPU_LACKS, "neon": program.NOT_BUILT}
    monkeypatch.setattr(program, "isa_names", lambda: sets)
    features = {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
    monkeypatch.setattr(doctor, "cpu_features", lambda: features)
    monkeypatch.setenv("CAQ_ISA", "avx512vnni")
    found = call("doctor", "--json").json
    lacks = {row["name"]: row["lacks"] for row in found["instruction_sets"]}
    assert lacks == {"portable": [], "avx2": [], "avx512vnni": ["avx512vbmi", "avx512_vnni"], "neon": []}
    assert f"{program.CPU_LACKS}; choose one of portable, avx2" in found["engine"]
    assert f"{program.CPU_LACKS}: avx512vbmi, avx512_vnni\n" in call("doctor").out
    features.clear()  # /proc/cpuinfo cannot be read
    assert all(row["lacks"] == [] for row in call("doctor", "--json").json["instruction_sets"])


def test_features_of_instruction_sets_that_run_here():
    names = program.isa_names()
    assert set(doctor.FEATURES) == set(names) - {"portable"}
    found = doctor.cpu_features()
    for name in (name for name, reason in names.items() if not reason and name not in ("portable", "neon")):
        assert found.issuperset(doctor.FEATURES[name])


@pytest.mark.parametrize("key", ["flags\t\t", "Features\t"])
def test_cpu_features(key, tmp_path):
    assert doctor.cpu_features(tmp_path) == set()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nvmx flags\t: no\n{key}: a b\n\nprocessor\t: 1\n{key}: c\n")
    assert doctor.cpu_features(tmp_path) == {"a", "b"}


@pytest.fixture
def gated(tmp_path):
    """An artifact with a conditional point, and data that fit it."""
    model = with_gate(models.model(0), 0, 3)
    x = models.samples(model, 40)
    y = Engine(model).run(x).argmax(1)
    artifact.save(model, tmp_path / "gated.caq")
    np.savez(tmp_path / "gated.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return model, tmp_path / "gated.caq", tmp_path / "gated.npz"


def test_a_conditional_point_is_shown_with_its_branches(gated, call):
    model, path, _ = gated
    point = model.points[-1]
    found = call("info", path, "--json").json["points"][-1]
    assert found["weight_bytes"] == point.cost.weight_bytes and found["bit_macs"] == point.cost.bit_macs
    branches = found["gate"]["branches"]
    assert [b["share"] for b in branches] == list(point.shares) and sum(point.shares) == pytest.approx(1)
    assert [b["widths"] for b in branches] == [[str(pair) for pair in b.assignment] for b in point.branches]
    mean = sum(b["share"] * b["bit_macs"] for b in branches) + found["gate"]["bit_macs"]
    assert abs(mean - found["bit_macs"]) <= 1
    text = call("info", path).out
    assert "conditional gates, each inference takes one of the branches: conditional" in text
    assert all(f"  branch {i} " in text for i in range(3))


def test_eval_measures_how_often_branches_are_taken(gated, call):
    model, path, data = gated
    found = call("eval", path, "--data", data, "--point", "conditional", "--json").json["points"][0]
    engine = Engine(model)
    x = models.samples(model, 40)
    outputs, taken = engine.run_routed(x, engine.build_point("conditional"))
    assert [b["share"] for b in found["gate"]["branches"]] == [float((taken == i).mean()) for i in range(3)]
    assert found["score"] == float((outputs.argmax(1) == engine.run(x).argmax(1)).mean())


def test_run_serves_a_conditional_point(gated, call):
    _, path, data = gated
    found = call("run", path, "--data", data, "--policy", "conditional", "--json")
    assert found.code == 0 and len(found.json["points"][0]["gate"]["branches"]) == 3


def test_cost_is_a_mean_over_branches(gated, call):
    model, path, _ = gated
    point = model.points[-1]
    found = call("cost", path, "--profile", "bit-serial", "--layers", "conditional", "--json").json
    profile = load_profile("bit-serial")
    costs = [profile.cost(model.graph, b.assignment).latency_s for b in point.branches]
    mean = sum(share * cost for share, cost in zip(point.shares, costs, strict=True))
    gates = [layer for layer in found["layers"] if layer["name"] == "gate"]
    assert [layer["branch"] for layer in gates] == [0, 1, 2] and gates[0]["latency_s"] > 0
    assert found["points"][-1]["latency_s"] == pytest.approx(mean + gates[0]["latency_s"])
