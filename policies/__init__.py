"""Strategies that choose an operating point from the context. `caq` itself imports none of them.

threshold, pacing, lyapunov, learned and price run on a device; oracle, evaluate and train play in simulated worlds.
"""

from policies.learned import LearnedPolicy
from policies.lyapunov import LyapunovPolicy
from policies.pacing import PacingPolicy
from policies.points import PointTable
from policies.price import PricePolicy
from policies.threshold import ThresholdPolicy

__all__ = ["LearnedPolicy", "LyapunovPolicy", "PacingPolicy", "PointTable", "PricePolicy", "ThresholdPolicy"]
