"""A Raspberry Pi 4: two published rows, and measured power.

Latency: INT8 networks on four threads of a BCM2711 (ARM64), from the README of google/XNNPACK ("Benchmarked on Feb 8,
2022 with end2end-bench"). Two rows fit two prices without an error to report, so what is reported is how far each
network is from the other's time per MAC.

Power: of a whole board with one to four busy cores, W, in `thermal_power_tiansuan/thermal_power.npz` (arrays
pi_ground1_1 to _4; Xing et al., "Deciphering the Enigma of Satellite Computing with COTS Devices", MobiCom 2024).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.costs.fit import Row
from benchmarks.costs.mlperf import counts, graph_of
from benchmarks.models_onnx import mobilenet_v2
from caq.costs import Profile
from caq.supernet import zoo

POWER = Path("thermal_power_tiansuan") / "thermal_power.npz"
#: Seconds of MobileNet v1 and v2 1.0 at 224 x 224.
XNNPACK = {"MobileNet v1": 0.024, "MobileNet v2": 0.017}
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def rows(profile: Profile) -> list[Row]:
    """The published networks with their counts."""
    shape = (224, 224, 3)
    networks = {
        "MobileNet v1": zoo.DepthwiseSeparable(shape, 1000, (32, (3, 3), 2), _V1),
        "MobileNet v2": mobilenet_v2(1000),
    }
    return [
        Row("Raspberry Pi 4", name, counts(profile, graph_of(network, shape)), XNNPACK[name])
        for name, network in networks.items()
    ]


def power(path: Path) -> tuple[float, list[float]]:
    """W of the idle board, and with one to four busy cores: the levels between which the recordings alternate."""
    with np.load(path) as data:
        watts = [data[f"pi_ground1_{i}"][:, 1] for i in range(1, 5)]
    return float(np.median([np.percentile(w, 10) for w in watts])), [float(np.percentile(w, 75)) for w in watts]
