"""The parity check of a bundle, step by step on photographs, with one model in memory at a time."""

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
from export.graphs.condition_files import modulation_of
from export.graphs.fp16 import fp16_copy
from export.memory import release_memory
from export.parity.bundle_process import CheckedRun, ReferenceStore, bundle_process, check_runs
from export.parity.compare import ParityResult, compare_output, snr_db
from export.parity.reference import TorchPipeline, from_numpy
from export.parity.runs import ParityRun, Values, parity_steps
from export.parity.sequence import EncoderCache, run_pipeline

__all__ = ["check_count", "check_parity"]


def check_count(bundle: Bundle, paths: Mapping[str, Sequence[ParityRun]]) -> int:
    """Return the number of runs that `check_parity` yields.

    Args:
        bundle: The bundle.
        paths: Runs of each condition path.

    Returns:
        The number of runs times the number of steps, the merge included.
    """
    return (1 + len(parity_steps(bundle))) * sum(map(len, paths.values()))


def check_parity(
    model: DOD,
    fp32_modules: Sequence[str],
    bundle: Bundle,
    paths: Mapping[str, Sequence[ParityRun]],
    scratch: Path,
    computed: Values,
) -> Iterator[CheckedRun]:
    """Compare a bundle with its model in PyTorch: first merged weights with low-rank branches, then each step.

    One step and path after the other is loaded and released, so that memory holds one at a time.

    Args:
        model: The model in fp32. It is moved to the meta device as soon as its fp16 copy exists.
        fp32_modules: Modules of the fp16 copy that stay in fp32.
        bundle: The bundle.
        paths: Runs of each condition path to check, from `paths_of`.
        scratch: Folder for the reference's values.
        computed: Values of one image on path `auto` that the model has already computed, see `run_pipeline`; may be
            empty.

    Yields:
        The results of each run.
    """
    reference, pipeline = ReferenceStore(scratch), TorchPipeline(model)
    with TemporaryDirectory(dir=scratch) as folder:
        cache = EncoderCache(Path(folder))
        for path, runs in paths.items():
            for run in runs:
                release_memory()
                values = computed if _is_of(computed, run) else run_pipeline(pipeline, run, bundle, cache)
                results = [] if path == "auto" else _compare_merge(model, run, values)
                reference.save(run, values if run.isolated else {"image": values["image"]})
                yield CheckedRun("merged", run.sample.name, path, results, values["image"])
    del pipeline
    for step in parity_steps(bundle):
        fp16 = fp16_copy(model, fp32_modules) if step.backend is None else None
        model.to("meta")
        release_memory()
        if fp16 is not None:
            with TemporaryDirectory(dir=scratch) as folder:
                for runs in paths.values():
                    stores = reference, EncoderCache(Path(folder))
                    yield from check_runs(TorchPipeline(fp16), step, bundle, runs, *stores)
            continue
        with bundle_process(step, bundle, reference) as check:
            for runs in paths.values():
                yield from check(runs)


def _is_of(computed: Values, run: ParityRun) -> bool:
    """Return True if these are the values of a run."""
    given = {"degraded": run.sample.values["image"], "crops": run.sample.values["crops"]}
    return run.path == "auto" and all(np.array_equal(computed.get(name, ()), value) for name, value in given.items())


@torch.no_grad()
def _compare_merge(model: DOD, run: ParityRun, merged: Values) -> list[ParityResult]:
    """Compare the merged path with the low-rank branches at the prototype: the pipeline, and the worst single layer."""
    sample, condition = run.sample.name, run.path
    modulation = torch.from_numpy(modulation_of(model, condition))[None]
    latent = from_numpy(merged["latent"])
    skips = [from_numpy(merged[name]) for name in sorted(merged) if name.startswith("skip_")]
    worst: list[tuple[float, np.ndarray, np.ndarray]] = []
    hooks = []
    for name, layer in clora.conditional_layers(model.unet.unet) if run.isolated else ():
        hooks.append(layer.register_forward_hook(_layer_hook(name, layer, modulation[0], worst)))
    try:
        branched = model.decoder(model.unet(latent, modulation), skips).numpy()
    finally:
        for hook in hooks:
            hook.remove()
    # Both as decoded: where the post-processing passes the degraded image on, the restored images always agree.
    decoder = model.decoder
    found = decoder(from_numpy(merged["latent_restored"]), skips).numpy() if model.postprocess else merged["image"]
    results = [compare_output(sample, condition, "pipeline", "merged", branched, found)]
    if worst:
        _, expected, found = min(worst, key=lambda entry: entry[0])
        results.append(compare_output(sample, condition, "layer", "merged", expected, found))
    return results


def _layer_hook(
    name: str, layer: LoraLayer, modulation: Tensor, worst: list
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Return a hook that compares a layer's output with its merged weights on the same input, and keeps the worst."""

    def compare(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found = clora.merged_forward(name, layer, modulation, inputs[0])
        quality = snr_db(output.numpy(), found.numpy())
        if not worst or quality < worst[0][0]:
            worst[:] = [(quality, output.numpy().copy(), found.numpy())]

    return compare
