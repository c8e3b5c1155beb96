"""A bundle of toy graphs in the real format, built with onnx and safetensors in a moment.

- The encoder is an 8x8 pixel-unshuffle as a strided convolution, so that the latent holds the whole image.
- The UNet has two conditional layers, a transposed convolution and a linear layer (stored `[out, in]`, transposed in
  the graph), in a residual branch.
- The decoder is the inverse of the encoder, and adds a little of each skip connection.

With `effect=0` the pipeline is the identity.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from dod_runtime.bundle.schema import SCHEMA
from dod_runtime.bundle.write import write_bundle
from tests.runtime.toy_graphs import LAYERS, RANK, SCALE, toy_graph

HIDDEN = 8
LATENT = 192
SKIP = 4
CROPS = {"count": 4, "size": 16}
SIZE_MULTIPLE = 16
PROFILE = {"batch": [1, 1, 3], "size": [32, 32, 128]}
CONDITIONS = ("haze", "noise")
OPENVINO: Mapping[str, Mapping[str, Any]] = {"openvino": {"precisions": ["fp32"]}}
"""Entry of `targets` for a bundle that OpenVINO runs."""
COMPONENT_WEIGHTS = {
    "mfm": "mfm",
    "encoder": "encoder",
    "unet_dynamic": "unet",
    "unet_merged": "unet",
    "decoder": "decoder",
}
FILTERS = 2
"""Number of gains that the toy's gate returns."""

Tensors = dict[str, np.ndarray]


def toy_weights(effect: float) -> dict[str, Tensors]:
    """Return the float32 tensors of each weights file. They are the same at every call.

    Args:
        effect: strength with which conditions and skip connections change the image; 0 for the identity.
    """
    random = np.random.default_rng(0)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    unshuffle = np.eye(LATENT, dtype=np.float32).reshape(LATENT, 3, 8, 8)
    encoder = {"conv_in.weight": unshuffle, "conv_in.bias": np.zeros(LATENT, np.float32)}
    decoder = {"conv_out.weight": unshuffle, "conv_out.bias": np.zeros(3, np.float32)}
    for i in range(4):
        encoder[f"skip_{i}.weight"] = normal(SKIP, 3, 1 << i, 1 << i, scale=0.3 / (1 << i))
        decoder[f"skip_{i}.weight"] = normal(SKIP, 3, 1 << i, 1 << i, scale=0.02 * effect)
    unet = {
        "conv.weight": normal(LATENT, HIDDEN, 3, 3, scale=0.05),  # a transposed convolution
        "conv.bias": normal(HIDDEN, scale=0.1),
        "conv.lora_A.weight": normal(LATENT, RANK, 3, 3, scale=0.05),
        "conv.lora_B.weight": normal(HIDDEN, RANK, 1, 1, scale=0.5),
        "proj.weight": normal(HIDDEN, HIDDEN, scale=0.3),
        "proj.bias": np.zeros(HIDDEN, np.float32),
        "proj.lora_A.weight": normal(RANK, HIDDEN, scale=0.5),
        "proj.lora_B.weight": normal(HIDDEN, RANK, scale=0.5),
        "out.weight": normal(LATENT, HIDDEN, 1, 1, scale=0.05 * effect),
        "out.bias": np.zeros(LATENT, np.float32),
    }
    mfm = {
        "map.weight": normal(3, LAYERS * 2 * RANK, scale=0.7),
        "map.bias": np.tile(np.repeat(np.array([1, 0], np.float32), RANK), LAYERS),
    }
    gate = {"gains.weight": normal(3, FILTERS, scale=0.1)}
    return {"mfm": mfm, "encoder": encoder, "unet": unet, "decoder": decoder, "gate": gate}


def toy_modulation(condition: np.ndarray, mfm: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the modulation `[..., N, 2, r]` of conditions `[..., 3]`, as the mfm graph computes it."""
    flat = condition @ mfm["map.weight"] + mfm["map.bias"]
    return flat.reshape(*condition.shape[:-1], LAYERS, 2, RANK).astype(np.float32)


def toy_prototype(condition: str) -> np.ndarray:
    """Return a prototype for a condition of any name: float32 `[3]`."""
    return np.random.default_rng(list(condition.encode())).uniform(-1, 1, 3).astype(np.float32)


def toy_components(gated: bool = False) -> dict[str, Any]:
    """Return the `components` of the manifest; with `gated`, those of a model with post-processing."""

    def spec(name: str, *shape: int | str, dtype: Any = "float32") -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": ["batch", *shape]}

    image = spec("image", 3, "height", "width")
    latent, restored = (spec(name, LATENT, "height/8", "width/8") for name in ("latent", "latent_restored"))
    modulation = spec("modulation", LAYERS, 2, RANK)
    fp16 = {"fp32": "float32", "fp16": "float16"}
    sides = [("height", "width"), *((f"height/{1 << i}", f"width/{1 << i}") for i in (1, 2, 3))]
    skips = [spec(f"skip_{i}", SKIP, *side, dtype=fp16) for i, side in enumerate(sides)]
    crops = spec("crops", CROPS["count"], 3, CROPS["size"], CROPS["size"])
    decisions = [spec("share", 1), spec("gains", FILTERS)]
    gate = {"gate": {"inputs": [crops, spec("condition", 3)], "outputs": decisions}} if gated else {}
    given = [spec("degraded", 3, "height", "width"), *decisions] if gated else []
    return {
        **gate,
        "mfm": {"inputs": [crops], "outputs": [spec("condition", 3), modulation]},
        "encoder": {"inputs": [image], "outputs": [latent, *skips]},
        "unet_dynamic": {"inputs": [latent, modulation], "outputs": [restored]},
        "unet_merged": {"inputs": [latent], "outputs": [restored]},
        "decoder": {"inputs": [restored, *given, *skips], "outputs": [image]},
    }


def write_toy_bundle(
    destination: Path,
    *,
    effect: float = 1.0,
    precisions: Iterable[str] = ("fp32", "fp16"),
    conditions: Iterable[str] = CONDITIONS,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
    engines: Mapping[str, bytes] | None = None,
    shares: Mapping[str, float] | None = None,
) -> Path:
    """Write the toy as a bundle and return its folder.

    Args:
        destination: folder of the bundle.
        effect: strength with which conditions and skip connections change the image; 0 for the identity.
        precisions: precisions of the graphs.
        conditions: names of the conditions.
        targets: entries to add to `targets`.
        engines: content of engine files by path.
        shares: bypass share of each condition, for a model with a gate; others have 0.
    """
    staging = destination.with_name(f".{destination.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    components, files = toy_components(shares is not None), {}
    weights, graphs = toy_weights(effect), {**COMPONENT_WEIGHTS, **({} if shares is None else {"gate": "gate"})}
    weights = {name: tensors for name, tensors in weights.items() if name in graphs.values()}
    for precision in precisions:
        folder = staging / "onnx" / precision
        folder.mkdir(parents=True)
        for name, tensors in weights.items():
            dtype = np.float16 if precision == "fp16" and name not in ("mfm", "gate") else np.float32
            save_file({key: value.astype(dtype) for key, value in tensors.items()}, folder / f"{name}.safetensors")
        for component, name in graphs.items():
            model = toy_graph(component, precision, folder / f"{name}.safetensors", components[component])
            (folder / f"{component}.onnx").write_bytes(model.SerializeToString())
        root = f"onnx/{precision}"
        files[precision] = {
            "onnx": {component: f"{root}/{component}.onnx" for component in graphs},
            "weights": {component: f"{root}/{name}.safetensors" for component, name in graphs.items()},
            "fp32_modules": ["mfm"] if precision == "fp16" else [],
        }
    (staging / "conditions").mkdir()
    for condition in conditions:
        values = {"modulation": toy_modulation(toy_prototype(condition), weights["mfm"])}
        if shares is not None:
            values["condition"] = toy_prototype(condition)
            values["share"] = np.array([shares.get(condition, 0)], np.float32)
        save_file(values, staging / "conditions" / f"{condition}.safetensors")
    for path, content in (engines or {}).items():
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        (staging / path).write_bytes(content)
    manifest = {
        "schema": SCHEMA,
        "name": "toy",
        "tools": {"onnx": onnx.__version__},
        "model": {"preset": "toy"},
        "size_multiple": SIZE_MULTIPLE,
        "profile": PROFILE,
        "crops": CROPS,
        "components": components,
        "precisions": files,
        "merge": [
            {
                "layer": layer,
                "index": index,
                "scale": SCALE,
                "weight": f"{layer}.weight",
                "bias": f"{layer}.bias",
                "A": f"{layer}.lora_A.weight",
                "B": f"{layer}.lora_B.weight",
                "transposed": layer == "conv",
            }
            for index, layer in enumerate(("conv", "proj"))
        ],
        "conditions": {name: f"conditions/{name}.safetensors" for name in conditions},
        "targets": {"onnxruntime": {"precisions": list(files)}, **(targets or {})},
        "files": {},
        "parity": [],
    }
    (staging / "report.md").write_text("# toy\n", "utf-8")
    write_bundle(manifest, staging, destination)
    return destination


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the JSON of a bundle's manifest in place and return the folder."""
    data = json.loads((folder / "bundle.json").read_text())
    change(data)
    (folder / "bundle.json").write_text(json.dumps(data))
    return folder
