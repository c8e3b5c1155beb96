"""The build itself: weights, graphs, conditions, engines, parity, bundle. Each file is made only where it is stale."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dod.checkpoint import load_model, preset_of, read_metadata
from dod.model.dod import DOD, sized_model
from dod_runtime.backends.openvino.backend import reduced_precisions
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import Manifest
from dod_runtime.console import progress
from export import report
from export.cache import BuildCache, Entry, hash_sources
from export.engines.targets import TARGETS
from export.graphs import components, condition_files, trace
from export.graphs.fp16 import check_fp32_modules, fp16_copy
from export.graphs.trace_workers import TraceJob, trace_all
from export.interface import Component, read_components
from export.manifest import describe, target
from export.memory import MemoryMeter
from export.parity.compare import ParityResult, check
from export.parity.runs import Values
from export.precision import record as precision_record
from export.preflight import (
    MODEL_SOURCES,
    Options,
    check_exportable,
    check_memory,
    check_out,
    check_room,
    check_sizes,
    hash_model,
    hash_samples,
    hash_tensors,
    sample_paths,
    settings_of,
)
from export.replacement import Identity, check_replacement
from export.steps import engines as engine_step
from export.steps import parity as parity_step
from export.steps import precision as precision_step
from export.steps import simplify as simplify_step

SLOWEST = ("unet_dynamic", "unet_merged", "decoder", "encoder", "mfm", "gate")
"""The graphs in the order in which they are traced: the slowest first."""


class Build:
    """One run of the command on one model."""

    def __init__(self, options: Options, explaining: bool = False) -> None:
        self.options, self.explaining = options, explaining
        self.start = time.monotonic()
        self.samples = sample_paths(options.samples)
        source = options.checkpoint, options.base, options.ddpm
        preset, folder = preset_of(*source)
        check_exportable(preset)
        sized = sized_model(preset)
        check_sizes(options.size, options.batch, preset.size_multiple)
        check_out(options.out)
        if not explaining:
            stated = read_metadata(folder).get("conditions", ()) if folder else ()
            names, shape = frozenset((preset.name,)), (len(sized.layers), preset.lora.rank)
            planned = Identity(names, *shape, tuple(options.conditions or stated))
            check_replacement(options.out, planned, force=options.force)
        check_room(options.out, sized, len(options.precisions), sum(name in TARGETS for name in options.targets))
        check_memory(sized)
        self.cache = BuildCache(options.out)
        self.cache.hash_ahead()
        self.model = load_model(*source)
        check_fp32_modules(self.model, options.fp32_modules or ())
        self.conditions = condition_files.chosen_conditions(self.model, options.conditions)
        self.engine_conditions = condition_files.engine_conditions(self.conditions, options.engine_conditions)
        self._meta_copies: dict[str, DOD] = {}
        self.fp32_modules: tuple[str, ...] = (precision_step.UNMEASURED,)
        self.precision: precision_record.PrecisionRecord | None = None
        self.computed: Values = {}
        self.trained, self.checkpoint = hash_tensors(self.model.trained_tensors()), hash_model(self.model)
        self.settings = settings_of(self.model)
        self.sources = hash_sources(MODEL_SOURCES)

    def explain(self) -> int:
        """Say for each file why it is fresh or stale; build nothing. A file made from a stale one is stale too."""
        steps = self.simplify, self.choose_fp32_modules, self.write_weights, self.trace_graphs, self.write_conditions
        with self.cache:
            for step in steps:
                step()
            if all(name in self.cache.used for name in self.cache.reasons):  # what is to be made is proven when it is
                self.check_parity()
            self.build_engines()
        for name, reason in self.cache.reasons.items():
            print(f"{name}: {reason}")
        return 0

    def run(self) -> int:
        """Build what is stale, prove it, write the bundle; returns the exit code."""
        if not self.conditions:
            model = {"preset": self.model.preset.name, "checkpoint": self.options.checkpoint}
            print(f"warning: {condition_files.without_prototypes(model)}", file=sys.stderr, flush=True)
        with self.cache, MemoryMeter() as memory:
            bundle = self.make()
        size = sum(record.bytes for record in bundle.manifest.files.values())
        print(
            f"{bundle.folder}: {len(bundle.manifest.files)} files, {size / 1e6:.1f} MB, "
            f"in {time.monotonic() - self.start:.0f} s, peak memory {memory.peak / 1e9:.1f} GB of all processes"
        )
        return 0

    def make(self) -> Bundle:
        """The bundle. ParityError where a figure missed its budget: then none is written."""
        simplified = self.simplify()
        self.choose_fp32_modules()
        self.write_weights()
        self.trace_graphs()
        self.write_conditions()
        checked, images = self.check_parity()
        figures = [*simplified, *checked]
        print(report.parity_table(figures, paths=("auto", *self.conditions)))
        check(figures)
        self.model.to("meta")  # the builders need the memory; what they build from is on the disk by now
        self.build_engines()
        manifest = self.manifest(figures, self.options.targets)
        report.write(self.cache, manifest, figures, images, self.cache.path(simplify_step.RECORD), self.precision)
        return self.cache.finish(manifest)

    def simplify(self) -> list[ParityResult]:
        """Fold what is constant into the model; the model held against itself as it was loaded."""
        inputs = {**self._inputs("fp32"), "samples": hash_samples(self.samples)}
        step = self.cache, self.model, self.samples[0], inputs, self.explaining
        figures, self.computed = simplify_step.measured(*step)
        return figures

    def meta_copy(self, precision: str) -> DOD:
        """The structure of the simplified model in a precision, made where something is written or traced by it."""
        if precision not in self._meta_copies:
            single = precision == "fp32"
            made = components.meta_copy(self.model) if single else fp16_copy(self.meta_copy("fp32"), self.fp32_modules)
            self._meta_copies[precision] = made
        return self._meta_copies[precision]

    def choose_fp32_modules(self) -> None:
        """Measure half precision. ParityError where it misses its budget, or where bf16 or int8 was asked for."""
        if "fp16" not in self.options.precisions and not self.options.gate:
            return
        inputs = {**self._inputs("fp32"), "samples": hash_samples(self.samples)}
        self.precision = precision_step.measured(self.cache, self.model, self.options, inputs, self.explaining)
        if self.precision is not None:
            self.fp32_modules = tuple(self.precision["fp32_modules"])
            if not self.explaining:
                if not self.options.precisions:
                    self.cache.abandon()  # nothing of a bundle was asked for: there is nothing to go on from
                precision_record.check(self.precision, self.options.gate)

    def write_weights(self) -> None:
        """One safetensors file for each component and precision; both UNet graphs share theirs."""
        for precision in self.options.precisions:
            for file in dict.fromkeys(components.graphs_of(self.model).values()):
                name = f"onnx/{precision}/{file}.safetensors"
                if not self.cache.fresh(name, self._inputs(precision)) and not self.explaining:
                    maker = partial(trace.write_weights, self.model, self.meta_copy(precision), file)
                    self._made(name, self.cache.make(name, self._inputs(precision), maker)[0])

    def trace_graphs(self) -> None:
        """Every graph of every precision, the slowest first, in worker processes."""
        jobs = []
        for graph in sorted(components.graphs_of(self.model), key=lambda name: SLOWEST.index(name)):
            for precision in self.options.precisions:
                name = f"onnx/{precision}/{graph}.onnx"
                if not self.cache.fresh(name, self._graph_inputs(precision)):
                    path = self.cache.path(name)
                    weights = path.with_name(f"{components.graphs_of(self.model)[graph]}.safetensors")
                    opset = trace.OPSETS[precision]
                    jobs.append(TraceJob(name, precision, graph, path.with_name(f".{graph}.tmp.onnx"), weights, opset))
        if jobs and not self.explaining:
            meta_copies = {precision: self.meta_copy(precision) for precision in {job.precision for job in jobs}}
            traced = trace_all(meta_copies, jobs, self.options.workers)
            for job, seconds in progress(traced, len(jobs), "tracing"):
                job.path.replace(self.cache.path(job.name))
                self._made(job.name, self.cache.record(job.name, self._graph_inputs(job.precision), seconds))

    def write_conditions(self) -> None:
        """The values of each condition."""
        for condition in self.conditions:
            prototype = hash_tensors({condition: self.model.prototypes[condition]})
            name = f"conditions/{condition}.safetensors"
            inputs: dict[str, Any] = {"model": self.trained, "prototype": prototype, "sources": self.sources}
            inputs["share"] = self.model.share(condition)
            inputs["written by"] = hash_sources([Path(condition_files.__file__)])
            if not self.cache.fresh(name, inputs) and not self.explaining:
                maker = partial(condition_files.write_condition, self.model, condition)
                self._made(name, self.cache.make(name, inputs, maker)[0])

    def check_parity(self) -> tuple[list[ParityResult], dict[str, Path]]:
        """The figures of every path, proven anew where what it runs changed, and the restored samples."""
        made = self.cache, self.model, self.fp32_modules, self._provisional_bundle()
        computed, self.computed = self.computed, {}
        return parity_step.measured(*made, self.samples, self.settings, self.explaining, computed)

    def build_engines(self) -> None:
        """For each engine target: mfm, encoder, decoder, the dynamic UNet, and a merged UNet for each condition."""
        inputs = self.cache, self.model, self.options, self.engine_conditions, self.components, self.explaining
        for name, entry in engine_step.built(*inputs):
            self._made(name, entry)

    def components(self) -> dict[str, Component]:
        """The manifest's `components`, read off the graphs."""
        graphs = components.graphs_of(self.model)
        paths = {p: {g: self.cache.path(f"onnx/{p}/{g}.onnx") for g in graphs} for p in self.options.precisions}
        return read_components(paths)

    def _provisional_bundle(self) -> Bundle:
        """The files made so far, as the runtime sees them: what is proven is what it will run."""
        targets = ("onnxruntime", *(name for name in self.options.targets if name == "openvino"))
        data = self.manifest([], targets)
        if "openvino" in targets:
            data["targets"]["openvino"]["precisions"] += reduced_precisions()  # to be proven
        data["files"] = {n: {"bytes": e.bytes, "sha256": e.sha256} for n, e in self.cache.used.items()}
        return Bundle(self.cache.folder, Manifest.parse(data))

    def manifest(self, figures: Sequence[ParityResult], targets: Sequence[str]) -> dict:
        """`bundle.json` without its files."""
        return describe(
            self.model,
            self.options,
            self.checkpoint,
            self.components(),
            self.fp32_modules,
            conditions=self.conditions,
            targets={name: self._target(name, figures) for name in targets},
            parity=[*report.rows(figures), *report.unchecked_rows(figures, ("auto", *self.conditions))],
        )

    def _target(self, name: str, figures: Sequence[ParityResult]) -> dict:
        gated = self.model.gate is not None
        return target(name, self.options, self.engine_conditions, self.cache.used, figures, gated)

    def _inputs(self, precision: str) -> dict[str, object]:
        fp32_modules = list(self.fp32_modules) if precision == "fp16" else []
        return {
            "base": self.model.base_sha256,
            "checkpoint": self.trained,
            "settings": self.settings,
            "precision": precision,
            "fp32 islands": fp32_modules,
            "sources": self.sources,
        }

    def _graph_inputs(self, precision: str) -> dict[str, object]:
        return {**self._inputs(precision), "opset": trace.OPSETS[precision], "torch": torch.__version__}

    def _made(self, name: str, entry: Entry) -> None:
        print(f"{name:<44} {entry.bytes / 1e6:8.2f} MB {entry.seconds:7.1f} s", flush=True)
