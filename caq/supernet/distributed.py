"""Training in several processes on the CPU: torchrun starts them, gloo connects them, DistributedDataParallel averages.

    torchrun --nproc-per-node 2 -m caq train --data digits --model resnet8 --out x.caq

`TrainConfig.batch_size` stays that of the whole batch: every process makes the same batches, augmented alike, and of
each trains on its share. What depends on a whole batch is computed over all processes: the statistics of batch norm,
the gradients of activation steps and of clipped weights, and the loss. So the weights are those of one process but for
the order in which floats are summed. As with another number of threads, that now and then rounds a code the other way,
and in float32 long trainings drift apart from there; in float64 they stay together to the last digits.

All else (gates, statistics of points, measuring, writing) the first process does.

A script of one's own trains within `joined`:

    with joined() as processes:
        points = train_gated(supernet, prepared.train, config)
        model = finish(supernet, data, prepared, config, points)
    if processes.first:
        caq.save(model, "mine.caq")
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from caq.errors import ConfigError, TrainingError

P = ParamSpec("P")
T = TypeVar("T")

#: What torchrun sets, and torch reads to connect the processes.
ENVIRONMENT = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
#: Others wait for as long as the first one learns gates and measures. One that dies is noticed at once all the same.
TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """This process, and how many train together."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def check(self, batch_size: int, samples: int) -> None:
        """Raises ConfigError unless every process gets a sample of every batch, and the same number of a whole one."""
        if batch_size % self.count:
            raise ConfigError(f"batch_size {batch_size} is not a multiple of {self.count}, the number of processes")
        # A last batch may have half the samples.
        if self.count > 1 and min(batch_size // 2, samples) < self.count:
            raise ConfigError(
                f"batches of {batch_size} of {samples} samples are too small for {self.count} processes; "
                "train with fewer"
            )

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, with gradients that `backward` averages over all processes, and with the first one's state."""
        if self.count == 1:
            return model
        # Each assignment leaves other parameters unused.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def agree(self, value: int, what: str) -> None:
        """Raises TrainingError unless `value` is the same in all processes."""
        if self.count == 1:
            return
        values = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(values, torch.tensor([value]))
        if len(found := [int(v) for v in values]) != found.count(value):
            raise TrainingError(f"{what} differs between processes: {', '.join(map(str, found))}")


@dataclass(frozen=True)
class Share:
    """This process's `mine` samples of a batch of `whole`."""

    mine: int
    whole: int
    count: int

    @property
    def weight(self) -> float:
        """What to multiply the mean loss of the share by, so that the mean over processes is that of the batch."""
        return self.mine * self.count / self.whole

    def mean(self, loss: float) -> float:
        """The mean over the whole batch of `loss`, which is the mean over the share."""
        if self.count == 1:
            return loss
        total = torch.tensor([loss * self.weight / self.count], dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)


_share: Share | None = None


@contextmanager
def shared(x: Tensor, y: Tensor, processes: Processes) -> Iterator[tuple[Tensor, Tensor, Share]]:
    """This process's share of a batch (x, y); within, what passes forward counts as a share of a whole batch."""
    global _share  # noqa: PLW0603
    mine = slice(processes.rank, None, processes.count)
    share = Share(len(y[mine]), len(y), processes.count)
    _share = share if processes.count > 1 else None
    try:
        yield x[mine], y[mine], share
    finally:
        _share = None


def whole_batch(count: int) -> int:
    """How many values the whole batch has where this process's share of it has `count`."""
    return count if _share is None else count * _share.whole // _share.mine


def whole_gradient(g: Tensor) -> Tensor:
    """The mean over all processes of a gradient: for what is not linear in it, and so cannot wait for the optimizer."""
    if _share is None:
        return g
    dist.all_reduce(mean := g / _share.count)
    return mean


def sharing() -> bool:
    """Whether what passes forward now is a share of a batch."""
    return _share is not None


class _Sum(torch.autograd.Function):
    """The sum over all processes. Its gradient is that of all their losses, so it is summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dist.all_reduce(total := x.clone())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        dist.all_reduce(total := g.clone())
        return total


def batch_norm(
    y: Tensor, running_mean: Tensor, running_var: Tensor, gamma: Tensor, beta: Tensor, momentum: float, eps: float
) -> Tensor:
    """torch's batch_norm in training mode of y (N, C, H, W), with statistics over all processes; the rest is (C,).

    torch's own SyncBatchNorm needs a GPU. The mean first, then the deviations from it: sums of squares would cancel.
    """
    count = whole_batch(y.numel() // y.shape[1])
    mean = _Sum.apply(y.sum((0, 2, 3))) / count
    centred = y - mean[:, None, None]
    var = _Sum.apply(centred.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / max(1, count - 1)), momentum)
    return centred * (gamma * torch.rsqrt(var + eps))[:, None, None] + beta[:, None, None]


def processes() -> Processes:
    """This process among those that train. Raises TrainingError if torchrun started several that did not join."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    if (count := _started()) > 1:
        raise TrainingError(
            f"WORLD_SIZE is {count}, but the processes are not connected: "
            "train within caq.supernet.distributed.joined(), or unset WORLD_SIZE"
        )
    return Processes()


def _started() -> int:
    """How many processes torchrun started, 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise TrainingError(f"WORLD_SIZE is {text!r}, not a number of processes; start them with torchrun")
    return int(text)


@contextmanager
def joined() -> Iterator[Processes]:
    """Connects the processes that torchrun started, for as long as it lasts; does nothing without torchrun.

    Raises TrainingError if its environment variables are incomplete, or the others cannot be reached.
    """
    if (dist.is_available() and dist.is_initialized()) or _started() == 1:
        yield processes()
        return
    if missing := [name for name in ENVIRONMENT if not os.environ.get(name)]:
        raise TrainingError(
            f"WORLD_SIZE is set, but {' and '.join(missing)} not: start with torchrun, or unset WORLD_SIZE"
        )
    # DistributedDataParallel imports it, and the group of that moment stays the default argument of its functions.
    import_module("torch.distributed.nn")
    try:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes cannot be connected: {error}") from error
    try:
        yield processes()
    finally:
        # Nothing may hold the group any longer: a thread that outlives the interpreter may abort the process.
        gc.collect()
        dist.destroy_process_group()


def first_only(work: Callable[P, T]) -> Callable[P, T]:
    """Of several processes the first calls `work`; the others wait, and get what it returned."""

    @wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        team = processes()
        if team.count == 1:
            return work(*args, **kwargs)
        found: list[T | None] = [None]
        try:
            if team.first:
                found = [work(*args, **kwargs)]
        finally:
            # Also after an error, so that the others do not wait for ever.
            dist.broadcast_object_list(found, 0)
        if found[0] is None:
            raise TrainingError("the first process failed; its own message says why")
        return found[0]

    return call
