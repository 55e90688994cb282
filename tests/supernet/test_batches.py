"""What a supernet is trained on: augmentation, masks, batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from caq.data import Dataset
from caq.errors import ConfigError
from caq.supernet import convert
from caq.supernet.batches import Samples
from caq.supernet.pipeline import prepare, train_model
from caq.supernet.train import Outputs, TrainConfig, reestimate_norms, train_supernet

CONFIG = TrainConfig(epochs=3, batch_size=32, seed=5)
QUIET = Outputs(quiet=True)


def test_augmentation_shifts_and_fills_with_zeros() -> None:
    codes = torch.arange(1, 17, dtype=torch.int8).reshape(1, 1, 4, 4).repeat(64, 1, 1, 1)
    data = Samples(codes, torch.zeros(64, dtype=torch.int64), 1.0, shift=(1, 1))
    x, _ = next(data.epoch(64, seed=0, epoch=0))
    found = set()
    for image in x[:, 0]:
        padded = torch.nn.functional.pad(codes[0, 0].float(), (1, 1, 1, 1))
        at = [(i, j) for i in range(3) for j in range(3) if torch.equal(padded[i : i + 4, j : j + 4], image)]
        assert len(at) == 1
        found.add(at[0])
    assert len(found) == 9


def test_augmentation_turns_sensors_alike_and_by_no_more_than_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    sensor = torch.randint(-70, 71, (50, 3, 1, 20), generator=generator, dtype=torch.int8)
    codes = torch.cat([sensor, -sensor], 1)
    data = Samples(codes, torch.zeros(50, dtype=torch.int64), 0.5, rotation=30.0)
    (x, _), (again, _) = (next(data.epoch(50, seed=0, epoch=0)) for _ in range(2))
    order = np.random.default_rng([0, 0]).permutation(50)
    before, after = codes[order].double(), (x / 0.5).double()
    assert torch.equal(x, again) and torch.equal(after, after.round())
    # Both sensors turn alike, and every vector by the sample's angle at most. What is small is rounded by much.
    assert torch.equal(after[:, :3], -after[:, 3:])
    lengths = before[:, :3].norm(dim=1), after[:, :3].norm(dim=1)
    assert (lengths[0] - lengths[1]).abs().max() < 1
    large = lengths[0] > 40
    cosine = (before[:, :3] * after[:, :3]).sum(1)[large] / (lengths[0] * lengths[1])[large]
    turned = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    assert 20 < float(turned.max()) < 32
    plain = Samples(codes, data.labels, 0.5)
    assert data.sha256 != plain.sha256 and torch.equal(next(plain.epoch(50, 0, 0))[0], codes[order].float() * 0.5)


def test_what_has_no_three_axes_is_not_turned(digits: Dataset) -> None:
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (2, 8))
    with pytest.raises(ConfigError, match="three axes; the data have 64 channels"):
        train_supernet(supernet, prepared.train, TrainConfig(epochs=1, rotation=30), Outputs(quiet=True))
    for rotation in (-1.0, 181.0, float("nan")):
        with pytest.raises(ConfigError, match="rotation: 0 to 180 degrees"):
            TrainConfig(rotation=rotation)


def test_a_band_of_rows_and_one_of_columns_are_masked() -> None:
    codes = torch.full((300, 2, 20, 10), 7, dtype=torch.int8)
    data = Samples(codes, torch.zeros(300, dtype=torch.int64), 0.5, masking=0.25)
    (x, _), (again, _) = (next(data.epoch(300, seed=0, epoch=0)) for _ in range(2))
    assert torch.equal(x, again) and set(x.unique().tolist()) == {0.0, 3.5}
    hidden = (x == 0).all(1)
    rows, columns = hidden.all(2), hidden.all(1)
    # Nothing else is hidden, every place may be, and every length up to a quarter.
    assert torch.equal((x == 0).any(1), rows[:, :, None] | columns[:, None])
    for bands, most in ((rows, 5), (columns, 2)):
        assert bands.any(0).all() and set(bands.sum(1).tolist()) == set(range(most + 1))
        edges = bands.int().diff(dim=1, prepend=torch.zeros(300, 1), append=torch.zeros(300, 1)).abs().sum(1)
        assert set(edges.tolist()) == {0, 2}
    everything = next(replace(data, masking=1.0).epoch(300, seed=0, epoch=0))[0]
    assert (everything == 0).flatten(1).all(1).any()


def test_masking_leaves_what_was_without_it_and_needs_rows_and_columns(digits: Dataset) -> None:
    codes = torch.arange(60, dtype=torch.int8).reshape(10, 1, 3, 2)
    data = Samples(codes, torch.zeros(10, dtype=torch.int64), 0.5, (1, 1))
    masked = replace(data, masking=0.4)
    (plain, _), (x, _) = (next(s.epoch(10, seed=0, epoch=0)) for s in (data, masked))
    assert torch.equal(torch.where(x == 0, plain, x), plain) and not torch.equal(x, plain)
    assert len({data.sha256, masked.sha256, replace(data, masking=0.5).sha256}) == 3
    prepared = prepare(digits, "mlp", 0)
    supernet = convert(prepared.network, prepared.example(), (2, 8))
    with pytest.raises(ConfigError, match="masking is of spectrograms and images; the data have 1 rows and 1 columns"):
        train_supernet(supernet, prepared.train, TrainConfig(epochs=1, masking=0.2), Outputs(quiet=True))
    for masking in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="masking: a share between 0 and 1"):
            TrainConfig(masking=masking)


def test_batches_depend_on_seed_and_epoch_only() -> None:
    data = Samples(torch.arange(100, dtype=torch.int8).reshape(100, 1, 1, 1), torch.arange(100), 1.0)

    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([y for _, y in data.epoch(16, seed, epoch)]).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    # Six batches of 16; the rest, four samples, is too small for batch norm.
    assert len(order(0, 0)) == 96 and data.batches(16) == 6


@pytest.mark.parametrize("count", [257, 513])
def test_no_batch_of_one_is_left_over(digits: Dataset, count: int) -> None:
    x, y = np.resize(digits.x_train, (count, 8, 8, 1)), np.resize(digits.y_train, count)
    model = train_model(replace(digits, x_train=x, y_train=y), "mlp", replace(CONFIG, epochs=1), (2, 8), (), QUIET)
    assert len(model.points) == 2


def test_statistics_do_not_depend_on_the_order_of_the_data(digits: Dataset) -> None:
    order = np.argsort(digits.y_train, kind="stable")
    means = []
    for data in (digits, replace(digits, x_train=digits.x_train[order], y_train=digits.y_train[order])):
        prepared = prepare(data, "mlp", 0)
        supernet = convert(prepared.network, prepared.example(), (2, 8))
        reestimate_norms(supernet, prepared.train, supernet.graph.uniform(8))
        norm = supernet.layers[0].norm
        assert norm is not None
        means.append(norm.mean[1].clone())
    assert (means[0] - means[1]).abs().max() < 0.02
    labels = torch.cat([y for _, y in prepared.train.typical(100, 100)])
    assert len(labels) == 100 and len(labels.unique()) == 10
