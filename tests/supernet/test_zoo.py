import pytest
import torch
from torch import nn

from caq.errors import ConfigError
from caq.supernet.zoo import MODELS, InceptionTime, build, conv_norm

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


def run(model, batch=2):
    """Feeds zeros of the model's own layout; returns the output and MACs of one sample."""
    macs = []

    def count(module, _inputs, output):
        places = 1 if isinstance(module, nn.Linear) else output[0, 0].numel()
        macs.append(places * module.weight.numel())

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, WEIGHTED)]
    *size, channels = model.sample_shape
    with torch.no_grad():
        output = model.eval()(torch.zeros(batch, channels, *size))
    for hook in hooks:
        hook.remove()
    return output, sum(macs)


def weights(model):
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, WEIGHTED))


@pytest.mark.parametrize(
    ("name", "shape", "classes", "macs", "count"),
    [
        ("resnet8", (32, 32, 3), 10, 12_501_632, 77_360),
        ("ds_cnn", (49, 10, 1), 12, 2_656_768, 22_016),
        ("mobilenet_v1_025", (96, 96, 3), 2, 7_489_664, 208_112),
        ("autoencoder", (640,), 1, 264_192, 264_192),
    ],
)
def test_mlperf_tiny_counts(name, shape, classes, macs, count):
    model = build(name, shape, classes)
    output, found = run(model)
    assert output.shape == (2, 640 if name == "autoencoder" else classes)
    assert (found, weights(model)) == (macs, count)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (49, 40), (128, 6), (31, 1)])
def test_every_model_eats_images_and_series(name, shape):
    model = build(name, shape, 5)
    output, _ = run(model)
    size = torch.Size(shape).numel()
    assert torch.Size(model.sample_shape).numel() == size
    assert output.shape == (2, size if name == "autoencoder" else 5)


@pytest.mark.parametrize(
    ("name", "shape", "layout", "sample_shape"),
    [
        ("resnet8", (128, 6), "series", (128, 6)),
        ("resnet8", (8, 8, 1), "image", (8, 8, 1)),
        ("ds_cnn", (49, 40), "image", (49, 40, 1)),
        ("mobilenet_v1_025", (128, 6), "series", (128, 6)),
        ("inception_time", (49, 40, 1), "series", (49, 40)),
        ("mlp", (8, 8, 1), "vector", (64,)),
        ("autoencoder", (128, 6), "vector", (768,)),
    ],
)
def test_layout(name, shape, layout, sample_shape):
    model = build(name, shape, 5)
    assert (model.input_layout, model.sample_shape) == (layout, sample_shape)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_learns(name):
    torch.manual_seed(0)
    model = build(name, (16, 4), 3)
    *size, channels = model.sample_shape
    model(torch.randn(4, channels, *size)).square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "ends"),
    [
        ((32, 32), 3, 2, (0, 1, 0, 1)),
        ((49, 10), (10, 4), 2, (1, 1, 4, 5)),
        ((33, 33), 3, 2, None),
        ((128,), 3, 2, (0, 1)),
        ((32, 32), 1, 2, None),
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, ends):
    layers, out = conv_norm(2, 4, kernel, stride, size)
    assert out == tuple(-(-n // stride) for n in size)
    assert nn.Sequential(*layers).eval()(torch.zeros(1, 2, *size)).shape == (1, 4, *out)
    assert (layers[0].padding if len(layers) == 3 else None) == ends


def test_inception_time_has_a_shortcut_around_every_three():
    model = InceptionTime((40, 3), 2, depth=7, filters=4)
    assert [len(block.body) for block in model.blocks] == [3, 3, 1]
    assert [block.residual for block in model.blocks] == [True, True, False]
    assert run(model)[0].shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "message"),
    [
        ("resnet9", (8, 8, 1), 10, "did you mean 'resnet8'"),
        ("resnet8", (64,), 10, "use mlp"),
        ("mlp", (), 10, "input_shape"),
        ("mlp", (8, 0), 10, "input_shape"),
        ("mlp", (1, 2, 3, 4), 10, "input_shape"),
        ("mlp", (8,), 0, "num_classes"),
    ],
)
def test_refusals(name, shape, classes, message):
    with pytest.raises(ConfigError, match=message):
        build(name, shape, classes)
