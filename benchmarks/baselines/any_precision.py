"""Any-Precision's joint training (Yu et al., "Any-Precision Deep Neural Networks", AAAI 2021).

Every batch trains every width, from the widest down: the widest on the labels, each other on the detached soft output
of the next wider one (recursive distillation). Gradients are summed and the weights updated once. Batch norm is per
width, as there. Quantizers are this project's nested ones with learned steps; the paper's are DoReFa's.
"""

from __future__ import annotations

from benchmarks.baselines.joint import Plan

PLAN = Plan(every_width=True, summed=True, wider=True, labels=0.0)
