"""What a device draws beside inference is not taken for requests."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caq.errors import ConfigError, WeightsError
from policies.evaluate import of_policy, play
from policies.numbers import Arrays, Numbers
from policies.other_draw import DRAWS, OtherDraw
from policies.pacing import PacingPolicy, read_habits
from policies.price import INPUTS, PricePolicy, read_price
from policies.train.habits import habits_of
from simulators.device import Device, read_device
from simulators.envs.scenario import scenario as scenario_of
from simulators.episodes import episodes
from tests.policies.worlds import CAMERA, habits, model, seen
from tests.simulators.worlds import days, scenario

PHONE = OtherDraw(0.1, 0.4, 0.6, 2.0)
ALONE = OtherDraw(0.006)


def test_the_draws_are_those_of_a_device() -> None:
    assert set(DRAWS) <= {field.name for field in fields(Device)}
    assert OtherDraw.of(read_device("camera")) == ALONE


@pytest.mark.parametrize(
    ("brightness", "load", "watts"), [(0.0, 0.0, 0.1), (0.5, 0.0, 0.8), (0.0, 0.25, 0.6), (1.0, 1.0, 3.1)]
)
def test_what_is_drawn(brightness: float, load: float, watts: float) -> None:
    now = seen(apps_load=load)
    assert PHONE.watts(Numbers, now, brightness) == pytest.approx(watts)
    assert PHONE.watts(Arrays, now, np.array([brightness]))[0] == pytest.approx(watts)


def test_what_is_not_known_matters_only_to_those_who_have_it() -> None:
    dark = seen(apps_load=np.nan)
    assert np.isnan(PHONE.watts(Numbers, dark, 0.5)) and np.isnan(PHONE.watts(Numbers, seen(), np.nan))
    assert ALONE.watts(Numbers, dark, np.nan) == 0.006


def measured(policy: Any, steps: int = 60, **values: Any) -> float:
    """What is measured of 60 requests/s, twice the usual, by a device with a screen and apps that come and go."""
    screen, load = np.random.default_rng(0).choice([0.0, 0.0, 0.4, 0.9], (2, steps + 1))
    for step in range(steps):
        other_w = 0.1 + (0.4 + 0.6 * screen[step - 1]) * (screen[step - 1] > 0) + 2.0 * load[step]
        known = {"screen_brightness": screen[step], "apps_load": load[step], **values}
        policy.choose(seen(power_w=other_w + 60 * CAMERA.energy_j[2], time_s=300.0 * step, current=2, **known))
    if isinstance(policy, PacingPolicy):
        return float(policy.load()[0])
    return float(policy._inputs[0, INPUTS.index("load_2h")])


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (lambda other: PacingPolicy(CAMERA, habits(other=other, prior_s=1.0)), 2.0),
        (lambda other: PricePolicy(model(other=other)), np.log(2.2 / 1.2)),
    ],
    ids=["pacing", "price"],
)
def test_a_screen_and_other_apps_are_no_requests(make: Any, right: float) -> None:
    assert measured(make(PHONE)) == pytest.approx(right, rel=0.02)
    assert measured(make(OtherDraw(0.1))) > 2 * right  # by power beyond idle alone
    usual = 1.0 if right == 2.0 else 0.0
    for unknown in ("screen_brightness", "apps_load"):
        assert measured(make(PHONE), **{unknown: np.nan}) == usual


@pytest.mark.parametrize("make", [PacingPolicy, PricePolicy])
def test_in_a_world_with_other_apps(make: Any) -> None:
    """The requests that are measured are the same, with or without other apps."""
    given = days((4, 48), apps_load=np.random.default_rng(0).random((4, 48)), requests=4500.0, charging=1.0)

    def found(apps_power_w: float) -> Any:
        s = scenario(given, apps_power_w=apps_power_w, charger_power_w=5.0)
        other = OtherDraw.of(s.device)
        policy = PacingPolicy(CAMERA, habits(other=other)) if make is PacingPolicy else PricePolicy(model(other=other))
        play(s, np.ones(4), of_policy(policy))
        return policy._measured if isinstance(policy, PacingPolicy) else policy._inputs[:, INPUTS.index("load_2h")]

    np.testing.assert_allclose(found(0.3), found(0.0), rtol=1e-4)


def test_on_the_phone_only_requests_are_counted() -> None:
    """Generated days with screen and apps, minute by minute: what is counted over what was asked."""
    s = scenario_of("phone", "camera", days=episodes(8, 0, 60.0, 30.0))
    asked = s.days.requests[:, :-1].sum(1)

    def counted(other: OtherDraw) -> Any:
        policy = PacingPolicy(CAMERA, habits(other=other, memory_s=1e12))
        assert not play(s, np.ones(8), of_policy(policy)).off_steps.any()
        return policy._measured / asked

    np.testing.assert_allclose(counted(OtherDraw.of(s.device)), 1.0, rtol=0.01)
    assert counted(OtherDraw(s.device.idle_power_w)).min() > 2


def test_habits_count_what_other_apps_need() -> None:
    charging = np.zeros(288)
    charging[216:] = 1
    short = [
        habits_of(
            scenario(days((4, 288), charging=charging, requests=9000.0, apps_load=0.5), apps_power_w=power_w)
        ).short
        for power_w in (0.0, 0.05)
    ]
    assert short[1][0, 12].sum() > short[0][0, 12].sum()


def test_files_keep_it(tmp_path: Path) -> None:
    habits(other=PHONE).write(tmp_path / "h.npz")
    model(other=PHONE).save(tmp_path / "p.npz")
    assert read_habits(tmp_path / "h.npz").other == read_price(tmp_path / "p.npz").other == PHONE
    for name, read in (("h.npz", read_habits), ("p.npz", read_price)):
        np.savez(tmp_path / name, **dict(np.load(tmp_path / name)) | {"apps_power_w": np.float64(-1)})
        with pytest.raises(WeightsError, match=rf"{name}: apps_power_w: must be at least 0"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_impossible_draws(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        OtherDraw(**{"idle_power_w": 0.1} | {name: value})
