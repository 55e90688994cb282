"""Training in two processes of this machine: the weights of one, files written once, bad set-ups refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caq import artifact, data
from caq.cli import main
from caq.errors import ConfigError, TrainingError
from caq.supernet import convert, distributed
from caq.supernet.distributed import Processes, joined, processes
from caq.supernet.pipeline import prepare
from caq.supernet.train import Outputs, TrainConfig, train_float, train_supernet

QUIET = Outputs(quiet=True)


def run(*argv: object, count: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ARGV` in `count` processes that torchrun starts, or in one without it."""
    started = [sys.executable, "-m"]
    if count > 1:
        started += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    # The default of torchrun; what a thread computes may depend on how many there are.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*started, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tests.supernet.distributed_worker found: alone, then the first and the second of two processes."""
    found = []
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{count}")
        done = run("tests.supernet.distributed_worker", folder, count=count)
        assert done.returncode == 0, done.stderr
        found += [torch.load(folder / f"RESULT-{rank}.pt", weights_only=True) for rank in range(count)]
    return found


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_processes_with_half_the_batch_train_the_weights_of_one(results: list[dict[str, Any]]) -> None:
    one, first, second = (result["float64"] for result in results)
    assert furthest(first, second) == 0
    assert furthest(one, first) < 1e-10
    assert furthest(one, results[0]["whole"]) > 1e-9, "float64 was not trained in float64"
    # Over so few batches, float32 too.
    assert furthest(results[0]["whole"], results[1]["whole"]) < 1e-2


def test_processes_hold_the_same_weights_and_resume_to_them(results: list[dict[str, Any]]) -> None:
    _, first, second = results
    assert furthest(first["whole"], second["whole"]) == 0
    for result in results:
        assert furthest(result["whole"], result["resumed"]) == 0


def test_processes_train_the_same_points(results: list[dict[str, Any]]) -> None:
    one, first, second = (result["gated"] for result in results)
    assert furthest(first, second) == 0
    assert furthest(one, first) < 0.1, "another point was chosen, or others' batches"
    gammas = [value for name, value in first.items() if name.endswith("gamma")]
    assert all(len(gamma) == 4 and not any(torch.equal(gamma[3], width) for width in gamma[:3]) for gamma in gammas)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed by Linux's /proc")
def test_no_thread_outlives_the_group(results: list[dict[str, Any]]) -> None:
    """One that does now and then aborts the process at its end."""
    alone, *two = results
    assert alone["threads_within"] == []
    for result in two:
        assert result["threads_within"] and result["threads"] == []


def test_what_the_first_process_returns_all_get(results: list[dict[str, Any]]) -> None:
    assert [result["of_the_first"] for result in results] == [(0, 1), (0, 2), (0, 2)]


def test_what_differs_or_fails_in_one_process_ends_all(results: list[dict[str, Any]]) -> None:
    alone, first, second = results
    assert alone["disagreement"] == ""
    assert first["disagreement"] == second["disagreement"] == "the rank differs between processes: 0, 1"
    assert alone["failure"] == first["failure"] == "of the first process"
    assert second["failure"] == "the first process failed; its own message says why"


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = data.load("digits")
    path = tmp_path_factory.mktemp("digits") / "few.npz"
    np.savez(path, **{key: getattr(digits, key)[:100] for key in ("x_train", "y_train", "x_test", "y_test")})
    return path


def options(few_digits: Path, out: Path) -> list[object]:
    settings = ["--model", "mlp", "--epochs", 1, "--batch-size", 20, "--widths", "8,2", "--budgets", "a=0.5", "--json"]
    return ["caq", "train", "--data", few_digits, "--out", out, *settings]


def test_torchrun_trains_and_prints_once(few_digits: Path, tmp_path: Path) -> None:
    done = run(*options(few_digits, tmp_path / "x.caq"), "--checkpoint", tmp_path / "c.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    model = artifact.load(tmp_path / "x.caq")
    assert [p["score"] for p in json.loads(done.stdout)["points"]] == [p.score for p in model.points]
    assert model.provenance["processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pt", "x.caq"]


def test_only_the_first_process_writes(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def second() -> Any:
        yield Processes(1, 2)

    monkeypatch.setattr(distributed, "joined", second)
    monkeypatch.setattr("caq.supernet.pipeline.train_model", lambda *_: None)
    assert main([str(part) for part in options(few_digits, tmp_path / "x.caq")[1:]]) == 0
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_batches_that_processes_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 33 is not a multiple of 2"):
        Processes(0, 2).check(33, 1000)
    for batch_size, samples in ((4, 1000), (16, 3)):
        with pytest.raises(ConfigError, match="too small for 4 processes"):
            Processes(0, 4).check(batch_size, samples)
    Processes(0, 4).check(8, 4)
    Processes().check(33, 1)


def test_processes_that_did_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    given = prepare(replace(digits, x_train=digits.x_train[:64], y_train=digits.y_train[:64]), "mlp", 0)
    supernet = convert(given.network, given.example(), (2, 8))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"WORLD_SIZE is 2, but .* within caq\.supernet\.distributed\.joined"):
        train_supernet(supernet, given.train, TrainConfig(epochs=1), QUIET)
    with pytest.raises(TrainingError, match="WORLD_SIZE is 2"):
        train_float(given.network, given.train, TrainConfig(epochs=1), QUIET)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT not"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "cannot be connected"),
    ],
)
def test_incomplete_environments_are_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in distributed.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=message), joined():
        pass


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as team:
        assert team == processes() == Processes(0, 1) and team.first


def test_float_networks_train_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given = prepare(data.load("digits"), "mlp", 0)
    monkeypatch.setattr("caq.supernet.train.processes", lambda: Processes(0, 2))
    with pytest.raises(TrainingError, match="in one process, not in 2"):
        train_float(given.network, given.train, TrainConfig(epochs=1), QUIET)
