"""`caq info`: what is in an artifact, and how large it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from caq.artifact import Reader
from caq.cli.arguments import add_artifact
from caq.cli.output import Output, number
from caq.cli.points import (
    describe_core,
    describe_features,
    describe_flip_network,
    describe_points,
    explain_core,
    explain_features,
    explain_points,
    print_points,
)
from caq.model import Model

HELP = "show an artifact's sizes, layers and operating points"


def configure(parser: argparse.ArgumentParser) -> None:
    add_artifact(parser)


def execute(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    with Reader(args.artifact) as reader:
        model = reader.model()  # reads every tensor, and so verifies every checksum
        sizes = _sizes(reader, model)
    layers = _layers(model)
    points = describe_points(model.graph, model.points)
    sample = {"shape": list(model.sample_shape), "dtype": model.scaling.dtype}
    output.say(f"{args.artifact}: {model.task}, samples of {model.sample_shape} {model.scaling.dtype}")
    output.say(f"labels: {', '.join(model.label_names) or 'none'}")
    output.table("sizes", _size_rows(sizes))
    output.table("layers", _layer_rows(layers))
    core = describe_core(model)
    output.say("core set: none" if core is None else explain_core(core))
    features = describe_features(model)
    if features is not None:
        output.say(explain_features(features))
    network = describe_flip_network(model)
    if network is not None:
        output.say(f"flip network: {network['hidden']} hidden units, {network['bytes']} bytes with its feedback")
    print_points(output, "operating points", points)
    explain_points(output, model.graph, model.points)
    output.table("provenance", [{"field": key, "value": value} for key, value in model.provenance.items()])
    return {
        "artifact": args.artifact,
        "task": model.task,
        "input": sample,
        "labels": list(model.label_names),
        "sizes": sizes,
        "layers": layers,
        "points": points,
        "core": core,
        "features": features,
        "flip_network": network,
        "provenance": dict(model.provenance),
    }


def _sizes(reader: Reader, model: Model) -> dict[str, Any]:
    codes = model.graph.weights
    parameters = reader.tensors["parameters"].nbytes
    return {
        "file_bytes": reader.file_bytes,
        "packed_bytes": reader.packed_bytes,
        "weight_code_bytes": codes,
        "parameter_bytes": parameters,
        "file_over_codes_and_parameters": reader.file_bytes / (codes + parameters),
        "read_bytes_by_width": {str(width): reader.bytes_for(width) for width in model.graph.widths},
    }


def _size_rows(sizes: dict[str, Any]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"what": "the file", "bytes": sizes["file_bytes"]},
        *([{"what": "as it is packed", "bytes": packed}] if (packed := sizes["packed_bytes"]) is not None else []),
        {"what": "codes of the weights at 8 bits", "bytes": sizes["weight_code_bytes"]},
        {"what": "parameters of layers and channels", "bytes": sizes["parameter_bytes"]},
        {"what": "file / (codes + parameters)", "bytes": f"{sizes['file_over_codes_and_parameters']:.4f}"},
    ]
    read = sizes["read_bytes_by_width"].items()
    return rows + [{"what": f"read for weights of {width} bits", "bytes": count} for width, count in read]


def _layers(model: Model) -> list[dict[str, Any]]:
    points = [branch.assignment for point in model.points for branch in point.branches]
    return [
        {
            "layer": layer.name,
            "weight_shape": list(layer.weight_shape),
            "macs": layer.macs,
            "weight_bits": sorted({assignment[layer.index].weight for assignment in points}),
            "activation_bits": sorted({assignment[layer.index].activation for assignment in points}),
        }
        for layer in model.graph.layers
    ]


def _layer_rows(layers: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    return [
        {
            "layer": layer["layer"],
            "weights (out, rows, columns, in)": " x ".join(map(str, layer["weight_shape"])),
            "MACs": number(layer["macs"]),
            "weight bits": ",".join(map(str, layer["weight_bits"])),
            "activation bits": ",".join(map(str, layer["activation_bits"])),
        }
        for layer in layers
    ]
