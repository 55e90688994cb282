"""Batches of input codes for training: seeded by (seed, epoch), so that a resumed run sees what a whole one saw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from caq.data import Dataset
from caq.errors import ConfigError
from caq.graph import Shape
from caq.scaling import InputScaling


@dataclass(frozen=True)
class Samples:
    """Input codes (N, C, H, W) int8 with labels (N,) int64; `step` is the real value of a code.

    Augmentation, in `epoch` alone: shift: how far a sample may move up or down and left or right, in positions.
    rotation: by how many degrees the axes of motion sensors may turn, around any direction; channels 0 to 2 are x, y
    and z of a sensor, 3 to 5 those of the next, and all of a sample turn alike. 0: not at all. Raises ConfigError where
    the channels are not threes.
    masking: a band of a spectrogram's rows becomes 0, the mean of the channel, and so does one of its columns, each
    anywhere and of any length up to this share: time and frequency masking (Park et al., "SpecAugment", 2019), one of
    each, without warping. 0: none. Raises ConfigError where there is one row or one column.
    """

    codes: Tensor
    labels: Tensor
    step: float
    shift: tuple[int, int] = (0, 0)
    rotation: float = 0.0
    masking: float = 0.0

    def __post_init__(self) -> None:
        if self.rotation and self.codes.shape[1] % 3:
            raise ConfigError(f"rotation turns sensors of three axes; the data have {self.codes.shape[1]} channels")
        if self.masking and min(self.codes.shape[2:]) < 2:
            h, w = self.codes.shape[2:]
            raise ConfigError(f"masking is of spectrograms and images; the data have {h} rows and {w} columns")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Samples:
        """The samples at `indices`, without augmentation."""
        chosen = torch.from_numpy(indices)
        return Samples(self.codes[chosen], self.labels[chosen], self.step)

    def epoch(self, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches of real inputs (n, C, H, W) float32 and labels (n,).

        A last batch of fewer than half the size is left out: batch norm would learn little from it.
        """
        rng = np.random.default_rng([seed, epoch])
        order = torch.from_numpy(rng.permutation(len(self)))
        for start in range(0, len(self), batch_size):
            chosen = order[start : start + batch_size]
            if len(chosen) * 2 >= batch_size or start == 0:
                codes = self._masked(self._rotated(self._shifted(self.codes[chosen], rng), rng), rng)
                yield codes.float() * self.step, self.labels[chosen]

    def batches(self, batch_size: int) -> int:
        """How many batches `epoch` yields."""
        whole, rest = divmod(len(self), batch_size)
        return max(1, whole + (rest * 2 >= batch_size))

    def plain(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, as they are."""
        for start in range(0, len(self), batch_size):
            chosen = slice(start, start + batch_size)
            yield self.codes[chosen].float() * self.step, self.labels[chosen]

    def typical(self, batch_size: int, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of at most `limit` samples from all over the data, not augmented: to take statistics from.

        Data often come sorted by class or person, so neither the first samples nor a batch in order will do.
        """
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(self))[:limit])
        # Equal parts, so that no small batch weighs as much as a large one.
        for chosen in torch.tensor_split(order, max(1, round(len(order) / batch_size))):
            yield self.codes[chosen].float() * self.step, self.labels[chosen]

    @cached_property
    def sha256(self) -> str:
        """Digest of everything that training sees."""
        augmentation = [self.shift, self.rotation, self.masking]
        while not augmentation[-1]:  # what is not asked for leaves the digest as it was before it could be
            augmentation.pop()
        digest = hashlib.sha256(repr((tuple(self.codes.shape), self.step, *augmentation)).encode())
        digest.update(self.codes.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def _shifted(self, codes: Tensor, rng: np.random.Generator) -> Tensor:
        if self.shift == (0, 0):
            return codes
        n, _, h, w = codes.shape
        moved = codes
        for axis, (size, reach) in enumerate(zip((h, w), self.shift, strict=True), start=2):
            offsets = torch.from_numpy(rng.integers(-reach, reach + 1, n))
            index = torch.arange(size)[None] + offsets[:, None]
            outside = (index < 0) | (index >= size)
            view = (n, 1, size, 1) if axis == 2 else (n, 1, 1, size)
            moved = moved.gather(axis, index.clamp(0, size - 1).reshape(view).expand_as(moved))
            moved = moved.masked_fill(outside.reshape(view), 0)
        return moved

    def _rotated(self, codes: Tensor, rng: np.random.Generator) -> Tensor:
        if not self.rotation:
            return codes
        n, channels, h, w = codes.shape
        axes = rng.normal(size=(n, 3))
        angles = np.radians(rng.uniform(0, self.rotation, n))
        turns = Rotation.from_rotvec(axes * (angles / np.linalg.norm(axes, axis=1))[:, None]).as_matrix()
        vectors = codes.reshape(n, channels // 3, 3, h * w).float()
        turned = torch.from_numpy(turns.astype(np.float32))[:, None] @ vectors
        return turned.reshape(codes.shape).round_().clamp_(-128, 127)

    def _masked(self, codes: Tensor, rng: np.random.Generator) -> Tensor:
        if not self.masking:
            return codes
        n, _, h, w = codes.shape
        rows, columns = (self._bands(n, size, rng) for size in (h, w))
        return codes.masked_fill(rows[:, None, :, None] | columns[:, None, None, :], 0)

    def _bands(self, n: int, size: int, rng: np.random.Generator) -> Tensor:
        """For each of n samples, which of `size` positions are masked: (n, size) bool."""
        lengths = rng.integers(0, int(self.masking * size), n, endpoint=True)
        starts = rng.integers(0, size - lengths, endpoint=True)
        positions = np.arange(size)
        return torch.from_numpy((positions >= starts[:, None]) & (positions < (starts + lengths)[:, None]))


def samples(
    x: np.ndarray, y: np.ndarray, scaling: InputScaling, input_shape: Shape, kind: str, augment: bool = False
) -> Samples:
    """Encodes raw samples (N, ...) of a data set of `kind` for a network that eats (H, W, C) `input_shape`.

    Augmentation shifts images by up to an eighth of their size both ways, series by up to a tenth of their time.
    """
    h, w, _ = input_shape
    codes = scaling.encode(x).reshape(len(x), *input_shape).transpose(0, 3, 1, 2)
    shift = (0, 0)
    if augment and kind == "image" and h > 1:
        shift = (max(1, h // 8), max(1, w // 8))
    elif augment and kind == "series" and max(h, w) > 1:
        # Time runs along the rows where the network sees the series as an image.
        shift = (h // 10, 0) if h > 1 else (0, w // 10)
    return Samples(
        torch.from_numpy(np.ascontiguousarray(codes)), torch.from_numpy(y.astype(np.int64)), scaling.step, shift
    )


def training_samples(data: Dataset, scaling: InputScaling, input_shape: Shape) -> Samples:
    """The training split of `data`, augmented."""
    return samples(data.x_train, data.y_train, scaling, input_shape, data.kind, augment=True)
