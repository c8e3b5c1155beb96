"""Proof that a bundle computes what PyTorch computes: step by step, on photographs, each figure with its witness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dod import clora
from dod.model import DOD
from export.conditions import modulation_of
from export.errors import ParityError
from runtime.backends import Backend, Options, open_backend
from runtime.bundle import Bundle
from runtime.geometry import crops, pad, padded_size
from runtime.image import read

BUDGETS = {
    ("layer", "merged"): ("snr_db", 100.0),
    ("chain", "merged"): ("snr_db", 80.0),
    ("chain", "onnx fp32"): ("snr_db", 80.0),
    ("chain", "half"): ("psnr_db", 45.0),
    ("chain", "onnx fp16"): ("psnr_db", 45.0),
}
"""What the figure of a component and a step must reach, in dB. A component without a budget is shown for diagnosis."""

WITNESS = {
    "merged": "PyTorch fp32: merged weights against the low-rank branches, at the prototype",
    "onnx fp32": "ONNX Runtime on CPU",
    "half": "PyTorch on CPU in true half arithmetic, with the fp32 islands",
    "onnx fp16": "ONNX Runtime on CPU: graph and half weights only; it computes in fp32 and cannot show an overflow",
}

DYNAMIC = ("mfm", "encoder", "unet_dynamic", "decoder")
MERGED = ("encoder", "unet_merged", "decoder")
OUTPUT = {"mfm": "modulation", "encoder": "latent", "decoder": "image"}
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Figure:
    """One comparison with PyTorch fp32 on one picture. path: `auto` or a condition. component: `chain` for all of it.

    max_abs and snr_db are of the component's main output; psnr_db of the picture (clipped to its range), of the chain
    alone. budget names the figure that decides and what it must reach, None where nothing depends on it.
    """

    picture: str
    path: str
    component: str
    step: str
    witness: str
    max_abs: float
    snr_db: float
    psnr_db: float | None
    budget: str | None
    passed: bool


@dataclass(frozen=True)
class Sample:
    """A photograph ready for the chain: image [1, 3, H, W] and crops [1, K, 3, R, R], float32 in [-1, 1]."""

    name: str
    condition: str
    values: dict[str, np.ndarray]


class TorchChain:
    """A PyTorch model's components under the names of the bundle's. `merged` holds a plain UNet for each condition."""

    def __init__(self, model: DOD) -> None:
        self.model = model
        self.merged: dict[str, nn.Module] = {}

    @torch.no_grad()
    def run(self, component: str, inputs: Values, condition: str | None = None) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        outputs: dict[str, Tensor] = {}
        if component == "mfm":
            outputs["condition"], outputs["modulation"] = self.model.mfm(tensors["crops"])
        elif component == "encoder":
            outputs["latent"], skips = self.model.encoder(tensors["image"])
            outputs |= {f"skip_{i}": skip for i, skip in enumerate(skips)}
        elif component == "unet_dynamic":
            outputs["latent_restored"] = self.model.unet(tensors["latent"], tensors["modulation"])
        elif component == "unet_merged":
            assert condition is not None
            outputs["latent_restored"] = self._merged(condition)(tensors["latent"])
        else:
            skips = [tensors[name] for name in sorted(tensors) if name.startswith("skip_")]
            outputs["image"] = self.model.decoder(tensors["latent_restored"], skips)
        return {name: value.numpy() for name, value in outputs.items()}

    def _merged(self, condition: str) -> nn.Module:
        if condition not in self.merged:
            modulation = torch.from_numpy(modulation_of(self.model, condition))
            self.merged = {condition: clora.merged_copy(self.model.unet, modulation)}
        return self.merged[condition]


def load_sample(path: Path, bundle: Bundle, conditions: Sequence[str]) -> Sample:
    """A photograph as the runtime prepares it. Its condition is the one its name begins with, else the first."""
    manifest = bundle.manifest
    pixels = read(path).pixels
    sizes = manifest.size_multiple, manifest.profile.size[0], manifest.profile.size[2]
    image = pad(pixels, *(padded_size(side, *sizes) for side in pixels.shape[:2])).transpose(2, 0, 1)[None]
    taken = crops(pixels, manifest.crops.count, manifest.crops.size)[None]
    condition = next((name for name in conditions if path.stem.startswith(name)), conditions[0] if conditions else "")
    return Sample(path.name, condition, {"image": np.ascontiguousarray(image), "crops": taken})


def prove(
    model: DOD, half: DOD | None, bundle: Bundle, samples: Sequence[Sample]
) -> Iterator[tuple[list[Figure], np.ndarray]]:
    """The figures of each sample in turn, and its restored picture [1, 3, H, W] (path auto, the last step's).

    The components are compared one by one on the first sample, the chain on each. half: None where there is no fp16.
    """
    reference = TorchChain(model)
    subjects: dict[str, tuple[str, TorchChain | Backend]] = {}
    if "fp32" in bundle.manifest.precisions:
        subjects["onnx fp32"] = ("fp32", open_backend("onnxruntime_cpu", bundle, Options(precision="fp32"))[0])
    if "fp16" in bundle.manifest.precisions:
        if half is not None:
            subjects["half"] = ("fp16", TorchChain(half))
        subjects["onnx fp16"] = ("fp16", open_backend("onnxruntime_cpu", bundle, Options(precision="fp16"))[0])
    for number, sample in enumerate(samples):
        figures: list[Figure] = []
        restored = sample.values["image"]
        paths = [("auto", DYNAMIC)] + ([(sample.condition, MERGED)] if sample.condition in model.prototypes else [])
        for path, components in paths:
            expected = _run(reference, components, sample.values, path, bundle)
            if path != "auto":
                figures += _merge_figures(model, sample, expected, layers=number == 0)
            for step, (precision, subject) in subjects.items():
                found = _run(subject, components, sample.values, path, bundle, precision)
                figures.append(figure(sample.name, path, "chain", step, expected["image"], found["image"]))
                restored = found["image"] if path == "auto" else restored
                for component in components if number == 0 else ():
                    figures.append(_component(subject, component, sample.name, path, step, expected, bundle, precision))
        yield figures, restored


def check(figures: Sequence[Figure]) -> None:
    """ParityError where a figure misses its budget."""
    failed = [figure for figure in figures if not figure.passed]
    if failed:
        worst = failed[0]
        raise ParityError(
            f"{len(failed)} of {len(figures)} figures miss their budget, first {worst.step} of {worst.component} "
            f"on {worst.picture} ({worst.path}): SNR {worst.snr_db:.1f} dB, PSNR {worst.psnr_db or 0:.1f} dB, "
            f"budget {worst.budget}; no bundle is written"
        )


def figure(picture: str, path: str, component: str, step: str, reference: np.ndarray, value: np.ndarray) -> Figure:
    """Compare a value with its reference and hold it against its budget."""
    max_abs = float(np.abs(value.astype(np.float64) - reference).max())
    snr = snr_db(reference, value)
    psnr = psnr_db(reference, value) if component == "chain" else None
    kind, least = BUDGETS.get((component, step), (None, 0.0))
    reached = {"snr_db": snr, "psnr_db": psnr if psnr is not None else snr}.get(kind or "", math.inf)
    budget = None if kind is None else f"{kind.removesuffix('_db').upper()} >= {least:g} dB"
    return Figure(picture, path, component, step, WITNESS[step], max_abs, snr, psnr, budget, reached >= least)


def _run(
    subject: TorchChain | Backend,
    components: Sequence[str],
    start: Values,
    path: str,
    bundle: Bundle,
    precision: str = "fp32",
) -> dict[str, np.ndarray]:
    """Every value along the chain, by name. The restored picture replaces the degraded one under `image`."""
    values = {**start, "degraded": start["image"]}
    condition = None if path == "auto" else path
    for component in components:
        values |= subject.run(component, _inputs(component, values, bundle, precision), condition)
    return values


def _component(
    subject: TorchChain | Backend,
    component: str,
    picture: str,
    path: str,
    step: str,
    expected: Values,
    bundle: Bundle,
    precision: str,
) -> Figure:
    """One component alone, fed with the reference's own inputs."""
    degraded = expected["degraded"] if component == "encoder" else expected["image"]
    inputs = _inputs(component, {**expected, "image": degraded}, bundle, precision)
    output = OUTPUT.get(component, "latent_restored")
    found = subject.run(component, inputs, None if path == "auto" else path)[output]
    return figure(picture, path, component, step, expected[output], found)


def _inputs(component: str, values: Values, bundle: Bundle, precision: str) -> dict[str, np.ndarray]:
    specs = bundle.manifest.components[component].inputs
    return {spec.name: np.asarray(values[spec.name]).astype(spec.dtype(precision), copy=False) for spec in specs}


@torch.no_grad()
def _merge_figures(model: DOD, sample: Sample, merged: Values, layers: bool) -> list[Figure]:
    """The merged path against the low-rank branches at the prototype: the chain, and the worst single layer."""
    modulation = torch.from_numpy(modulation_of(model, sample.condition))[None]
    image = torch.from_numpy(sample.values["image"])
    worst: list[tuple[float, np.ndarray, np.ndarray]] = []
    hooks = []
    for _, layer in clora.conditional_layers(model.unet.unet) if layers else ():
        hooks.append(layer.register_forward_hook(_layer_hook(layer, modulation[0], worst)))
    try:
        latent, skips = model.encoder(image)
        branched = model.decoder(model.unet(latent, modulation), skips).numpy()
    finally:
        for hook in hooks:
            hook.remove()
    figures = [figure(sample.name, sample.condition, "chain", "merged", branched, merged["image"])]
    if worst:
        _, expected, found = min(worst, key=lambda entry: entry[0])
        figures.append(figure(sample.name, sample.condition, "layer", "merged", expected, found))
    return figures


def _layer_hook(
    layer: clora.CLoRALinear | clora.CLoRAConv2d, modulation: Tensor, worst: list
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Compares one layer's branched output with its merged weights on the same input; keeps the worst."""
    base = cast(nn.Conv2d, layer.get_base_layer())
    scale, (gamma, beta) = layer.scaling[clora.ADAPTER], modulation[layer.index]
    weight, bias = clora.merge(base.weight, base.bias, *clora.factors(layer), scale, gamma, beta)

    def compare(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        if weight.ndim == 4:
            found = torch.nn.functional.conv2d(x, weight, bias, base.stride, base.padding)
        else:
            found = torch.nn.functional.linear(x, weight, bias)
        quality = snr_db(output.numpy(), found.numpy())
        if not worst or quality < worst[0][0]:
            worst[:] = [(quality, output.numpy().copy(), found.numpy())]

    return compare


def snr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """Signal-to-noise ratio in dB, in float64: 10 log10(sum ref^2 / sum (value - ref)^2). Infinite where equal.

    -inf where the value has infinities or nothing is to be reached, NaN where it has NaNs: neither meets a budget.
    """
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    error = np.square(value - reference).sum()
    if error == 0:
        return math.inf
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.square(reference).sum() / error))


def psnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    """PSNR in dB of two pictures in [-1, 1], clipped to it, with the peak of 2 that this range has."""
    difference = np.clip(value, -1, 1).astype(np.float64) - np.clip(reference, -1, 1)
    error = np.square(difference).mean()
    return math.inf if error == 0 else 10 * math.log10(4 / error)
