"""Fits the device profiles in caq/costs/profiles, and measures how wrong they are on networks that were left out.

    CAQ_DATA=FOLDER python -m benchmarks.device_costs [--only microcontrollers pi host] [--plot]
    python -m benchmarks.device_costs --only host --profiles . --out host.json     of your own machine: ./host.yaml

    microcontrollers  cortex-m4.yaml, cortex-m7.yaml: MLPerf Tiny's measured rows, device_costs/mlperf_tiny_costs.csv
    pi                raspberry-pi-4.yaml: two published rows and measured power, thermal_power_tiansuan/
    host              host.yaml: this engine on this machine, networks with random weights (benchmarks.costs.host)

bit-serial.yaml is written by hand. Errors are of networks left out, all their rows at once: `own_speed` where the
system's other networks tell how fast it is, `typical` where the profile is used as it stands. For classes of devices
also of systems and of engines (the software) left out. A sweep of the ridge goes with them; the one in use was chosen
by these errors, so they are a little flattered. Results are added to benchmarks/results/device_costs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from benchmarks.costs import host, host_fit, mlperf, pi
from benchmarks.costs.fit import RIDGE, RIDGES, Left, Row, Terms, fit, leave_out, summary
from benchmarks.costs.write import figure, plot, write
from caq.costs import Level, Profile, Quantity, Tile
from caq.program import choose_isa, isa_names

RESULTS = Path(__file__).parent / "results" / "device_costs.json"
PROFILES = Path(__file__).parent.parent / "caq" / "costs" / "profiles"
SECTIONS = ("microcontrollers", "pi", "host")
#: Of a class of microcontrollers: kinds of MACs and bytes of weights differ only if the rows say so.
LATENCY = Terms(("mac", "output"), ("weight_byte", "mac_pointwise", "mac_depthwise"))
ENERGY = Terms(("second",))
MACS = ("mac_conv", "mac_pointwise", "mac_depthwise", "mac_linear")
FLASH = {"cortex-m4": "STM32L4R5ZI", "cortex-m7": "STM32H7A3ZIT6Q"}
CLOCK_MHZ = {"cortex-m4": 120, "cortex-m7": 280}
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

Section = dict[str, Any]


def structure(arithmetic: str, weights: str, combine: str, levels: Mapping[str, int] | None = None) -> Profile:
    """A profile without prices: what counts depend on."""
    nothing = Quantity(0.0, "")
    memory = tuple(Level(name, Quantity(size, ""), nothing, nothing) for name, size in (levels or {"": 1}).items())
    return Profile("", "", arithmetic, weights, combine, Tile(), memory, {}, {}, nothing, {})


def microcontrollers(folder: Path, profiles: Path) -> Section:
    counted = {name: mlperf.counts(structure("byte", "packed", "sum"), g) for name, g in mlperf.graphs().items()}
    section: Section = {}
    for name, boards in mlperf.CLASSES.items():
        systems = mlperf.systems(folder / mlperf.FILE, boards)
        engines = {system.name: system.engine for system in systems}
        latency, energy = mlperf.latency_rows(systems, counted), mlperf.energy_rows(systems, counted)
        prices, watts = fit(latency, LATENCY).prices, fit(energy, ENERGY).prices["second"]
        hz = CLOCK_MHZ[name] * 1e6
        left = leave_out(latency, LATENCY, lambda row: row.model, own=True)
        section[name] = {
            "systems": [system.name for system in systems],
            "cycles": prices,
            "latency": {
                "network_left_out_own_speed": summary(left),
                "network_left_out_typical": summary(leave_out(latency, LATENCY, lambda row: row.model, own=False)),
                "system_left_out": summary(leave_out(latency, LATENCY, lambda row: row.system, own=False)),
                "engine_left_out": summary(
                    leave_out(latency, LATENCY, lambda row, of=engines: of[row.system], own=False)
                ),
                "network_left_out_own_speed_all_channels": summary(
                    leave_out(mlperf.latency_rows(systems, counted, True), LATENCY, lambda row: row.model, own=True)
                ),
                "ridges": {
                    ridge: summary(leave_out(latency, LATENCY._replace(ridge=ridge), lambda row: row.model, own=True))
                    for ridge in RIDGES
                },
            },
            "left_out_seconds": shown(left, 1 / hz),
            "watts": watts,
            "energy_from_modelled_latency": {
                "network_left_out_typical": summary(modelled_energy(latency, energy)),
            },
            "energy_from_measured_latency": {
                "network_left_out_own_speed": summary(leave_out(energy, ENERGY, lambda row: row.model, own=True)),
                "network_left_out_typical": summary(leave_out(energy, ENERGY, lambda row: row.model, own=False)),
                "system_left_out": summary(leave_out(energy, ENERGY, lambda row: row.system, own=False)),
            },
        }
        write(microcontroller(name, prices, watts, section[name]), profiles / f"{name}.yaml")
    return section


def shown(left: list[Left], unit: float = 1.0) -> list[tuple[str, float, float]]:
    """Network, and what was measured and modelled, for the picture."""
    return [(r.model, float(f"{r.measured * unit:.5g}"), float(f"{r.predicted * unit:.5g}")) for r in left]


def modelled_energy(latency: list[Row], energy: list[Row]) -> list[Left]:
    """Energy of networks left out, with latency and power from all the others."""
    left = leave_out(latency, LATENCY, lambda row: row.model, own=False)
    slower = {(row.system, row.model): row.predicted / row.measured for row in left}
    found = leave_out(energy, ENERGY, lambda row: row.model, own=False)
    return [row._replace(predicted=row.predicted * slower[row.system, row.model]) for row in found]


def microcontroller(name: str, prices: Mapping[str, float], watts: float, found: Section) -> dict[str, Any]:
    """The profile of a class, in cycles at the clock of the boards whose energy was measured."""
    latency, energy = found["latency"], found["energy_from_measured_latency"]
    own, typical = latency["network_left_out_own_speed"], latency["network_left_out_typical"]
    rows = "closed-division int8 rows of MLPerf Tiny v0.5 to v1.2"
    return {
        "title": f"Arm {name.replace('c', 'C', 1).replace('-m', '-M')} at {CLOCK_MHZ[name]} MHz, weights in flash",
        "clock": figure(CLOCK_MHZ[name], "MHz", "board"),
        "arithmetic": "byte",
        "weights": "packed",
        "combine": "sum",
        "memory": [
            {
                "level": "flash",
                "capacity": figure(2, "MiB", "board"),
                "latency": figure(prices["weight_byte"], "cycle", "fit"),
                "energy": figure(0, "pJ", "power"),
            }
        ],
        "latency": {
            **{term: figure(prices["mac"] + prices.get(term, 0.0), "cycle", "fit") for term in MACS},
            "output": figure(prices["output"], "cycle", "fit"),
            "unpacked_weight": figure(22, "cycle", "instructions"),
            "unpacked_bit": figure(5, "cycle", "instructions"),
            "narrowed": figure(6, "cycle", "guess"),
        },
        "energy": {"power": figure(watts * 1e3, "mW", "power")},
        "sources": {
            "board": {
                "kind": "literature",
                "text": f"the board whose energy was measured has an {FLASH[name]} with 2 MB of flash",
            },
            "fit": {
                "kind": "fitted",
                "text": f"on {own['rows']} {rows} ({len(found['systems'])} systems), prices of the median system; "
                f"a network left out: median error {own['median']:.0%}, largest {own['largest']:.0%} where the "
                f"system's speed is known, else {typical['median']:.0%} and {typical['largest']:.0%}",
            },
            "power": {
                "kind": "fitted",
                "text": f"on {energy['network_left_out_own_speed']['rows']} {rows} with energy, as power x latency; a "
                f"system left out: median error {energy['system_left_out']['median']:.0%}. At 8 bits alone the rows "
                "cannot tell energy of MACs and bytes from power",
            },
            "instructions": {
                "kind": "assumed",
                "text": "instructions of body_unpack (caq/kernels/body.h) from arm-none-eabi-gcc -O2 -mcpu=cortex-m4, "
                "a cycle each and two a load: 39 for a byte of a plane, 22 for a code",
            },
            "guess": {"kind": "assumed", "text": "a look-up in a table: two loads, a store and the loop"},
        },
    }


def raspberry_pi(folder: Path, profiles: Path) -> Section:
    rows = pi.rows(structure("byte", "unpacked", "sum"))
    prices = fit(rows, Terms(("mac", "output"))).prices
    idle, busy = pi.power(folder / pi.POWER)
    single = summary(leave_out(rows, Terms(("mac",)), lambda row: row.model, own=False))
    source = {
        "xnnpack": {
            "kind": "literature",
            "text": "solved from INT8 MobileNet v1 (24 ms) and v2 (17 ms) on RPi 4 (BCM2711, ARM64) in the README of "
            "google/XNNPACK, measured on Feb 8, 2022; they include reading weights and activations. One network by the "
            f"other's time per MAC: off by {single['median']:.0%}",
        },
        "power": {
            "kind": "measured",
            "text": f"a Raspberry Pi 4B with four busy cores, {idle:.2f} W when idle; pi_ground1_4 of "
            "TiansuanConstellation/MobiCom24-SatelliteCOTS (Xing et al., MobiCom 2024, arXiv 2401.03435)",
        },
        "board": {"kind": "literature", "text": "Raspberry Pi 4 Model B datasheet: at least 1 GB of LPDDR4"},
        "guess": {"kind": "assumed", "text": "six times what this costs on the machine of host.yaml"},
    }
    data = {
        "title": "Raspberry Pi 4B, four threads of its Cortex-A72, int8",
        "arithmetic": "byte",
        "weights": "unpacked",
        "combine": "sum",
        "memory": [
            {
                "level": "LPDDR4",
                "capacity": figure(1, "GiB", "board"),
                "latency": figure(0, "ps", "xnnpack"),
                "energy": figure(0, "pJ", "power"),
            }
        ],
        "latency": {
            **{term: figure(prices["mac"] * 1e12, "ps", "xnnpack") for term in MACS},
            "output": figure(prices["output"] * 1e12, "ps", "xnnpack"),
            "narrowed": figure(300, "ps", "guess"),
        },
        "energy": {"power": figure(busy[-1], "W", "power")},
        "sources": source,
    }
    write(data, profiles / "raspberry-pi-4.yaml")
    return {"seconds": prices, "watts_idle": idle, "watts_busy": busy, "network_left_out_macs_only": single}


def this_machine(profiles: Path, seed: int, watts: float) -> Section:
    timed = host.measure(seed)
    levels = caches()
    choices = {}
    for combine in ("sum", "max"):
        for weights in ("unpacked", "panels"):
            profile = structure("byte", weights, combine, levels)
            rows = [row for one in timed for row in host_fit.sums(profile, one)]
            choices[f"{combine}, {weights}"] = profile, rows, host_fit.leave_model_out(rows, profile)
    best = min(choices, key=lambda name: float(np.mean([abs(left.error) for left in choices[name][2][0]])))
    profile, rows, (wholes, steps) = choices[best]
    prices = host_fit.fit_sums(rows, profile)
    section = {
        "cpu": cpu(),
        "instruction_set": list(isa_names())[choose_isa()],
        "levels": levels,
        "chosen": best,
        "seconds": prices,
        "inferences_network_left_out": summary(wholes),
        "steps_network_left_out": summary(steps),
        "alternatives": {name: summary(left) for name, (_, _, (left, _)) in choices.items()},
        "ridges": {ridge: summary(host_fit.leave_model_out(rows, profile, ridge)[0]) for ridge in RIDGES},
        "left_out_seconds": shown(wholes),
        "measured": {
            one.name: {"steps_us": [round(s.seconds * 1e6, 3) for s in one.steps], "inference_us": microseconds(one)}
            for one in timed
        },
    }
    write(machine(profile, prices, section, watts), profiles / "host.yaml")
    return section


def machine(profile: Profile, prices: Mapping[str, float], found: Section, watts: float) -> dict[str, Any]:
    """The profile of this machine."""
    error, per_byte, memory = found["inferences_network_left_out"], prices["weight_byte"], []
    for level in profile.memory:
        memory.append(
            {
                "level": level.name,
                "capacity": figure(level.capacity.value / 1024, "KiB", "machine"),
                "latency": figure(per_byte * 1e12, "ps", "fit"),
                "energy": figure(0, "pJ", "power"),
            }
        )
        per_byte += prices.get(host_fit.beyond(level.name), 0.0)
    terms = ("output", "element", "narrowed", "activation_byte", "op", "input", "inference")
    return {
        "title": f"{found['cpu']}, one thread, {found['instruction_set']} kernels",
        "arithmetic": profile.arithmetic,
        "weights": profile.weights,
        "combine": profile.combine,
        "memory": memory,
        "latency": {
            **{term: figure((prices["mac"] + prices[term]) * 1e12, "ps", "fit") for term in MACS},
            **{term: figure(prices[term] * 1e12, "ps", "fit") for term in terms},
        },
        "energy": {"power": figure(watts, "W", "power")},
        "sources": {
            "machine": {
                "kind": "measured",
                "text": "sizes of the caches as Linux tells them; the last holds what is left",
            },
            "fit": {
                "kind": "fitted",
                "text": f"on {error['rows']} inferences and {found['steps_network_left_out']['rows']} steps of "
                f"{len(error['by_group'])} networks, timed on this machine; a network left out: median error "
                f"{error['median']:.0%}, largest {error['largest']:.0%}",
            },
            "power": {
                "kind": "assumed",
                "text": "no meter here; unless given, 360 W of an AMD EPYC 9654 (thermal design power) over 96 cores",
            },
        },
    }


def microseconds(timed: host.Timed) -> dict[str, float]:
    return {name: round(seconds * 1e6, 3) for name, seconds in timed.inference.items()}


def caches() -> dict[str, int]:
    """Bytes of the data caches by level. Raises SystemExit where the system does not tell."""
    found = {}
    for folder in sorted(CACHES.glob("index*")):
        if (folder / "type").read_text().strip() != "Instruction":
            size = (folder / "size").read_text().strip()
            found[f"L{(folder / 'level').read_text().strip()}"] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
    if not found:
        raise SystemExit(f"{CACHES} does not tell this machine's caches")
    return found


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--profiles", type=Path, default=PROFILES, help="folder to write to; default: the package's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results; default: %(default)s")
    parser.add_argument("--watts", type=float, default=3.75, help="of one busy core here; default %(default)s, assumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", action="store_true", help="a picture beside the results")
    args = parser.parse_args()
    data = os.environ.get("CAQ_DATA")
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.only:
        if name == "host":
            section = this_machine(args.profiles, args.seed, args.watts)
        elif data is None:
            print(f"skipped: {name} needs CAQ_DATA", file=sys.stderr)
            continue
        else:
            section = {"microcontrollers": microcontrollers, "pi": raspberry_pi}[name](Path(data), args.profiles)
        results[name] = {
            "command": shlex.join(["python", "-m", "benchmarks.device_costs", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seed": args.seed,
            "ridge": RIDGE,
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
            **section,
        }
    text = json.dumps(results, indent=1)
    args.out.write_text(text + "\n")
    print(text)
    if args.plot:
        plot(panels(results), args.out.with_suffix(".png"))
    return 0


def panels(results: Section) -> dict[str, list[tuple[str, float, float]]]:
    """What the picture shows, by title."""
    classes = {name: results.get("microcontrollers", {}).get(name) for name in mlperf.CLASSES}
    machine = results.get("host")
    found = {name: section["left_out_seconds"] for name, section in classes.items() if section is not None}
    return found | ({f"host, {machine['instruction_set']}": machine["left_out_seconds"]} if machine else {})


if __name__ == "__main__":
    sys.exit(main())
