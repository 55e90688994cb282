"""The file of a device profile: YAML in which every figure has a unit and a source.

    title: Arm Cortex-M4 at 120 MHz, weights in flash
    clock: {value: 120, unit: MHz, source: board}      needed where a latency is in cycles
    arithmetic: byte                                   or bit_serial
    weights: packed                                    or unpacked or panels: the bytes that an inference reads
    combine: sum                                       of compute and memory; or max
    tile: {outputs: 8, positions: 8, fan_in: 256}      may be left out: 1 each
    memory:                                            from the fastest level to the largest
      - level: flash
        capacity: {value: 2, unit: MiB, source: board}
        latency: {value: 0.8, unit: cycle, source: fit}        to read a byte
        energy: {value: 0, unit: pJ, source: fit}
    latency:                                           prices of TERMS (caq.costs.profile)
      mac_conv: {value: 2.2, unit: cycle, source: fit}
    energy:
      power: {value: 47, unit: mW, source: fit}        of the whole device while it infers
      mac_conv: {value: 0, unit: pJ, source: fit}
    sources:
      board: {kind: literature, text: where to look it up}     kinds: measured, fitted, literature, assumed
      fit: {kind: fitted, text: "on what, and with which error"}

Values are finite and not negative. Unknown keys, duplicate keys, aliases, unknown units, figures without a source and
sources that nothing uses are refused.
"""

from __future__ import annotations

from pathlib import Path

from caq.costs.profile import ARITHMETIC, COMBINE, SOURCES, TERMS, WEIGHTS, Level, Profile, Quantity, Source, Tile
from caq.errors import ConfigError, nearest
from caq.strict_yaml import Fields, read

SHIPPED = Path(__file__).parent / "profiles"
UNITS = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12},
    "power": {"W": 1.0, "mW": 1e-3},
    "clock": {"Hz": 1.0, "MHz": 1e6, "GHz": 1e9},
    "capacity": {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
}
_NEEDED = ("title", "arithmetic", "weights", "combine", "memory", "latency", "energy", "sources")


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_profile(name: str | Path) -> Profile:
    """Reads a shipped profile by name, or a file (a path that ends in .yaml or .yml).

    Raises ConfigError that names the file and the field, or the nearest known name.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in profile_names():
            known = nearest(str(name), profile_names())
            raise ConfigError(f"no device profile {str(name)!r}{known}; a file of your own ends in .yaml")
        path = SHIPPED / f"{name}.yaml"
    return parse_profile(read(path), path.stem, str(path))


def parse_profile(data: object, name: str, source: str) -> Profile:
    """Reads plain dicts and lists, as YAML gives them; raises ConfigError that names `source` and the field."""
    return _Reader(source).profile(data, name)


class _Reader(Fields):
    clock: Quantity | None = None

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.sources: dict[str, Source] = {}
        self.used: set[str] = set()

    def profile(self, data: object, name: str) -> Profile:
        top = self.mapping(data, "the file", (*_NEEDED, "clock", "tile"), _NEEDED)
        if not isinstance(top["sources"], dict):
            self.fail("sources", "must be a mapping of names to {kind, text}")
        self.sources = {key: self.origin(value, f"sources.{key}") for key, value in top["sources"].items()}
        if "clock" in top:
            self.clock = self.quantity(top["clock"], "clock", "clock", positive=True)
        energy = dict(self.mapping(top["energy"], "energy", ("power", *TERMS), ("power",)))
        power = self.quantity(energy.pop("power"), "energy.power", "power")
        levels = [self.level(value, f"memory[{i}]") for i, value in enumerate(self.items(top["memory"], "memory"))]
        if not levels:
            self.fail("memory", "needs at least one level, where the weights lie")
        capacities = [level.capacity.value for level in levels]
        if capacities != sorted(capacities):
            self.fail("memory", "levels stand from the smallest capacity to the largest")
        prices = {
            key: {term: self.quantity(value, f"{key}.{term}", key) for term, value in terms.items()}
            for key, terms in (("latency", self.mapping(top["latency"], "latency", TERMS)), ("energy", energy))
        }
        if idle := sorted(set(self.sources) - self.used):
            self.fail("sources", f"no figure refers to {', '.join(idle)}")
        return Profile(
            name,
            self.text(top["title"], "title"),
            self.choice(top["arithmetic"], "arithmetic", ARITHMETIC),
            self.choice(top["weights"], "weights", WEIGHTS),
            self.choice(top["combine"], "combine", COMBINE),
            self.tile(top.get("tile", {})),
            tuple(levels),
            prices["latency"],
            prices["energy"],
            power,
            self.sources,
        )

    def origin(self, data: object, at: str) -> Source:
        parts = self.mapping(data, at, Source._fields, Source._fields)
        return Source(self.choice(parts["kind"], f"{at}.kind", SOURCES), self.text(parts["text"], f"{at}.text"))

    def quantity(self, data: object, at: str, dimension: str, positive: bool = False) -> Quantity:
        """A figure in SI units or bytes; a latency may be in cycles of the clock."""
        parts = self.mapping(data, at, ("value", "unit", "source"), ("value", "unit", "source"))
        value = self.number(parts["value"], f"{at}.value")
        if value < 0 or (positive and value == 0):
            self.fail(f"{at}.value", f"must be {'above' if positive else 'at least'} 0, not {value:g}")
        units = dict(UNITS[dimension])
        if dimension == "latency":
            units["cycle"] = 1 / self.clock.value if self.clock else 0.0
        unit = self.choice(parts["unit"], f"{at}.unit", units)
        if unit == "cycle" and self.clock is None:
            self.fail(f"{at}.unit", "cycles need a clock; the file gives none")
        source = self.choice(parts["source"], f"{at}.source", self.sources)
        self.used.add(source)
        return Quantity(value * units[unit], source)

    def level(self, data: object, at: str) -> Level:
        fields = ("level", "capacity", "latency", "energy")
        parts = self.mapping(data, at, fields, fields)
        return Level(
            self.text(parts["level"], f"{at}.level"),
            self.quantity(parts["capacity"], f"{at}.capacity", "capacity", positive=True),
            self.quantity(parts["latency"], f"{at}.latency", "latency"),
            self.quantity(parts["energy"], f"{at}.energy", "energy"),
        )

    def tile(self, data: object) -> Tile:
        parts = self.mapping(data, "tile", Tile._fields)
        for key, value in parts.items():
            if type(value) is not int or not 0 < value <= 2**16:
                self.fail(f"tile.{key}", f"must be an integer from 1 to {2**16}, not {value!r}")
        return Tile(**parts)
