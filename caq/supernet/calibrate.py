"""Post-training calibration: a supernet that serves every width from a trained network, without labels or gradients.

1. Every layer gets a batch norm, also where the network's own was folded into its weights. Its mean and variance are
   re-estimated for each width and operating point (caq.supernet.train.reestimate_norms), so each channel keeps the
   mean and variance that it has in the float network: bias correction (Nagel et al., "Data-Free Quantization Through
   Weight Equalization and Bias Correction", 2019), and the same for the gain.
2. The nested codes are chosen for all widths at once (`choose_codes`): the error of a layer's *output* counts, as in
   GPTQ (Frantar et al., 2023), and one code has to do for 2 bits and for 8.
3. Activation steps are chosen for each width by the error that they cause in the output of the layer that reads them.

Widths differ in gains, biases and activation steps; the codes are the same for all (docs/adr/0001-nested-codes.md).
`python -m benchmarks.calibration` measures what each of these is worth, and its alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from caq.graph import LayerWidths
from caq.progress import progress
from caq.quant import TOP_WIDTH
from caq.supernet.batches import Samples
from caq.supernet.layers import SwitchableLayer, SwitchableNorm
from caq.supernet.network import Supernet
from caq.supernet.quantizers import ActivationQuantizer, nested_values, quantize_weight

#: Error of a layer's output, relative to its variance, below which a width has nothing to gain from being more exact:
#: without it 8 bits, whose error is a thousandth of that, would be improved at the cost of 2.
NEGLIGIBLE = 0.01
#: How far from each other two codes may lie that a sweep of `choose_codes` exchanges.
REACH = 24
SWEEPS = 3
#: Added to a layer's input covariance, relative to its mean variance, so that noise in it is not fitted.
DAMPING = 0.03
#: Columns of a layer's input that its covariance is taken from, at most.
COLUMNS = 40_000
#: Ranges that are tried for a channel, in deviations of its weights.
RANGES = torch.linspace(1.2, 6, 40)
#: Steps that are tried for an activation, relative to the one of least squared error.
FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7)

BATCH = 128
SAMPLES_FOR_COVARIANCE = 256
SAMPLES_FOR_STEPS = 128


@torch.no_grad()
def calibrate(supernet: Supernet, data: Samples, seed: int = 0, quiet: bool = False) -> None:
    """Calibrates a supernet fresh from `convert` on all of `data`, whose labels are not read.

    Afterwards the statistics of batch norm are still those of the float network: `caq.supernet.pipeline.finish`
    re-estimates them for every width and point. The same seed and number of threads give the same codes.
    """
    with progress("calibrating", 2 + len(supernet.layers) + len(supernet.widths), not quiet) as advance:
        add_norms(supernet, data)
        advance("batch norms")
        covariances = input_covariances(supernet, data, torch.Generator().manual_seed(seed))
        advance("covariances")
        for layer, covariance in zip(supernet.layers, covariances, strict=True):
            choose_codes(layer, covariance, supernet.widths)
            advance(f"codes of {layer.name}")
        x = next(data.typical(SAMPLES_FOR_STEPS, SAMPLES_FOR_STEPS))[0]
        supernet.fit_steps(x, narrow=False)
        for width in supernet.widths:
            fit_activation_steps(supernet, x, width)
            advance(f"activations of {width} bits")


@contextmanager
def floating(supernet: Supernet) -> Iterator[None]:
    """The supernet computes what the float network did: no code is rounded."""
    supernet.set_assignment((LayerWidths(supernet.widths[-1], TOP_WIDTH),) * len(supernet.layers))
    supernet.eval()
    supernet.set_rounding(False)
    for layer in supernet.layers:
        layer.exact = True
    try:
        yield
    finally:
        for layer in supernet.layers:
            layer.exact = False
        supernet.set_rounding(True)


@contextmanager
def _watching(layers: Sequence[SwitchableLayer], watch: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Calls `watch` with the index of a layer and what it is about to read."""

    def hook(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: watch(index, inputs[0])

    handles = [layer.register_forward_pre_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_norms(supernet: Supernet, data: Samples) -> None:
    """Gives each layer without a batch norm one that changes nothing yet.

    Its statistics are those of the layer's output in the float network, which its gain and offset put back.
    """
    bare = [layer for layer in supernet.layers if layer.norm is None]
    sums = [torch.zeros(2, len(layer.weight), dtype=torch.float64) for layer in bare]
    counts = [0] * len(bare)

    def add(i: int, x: Tensor) -> None:
        y = bare[i].convolve(x, bare[i].weight).transpose(0, 1).flatten(1).double()
        sums[i] += torch.stack([y.sum(1), y.square().sum(1)])
        counts[i] += y.shape[1]

    with floating(supernet), _watching(bare, add):
        for x, _ in data.typical(BATCH, len(data)):
            supernet(x)
    for layer, (total, squares), count in zip(bare, sums, counts, strict=True):
        mean, var = total / count, (squares / count - (total / count).square()).clamp(min=0)
        # Relative to the layer's outputs, whose unit may be anything.
        norm = SwitchableNorm(len(mean), supernet.widths, eps=max(1e-5 * float(var.mean()), 1e-12))
        norm.gamma.copy_((var + norm.eps).sqrt().expand_as(norm.gamma))
        norm.beta.copy_(mean.expand_as(norm.beta))
        without_bias = mean - layer.bias if layer.bias is not None else mean
        norm.mean.copy_(without_bias.expand_as(norm.mean))
        norm.var.copy_(var.expand_as(norm.var))
        layer.norm, layer.bias = norm, None


def input_covariances(supernet: Supernet, data: Samples, generator: torch.Generator) -> list[Tensor]:
    """What each layer's weights are multiplied with in the float network: covariances (groups, F, F).

    F is the fan-in of an output. Taken over at most `COLUMNS` positions, drawn with `generator`.
    """
    layers = supernet.layers
    count = min(len(data), SAMPLES_FOR_COVARIANCE)
    sizes = [(layer.groups, layer.weight[0].numel()) for layer in layers]
    products = [torch.zeros(groups, fan_in, fan_in) for groups, fan_in in sizes]
    totals = [torch.zeros(groups, fan_in) for groups, fan_in in sizes]
    columns = [0] * len(layers)

    def add(i: int, x: Tensor) -> None:
        layer = layers[i]
        x, padding = layer.window.pad(x)
        window = layer.window
        patches = functional.unfold(x, window.kernel, window.dilation, padding, window.stride)  # (n, C * kernel, P)
        keep = max(1, COLUMNS // count)
        if patches.shape[2] > keep:
            patches = patches[:, :, torch.randperm(patches.shape[2], generator=generator)[:keep]]
        patches = patches.transpose(0, 1).reshape(layer.groups, -1, len(x) * patches.shape[2])
        products[i] += patches @ patches.transpose(1, 2)
        totals[i] += patches.sum(2)
        columns[i] += patches.shape[2]

    with floating(supernet), _watching(layers, add):
        for x, _ in data.typical(32, count):
            supernet(x)
    means = [total / n for total, n in zip(totals, columns, strict=True)]
    return [
        product / n - mean[:, :, None] * mean[:, None, :]
        for product, mean, n in zip(products, means, columns, strict=True)
    ]


def choose_codes(layer: SwitchableLayer, covariance: Tensor, widths: Sequence[int], sweeps: int = SWEEPS) -> None:
    """Sets a layer's range per channel, and its weights to codes times scale, for all `widths` at once.

    With w the weights of a channel, m(q) what codes q stand for at a width, C the covariance of the inputs and g the
    gain that batch norm will give, the relative error of a width is

        e = (w - g m(q))' C (w - g m(q)) / (w' C w)

    Minimised is the sum over widths of log(e + NEGLIGIBLE): a tenth less error counts the same at 2 bits and at 5. The
    range is the best of `RANGES` with codes rounded to nearest. Then each weight in turn takes the code within
    `REACH` that is best given all others (coordinate descent), so that it makes up for their errors.
    """
    groups, outputs = layer.groups, len(layer.weight) // layer.groups
    weights = layer.weight.detach().reshape(groups, outputs, -1)
    variance = covariance.diagonal(dim1=1, dim2=2)
    damping = DAMPING * variance.mean(1, keepdim=True) + 1e-12
    covariance = covariance + torch.diag_embed(damping.expand_as(variance))
    scale = _best_scale(weights, covariance, widths)
    target = weights / scale[:, :, None]
    codes = _rounded(target)
    for _ in range(sweeps):
        _descend(codes, target, covariance, widths)
    layer.weight.copy_((codes * scale[:, :, None]).reshape(layer.weight.shape))
    layer.set_scale(scale.reshape(-1))


def _rounded(target: Tensor) -> Tensor:
    return torch.floor(target + 0.5).clamp(-128, 127)


def _errors(target: Tensor, codes: Tensor, covariance: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Relative errors and best gains, (W, groups, O), of codes (groups, O, F) for a target in units of the scale."""
    along = target @ covariance
    power = (along * target).sum(2).clamp(min=1e-20)
    errors, gains = [], []
    for width in widths:
        values = nested_values(codes, width)
        common, own = (along * values).sum(2), ((values @ covariance) * values).sum(2).clamp(min=1e-20)
        errors.append((1 - common.square() / (power * own)).clamp(min=0))
        gains.append(common / own)
    return torch.stack(errors), torch.stack(gains)


def _best_scale(weights: Tensor, covariance: Tensor, widths: Sequence[int]) -> Tensor:
    """The scale (groups, O) of weights (groups, O, F)."""
    unit = weights.square().mean(2).sqrt().clamp(min=1e-8) / 127
    costs = []
    for reach in RANGES:
        target = weights / (reach * unit)[:, :, None]
        errors, _ = _errors(target, _rounded(target), covariance, widths)
        costs.append((errors + NEGLIGIBLE).log().sum(0))
    return RANGES[torch.stack(costs).argmin(0)] * unit


def _descend(codes: Tensor, target: Tensor, covariance: Tensor, widths: Sequence[int]) -> None:
    """One sweep of coordinate descent over `codes` (groups, O, F), in place; largest inputs first."""
    errors, gains = _errors(target, codes, covariance, widths)
    power = ((target @ covariance) * target).sum(2).clamp(min=1e-20)
    importance = 1 / ((errors + NEGLIGIBLE) * power)  # (W, groups, O), the logarithm's derivative
    values = torch.stack([nested_values(codes, width) for width in widths])
    pull = (target - gains[..., None] * values) @ covariance  # (W, groups, O, F)
    moves = torch.arange(-REACH, REACH + 1.0)
    for j in covariance.diagonal(dim1=1, dim2=2).sum(0).argsort(descending=True).tolist():
        tried = (codes[:, :, j, None] + moves).clamp(-128, 127)
        change = gains[..., None] * (torch.stack([nested_values(tried, w) for w in widths]) - values[..., j, None])
        cost = change * (change * covariance[:, j, j, None, None] - 2 * pull[..., j, None])
        best = (importance[..., None] * cost).sum(0).argmin(2, keepdim=True)
        chosen = change.gather(3, best.expand(len(widths), *best.shape))
        codes[:, :, j] = tried.gather(2, best)[:, :, 0]
        values[..., j] = torch.stack([nested_values(codes[:, :, j], width) for width in widths])
        pull -= chosen * covariance[:, None, j]


def fit_activation_steps(supernet: Supernet, x: Tensor, width: int) -> None:
    """Chooses the steps below 8 bits of a width, layer after layer, each reading what the ones before it make of `x`.

    Least is the error of the layer's output that the step causes, relative to the variance of each channel, with the
    gain and offset that batch norm gives it.
    """
    layers = [layer for layer in supernet.layers if str(width) in layer.narrow]

    def fit(i: int, inputs: Tensor) -> None:
        layer = layers[i]
        quantizer = layer.narrow[str(width)]
        assert isinstance(quantizer, ActivationQuantizer)
        expected = layer.convolve(inputs, layer.weight)
        weight = quantize_weight(layer.weight, layer.scale, width)
        quantizer.fit(inputs)
        first, errors = quantizer.step, []
        for factor in FACTORS:
            quantizer.log_step.fill_(math.log(first * factor))
            errors.append(_unexplained(expected, layer.convolve(quantizer(inputs), weight)))
        quantizer.log_step.fill_(math.log(first * FACTORS[min(range(len(FACTORS)), key=errors.__getitem__)]))

    if not layers:
        return
    norms = [layer.norm for layer in supernet.layers if layer.norm is not None]
    saved = [(norm.mean.clone(), norm.var.clone()) for norm in norms]
    supernet.train()
    supernet.set_assignment(supernet.graph.uniform(width))
    with _watching(layers, fit):
        supernet(x)
    supernet.eval()
    for norm, (mean, var) in zip(norms, saved, strict=True):
        norm.mean.copy_(mean), norm.var.copy_(var)


def _unexplained(expected: Tensor, found: Tensor) -> float:
    """1 - r2 of a line through `expected` and `found` (N, C, H, W), mean over the channels."""
    a, b = (y.transpose(0, 1).flatten(1) for y in (expected, found))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    power = (a.square().sum(1) * b.square().sum(1)).clamp(min=1e-20)
    return float((1 - (a * b).sum(1).square() / power).mean())
