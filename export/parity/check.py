"""Proof that a bundle computes what PyTorch computes, step by step, on photographs, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dod.model import clora
from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import GATE
from export.graphs.conditions import modulation_of
from export.graphs.fp16 import SummedInFloat32, fp16_copy
from export.memory import give_back
from export.parity.compare import Figure, figure, snr_db
from export.parity.reference import (
    ParityCheck,
    Run,
    Shared,
    Values,
    Wanted,
    bundle_process,
    compare,
    run_pipeline,
    subjects,
)


class TorchPipeline:
    """A PyTorch model's components under the names of the bundle's."""

    def __init__(self, model: DOD) -> None:
        self.model = model

    def run(self, component: str, inputs: Values, condition: str | None = None) -> dict[str, np.ndarray]:
        tensors = {name: _tensor(value) for name, value in inputs.items()}
        with torch.no_grad(), SummedInFloat32():
            outputs = self._run(component, tensors, condition)
        return {name: value.numpy() for name, value in outputs.items()}

    def _run(self, component: str, tensors: dict[str, Tensor], condition: str | None) -> dict[str, Tensor]:
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
            modulation = torch.from_numpy(modulation_of(self.model, condition))
            with clora.merging(self.model.unet, modulation):
                outputs["latent_restored"] = self.model.unet(tensors["latent"])
        elif component == GATE:
            assert self.model.gate is not None
            outputs["share"], outputs["gains"] = self.model.gate(tensors["crops"], tensors["condition"])
        else:
            skips = [tensors[name] for name in sorted(tensors) if name.startswith("skip_")]
            image = self.model.decoder(tensors["latent_restored"], skips)
            if self.model.postprocess is not None:
                image = self.model.postprocess(image, *(tensors[name] for name in ("degraded", "share", "gains")))
            outputs["image"] = image
        return outputs


def check_count(bundle: Bundle, paths: Mapping[str, Sequence[Run]]) -> int:
    """How many proofs `prove` gives."""
    return (1 + len(subjects(bundle))) * sum(map(len, paths.values()))


def check_parity(
    model: DOD,
    fp32_modules: Sequence[str],
    bundle: Bundle,
    paths: Mapping[str, Sequence[Run]],
    scratch: Path,
    computed: Values,
) -> Iterator[ParityCheck]:
    """Hold a bundle against its model in PyTorch: first merged weights against branches, then each of `subjects`.

    paths: those to prove, of `paths_of`. One subject and path after the other is loaded and let go, so that memory
    holds one at a time; `model` itself has no values any more (it is on the meta device) once its copy in half, with
    these islands, is made. scratch: a folder for the reference's values. computed: what `run_pipeline` gives of one
    image on path `auto`, where the model has already computed it.
    """
    wanted, reference = Wanted(scratch), TorchPipeline(model)
    with TemporaryDirectory(dir=scratch) as folder:
        for path, runs in paths.items():
            for run in runs:
                give_back()
                values = (
                    computed if _is_of(computed, run) else run_pipeline(reference, run, bundle, Shared(Path(folder)))
                )
                figures = [] if path == "auto" else _merge_figures(model, run, values)
                wanted.keep(run, values if run.alone else {"image": values["image"]})
                yield ParityCheck("merged", run.sample.name, path, figures, values["image"])
    for subject in subjects(bundle):
        fp16 = fp16_copy(model, fp32_modules) if subject.backend is None else None
        model.to("meta")
        give_back()
        if fp16 is not None:
            with TemporaryDirectory(dir=scratch) as folder:
                for runs in paths.values():
                    yield from compare(TorchPipeline(fp16), subject, bundle, runs, wanted, Shared(Path(folder)))
            continue
        with bundle_process(subject, bundle, wanted) as compared:
            for runs in paths.values():
                yield from compared(runs)


def _is_of(computed: Values, run: Run) -> bool:
    """Whether these are the values of a run."""
    given = {"degraded": run.sample.values["image"], "crops": run.sample.values["crops"]}
    return run.path == "auto" and all(np.array_equal(computed.get(name, ()), value) for name, value in given.items())


@torch.no_grad()
def _merge_figures(model: DOD, run: Run, merged: Values) -> list[Figure]:
    """The merged path against the low-rank branches at the prototype: the chain, and the worst single layer."""
    sample, condition = run.sample.name, run.path
    modulation = torch.from_numpy(modulation_of(model, condition))[None]
    latent = _tensor(merged["latent"])
    skips = [_tensor(merged[name]) for name in sorted(merged) if name.startswith("skip_")]
    worst: list[tuple[float, np.ndarray, np.ndarray]] = []
    hooks = []
    for name, layer in clora.conditional_layers(model.unet.unet) if run.alone else ():
        hooks.append(layer.register_forward_hook(_layer_hook(name, layer, modulation[0], worst)))
    try:
        branched = model.decoder(model.unet(latent, modulation), skips).numpy()
    finally:
        for hook in hooks:
            hook.remove()
    # Both as decoded: on a path that passes the model the restored images would agree whatever it computes.
    found = model.decoder(_tensor(merged["latent_restored"]), skips).numpy() if model.postprocess else merged["image"]
    figures = [figure(sample, condition, "pipeline", "merged", branched, found)]
    if worst:
        _, expected, found = min(worst, key=lambda entry: entry[0])
        figures.append(figure(sample, condition, "layer", "merged", expected, found))
    return figures


def _tensor(value: np.ndarray) -> Tensor:
    """The same numbers for PyTorch, copied where they are mapped: it warns of what cannot be written."""
    return torch.from_numpy(np.require(value, requirements=("C", "W")))


def _layer_hook(
    name: str, layer: LoraLayer, modulation: Tensor, worst: list
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Compares one layer's branched output with its merged weights on the same input; keeps the worst."""

    def compare(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found = clora.merged_forward(name, layer, modulation, inputs[0])
        quality = snr_db(output.numpy(), found.numpy())
        if not worst or quality < worst[0][0]:
            worst[:] = [(quality, output.numpy().copy(), found.numpy())]

    return compare
