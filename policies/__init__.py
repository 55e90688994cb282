"""Strategies that choose an operating point from the context. `caq` itself imports none of them."""

from policies.threshold import ThresholdPolicy

__all__ = ["ThresholdPolicy"]
