"""Fleets: the same figures wherever chunks are worked off, and after an interruption."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest

from caq.errors import CaqError, ConfigError
from simulators.device import PROFILES
from simulators.envs.scenario import scenario
from simulators.episodes import episodes
from simulators.fleet import METRICS, Folder, Grid, Profile, digest, read_grid, run_fleet, run_task, summarise
from simulators.workers import processes, ray_cluster

CAMERA = Profile("camera", "camera", "camera")
GRID = Grid("a test", ("first", "last", "by charge"), (CAMERA,), (0, 3), devices=5, chunk=2, step_s=3600.0)


def make(name, given):
    """Choosers for tests; a function of a module, as workers need it."""
    last = len(given.costs) - 1
    if name == "by charge":
        return lambda world, active: np.where(world.state.battery.state_of_charge > 0.5, 0, last).astype(np.intp)
    return lambda world, active: np.full(len(active.points), 0 if name == "first" else last, np.intp)


def slow(name, given):
    time.sleep(0.3)
    return make(name, given)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_fleet(GRID, Folder(tmp_path_factory.mktemp("alone"), GRID), make, processes(1))


@pytest.mark.parametrize("workers", [2, 4])
def test_the_same_with_any_number_of_workers(workers, results, tmp_path):
    found = run_fleet(GRID, Folder(tmp_path, GRID), make, processes(workers))
    assert digest(found) == digest(results)
    for one, other in zip(found, results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_device_is_the_same_in_any_chunk(results):
    whole = replace(GRID, chunk=5)
    alone = np.concatenate([run_task(whole, task, make) for task in whole.tasks()], axis=2)
    np.testing.assert_array_equal(alone, np.concatenate(results, axis=2))


def test_figures_are_those_of_the_environment(results):
    """A step at a time through the one-device environment."""
    from simulators.envs import BatteryTraceEnv

    days = episodes(5, 0, 3600.0, requests_per_s=30.0)
    given = scenario("camera", "camera", days=days)
    env = BatteryTraceEnv(given)
    first = dict(zip(METRICS, results[0][1], strict=True))
    child = np.random.SeedSequence(0, spawn_key=(1,)).spawn(5)[4]
    charge = np.random.default_rng(child).uniform(0.5, 1.0)
    env.reset(options={"day": 1, "state_of_charge": charge})
    reward, served = 0.0, 0.0
    for _ in range(24):
        _, gain, _, _, info = env.step(len(given.costs) - 1)
        reward, served = reward + gain, served + info["caq/served"]
    assert first["reward"][1] == pytest.approx(reward, rel=1e-4)
    assert first["served"][1] == pytest.approx(served, rel=1e-4)
    assert first["state_of_charge"][1] == pytest.approx(env.state.battery.state_of_charge, abs=1e-4)


def test_what_is_finished_is_not_done_again(results, tmp_path):
    def interrupted(grid, tasks, make):
        for done, pair in enumerate(processes(1)(grid, tasks, make)):
            if done == 3:
                raise KeyboardInterrupt
            yield pair

    with pytest.raises(KeyboardInterrupt):
        run_fleet(GRID, Folder(tmp_path, GRID), make, interrupted)
    asked = []

    def rest(grid, tasks, make):
        asked.extend(tasks)
        return processes(1)(grid, tasks, make)

    found = run_fleet(GRID, Folder(tmp_path, GRID), make, rest)
    assert asked == GRID.tasks()[3:]
    assert digest(found) == digest(results)
    assert not list(tmp_path.glob("*.tmp"))


def test_folders_of_other_grids_and_damage(results, tmp_path):
    folder, task = Folder(tmp_path, GRID), GRID.tasks()[0]
    folder.save(task, results[0])
    with pytest.raises(ConfigError, match="results of another grid"):
        Folder(tmp_path, replace(GRID, devices=6))
    (tmp_path / "points.yaml").write_text((PROFILES / "points" / "camera.yaml").read_text())
    own = replace(GRID, profiles=(CAMERA._replace(points=str(tmp_path / "points.yaml")),))
    before = own.fingerprint
    (tmp_path / "points.yaml").write_text((tmp_path / "points.yaml").read_text().replace("0.7578", "0.7577"))
    assert own.fingerprint != before
    path = tmp_path / "camera-0-0.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"camera-0-0\.npz: is damaged, remove it"):
        folder.load(task)
    folder.save(task, results[0][:1])
    with pytest.raises(ConfigError, match=r"camera-0-0\.npz: holds"):
        folder.load(task)
    (tmp_path / "grid.json").unlink()
    with pytest.raises(ConfigError, match=r"grid\.json: cannot be read"):
        Folder(tmp_path, GRID)


def test_summary(results):
    rows = summarise(GRID, results)
    assert [row["policy"] for row in rows] == ["first", "last", "by charge"]
    table = np.concatenate(results, axis=2)
    for at, row in enumerate(rows):
        m = dict(zip(METRICS, table[at], strict=True))
        assert row["devices"] == 10 and row["accuracy"] == pytest.approx(m["right"].sum() / m["served"].sum())
        assert row["lasted"] == np.isnan(m["lifetime_s"]).mean()
        assert row["served"] + row["dropped"] == pytest.approx(1, abs=0.01)
    assert rows[0]["accuracy"] == pytest.approx(0.7578, abs=1e-4)
    assert rows[1]["energy_j"] < rows[2]["energy_j"] < rows[0]["energy_j"]


GOOD = """
title: two
policies: ['fixed:full', threshold]
profiles:
- {name: camera, device: camera, points: camera}
seeds: [0]
devices: 10
"""


def test_reads_a_grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GOOD)
    grid = read_grid(path)
    assert grid == Grid("two", ("fixed:full", "threshold"), (CAMERA,), (0,), 10)
    assert [task.devices for task in replace(grid, chunk=4).tasks()] == [4, 4, 2]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("devices: 10", "devices: 0", "devices: must be a whole number from 1"),
        ("devices: 10", "devises: 10", "unknown key 'devises'; did you mean 'devices'"),
        ("seeds: [0]", "seeds: [0, 0]", "seeds: at least one, each once"),
        ("seeds: [0]", "seeds: [1.5]", r"seeds\[0\]: must be a whole number"),
        ("name: camera", "name: ../x", r"profiles\[0\]\.name: letters"),
        (", threshold", ", 3", r"policies\[1\]: must be a text"),
    ],
)
def test_bad_grids(tmp_path, old, new, words):
    path = tmp_path / "grid.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=rf"grid\.yaml: .*{words}"):
        read_grid(path)


def dies(name, given):
    os._exit(1)


def test_a_worker_that_dies(tmp_path):
    with pytest.raises(CaqError, match="a worker process died"):
        run_fleet(GRID, Folder(tmp_path, GRID), dies, processes(2))


def test_workers_must_be_some():
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        processes(0)


def alive(ray):
    return sum(node["Alive"] for node in ray.nodes())


def test_a_ray_cluster_that_loses_a_node(tmp_path, results):
    """Two nodes of one CPU each; one is killed after the first chunk, and its work is done by the other."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'caq[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        assert alive(ray) == 2
        killed = []

        def advance(name):
            if not killed:
                cluster.remove_node(other, allow_graceful=False)
                killed.append(name)

        found = run_fleet(GRID, Folder(tmp_path, GRID), slow, ray_cluster(None), advance)
        assert killed
        until_s = time.monotonic() + 90  # the cluster takes a while to believe it
        while alive(ray) > 1 and time.monotonic() < until_s:
            time.sleep(0.5)
        assert alive(ray) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert digest(found) == digest(results)
