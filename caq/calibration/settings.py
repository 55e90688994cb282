"""The file of a background calibration: YAML in which every field may be left out.

    state: calibration          folder of what is learnt, beside this file; left out: nothing survives a restart
    audit: calibration.jsonl    audit log (caq.calibration.audit), beside this file; left out: none
    queue: 256                  samples and labels that wait for the thread, at most
    rest: 2.5                   seconds that the thread sleeps for each that it works
    max_ms: 50                  that a step may compute
    max_bytes: 4000000          of the state
    rungs: [statistics, biases, head, domain]
    limits: {gain: 1.0e-9, point: 0.01, class: 0.5, factory: 0.05}          caq.calibration.guard.Limits
    batch: 20                   and any other field of caq.calibration.config.CalibratorConfig, by its name

Unknown keys, duplicate keys and aliases are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caq.calibration.audit import AuditLog
from caq.calibration.background import QUEUE, REST, BackgroundCalibrator
from caq.calibration.calibrator import Calibrator
from caq.calibration.config import CalibratorConfig
from caq.calibration.guard import Limits
from caq.errors import ConfigError
from caq.strict_yaml import Fields, read

if TYPE_CHECKING:
    from caq.calibration.core import CoreSet

_OWN = ("state", "audit", "queue", "rest")


@dataclass(frozen=True)
class Settings:
    """config: how to calibrate. state, audit: paths, or None. queue, rest: see BackgroundCalibrator."""

    config: CalibratorConfig = field(default_factory=CalibratorConfig)
    state: Path | None = None
    audit: Path | None = None
    queue: int = QUEUE
    rest: float = REST

    @classmethod
    def from_yaml(cls, path: str | Path) -> Settings:
        """Reads a file of that layout. Raises ConfigError that names the file and the field."""
        f, folder = Fields(str(path)), Path(path).parent
        known = [own.name for own in fields(CalibratorConfig)]
        data = dict(f.mapping(read(path), "the file", (*_OWN, *known)))
        paths = {name: folder / f.text(data.pop(name), name) for name in ("state", "audit") if name in data}
        size = _whole(f, data.pop("queue"), "queue") if "queue" in data else QUEUE
        if size < 1:
            f.fail("queue", f"room for 1 sample or more is needed, not {size}")
        rest = f.number(data.pop("rest"), "rest") if "rest" in data else REST
        if rest < 0:
            f.fail("rest", f"seconds for each second of work, 0 or more, not {rest}")
        values = {name: _value(f, name, value) for name, value in data.items()}
        try:
            config = CalibratorConfig(**values)
        except ConfigError as e:
            raise ConfigError(f"{path}: {e}") from None
        return cls(config, queue=size, rest=rest, **paths)

    def open(self, artifact: str | Path, core: CoreSet) -> BackgroundCalibrator:
        """A calibrator for that artifact, to be given to a Runtime. Raises what Calibrator does."""
        calibrator = Calibrator(artifact, core, self.state, self.config)
        record = (lambda entry: None) if self.audit is None else AuditLog(self.audit)
        return BackgroundCalibrator(calibrator, queue_size=self.queue, rest=self.rest, record=record)


def _whole(f: Fields, data: object, at: str) -> int:
    value = f.number(data, at)
    if not value.is_integer():
        f.fail(at, f"must be a whole number, not {value}")
    return int(value)


def _value(f: Fields, name: str, data: object) -> Any:
    """A field of CalibratorConfig, as what its default, or its annotation, says that it is."""
    if name == "limits":
        limits = f.mapping(data, name, ("gain", "point", "class", "factory"))
        given = {key: f.number(value, f"{name}.{key}") for key, value in limits.items()}
        if "class" in given:
            given["class_"] = given.pop("class")
        defaults = {own.name: getattr(CalibratorConfig().limits, own.name) for own in fields(Limits)}
        return _limits(f, {**defaults, **given})
    if name == "rungs":
        return tuple(f.text(item, f"{name}[{i}]") for i, item in enumerate(f.items(data, name)))
    kinds: dict[str, Callable[[object, str], Any]] = {
        "bool": f.flag,
        "int": lambda value, at: _whole(f, value, at),
        "float": f.number,
        "float | None": f.number,
    }
    kind = next(own.type for own in fields(CalibratorConfig) if own.name == name)
    return kinds[str(kind)](data, name)


def _limits(f: Fields, given: dict[str, float]) -> Limits:
    try:
        return Limits(**given)
    except ConfigError as e:
        f.fail("limits", str(e))
