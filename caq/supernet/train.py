"""Joint training: one set of weights for every width and every assignment of widths.

Each batch trains the widest assignment on the labels, and the narrowest and a random one, by turns of one width and of
widths drawn for every layer, on the labels and the widest one's soft outputs: the sandwich rule with in-place
distillation (Yu and Huang, "Universally Slimmable Networks", 2019; for bit widths Yu et al., "Any-Precision Deep Neural
Networks", 2021). Other than there, labels have half a share in every assignment's loss, and gradients are not summed:
the optimizer steps after each assignment, from the widest down (docs/joint-training.md has what both gain).
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from caq.errors import ConfigError, MissingExtraError, TrainingError
from caq.graph import Assignment, Graph, LayerWidths
from caq.progress import progress
from caq.quant import TOP_WIDTH
from caq.supernet.batches import Samples
from caq.supernet.distributed import Processes, processes, shared
from caq.supernet.heap import freed_memory_kept
from caq.supernet.network import Supernet

#: Updates the weights by the gradient of a loss.
Learn = Callable[[Tensor], None]
#: Trains on a batch (x, y), drawing from a generator; calls `Learn` as often as it likes. Returns the widest
#: assignment's loss.
StepFunction = Callable[[Tensor, Tensor, np.random.Generator, Learn], float]


#: Of the learning rate, for learned ranges and steps. LSQ slows them by a scale of their gradients, but Adam's steps
#: are as large whatever a gradient's size, and at the whole rate ranges narrow until a third of the weights is clipped.
RANGE_RATE = 0.1
#: Networks of no wider width than that gain by narrowing: theirs learn at the whole rate (docs/joint-training.md).
NARROW = 3
#: Counts changes of training that no configuration shows; checkpoints of others are refused.
_RECIPE = 2


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Same configuration, data and numbers of threads and processes: the same weights, bit for bit.

    batch_size: of all processes together (caq.supernet.distributed).
    """

    epochs: int = 30
    batch_size: int = 64
    #: Its peak.
    learning_rate: float = 8e-3
    weight_decay: float = 1e-2
    #: Share of the steps in which the learning rate rises to its peak; it falls to zero as a cosine afterwards.
    warm_up: float = 0.1
    seed: int = 0
    #: Share of the epochs in which only the widest assignment learns, so that the others learn from a good teacher.
    joint_from: float = 0.0
    #: Share of the labels in the loss of all but the widest assignment, 0..1; the rest are its soft outputs.
    labels: float = 0.5
    #: Share of the epochs after which what passes between layers is rounded to 8 bits, as it is in integers.
    rounding_from: float = 0.6
    #: Degrees by which the axes of motion sensors are turned at random (caq.supernet.batches.Samples), 0..180.
    rotation: float = 0.0
    #: Largest share of a spectrogram's rows, and of its columns, that is masked at random (same place), 0..1.
    masking: float = 0.0
    #: Share of the epochs, at the end, that are the gates' points' (caq.supernet.points), 0..1.
    point_share: float = 0.5
    #: "classify" on labels, or "reconstruct" the input.
    task: str = "classify"

    @property
    def point_epochs(self) -> int:
        """How many epochs are the points'."""
        return int(self.point_share * self.epochs)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not 0 < self.learning_rate < 1:
            given = f"{self.epochs}, {self.batch_size} and {self.learning_rate}"
            raise ConfigError(f"epochs >= 1, batch_size >= 2 and 0 < learning_rate < 1 are needed, not {given}")
        if not 0 <= self.labels <= 1:
            raise ConfigError(f"labels: a share between 0 and 1 is needed, not {self.labels}")
        if not 0 <= self.point_share < 1:
            raise ConfigError(f"point_share: 0 or more, and less than 1, are needed, not {self.point_share}")
        if not 0 <= self.rotation <= 180:
            raise ConfigError(f"rotation: 0 to 180 degrees are possible, not {self.rotation}")
        if not 0 <= self.masking <= 1:
            raise ConfigError(f"masking: a share between 0 and 1 is needed, not {self.masking}")


class Watch(Protocol):
    """What looks on while a supernet is trained, and changes nothing of it; its state goes into checkpoints."""

    def after(self, epoch: int, epochs: int, supernet: Supernet, train: Samples) -> None:
        """Called after each epoch, from 0."""

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` gave."""


@dataclass(frozen=True)
class Outputs:
    """Where training leaves what it knows.

    checkpoint: file to write after every epoch and to resume from. tensorboard: folder. quiet: no progress bar. watch:
    what looks on.
    """

    checkpoint: Path | None = None
    tensorboard: Path | None = None
    quiet: bool = False
    watch: Watch | None = None


def random_assignment(graph: Graph, rng: np.random.Generator) -> Assignment:
    """Widths drawn for every layer on its own, weights and activations apart."""
    pairs = []
    for layer in graph.layers:
        weight, activation = (int(w) for w in rng.choice(graph.widths, 2))
        pairs.append(LayerWidths(weight, TOP_WIDTH if layer.reads_input else activation))
    return tuple(pairs)


def train_supernet(
    supernet: Supernet,
    train: Samples,
    config: TrainConfig,
    outputs: Outputs = Outputs(),
    points: Sequence[tuple[Assignment, int]] = (),
) -> None:
    """Trains `supernet` in place, in all processes alike.

    points: operating points with their rows of batch norm (Supernet.add_row) of a supernet that has been trained; one
    of them, drawn, learns from every batch besides.

    Raises TrainingError if a checkpoint belongs to other settings, or processes are not connected; ConfigError if they
    cannot share the batches.
    """
    team = processes()
    team.check(config.batch_size, len(train))
    network = team.parallel(supernet)
    graph = supernet.graph
    widest, narrowest = graph.uniform(supernet.widths[-1]), graph.uniform(supernet.widths[0])
    others = supernet.widths[1:-1]
    joint = True

    def narrower(rng: np.random.Generator) -> list[tuple[Assignment, int | None]]:
        uniform = others and rng.integers(2) == 0
        drawn = graph.uniform(int(rng.choice(others))) if uniform else random_assignment(graph, rng)
        own = [points[int(rng.integers(len(points)))]] if points else []
        return [*own, (drawn, None), (narrowest, None)]

    def step(x: Tensor, y: Tensor, rng: np.random.Generator, learn: Learn) -> float:
        supernet.set_assignment(widest)
        logits = network(x)
        loss = task_loss(config.task, logits, x, y)
        learn(loss)
        if len(supernet.widths) == 1 or not joint:
            return float(loss.detach())
        target = logits.detach()
        for assignment, row in narrower(rng):
            supernet.set_assignment(assignment, row)
            narrow_logits = network(x)
            hard = task_loss(config.task, narrow_logits, x, y)
            soft = distillation_loss(config.task, narrow_logits, target)
            learn(config.labels * hard + (1 - config.labels) * soft)
        return float(loss.detach())

    def begin(epoch: int) -> None:
        nonlocal joint
        joint = epoch >= int(config.joint_from * config.epochs)
        first = min(math.ceil(config.rounding_from * config.epochs), config.epochs - 1)
        if epoch == first:
            supernet.fit_steps(next(train.typical(512, 512))[0], narrow=False)
        supernet.set_rounding(epoch >= first)

    train_steps(supernet, train, config, outputs, step, begin, team)
    supernet.set_rounding(True)


def train_float(model: nn.Module, train: Samples, config: TrainConfig, outputs: Outputs = Outputs()) -> None:
    """Trains a float network in place with the same data, steps and schedule: the baseline.

    `model` eats (N, C, H, W) inputs, as `Samples` has them. Raises TrainingError in several processes: torch's batch
    norm would take statistics of each one's own samples.
    """
    if (team := processes()).count > 1:
        raise TrainingError(f"a float network trains in one process, not in {team.count}")

    def step(x: Tensor, y: Tensor, rng: np.random.Generator, learn: Learn) -> float:
        loss = task_loss(config.task, model(x), x, y)
        learn(loss)
        return float(loss.detach())

    train_steps(model, train, config, outputs, step, lambda epoch: None, team)


def task_loss(task: str, outputs: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy with labels, or squared error of a reconstruction."""
    if task == "classify":
        return functional.cross_entropy(outputs, y)
    if outputs.dim() > 2:
        outputs = outputs.movedim(1, -1).flatten(1)  # channels last, as a supernet returns them
    return functional.mse_loss(outputs, x.permute(0, 2, 3, 1).flatten(1))


def distillation_loss(task: str, outputs: Tensor, target: Tensor) -> Tensor:
    """Distance from the widest assignment's outputs: Kullback-Leibler divergence, or squared error."""
    if task == "classify":
        log_p = functional.log_softmax(outputs, 1)
        return functional.kl_div(log_p, functional.log_softmax(target, 1), log_target=True, reduction="batchmean")
    return functional.mse_loss(outputs, target)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms, and torch's own random state as the caller left it afterwards."""
    fill, was = torch.utils.deterministic, torch.are_deterministic_algorithms_enabled()
    filling = fill.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory guards against reading it, which nothing here does, and costs a tenth of the time.
    fill.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(was)
        fill.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


@_deterministic()
@freed_memory_kept()
def train_steps(
    model: nn.Module,
    train: Samples,
    config: TrainConfig,
    outputs: Outputs,
    step: StepFunction,
    begin: Callable[[int], None],
    team: Processes,
) -> None:
    """Trains `model` in place: optimizer, schedule, seeds and checkpoints for whatever `step` does with a batch.

    begin: called with the epoch, from 0, before each. team: all processes that train. Raises TrainingError if a loss is
    not finite, or a checkpoint belongs to other settings.
    """
    train = replace(train, rotation=config.rotation, masking=config.masking)
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), config.learning_rate, fused=True)

    def learn(loss: Tensor, weight: float) -> None:
        (loss * weight).backward()
        optimizer.step()
        optimizer.zero_grad()

    start = _resume(outputs, model, optimizer, config, train)
    team.agree(start, f"the number of epochs in {outputs.checkpoint}, a file that all must share,")
    if not team.first:
        outputs = Outputs(quiet=True)
    steps = train.batches(config.batch_size)
    writer = _writer(outputs.tensorboard)
    model.train()
    with progress("training", config.epochs * steps, not outputs.quiet) as advance:
        for _ in range(start * steps):
            advance("resumed")
        for epoch in range(start, config.epochs):
            # Dropout and other draws of torch's own are seeded by epoch, so that resuming repeats them.
            torch.manual_seed(config.seed * 1_000_003 + epoch)
            rng = np.random.default_rng([config.seed, epoch, 1])
            total = 0.0
            begin(epoch)
            for i, (x, y) in enumerate(train.epoch(config.batch_size, config.seed, epoch)):
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * _learning_rate(config, epoch * steps + i, config.epochs * steps)
                with shared(x, y, team) as (x, y, share):
                    loss = share.mean(step(x, y, rng, partial(learn, weight=share.weight)))
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} in epoch {epoch}; lower the learning rate")
                total += loss
                advance(f"epoch {epoch + 1}/{config.epochs}, loss {loss:.3f}")
            if writer is not None:
                writer.add_scalar("loss/widest", total / steps, epoch)
                writer.add_scalar("learning_rate", optimizer.param_groups[0]["lr"], epoch)
            if outputs.watch is not None and isinstance(model, Supernet):
                outputs.watch.after(epoch, config.epochs, model, train)
            _save(outputs, model, optimizer, _identity(model, config, train), epoch + 1)
    if writer is not None:
        writer.close()
    model.eval()


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, batch norms, ranges and steps do not. `rate`: what of the learning rate is a group's."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1]
    ranges = [p for name, p in model.named_parameters() if name.endswith(("log_range", "log_step"))]
    chosen = {id(p) for p in (*weights, *ranges)}
    narrow = isinstance(model, Supernet) and max(model.widths) <= NARROW
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": weights, "weight_decay": weight_decay, "rate": 1.0},
        {"params": rest, "weight_decay": 0.0, "rate": 1.0},
        {"params": ranges, "weight_decay": 0.0, "rate": 1.0 if narrow else RANGE_RATE},
    ]
    return [group for group in groups if group["params"]]


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    rising = max(1, int(config.warm_up * steps))
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    return config.learning_rate * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def _identity(model: nn.Module, config: TrainConfig, train: Samples) -> str:
    """What a checkpoint must agree with to be resumed."""
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    settings = asdict(config)
    del settings["rotation"], settings["masking"]  # the samples' digest has them
    return json.dumps([_RECIPE, settings, shapes, train.sha256], sort_keys=True)


def _save(outputs: Outputs, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str, done: int) -> None:
    path = outputs.checkpoint
    if path is None:
        return
    state = {
        "identity": identity,
        "epochs": done,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        **({} if outputs.watch is None else {"watch": outputs.watch.state()}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _resume(
    outputs: Outputs, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, train: Samples
) -> int:
    """Loads a checkpoint if there is one; returns the number of epochs it has behind it."""
    path = outputs.checkpoint
    if path is None or not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        if state["identity"] != _identity(model, config, train):
            raise TrainingError(
                f"{path} is of another model, data set or configuration; remove it, or resume with its settings"
            )
        if outputs.watch is not None:
            if "watch" not in state:
                raise TrainingError(
                    f"{path}: nothing counted misses in that training; remove it, or ask for no core set"
                )
            outputs.watch.load_state(state["watch"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["epochs"])
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile) as e:
        if isinstance(e, TrainingError):
            raise
        raise TrainingError(f"{path} cannot be resumed from: {e}; remove it to start again") from e


def _writer(folder: Path | None) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "train") from None
    return SummaryWriter(folder)


@torch.no_grad()
def reestimate_norms(
    supernet: Supernet, data: Samples, assignment: Assignment, row: int | None = None, kept: Collection[int] = ()
) -> None:
    """Replaces the batch-norm statistics that `assignment` uses by averages over batches of `data`.

    row: the operating point's own row of statistics, or None for the rows of the layers' widths. kept: layers whose
    statistics are used as they are.
    """
    norms = [layer.norm for i, layer in enumerate(supernet.layers) if layer.norm is not None and i not in kept]
    momenta = [norm.momentum for norm in norms]
    supernet.set_assignment(assignment, row)
    supernet.train()
    for i in kept:
        supernet.layers[i].eval()
    for i, (x, _) in enumerate(data.typical(256, limit=4096)):
        for norm in norms:
            norm.momentum = 1 / (i + 1)
        supernet(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    supernet.eval()


def predict(model: Callable[[Tensor], Tensor], data: Samples, batch_size: int = 256) -> Tensor:
    """Outputs of `model` on all of `data`, without gradients."""
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in data.plain(batch_size)])


def accuracy(outputs: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> float:
    """Share of rows whose largest output is at the label."""
    return float((torch.as_tensor(outputs).argmax(1) == torch.as_tensor(labels)).double().mean())
