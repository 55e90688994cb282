"""caq search: points are added to the file, and a failure leaves the file as it was."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import caq
from caq.costs import affordable_cost, relative_cost

pytestmark = pytest.mark.usefixtures("files")


@pytest.fixture
def search(call, files, tmp_path):
    """Calls `caq search` on a copy of the artifact whose points were measured on as many samples as there are."""

    model = caq.load(files.artifact)
    path = tmp_path / "x.caq"
    caq.save(model.replace(points=tuple(p._replace(samples=40) for p in model.points)), path)

    def run(*argv):
        return call("search", path, "--data", files.data, "--samples", 24, "--steps", 5, *argv)

    run.path = path
    return run


def test_points_are_added_to_the_file(search, call, files):
    before = caq.load(search.path)
    found = search("--budget", "low=0.1,quick=0.3:latency@bit-serial", "--json")
    assert found.code == 0, found.err
    after = caq.load(search.path)
    assert after.points[:-2] == before.points and [p.name for p in after.points[-2:]] == ["low", "quick"]
    assert found.json["samples"] == 24 and found.json["measured"] > 5
    for point, said, (share, cost) in zip(
        after.points[-2:], found.json["searched"], ((0.1, ""), (0.3, "latency@bit-serial")), strict=True
    ):
        spent = relative_cost(after.graph, point.assignment, cost)
        assert said["point"] == point.name and said["cost"] == cost and said["relative_cost"] == pytest.approx(spent)
        assert spent <= affordable_cost(after.graph, share, cost) + 1e-9
        assert said["loss"] <= said["sensitivity_loss"]
    again = call("eval", search.path, "--data", files.data, "--point", "quick", "--json").json["points"][0]
    assert again["score"] == pytest.approx(after.points[-1].score, abs=1e-6)


def test_another_file_can_be_written(search, tmp_path):
    before = search.path.read_bytes()
    found = search("--budget", "low=0.1", "--out", tmp_path / "y.caq")
    assert found.code == 0 and "low" in found.out and "by sensitivities alone" in found.out
    assert search.path.read_bytes() == before and caq.load(tmp_path / "y.caq").points[-1].name == "low"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--budget", "w4a4=0.1"), "point 'w4a4' is there already; give the budget another name"),
        (("--budget", "low=0.1", "--domain", "1"), "20 test samples: the model's points were measured on 40"),
        (("--budget", "low=2"), "share from 0 to 1"),
        (("--budget", "low=0.1:butes"), "unknown cost 'butes'; did you mean 'bytes'?"),
        (("--budget", "low=0.1", "--out", "/nowhere/y.caq"), "no file can be written there"),
    ],
)
def test_a_failure_leaves_the_file(search, argv, message):
    before = search.path.read_bytes()
    found = search(*argv)
    assert found.code == 1 and message in found.err
    assert search.path.read_bytes() == before


def test_a_write_that_fails_leaves_the_file(search, monkeypatch):
    before = search.path.read_bytes()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    found = search("--budget", "low=0.1")
    assert found.code == 1 and "No space left" in found.err
    assert search.path.read_bytes() == before
    assert [p.name for p in search.path.parent.iterdir()] == [search.path.name]


def test_data_that_do_not_fit(search, files, tmp_path):
    other = tmp_path / "other.npz"
    shutil.copy(files.data, other)
    with np.load(files.data) as arrays:
        np.savez(other, **{**arrays, "x_train": arrays["x_train"][:, 1:], "x_test": arrays["x_test"][:, 1:]})
    found = search("--data", other, "--budget", "low=0.1")
    assert found.code == 1 and "the model was made for" in found.err
    assert search("--budget", "nonsense").code == 2
