"""The core set keeps what it promises: its size, its bytes, the distribution of misses, every class, the past."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caq.calibration.core import UNLABELLED, CoreSet, MissCounter, bytes_per_sample, cover, largest_remainder, sample
from caq.calibration.state import State, from_bytes, owned, to_bytes
from caq.errors import ConfigError, DataError, StateFormatError

WIDTHS = (2, 4, 8)
SEEDS = st.integers(0, 2**32 - 1)
MISSES = st.lists(st.integers(0, 9), min_size=20, max_size=300).map(np.array)


def data(count: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples that carry their number, labels of unequal frequency, and misses (W, N)."""
    rng = np.random.default_rng(seed)
    x = np.zeros((count, 5), np.int16)
    x[:, 0] = np.arange(count)
    y = np.minimum(rng.geometric(0.5, count) - 1, classes - 1)
    return x, y, rng.poisson(rng.gamma(1, 1, count), (3, count)).clip(0, 9)


def shares(misses: np.ndarray, levels: int = 40) -> np.ndarray:
    return np.bincount(misses, minlength=levels) / len(misses)


def test_misses_are_counted_from_right_to_wrong_for_each_width():
    counter = MissCounter(5, (4, 2))
    log = np.array(  # epochs of sample: always right, once forgotten, twice, late, never
        [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]], bool
    )
    for row in log:
        counter.update(np.stack([row, ~row]))
    misses = counter.misses()
    assert misses.dtype == np.uint8 and misses.tolist() == [[0, 1, 2, 0, 2], [1, 1, 1, 1, 0]]
    # Sample 0 is never right at the second width, where the most that is missed is 1.
    assert counter.misses(penalty=50).tolist() == misses.tolist()
    assert counter.misses(penalty=1)[0].tolist() == [0, 1, 2, 0, 1]
    assert counter.misses(penalty=0)[1].tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(ConfigError, match="penalty"):
        counter.misses(-1)
    for bad in (np.zeros((2, 4), bool), np.zeros((2, 5), int)):
        with pytest.raises(DataError, match="correct"):
            counter.update(bad)


def test_a_log_that_is_changed_afterwards_changes_no_count():
    counter, log = MissCounter(1, (8,)), np.ones((1, 1), bool)
    counter.update(log)
    log[:] = False
    counter.update(log)
    assert counter.misses() == 1


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.data())
def test_seats_are_shared_by_largest_remainder(mass, draw):
    room = np.array([draw.draw(st.integers(0, 50)) for _ in mass])
    seats = draw.draw(st.integers(0, int(room.sum())))
    given_ = largest_remainder(np.array(mass, float), room, seats)
    assert given_.sum() == seats and (given_ >= 0).all() and (given_ <= room).all()
    if sum(mass):
        exact = seats * np.array(mass) / sum(mass)
        if (exact <= room).all():
            assert (np.abs(given_ - exact) < 1 + 1e-6).all()  # the quota rule


def test_the_largest_fraction_gets_the_last_seat():
    assert largest_remainder(np.array([5.0, 5.0, 90.0]), np.array([9, 9, 90]), 10).tolist() == [1, 0, 9]
    assert largest_remainder(np.array([0.0, 1.0]), np.array([5, 2]), 4).tolist() == [2, 2]
    with pytest.raises(ConfigError, match="3 samples are asked for, and there are 2"):
        largest_remainder(np.array([1.0]), np.array([2]), 3)


@given(MISSES, SEEDS, st.data())
def test_pmf_keeps_the_distribution_of_misses_within_one_sample_a_level(misses, seed, draw):
    size = draw.draw(st.integers(0, len(misses)))
    chosen = sample(misses, size, np.random.default_rng(seed))
    assert len(set(chosen.tolist())) == size and (np.diff(chosen) > 0).all()
    exact = size * shares(misses)
    assert (np.abs(np.bincount(misses[chosen], minlength=40) - exact) < 1 + 1e-6).all()
    np.testing.assert_array_equal(chosen, sample(misses, size, np.random.default_rng(seed)))


@given(MISSES, SEEDS, st.data())
def test_count_draws_the_missed_and_others_only_when_they_are_out(misses, seed, draw):
    size = draw.draw(st.integers(1, len(misses)))
    chosen = sample(misses, size, np.random.default_rng(seed), "count")
    missed = int((misses > 0).sum())
    assert len(set(chosen.tolist())) == size
    assert (misses[chosen] > 0).sum() == min(size, missed)


def test_count_draws_in_proportion_to_misses():
    misses = np.array([1, 3] * 50)
    drawn = np.concatenate([sample(misses, 1, np.random.default_rng(s), "count") for s in range(2000)])
    assert abs((misses[drawn] == 3).mean() - 0.75) < 0.04


@given(st.integers(20, 200), SEEDS, st.integers(1, 3), st.data())
@settings(deadline=None)
def test_every_class_is_covered_and_misses_are_exchanged_for_the_like(count, seed, per_class, draw):
    _, y, misses = data(count, seed=seed)
    total = misses.sum(0)
    rng = np.random.default_rng(seed)
    size = draw.draw(st.integers(12, count))
    before = sample(total, size, rng)
    chosen = cover(before, y, total, rng, per_class)
    assert len(set(chosen.tolist())) == size
    for label in set(y.tolist()):
        assert (y[chosen] == label).sum() >= min(per_class, (y == label).sum())
    # Where every class was covered, nothing is exchanged.
    if all((y[before] == c).sum() >= min(per_class, (y == c).sum()) for c in set(y.tolist())):
        np.testing.assert_array_equal(chosen, before)


def test_an_exchange_is_for_a_sample_with_as_many_misses():
    y, misses = np.array([0] * 10 + [1] * 3), np.array([0] * 5 + [4] * 5 + [9, 4, 1])
    chosen = cover(np.array([0, 1, 5]), y, misses, np.random.default_rng(0))
    assert chosen.tolist() == [0, 1, 11]
    stays = np.zeros(13, bool)
    stays[5] = True  # so one of the others goes, for the nearest
    chosen = cover(np.array([0, 1, 5]), y, misses, np.random.default_rng(0), stays=stays)
    assert set(chosen.tolist()) in ({0, 5, 12}, {1, 5, 12})
    assert cover(np.array([0]), y[:10], misses[:10], np.random.default_rng(0), stays=np.ones(10, bool)).tolist() == [0]
    with pytest.raises(ConfigError, match="2 classes need at least 4"):
        cover(np.array([0, 1, 5]), y, misses, np.random.default_rng(0), per_class=2)


@pytest.mark.parametrize("method", ["pmf", "count"])
@pytest.mark.parametrize("size", [20, 21, 300, 3000])
def test_a_core_set_of_any_size(size, method):
    x, y, misses = data(3000)
    core = CoreSet.select(x, y, misses, WIDTHS, size=size, method=method, seed=1)
    assert len(core) == size and core.nbytes == sum(a.nbytes for a in (core.x, core.y, core.misses, core.ids))
    rows = core.x[:, 0]
    np.testing.assert_array_equal(rows, -1 - core.ids)
    np.testing.assert_array_equal(core.y, y[rows])
    np.testing.assert_array_equal(core.misses, misses.T[rows])
    assert set(core.y) == set(y) and core.from_factory.all()
    again = CoreSet.select(x, y, misses, WIDTHS, size=size, method=method, seed=1)
    np.testing.assert_array_equal(core.ids, again.ids)
    if size < 3000:
        other = CoreSet.select(x, y, misses, WIDTHS, size=size, method=method, seed=2)
        assert (other.ids != core.ids).any()


@given(st.integers(200, 4000))
@settings(deadline=None, max_examples=30)
def test_a_budget_of_bytes_is_kept_and_used(budget):
    x, y, misses = data(150)
    each = bytes_per_sample((5,), x.dtype, 3)
    assert each == 10 + 2 + 3 + 8
    core = CoreSet.select(x, y, misses, WIDTHS, max_bytes=budget)
    assert core.nbytes <= budget and (core.nbytes + each > budget or len(core) == 150)
    assert len(CoreSet.select(x, y, misses, WIDTHS, max_bytes=10**6, size=30)) == 30


def test_what_cannot_be_selected_is_a_typed_error():
    x, y, misses = data(40)
    for size, max_bytes in ((0, None), (41, None), (None, None), (None, 22), (None, -1)):
        with pytest.raises(ConfigError, match="1 to 40 samples are possible, of 23 bytes"):
            CoreSet.select(x, y, misses, WIDTHS, size=size, max_bytes=max_bytes)
    with pytest.raises(ConfigError, match="4 classes need"):
        CoreSet.select(x, y, misses, WIDTHS, size=3)
    assert len(CoreSet.select(x, y, misses, WIDTHS, size=3, per_class=0)) == 3
    with pytest.raises(ConfigError, match="methods are pmf, count"):
        CoreSet.select(x, y, misses, WIDTHS, size=20, method="best")
    for bad in (
        (x.astype(np.float32), y, misses),
        (x[:, 0], y, misses),
        (x, y[:-1], misses),
        (x, y - 2, misses),
        (x, y + 2**15, misses),
        (x, y + 0.5, misses),
        (x, y, misses[:2]),
        (x, y, misses - 1),
        (x, y, misses + 250),
        (x, y, misses * 1.0),
    ):
        with pytest.raises(DataError):
            CoreSet.select(*bad, WIDTHS, size=20)


@given(st.integers(20, 60), st.floats(0, 1), st.lists(st.integers(1, 90), min_size=1, max_size=6), SEEDS, st.booleans())
@settings(deadline=None, max_examples=60)
def test_updates_keep_size_bytes_classes_and_the_factorys_share(size, keep, batches, seed, labelled):
    core = CoreSet.select(*data(200, seed=seed), WIDTHS, size=size, seed=seed)
    first, classes, seen = core, set(core.y.tolist()), 0
    rng = np.random.default_rng(seed)
    for i, count in enumerate(batches):
        x, y, misses = data(count, seed=seed + i + 1)
        core = core.update(x, y if labelled else None, misses, rng, keep=keep)
        assert len(core) == size and core.nbytes == first.nbytes and len(set(core.ids.tolist())) == size
        classes |= set(y.tolist()) if labelled else set()
        assert classes == set(core.y.tolist()) - {UNLABELLED}
        for id_, row in zip(core.ids, core.x[:, 0], strict=True):
            assert id_ < seen + count and (row == -1 - id_ if id_ < 0 else 0 <= row < max(batches))
        seen += count
        assert core.seen == seen
        # Classes are covered first; apart from that the factory keeps its share, and the stream has the rest.
        assert core.from_factory.sum() >= np.ceil(keep * size) - len(classes)
        assert (~core.from_factory).sum() <= min(seen, size)
        if not labelled:
            assert not core.misses[core.y == UNLABELLED].any()
    again = first
    rng = np.random.default_rng(seed)
    for i, count in enumerate(batches):
        x, y, misses = data(count, seed=seed + i + 1)
        again = again.update(x, y if labelled else None, misses, rng, keep=keep)
    np.testing.assert_array_equal(core.ids, again.ids)


def test_the_streams_part_stands_for_all_of_the_stream():
    """Early batches are as likely to be kept as late ones, as in a reservoir."""
    ages = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        core = CoreSet.select(*data(200, seed=seed), WIDTHS, size=60, seed=seed)
        for i in range(10):
            core = core.update(*data(40, seed=100 * seed + i + 1), rng)
        ages += (core.ids[core.ids >= 0] // 40).tolist()
        assert core.from_factory.sum() == 30
    counts = np.bincount(ages, minlength=10)
    assert (np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())).all()


def test_an_update_keeps_the_distribution_of_misses_of_the_stream():
    rng = np.random.default_rng(0)
    core = CoreSet.select(*data(400), WIDTHS, size=200)
    seen = []
    for i in range(8):
        x, y, misses = data(150, seed=i + 1)
        seen.append(misses.sum(0))
        core = core.update(x, y, misses, rng, keep=0.25)
    kept = core.misses[~core.from_factory].astype(int).sum(1)
    assert np.abs(shares(kept) - shares(np.concatenate(seen))).sum() < 0.35


def test_misses_that_were_counted_anew_decide():
    core = CoreSet.select(*data(100), WIDTHS, size=40, per_class=0)
    own = np.zeros((3, 40), int)
    own[:, :10] = 8
    x, y, misses = data(40, seed=1)
    after = core.update(x, y, misses, np.random.default_rng(0), own_misses=own, method="count", per_class=0)
    assert set(core.ids[:10].tolist()) <= set(after.ids.tolist())
    assert (after.misses[after.from_factory].sum(1) > 0).sum() == 10


def test_late_labels_find_their_samples_and_others_are_passed_over():
    core = CoreSet.select(*data(100), WIDTHS, size=30)
    x, y, misses = data(60, seed=1)
    core = core.update(x, None, misses, np.random.default_rng(0))
    late = core.with_labels(np.arange(60), y)
    stream = late.ids >= 0
    np.testing.assert_array_equal(late.y[stream], y[late.ids[stream]])
    np.testing.assert_array_equal(late.y[~stream], core.y[~stream])
    assert stream.sum() == 15 and (core.y[stream] == UNLABELLED).all()
    for ids, labels in ((np.arange(3), y[:2]), (np.arange(2), np.array([-2, 0])), (np.arange(2), np.array([0.0, 1]))):
        with pytest.raises(DataError, match="a label of 0 to 32767"):
            core.with_labels(ids, labels)


def test_updates_that_do_not_fit_are_typed_errors():
    core = CoreSet.select(*data(100), WIDTHS, size=30)
    x, y, misses = data(10)
    rng = np.random.default_rng(0)
    for bad in ((x[:, :3], y, misses), (x.astype(np.uint8), y, misses), (x, y[:3], misses), (x, y, misses[:, :3])):
        with pytest.raises(DataError):
            core.update(*bad, rng)
    with pytest.raises(DataError, match="misses"):
        core.update(x, y, misses, rng, own_misses=misses)
    with pytest.raises(ConfigError, match="keep"):
        core.update(x, y, misses, rng, keep=1.5)


def test_a_core_set_goes_through_a_state_and_nothing_else_does():
    core = CoreSet.select(*data(100), WIDTHS, size=30).update(*data(50, seed=1), np.random.default_rng(0))
    arrays = from_bytes(to_bytes(State("a" * 64, owned("core", core.to_arrays())))).part("core")
    again = CoreSet.from_arrays(arrays)
    assert again.widths == core.widths and again.seen == core.seen == 50
    for name in ("x", "y", "misses", "ids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(core, name))
    good = core.to_arrays()
    for name, value in {
        "x": core.x.astype(float),
        "y": core.y.astype(np.int32),
        "misses": core.misses[:-1],
        "widths": np.array([4, 2, 8], np.uint8),
        "ids": np.zeros(30, np.int64),
        "seen": np.array([3]),
    }.items():
        with pytest.raises(StateFormatError, match="core set"):
            CoreSet.from_arrays({**good, name: value})
        with pytest.raises(StateFormatError, match="core set"):
            CoreSet.from_arrays({k: v for k, v in good.items() if k != name})
    for change in ({"widths": np.array([[2], [4], [8]])}, {"seen": np.array([-1])}, {"y": core.y - 9}):
        with pytest.raises(StateFormatError):
            CoreSet.from_arrays({**good, **change})
