"""Every error that caq raises on bad input.

    CaqError
    ├── DataError            a data set or a sample: names the key
    ├── TraceError           a recorded trace: names the file and the row
    ├── ConfigError          a YAML file or an argument: names the field, and the nearest known one
    ├── ArtifactError        a .caq file that cannot be trusted
    │   ├── FormatError      the bytes are not the format (layout, JSON, offsets, truncation)
    │   ├── IntegrityError   a checksum does not match
    │   ├── SchemaError      the manifest describes an impossible model (shapes, ranges, cycles, indices)
    │   └── VersionError     written by a newer caq
    ├── WeightsError         a file of trained weights that cannot be used: names the file and the tensor
    ├── UnsupportedError     a model uses an op that cannot become integers: names the op and the module
    ├── AssignmentError      a width or an operating point that the artifact does not serve
    ├── MissingExtraError    an optional package is not installed: names the pip command
    ├── StateError           calibration state cannot be kept or used: names the folder or the slot
    │   ├── StateFormatError the bytes are no state: cut short, damaged, or not the format
    │   ├── StateMismatchError    a sound state, but of another artifact or of a newer caq
    │   ├── StateLockedError another process has the folder
    │   └── StateWriteError  a write failed: the update is off, the state before it stands
    ├── RuntimeClosedError   a runtime was used after `close`
    └── TrainingError        training cannot start or resume

The message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class CaqError(Exception):
    """Root of the tree; catch it to catch everything that caq raises on purpose."""


class DataError(CaqError, ValueError):
    """A data set or a sample is not what the documentation asks for."""


class TraceError(CaqError, ValueError):
    """A recorded trace cannot be replayed."""


class ConfigError(CaqError, ValueError):
    """A configuration file or an argument is wrong."""


class ArtifactError(CaqError, ValueError):
    """A .caq file is refused."""


class FormatError(ArtifactError):
    """The bytes do not follow the layout in `caq.artifact`."""


class IntegrityError(ArtifactError):
    """A SHA-256 does not match: the file was damaged or changed."""


class SchemaError(ArtifactError):
    """The layout is intact, but the manifest describes an impossible model."""


class VersionError(ArtifactError):
    """The file is of a version that this caq does not read."""


class WeightsError(CaqError, ValueError):
    """A file of trained weights is not what it should be."""


class UnsupportedError(CaqError, NotImplementedError):
    """A module holds an operation that has no integer form here."""


class AssignmentError(CaqError, ValueError):
    """No such operating point, or a width that the artifact does not serve."""


class MissingExtraError(CaqError, ImportError):
    """An optional dependency is needed for this call."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 'caq[{extra}]'")


class StateError(CaqError, ValueError):
    """Calibration state cannot be kept, or cannot be used."""


class StateFormatError(StateError):
    """The bytes of a calibration state do not follow the layout in `caq.calibration`, or fail their checksum."""


class StateMismatchError(StateError):
    """A calibration state is sound, but not for this artifact, or not for this version of caq."""


class StateLockedError(StateError):
    """Another process, or another object of this one, uses the folder of the calibration state."""


class StateWriteError(StateError):
    """Calibration state could not be written; what was there before still is."""


class RuntimeClosedError(CaqError, RuntimeError):
    """The runtime was used after `close`."""


class TrainingError(CaqError, RuntimeError):
    """Training cannot start, or cannot resume from this checkpoint."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name closest to `name`, or the list of known names."""
    import difflib  # as long as most of caq's modules together, for the message of an error

    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(str, known))}"
