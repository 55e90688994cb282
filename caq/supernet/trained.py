"""Starting from a trained network: read it, calibrate it for every width, fine-tune it if asked to.

Raises WeightsError on a file that cannot be used, naming file and tensor.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caq.costs import DEFAULT_BUDGETS, Budget, check_budgets
from caq.data import Dataset
from caq.errors import ConfigError, WeightsError
from caq.model import Model
from caq.scaling import Moments
from caq.supernet import zoo
from caq.supernet.batches import samples
from caq.supernet.calibrate import calibrate
from caq.supernet.conditional import RouteData, check_conditional
from caq.supernet.conversion import DEFAULT_WIDTHS, convert
from caq.supernet.onnx_reader import read_onnx
from caq.supernet.pipeline import Prepared, check_names, check_outputs, finish, prepare
from caq.supernet.points import learn_points, train_gated
from caq.supernet.train import Outputs, TrainConfig, accuracy, distillation_loss, predict

#: Input steps that are tried, in units of the usual one, and samples that they are tried on.
STEPS = np.geomspace(1, 0.3, 25).tolist()
STEP_SAMPLES = 256
#: Samples as they are: what a network expects unless its user says otherwise.
AS_GIVEN = Moments((0.0,), (1.0,))


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained float network, and where it comes from.

    sample_shape: as in `prepare`. sha256: of the file, or files. notes: what was left out of it.
    """

    name: str
    network: nn.Module
    sample_shape: tuple[int, ...] | None
    source: str
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConvertConfig:
    """How to convert. The same configuration, data and number of threads give the same file.

    samples: of the training split, drawn by `seed`, that calibration reads, labels apart. moments: what the network's
    input is standardised by, None for the training split's own. finetune: how to train afterwards, on all of the
    training split; None does not.
    """

    samples: int = 1024
    moments: Moments | None = AS_GIVEN
    seed: int = 0
    task: str = "classify"
    finetune: TrainConfig | None = None


def load_onnx(path: Path, data: Dataset) -> Trained:
    """The network of an ONNX file. Raises what `read_onnx` does."""
    imported = read_onnx(path, data.sample_shape)
    return Trained(
        path.stem, imported.network, imported.sample_shape, path.name, _sha256(*imported.files), imported.notes
    )


def load_zoo(path: Path, data: Dataset, model: str) -> Trained:
    """A network of the zoo, sized to the data, with the weights of a state_dict."""
    network = zoo.build(model, data.sample_shape, data.num_classes)
    load_weights(network, path)
    return Trained(model, network, network.sample_shape, path.name, _sha256(path))


def load_module(path: Path, factory: str) -> Trained:
    """What `factory`, written package.module:function, makes without arguments, with the weights of a state_dict.

    The working directory is searched first. Raises ConfigError if there is no such factory or it makes no nn.Module.
    """
    module, _, name = factory.partition(":")
    if not module or not name:
        raise ConfigError(f"{factory!r}: write it like package.module:function")
    sys.path.insert(0, "")
    try:
        make = getattr(importlib.import_module(module), name)
        network = make()
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(f"{factory}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{factory}: makes a {type(network).__name__}, not a torch.nn.Module")
    load_weights(network, path)
    return Trained(name, network, None, path.name, _sha256(path))


def load_weights(network: nn.Module, path: Path) -> None:
    """Fills `network` with a state_dict that torch.save wrote; nothing in the file is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # whatever torch makes of bytes that are no such file
        reason = str(error).strip().split("\n")[0][:200]
        raise WeightsError(f"{path}: no state_dict that torch.load reads with weights_only=True: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"a dict of {_some(state)}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise WeightsError(f"{path}: holds {found}, not tensors by name; save model.state_dict() alone")
    wanted = network.state_dict()
    # Counters of batch norm, which files of older networks lack.
    required = {name for name in wanted if not name.endswith("num_batches_tracked")}
    if missing := required - state.keys():
        raise WeightsError(f"{path}: lacks {_some(missing)}; it is of another network")
    if unknown := state.keys() - wanted.keys():
        raise WeightsError(f"{path}: holds {_some(unknown)}, which the network does not have")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            given, expected = tuple(value.shape), tuple(wanted[name].shape)
            raise WeightsError(f"{path}: {name} is {given}, the network's is {expected}")
        if value.is_complex() or not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {name} holds NaN, infinity or complex numbers")
    network.load_state_dict(state, strict=False)


def _some(names: Sequence[object] | set[str] | dict[str, object]) -> str:
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _sha256(*paths: Path) -> str:
    """Hex digest of the files, one after the other."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@torch.no_grad()
def choose_input_step(
    network: nn.Module, prepared: Prepared, x: NDArray[np.generic], moments: Moments, task: str
) -> float:
    """The real value of an input code with which the float network's outputs change least, of `STEPS` times the usual.

    The usual step clips next to nothing; where few values are large, finer codes for all others are worth more.
    x: raw samples (n, ...) of the data.
    """
    h, w, c = prepared.input_shape
    real = (x.astype(np.float64) - np.array(moments.mean)) / np.array(moments.deviation)
    inputs = torch.from_numpy(real.astype(np.float32).reshape(len(x), h, w, c)).permute(0, 3, 1, 2).contiguous()
    expected = network(prepared.as_network_input(inputs)).flatten(1)
    best, least = prepared.scaling.step, math.inf
    for factor in STEPS:
        step = prepared.scaling.step * factor
        coded = torch.floor(inputs / step + 0.5).clamp(-128, 127) * step
        change = float(distillation_loss(task, network(prepared.as_network_input(coded)).flatten(1), expected))
        if change < least:
            best, least = step, change
    return best


def float_score(network: nn.Module, prepared: Prepared, data: Dataset, task: str) -> float:
    """What the float network scores on the test split, its inputs in the 8 bits that the artifact reads: see TASKS."""
    test = samples(data.x_test, data.y_test, prepared.scaling, prepared.input_shape, data.kind)
    outputs = predict(lambda x: network(prepared.as_network_input(x)), test)
    if task == "classify":
        return accuracy(outputs, test.labels)
    inputs = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x, _ in test.plain(256)])
    outputs = outputs.movedim(1, -1).flatten(1)
    return 1 - float((outputs - inputs).square().sum() / inputs.square().sum())


def convert_trained(
    trained: Trained,
    data: Dataset,
    config: ConvertConfig,
    widths: Sequence[int] = DEFAULT_WIDTHS,
    budgets: Sequence[Budget] = DEFAULT_BUDGETS,
    outputs: Outputs = Outputs(),  # noqa: B008
    conditional: Sequence[Budget] = (),
) -> tuple[Model, float]:
    """A model with its operating points, and the score of the float network on the test split.

    conditional: budgets of conditional gates. They learn from how far a branch's outputs are from those of the widest,
    without labels; the budget is fitted on what calibration did not read of the training split. Nothing but the scores
    reads the test split. Raises ConfigError on budgets that cannot be told apart, DataError on data that do not fit the
    network, and what `convert` raises.
    """
    check_names([*budgets, *conditional], widths)
    network = trained.network.eval()
    chosen = np.sort(np.random.default_rng([config.seed, 2]).permutation(len(data.y_train))[: config.samples])
    step = None
    if config.moments is not None:
        some = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), STEP_SAMPLES)).astype(np.int64)]
        few = replace(data, x_train=data.x_train[some], y_train=data.y_train[some], domain_train=None)
        usual = prepare(few, network, config.seed, trained.sample_shape, config.moments)
        step = choose_input_step(network, usual, few.x_train, config.moments, config.task)
    prepared = prepare(data, network, config.seed, trained.sample_shape, config.moments, step)
    calibration = prepared.train.subset(chosen)
    example = prepared.as_network_input(next(calibration.typical(256, 256))[0])
    supernet = convert(network, example, widths)
    check_outputs(supernet, data, config.task)
    check_budgets(supernet.graph, [*budgets, *conditional])
    check_conditional(supernet.graph, conditional)
    reference = float_score(network, prepared, data, config.task)
    calibrate(supernet, calibration, config.seed, outputs.quiet)
    train = config.finetune or TrainConfig(epochs=1, seed=config.seed)
    train = replace(train, seed=config.seed, task=config.task)
    if config.finetune is not None:
        points = train_gated(supernet, prepared.train, train, budgets, outputs)
    else:
        prepared = replace(prepared, train=calibration)
        points = learn_points(supernet, calibration, train, budgets, outputs.quiet)
    fresh = np.ones(len(data.y_train), bool)
    if len(fresh) > len(chosen):
        fresh[chosen] = False
    prepared, routing = replace(prepared, name=trained.name), RouteData(data.x_train, None, fresh)
    model = finish(supernet, data, prepared, train, points, outputs.quiet, conditional, routing)
    origin: dict[str, str | int | float] = {
        "epochs": 0 if config.finetune is None else train.epochs,
        "source": trained.source,
        "source_sha256": trained.sha256,
        "calibration_samples": len(calibration),
        "float_score": round(reference, 6),
    }
    return model.replace(provenance={**model.provenance, **origin}), reference
