"""Gymnasium environments; `import simulators` registers them.

gymnasium.make("simulators:caq/BatteryTrace-v0")             one device
gymnasium.make_vec("simulators:caq/BatteryTrace-v0", 4096)   thousands, in numpy
gymnasium.make("simulators:caq/LayerBits-v0")
"""

from caq.errors import MissingExtraError

try:
    import gymnasium  # noqa: F401
except ImportError:
    raise MissingExtraError("gymnasium", "sim") from None

from simulators.envs.battery_trace import BatteryTraceEnv
from simulators.envs.battery_trace_vector import BatteryTraceVectorEnv
from simulators.envs.layer_bits import LayerBitsEnv
from simulators.envs.scenario import RewardWeights, Scenario, scenario

__all__ = ["BatteryTraceEnv", "BatteryTraceVectorEnv", "LayerBitsEnv", "RewardWeights", "Scenario", "scenario"]
