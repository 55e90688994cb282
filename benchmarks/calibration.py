"""What each part of post-training calibration is worth, on samples that calibration did not see.

    python -m benchmarks.calibration --cifar10 cifar10.npz --models mlperf_tiny_models --kws01 kws01.npz

resnet8: both sets are drawn from the *training* split of cifar10, 512 images to calibrate on and 1,000 others to
measure on; the test split is not read. dscnn: fold 0 of benchmarks.convert, calibrated on 800 keywords, measured on
200. Choices in caq.supernet.calibrate were made here. Fake quantization in floats, as in training. The divergence
(Kullback-Leibler, in nats, from the float network's answers) tells more than the accuracy, whose standard error is 1.3
and 2 points.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.convert import KWS_STEP, fold
from caq.data import load
from caq.supernet import Supernet, convert
from caq.supernet.batches import Samples, samples, training_samples
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
    variant: tuple[bool, int | None, Steps], network: nn.Module, calibration: Samples, held_out: Samples
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


def cases(args: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Samples, Samples]]:
    """Name, float network, samples to calibrate on, samples to measure on."""
    images = load(args.cifar10)
    imported = read_onnx(args.models / "resnet8_fp32.onnx", images.sample_shape)
    prepared = prepare(images, imported.network, SEED, imported.sample_shape, AS_GIVEN)
    everything = training_samples(images, prepared.scaling, prepared.input_shape)
    order = np.random.default_rng(SEED).permutation(len(everything))
    measured = everything.subset(order[CALIBRATION : CALIBRATION + MEASURED])
    yield "resnet8", imported.network, everything.subset(order[:CALIBRATION]), measured
    with np.load(args.kws01) as z:
        words = fold(z["x"], z["y"], z["label_names"], 0)
    imported = read_onnx(args.models / "dscnn_fp32.onnx", words.sample_shape)
    step = float(KWS_STEP)  # one code a feature, as the reference model reads them
    prepared = prepare(words, imported.network, SEED, imported.sample_shape, AS_GIVEN, step)
    calibration = prepared.train.subset(np.arange(len(prepared.train)))
    measured = samples(words.x_test, words.y_test, prepared.scaling, prepared.input_shape, words.kind)
    yield "dscnn", imported.network, calibration, measured


def markdown(summary: dict[str, Any]) -> str:
    lines = [
        "# Parts of calibration",
        "",
        f"`{summary['command']}`",
        "",
        "Accuracy in % and divergence from the float network on samples that calibration did not see; resnet8 on "
        "images of cifar10's training split.",
    ]
    for network, entry in summary["networks"].items():
        widths = list(next(iter(entry["variants"].values())))
        lines += ["", f"## {network}, {entry['measured']} samples, float {entry['float']} %", ""]
        lines += ["| | " + " | ".join(widths) + " |", "|---" * (len(widths) + 1) + "|"]
        for name, row in entry["variants"].items():
            lines.append(f"| {name} | " + " | ".join(f"{a:.1f}; {d:.3f}" for a, d in row.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder of resnet8_fp32.onnx and dscnn_fp32.onnx")
    parser.add_argument("--kws01", type=Path, required=True)
    args = parser.parse_args()
    started = time.monotonic()
    summary: dict[str, Any] = {
        "command": f"python -m benchmarks.calibration --cifar10 {args.cifar10.name} --models {args.models.name} "
        f"--kws01 {args.kws01.name}",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "networks": {},
    }
    for network, module, calibration, held_out in cases(args):
        entry: dict[str, Any] = {
            "calibrated_on": len(calibration),
            "measured": len(held_out),
            "float": round(100 * accuracy(predict(module, held_out), held_out.labels), 1),
            "variants": {},
        }
        summary["networks"][network] = entry
        for name, variant in VARIANTS.items():
            entry["variants"][name] = measure(variant, module, calibration, held_out)
            print(network, name, json.dumps(entry["variants"][name]), flush=True)
    summary["hours"] = round((time.monotonic() - started) / 3600, 2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "calibration.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "calibration.md").write_text(markdown(summary))
    print(markdown(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
