"""Simulated devices and days, for trying policies where no device is at hand. Nothing here imports `policies`.

Importing this registers the environments of `simulators.envs` with Gymnasium, if that is installed.
"""

from __future__ import annotations

from importlib.util import find_spec


def _register() -> None:
    from gymnasium.envs.registration import register, registry

    for name, single, vector in (
        ("caq/BatteryTrace-v0", "battery_trace:BatteryTraceEnv", "battery_trace_vector:BatteryTraceVectorEnv"),
        ("caq/LayerBits-v0", "layer_bits:LayerBitsEnv", None),
    ):
        if name not in registry:
            register(
                name,
                entry_point=f"simulators.envs.{single}",
                vector_entry_point=f"simulators.envs.{vector}" if vector else None,
            )


if find_spec("gymnasium") is not None:
    _register()
