"""`caq cost`: what it prints is what the profile models."""

import pytest

from caq import artifact
from caq.costs import load_profile, profile_names


@pytest.mark.parametrize("name", profile_names())
def test_points_cost_what_the_profile_says(name, files, call):
    graph, profile = artifact.load(files.artifact).graph, load_profile(name)
    result = call("cost", files.artifact, "--profile", name, "--json").json
    assert result["modelled"] is True and result["profile"] == name
    points = {p.name: p for p in artifact.load(files.artifact).points}
    assert [p["point"] for p in result["points"]] == list(points)
    for found in result["points"]:
        cost = profile.cost(graph, points[found["point"]].assignment)
        assert {key: found[key] for key in cost._fields} == cost._asdict()
        assert found["widths"] == [str(pair) for pair in points[found["point"]].assignment]
    assert {s["kind"] for s in result["sources"].values()} <= {"measured", "fitted", "literature", "assumed"}


def test_layers_add_up_to_the_point(files, call):
    result = call("cost", files.artifact, "--profile", "bit-serial", "--layers", "mixed", "--json").json
    mixed = next(p for p in result["points"] if p["point"] == "mixed")
    for key in ("latency_s", "energy_j", "weight_bytes", "activation_bytes"):
        assert sum(layer[key] for layer in result["layers"]) == pytest.approx(mixed[key])


def test_text_says_that_it_is_modelled(files, call):
    text = call("cost", files.artifact, "--profile", "cortex-m7", "--layers", "w2a2").out
    assert "modelled, not measured" in text and "operations at w2a2 (modelled)" in text
    assert "latency ms" in text and "fitted" in text and "assumed" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--profile", "cortex-m5"), "no device profile 'cortex-m5'; did you mean"),
        (("--profile", "none.yaml"), "none.yaml: cannot be read"),
        (("--profile", "host", "--layers", "w4a5"), "no operating point 'w4a5'; did you mean 'w4a4'"),
    ],
)
def test_what_it_refuses(argv, message, files, call):
    called = call("cost", files.artifact, *argv)
    assert called.code == 1 and message in called.err and called.out == ""
