"""Learning the price of charge: what hindsight says, and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caq.errors import TrainingError
from policies.evaluate import of_policy, play
from policies.price import INPUTS, PricePolicy, read_price
from policies.recall import UNKNOWN_S
from policies.seen import Seen
from policies.train import price
from policies.train.__main__ import main
from policies.train.days import HISTORY, days_of, each_day, lives_of
from policies.train.price import LEVELS, Hindsight, Run, situations, usual_of
from simulators.world import World
from tests.policies.worlds import CAMERA, model
from tests.simulators import worlds

pytest.importorskip("torch", reason="pip install 'caq[rl]'")

STEADY = worlds.scenario(worlds.days((1, 48), requests=9000.0))
POINT = CAMERA.names.index("w4a4")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price, "VALIDATION_DEVICES", 4)
    monkeypatch.setattr(price, "BATCH", 256)


def test_a_joule_that_is_missing_is_worth_the_time_it_would_have_lasted() -> None:
    """30 requests/s for four hours: what is left of a low charge ends before the day does, a high one never."""
    slopes = Hindsight(STEADY).slopes(lambda t: np.full((1, LEVELS), POINT))
    per_step_mj = 1e3 * 300 * (0.006 + 30 * CAMERA.energy_j[POINT])
    worth = 9000 * (CAMERA.accuracy[POINT] + 0.5 + 0.5) / per_step_mj  # answers, none dropped, and not off
    levels = np.linspace(0, 1, LEVELS)
    assert slopes[0, 0, (levels > 0.15) & (levels < 0.3)].mean() == pytest.approx(worth, rel=0.1)
    # Lines between levels smear what is sharp; a full battery is still far from short.
    assert slopes[0, 0, levels > 0.6].max() < 0.02 and not slopes[0, 0, levels > 0.9].any()
    assert not slopes[-1].any()  # the day is over


def test_hindsight_tells_what_the_world_returns() -> None:
    """The sum of the slopes from one charge to another is by how much more a day returns."""
    s = worlds.scenario(worlds.days((1, 96), requests=9000.0, charging=np.arange(96) // 12 == 4))
    slopes = Hindsight(s).slopes(lambda t: np.full((1, LEVELS), POINT))[0, 0].astype(float)
    charge = np.linspace(0, 1, LEVELS)

    def always(world: World, seen: Seen) -> np.ndarray:
        return np.full(len(seen.current), POINT)

    low, high = (play(s, np.array([value]), always).returns[0] for value in (charge[6], charge[24]))
    found = slopes[6:25].mean() * (charge[24] - charge[6]) * s.battery.energy_j * 1e3 / 9000
    assert found == pytest.approx(high - low, rel=0.1)


def test_situations_are_what_devices_know() -> None:
    lives = lives_of("train", 8)
    found, days = situations(lives, usual_of(lives.days)), each_day(lives)
    assert found.shape == (288, 8 * (HISTORY + 1), len(INPUTS)) and np.isfinite(found).all()
    since = found[0, :, INPUTS.index("since_change")]
    assert since[:8] == pytest.approx(np.log1p(UNKNOWN_S / 600))  # the first day
    assert not np.isclose(since[8:], np.log1p(UNKNOWN_S / 600)).all()
    np.testing.assert_array_equal(found[:, :, 1], days.clock().charging.T)
    policy, shown = PricePolicy(model()), []

    def note(world: World, now: Seen) -> np.ndarray:
        chosen = remembers(world, now)
        shown.append(policy._inputs[:, INPUTS.index("charger_4h")])
        return chosen

    remembers = of_policy(policy, lives.before)
    play(lives.days, np.ones(8), note)
    # All but the requests, which devices measure.
    charged = found[:, -8:, INPUTS.index("charger_4h")]
    assert np.abs(np.stack(shown) - charged).max() < 0.01


def test_days_are_taken_apart() -> None:
    lives = lives_of("train", 3)
    days = each_day(lives).days
    assert len(days) == 3 * (HISTORY + 1)
    np.testing.assert_array_equal(days.requests[:3], days_of("train", 3).days.requests)
    np.testing.assert_array_equal(days.memory_available[-3:], lives.days.days.memory_available)


def test_days_before_are_those_of_the_same_devices() -> None:
    lives, first = lives_of("train", 3), days_of("train", 3)
    assert lives.before.days.steps == HISTORY * lives.days.days.steps
    np.testing.assert_array_equal(lives.before.days.requests[:, :288], first.days.requests)
    assert not (lives.days.days.requests == first.days.requests).all()


def test_a_run_that_goes_on_ends_as_one_that_was_never_cut(tmp_path: Path) -> None:
    whole, curve = price.train(Run(2, 3, 8, steps=4))
    cut = tmp_path / "price.checkpoint"
    price.train(Run(1, 3, 8, cut, steps=4))
    again, resumed = price.train(Run(2, 3, 8, cut, steps=4))
    for one, other in zip((*whole.weights, *whole.biases), (*again.weights, *again.biases), strict=True):
        np.testing.assert_array_equal(one, other)
    assert curve == resumed and [number for number, _ in curve] == [1, 2]
    other_seed, _ = price.train(Run(1, 4, 8, steps=4))
    assert not np.array_equal(other_seed.weights[0], whole.weights[0])
    with pytest.raises(TrainingError, match="has 2 rounds"):
        price.train(Run(2, 3, 8, cut, steps=4))
    with pytest.raises(TrainingError, match="other steps, seed or devices"):
        price.train(Run(3, 4, 8, cut, steps=4))
    cut.write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="cannot be resumed from"):
        price.train(Run(3, 3, 8, cut, steps=4))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.npz"
    code = main(["price", "--out", str(out), "--rounds", "1", "--train-devices", "8", "--held-out", "4"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0 and len(result["validation"]) == 1 and result["held_out"]["price"] > 0
    made = read_price(out)
    assert made.points.names == CAMERA.names
    assert (made.low <= made.high).all() and made.low[0] == 0 and made.high[0] == 1
