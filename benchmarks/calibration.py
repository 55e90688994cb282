"""What each part of post-training calibration is worth, on images that calibration did not see.

    python -m benchmarks.calibration --cifar10 cifar10.npz --model resnet8_fp32.onnx

Both sets are drawn from the *training* split: 512 images to calibrate on, 1,000 others to measure on. Choices in
caq.supernet.calibrate were made here; the test split is not read. Fake quantization in floats, as in training.
The divergence (Kullback-Leibler, in nats, from the float network's answers) tells more than the accuracy, whose
standard error on 1,000 images is 1.3 points.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caq.data import load
from caq.supernet import Supernet, convert
from caq.supernet.batches import Samples, training_samples
from caq.supernet.calibrate import (
    SAMPLES_FOR_STEPS,
    SWEEPS,
    add_norms,
    choose_codes,
    fit_activation_steps,
    input_covariances,
)
from caq.supernet.conversion import DEFAULT_WIDTHS
from caq.supernet.onnx_reader import read_onnx
from caq.supernet.pipeline import prepare
from caq.supernet.train import accuracy, distillation_loss, predict, reestimate_norms
from caq.supernet.trained import AS_GIVEN

RESULTS = Path(__file__).parent / "results"
CALIBRATION, MEASURED = 512, 1000
SEED = 0

#: Chooses the activation steps of a supernet on a batch.
Steps = Callable[[Supernet, Tensor], None]


def least_squares(supernet: Supernet, x: Tensor) -> None:
    """The step of least squared error of the activation itself, at the widest assignment: as training begins."""
    supernet.fit_steps(x)


def percentile(supernet: Supernet, x: Tensor, share: float) -> None:
    """The largest code stands for a percentile of the activation."""
    supernet.fit_steps(x)

    def fit(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].abs().flatten()
        reach = float(values.kthvalue(math.ceil(share * values.numel())).values)
        for quantizer in layer.narrow.values():
            quantizer.log_step.fill_(math.log(max(reach, 1e-6) / quantizer.high))

    handles = [layer.register_forward_pre_hook(fit) for layer in supernet.layers]
    supernet.train()
    supernet.set_assignment(supernet.graph.uniform(supernet.widths[-1]))
    supernet(x)
    for handle in handles:
        handle.remove()


def by_output(supernet: Supernet, x: Tensor) -> None:
    """What `calibrate` does: the error of the layer that reads the activation."""
    supernet.fit_steps(x, narrow=False)
    for width in supernet.widths:
        fit_activation_steps(supernet, x, width)


#: Name -> whether norms are added and re-estimated, sweeps over the codes (None: ranges as training begins), steps.
VARIANTS: dict[str, tuple[bool, int | None, Steps]] = {
    "as training begins": (False, None, least_squares),
    "+ norms for every width": (True, None, least_squares),
    "+ ranges by the error of the output": (True, 0, least_squares),
    "+ codes by coordinate descent": (True, SWEEPS, least_squares),
    "steps at the 99.9th percentile instead": (True, SWEEPS, partial(percentile, share=0.999)),
    "steps at the 99.99th percentile instead": (True, SWEEPS, partial(percentile, share=0.9999)),
    "steps by the error of the output: `calibrate`": (True, SWEEPS, by_output),
}


@torch.no_grad()
def measure(
    variant: tuple[bool, int | None, Steps], network: Any, calibration: Samples, held_out: Samples
) -> dict[str, tuple[float, float]]:
    """Accuracy and divergence by width."""
    norms, sweeps, steps = variant
    supernet = convert(network, next(calibration.typical(256, 256))[0])
    if norms:
        add_norms(supernet, calibration)
    if sweeps is not None:
        covariances = input_covariances(supernet, calibration, torch.Generator().manual_seed(SEED))
        for layer, covariance in zip(supernet.layers, covariances, strict=True):
            choose_codes(layer, covariance, supernet.widths, sweeps)
    steps(supernet, next(calibration.typical(SAMPLES_FOR_STEPS, SAMPLES_FOR_STEPS))[0])
    supernet.eval()
    expected = predict(network, held_out)
    found = {}
    for width in reversed(DEFAULT_WIDTHS):
        assignment = supernet.graph.uniform(width)
        if norms:
            reestimate_norms(supernet, calibration, assignment)
        supernet.set_assignment(assignment)
        outputs = predict(supernet, held_out)
        divergence = float(distillation_loss("classify", outputs, expected))
        found[f"w{width}a{width}"] = (round(100 * accuracy(outputs, held_out.labels), 1), round(divergence, 4))
    return found


def markdown(summary: dict[str, Any]) -> str:
    widths = list(next(iter(summary["variants"].values())))
    lines = [
        "# Parts of calibration",
        "",
        f"`{summary['command']}`",
        "",
        f"Accuracy in % and divergence from the float network, which has {summary['float']} %, on {MEASURED} held-out "
        f"*training* images; calibrated on {CALIBRATION} others.",
        "",
        "| | " + " | ".join(widths) + " |",
        "|---" * (len(widths) + 1) + "|",
    ]
    for name, row in summary["variants"].items():
        lines.append(f"| {name} | " + " | ".join(f"{a:.1f}; {d:.3f}" for a, d in row.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="resnet8_fp32.onnx")
    args = parser.parse_args()
    started = time.monotonic()
    data = load(args.cifar10)
    imported = read_onnx(args.model, data.sample_shape)
    prepared = prepare(data, imported.network, SEED, imported.sample_shape, AS_GIVEN)
    everything = training_samples(data, prepared.scaling, prepared.input_shape)
    order = np.random.default_rng(SEED).permutation(len(everything))
    calibration = everything.subset(order[:CALIBRATION])
    held_out = everything.subset(order[CALIBRATION : CALIBRATION + MEASURED])
    summary: dict[str, Any] = {
        "command": f"python -m benchmarks.calibration --cifar10 {args.cifar10.name} --model {args.model.name}",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "float": round(100 * accuracy(predict(imported.network, held_out), held_out.labels), 1),
        "variants": {},
    }
    for name, variant in VARIANTS.items():
        summary["variants"][name] = measure(variant, imported.network, calibration, held_out)
        print(name, json.dumps(summary["variants"][name]), flush=True)
    summary["hours"] = round((time.monotonic() - started) / 3600, 2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "calibration.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "calibration.md").write_text(markdown(summary))
    print(markdown(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
