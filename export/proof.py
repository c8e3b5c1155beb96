"""Proof that a bundle computes what PyTorch computes, step by step, on photographs, one model in memory at a time."""

from __future__ import annotations

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
from export.memory import give_back
from export.parity import Figure, figure, snr_db
from export.precision import half_copy
from runtime.backends import Backend, Options, open_backend
from runtime.bundle import Bundle
from runtime.geometry import crops, pad, padded_size
from runtime.image import read
from runtime.manifest import REDUCED

DYNAMIC = ("mfm", "encoder", "unet_dynamic", "decoder")
MERGED = ("encoder", "unet_merged", "decoder")
FIRST = ("mfm", "encoder")
"""What takes the picture itself, in the chain as alone."""
OUTPUT = {"mfm": "modulation", "encoder": "latent", "decoder": "image"}
Values = Mapping[str, np.ndarray]


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

    def close(self) -> None:
        """Let go of the merged UNets."""
        self.merged.clear()

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


@dataclass(frozen=True)
class Proof:
    """What one step gave for one sample on one path: its figures, and the restored picture [1, 3, H, W]."""

    step: str
    sample: str
    path: str
    figures: list[Figure]
    restored: np.ndarray


@dataclass(frozen=True)
class Subject:
    """What is held against the reference in one step: the precision of its graphs, and who computes them in which.

    backend: None is PyTorch itself.
    """

    step: str
    graphs: str
    backend: str | None
    precision: str


@dataclass(frozen=True)
class Run:
    """One picture through one path: the components of the path in their order."""

    path: str
    components: Sequence[str]
    sample: Sample


def subjects(bundle: Bundle) -> list[Subject]:
    """The steps of a proof in order. PyTorch's half comes first: then the model's values are not needed any more."""
    manifest = bundle.manifest
    found = [Subject("half", "fp16", None, "fp16")] if "fp16" in manifest.precisions else []
    found += [Subject(f"onnx {each}", each, "onnxruntime_cpu", each) for each in manifest.precisions]
    openvino = manifest.targets.get("openvino")
    for precision in openvino.precisions if openvino else ():
        found.append(Subject(f"openvino {precision}", REDUCED.get(precision, precision), "openvino", precision))
    return found


def proof_count(bundle: Bundle, samples: Sequence[Sample]) -> int:
    """How many proofs `prove` gives."""
    return (1 + len(subjects(bundle))) * len(_runs(bundle, samples))


def prove(model: DOD, islands: Sequence[str], bundle: Bundle, samples: Sequence[Sample]) -> Iterator[Proof]:
    """Hold a bundle against its model in PyTorch: first merged weights against branches, then each of `subjects`.

    Each component is compared once by itself, on the first sample, and the chain on each. One subject and path after
    the other is loaded and let go, so that memory holds one at a time; `model` itself has no values any more (it is on
    the meta device) once its copy in half, with these islands, is made.
    """
    runs = _runs(bundle, samples)
    wanted: dict[tuple[str, str], Values] = {}
    reference = TorchChain(model)
    for run in runs:
        give_back()
        path, sample, first = run.path, run.sample, run.sample is samples[0]
        values = _run(reference, run.components, sample.values, path, bundle)
        figures = [] if path == "auto" else _merge_figures(model, sample, values, layers=first)
        wanted[sample.name, path] = values if first else {"image": values["image"]}
        yield Proof("merged", sample.name, path, figures, values["image"])
    reference.close()
    for subject in subjects(bundle):
        half = half_copy(model, islands) if subject.backend is None else None
        model.to("meta")
        compared: set[str] = set()
        for path in dict.fromkeys(run.path for run in runs):
            give_back()
            computer = TorchChain(half) if half else _backend(subject, bundle)
            try:
                for run in runs:
                    if run.path == path:
                        expected = wanted[run.sample.name, path]
                        alone = [name for name in run.components if name not in compared] if len(expected) > 1 else []
                        compared.update(alone)
                        figures, restored = _against(computer, subject, run, expected, bundle, alone)
                        yield Proof(subject.step, run.sample.name, path, figures, restored)
            finally:
                computer.close()
                del computer
    model.to("meta")


def _runs(bundle: Bundle, samples: Sequence[Sample]) -> list[Run]:
    """Every path of every sample, path by path."""
    merged = [
        Run(sample.condition, MERGED, sample) for sample in samples if sample.condition in bundle.manifest.conditions
    ]
    return [*(Run("auto", DYNAMIC, sample) for sample in samples), *sorted(merged, key=lambda run: run.path)]


def _backend(subject: Subject, bundle: Bundle) -> Backend:
    assert subject.backend is not None
    return open_backend(subject.backend, bundle, Options(precision=subject.precision))[0]


def _against(
    computer: TorchChain | Backend, subject: Subject, run: Run, expected: Values, bundle: Bundle, alone: Sequence[str]
) -> tuple[list[Figure], np.ndarray]:
    """The chain's figure, and those of the components named, each fed with the reference's own inputs."""
    name, path, precision = run.sample.name, run.path, subject.graphs
    found = _run(computer, run.components, run.sample.values, path, bundle, precision)
    figures = [figure(name, path, "chain", subject.step, expected["image"], found["image"])]
    for component in alone:
        output = OUTPUT.get(component, "latent_restored")
        result = found[output]
        if component not in FIRST:
            inputs = _inputs(component, expected, bundle, precision)
            result = computer.run(component, inputs, None if path == "auto" else path)[output]
        figures.append(figure(name, path, component, subject.step, expected[output], result))
    return figures, found["image"]


def _run(
    subject: TorchChain | Backend,
    components: Sequence[str],
    start: Values,
    path: str,
    bundle: Bundle,
    precision: str | None = None,
) -> dict[str, np.ndarray]:
    """Every value along the chain, by name. The restored picture replaces the degraded one under `image`."""
    values = {**start, "degraded": start["image"]}
    condition = None if path == "auto" else path
    for component in components:
        values |= subject.run(component, _inputs(component, values, bundle, precision), condition)
    return values


def _inputs(component: str, values: Values, bundle: Bundle, precision: str | None) -> dict[str, np.ndarray]:
    """What a component takes, in the types of the bundle's graphs of a precision; None: as the reference takes it."""
    specs = bundle.manifest.components[component].inputs
    dtypes = {spec.name: spec.dtype(precision) if precision else "float32" for spec in specs}
    return {name: np.asarray(values[name]).astype(dtype, copy=False) for name, dtype in dtypes.items()}


@torch.no_grad()
def _merge_figures(model: DOD, sample: Sample, merged: Values, layers: bool) -> list[Figure]:
    """The merged path against the low-rank branches at the prototype: the chain, and the worst single layer."""
    modulation = torch.from_numpy(modulation_of(model, sample.condition))[None]
    latent = torch.from_numpy(merged["latent"])
    skips = [torch.from_numpy(merged[name]) for name in sorted(merged) if name.startswith("skip_")]
    worst: list[tuple[float, np.ndarray, np.ndarray]] = []
    hooks = []
    for _, layer in clora.conditional_layers(model.unet.unet) if layers else ():
        hooks.append(layer.register_forward_hook(_layer_hook(layer, modulation[0], worst)))
    try:
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
