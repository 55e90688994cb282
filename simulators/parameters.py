"""Parameters of batteries and of the flow of heat, as YAML files: the fields of the dataclasses by name, all of them.

Unknown keys, duplicate keys, aliases, numbers that are not finite and values out of range are refused, with the file
and the field. A field that has a default may be left out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import yaml

from caq.errors import ConfigError, nearest
from caq.strict_yaml import Fields, read
from simulators.battery import BatteryParameters
from simulators.thermal import ThermalParameters

SHIPPED = Path(__file__).parent / "profiles"
_FOLDERS = {BatteryParameters: "batteries", ThermalParameters: "thermal"}
_Kind = TypeVar("_Kind", BatteryParameters, ThermalParameters)


def names(kind: type[BatteryParameters] | type[ThermalParameters]) -> list[str]:
    """Names of what is shipped."""
    return sorted(path.stem for path in (SHIPPED / _FOLDERS[kind]).glob("*.yaml"))


def load_battery(name: str | Path) -> BatteryParameters:
    """A shipped battery by name, or a file (a path that ends in .yaml or .yml). Raises ConfigError."""
    return _load(BatteryParameters, name)


def load_thermal(name: str | Path) -> ThermalParameters:
    """A shipped board by name, or a file (a path that ends in .yaml or .yml). Raises ConfigError."""
    return _load(ThermalParameters, name)


def write(parameters: BatteryParameters | ThermalParameters, path: Path, head: str) -> None:
    """Writes a file that the loaders read back; `head` becomes a comment. Numbers keep five digits."""
    fields = {name: _plain(value) for name, value in dataclasses.asdict(parameters).items()}
    text = yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=116, allow_unicode=True)
    try:
        path.write_text(f"# {head}\n{text}", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def _load(kind: type[_Kind], name: str | Path) -> _Kind:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in names(kind):
            known = nearest(str(name), names(kind))
            raise ConfigError(f"no {_FOLDERS[kind]} {str(name)!r}{known}; a file of your own ends in .yaml")
        path = SHIPPED / _FOLDERS[kind] / f"{name}.yaml"
    check = Fields(str(path))
    fields = dataclasses.fields(kind)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    data = check.mapping(read(path), "the file", [field.name for field in fields], needed)
    values = {field.name: _value(check, data[field.name], field) for field in fields if field.name in data}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _value(check: Fields, data: object, field: dataclasses.Field[Any]) -> Any:
    at = field.name
    if field.type == "str":
        return check.text(data, at)
    if field.type == "int":
        if type(data) is not int:
            check.fail(at, f"must be a whole number, not {data!r}")
        return data
    if field.type == "tuple[float, ...]":
        return tuple(check.number(item, f"{at}[{i}]") for i, item in enumerate(check.items(data, at)))
    return check.number(data, at)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
