"""AdaBits' joint training (Jin, Yang and Liao, "AdaBits: Neural Network Quantization with Adaptive Bit-Widths", 2020).

Every batch trains every width on the labels; gradients are summed and the weights updated once. Clipping levels of
activations and batch norm are switchable, one set per width, as there. Quantizers are this project's nested ones with
learned steps; the paper's are PACT's levels on weights that are scaled to a fixed variance.
"""

from __future__ import annotations

from benchmarks.baselines.joint import Plan

PLAN = Plan(every_width=True, summed=True, labels=1.0)
