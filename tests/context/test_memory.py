import pytest

from caq.context.memory import MemorySource, PressureSource, psutil_room
from tests.context.trees import plant

GIB = 1 << 30
MEMINFO = f"MemTotal: {8 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {4 * GIB // 1024} kB\nHugePages_Total: 0"


def sense(root):
    readings = MemorySource(root).read()
    return readings["available_bytes"].value, readings["memory_available"].value


def test_the_host_counts_where_nothing_limits(tmp_path):
    assert sense(plant(tmp_path, {"proc/meminfo": MEMINFO})) == (4 * GIB, 0.5)


def v2(folder, limit, current, inactive=0, high="max"):
    return {
        f"sys/fs/cgroup{folder}/memory.max": limit,
        f"sys/fs/cgroup{folder}/memory.high": high,
        f"sys/fs/cgroup{folder}/memory.current": current,
        f"sys/fs/cgroup{folder}/memory.stat": f"anon 5\ninactive_file {inactive}\nactive_file 77",
    }


def test_the_tightest_level_of_the_chain_binds(tmp_path):
    plant(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/app/worker"})
    plant(tmp_path, v2("/app/worker", "max", GIB))
    plant(tmp_path, v2("/app", 2 * GIB, int(1.5 * GIB)))
    plant(tmp_path, v2("", 3 * GIB, GIB))
    assert sense(tmp_path) == (GIB // 2, 0.25)


def test_the_level_with_the_least_room_binds_not_the_one_with_the_smallest_limit(tmp_path):
    plant(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/app/worker"})
    plant(tmp_path, v2("/app/worker", 2 * GIB, GIB // 2))
    plant(tmp_path, v2("/app", 4 * GIB, 3 * GIB))
    assert sense(tmp_path) == (GIB, 0.25)


def test_reclaimable_cache_is_available(tmp_path):
    plant(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/app"})
    plant(tmp_path, v2("/app", 2 * GIB, int(1.5 * GIB), inactive=GIB))
    assert sense(tmp_path) == (int(1.5 * GIB), 0.75)


def test_the_soft_limit_of_v2_binds_too(tmp_path):
    plant(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/app"})
    plant(tmp_path, v2("/app", 4 * GIB, GIB, high=2 * GIB))
    assert sense(tmp_path) == (GIB, 0.5)


def test_use_beyond_the_limit_leaves_nothing(tmp_path):
    plant(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/app"})
    plant(tmp_path, v2("/app", GIB, 2 * GIB))
    assert sense(tmp_path) == (0, 0.0)


@pytest.mark.parametrize("own", ["/docker/0123abcd", "/../outside"])
def test_inside_a_namespace_the_mount_is_the_top(tmp_path, own):
    plant(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": f"0::{own}"})
    plant(tmp_path, v2("", 2 * GIB, GIB))
    # What a path that climbs out of the mount would find.
    plant(tmp_path, {"sys/fs/outside/memory.max": 1, "sys/fs/outside/memory.current": 1})
    assert sense(tmp_path) == (GIB, 0.5)


def test_version_1(tmp_path):
    plant(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "4:cpu,memory:/app\n3:cpuset:/\n0::/"})
    base = "sys/fs/cgroup/memory"
    plant(tmp_path, {f"{base}/memory.limit_in_bytes": 9223372036854771712, f"{base}/memory.usage_in_bytes": 5})
    assert sense(tmp_path) == (4 * GIB, 0.5)
    plant(
        tmp_path,
        {
            f"{base}/app/memory.limit_in_bytes": 2 * GIB,
            f"{base}/app/memory.usage_in_bytes": 2 * GIB,
            f"{base}/app/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}",
        },
    )
    assert sense(tmp_path) == (GIB, 0.5)


def test_without_any_file_it_is_missing_unless_psutil_knows(tmp_path):
    readings = MemorySource(tmp_path).read()
    assert all(reading.value is None and reading.reason for reading in readings.values())
    assert MemorySource(tmp_path, psutil_room).read()["available_bytes"].value > 0


def test_pressure(tmp_path):
    lines = "some avg10=12.50 avg60=3.00 avg300=0.00 total=99\nfull avg10=50.00 avg60=0.00 avg300=0.00 total=9"
    plant(tmp_path, {"proc/pressure/memory": lines})
    assert PressureSource(tmp_path).read()["memory_pressure"].value == 0.125


@pytest.mark.parametrize("text", [None, "", "full avg10=1.00", "some avg10=much", "some total=3"])
def test_pressure_that_is_not_there(tmp_path, text):
    if text is not None:
        plant(tmp_path, {"proc/pressure/memory": text})
    reading = PressureSource(tmp_path).read()["memory_pressure"]
    assert reading.value is None
    assert reading.reason
