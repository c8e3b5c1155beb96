"""The build itself: weights, graphs, conditions, engines, parity, bundle. Each file is made only where it is stale."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

import dod
from dod.checkpoint import load_model
from dod.model import DOD
from export import calibration, conditions, graphs, parity, precision_step, report
from export.artefacts import Entry, Workshop, hash_sources
from export.checks import (
    MODEL_SOURCES,
    ROOT,
    Options,
    check_exportable,
    check_out,
    check_room,
    check_sizes,
    hash_model,
    hash_samples,
    sample_paths,
)
from export.engines import EngineJob, build_engines
from export.interface import Component, engine_list, library_version, profile, read_components, version
from export.parity import Figure, load_sample, prove
from export.precision import check_islands, half_copy
from export.targets import TARGETS, gpu_here
from export.tracing import Source, TraceJob, trace_all
from runtime.bundle import Bundle
from runtime.console import progress
from runtime.manifest import Manifest

TOOLS = ("torch", "diffusers", "peft", "onnx", "onnxscript", "onnxruntime", "polygraphy")


class Build:
    """One run of the command on one model."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.start = time.monotonic()
        self.model = load_model(options.checkpoint, options.base, options.ddpm)
        check_islands(self.model, options.islands or ())
        self.source = Source(options.checkpoint, options.base, options.ddpm, (precision_step.UNMEASURED,))
        check_exportable(self.model)
        check_sizes(options.size, options.batch, self.model.preset.size_multiple)
        self.conditions = conditions.chosen_conditions(self.model, options.conditions)
        self.samples = sample_paths(options.samples)
        self.half: DOD | None = None
        self.precision: calibration.Record | None = None
        self.trained = hash_model(self.model)
        self.sources = hash_sources(MODEL_SOURCES)
        check_room(options.out, self.model, len(options.precisions), len(options.targets))
        check_out(options.out)
        self.shop = Workshop(options.out)
        self.explaining = False

    def explain(self) -> int:
        """Say for each file why it is fresh or stale; build nothing. A file made from a stale one is stale too."""
        self.explaining = True
        self.make()
        for name, reason in self.shop.reasons.items():
            print(f"{name}: {reason}")
        self.shop.leave()
        return 0

    def run(self) -> int:
        """Build what is stale, prove it, write the bundle; returns the exit code."""
        self.make()
        figures, pictures = self.measure_parity()
        print(report.parity_table(figures))
        parity.check(figures)
        manifest = self.manifest(figures)
        report.write(self.shop, manifest, figures, pictures, self.precision)
        bundle = self.shop.finish(manifest)
        size = sum(record.bytes for record in bundle.manifest.files.values())
        print(
            f"{bundle.folder}: {len(bundle.manifest.files)} files, {size / 1e6:.1f} MB, "
            f"in {time.monotonic() - self.start:.0f} s, peak memory {report.peak_memory() / 1e9:.1f} GB"
        )
        return 0

    def make(self) -> None:
        """Everything that is proven afterwards."""
        if "fp16" in self.options.precisions or self.options.gate:
            self.choose_islands()
        self.write_weights()
        self.trace_graphs()
        self.write_conditions()
        self.build_engines()

    def choose_islands(self) -> None:
        """Measure half precision. ParityError where it misses its budget, or where bf16 or int8 was asked for."""
        inputs = {**self._inputs("fp32"), "samples": hash_samples(self.samples)}
        self.precision = precision_step.measured(self.shop, self.model, self.options, inputs, self.explaining)
        if self.precision is not None:
            self.source = replace(self.source, islands=tuple(self.precision["islands"]))
            if not self.explaining:
                calibration.check(self.precision, self.options.gate)
                self.half = half_copy(self.model, self.source.islands)

    def write_weights(self) -> None:
        """One safetensors file for each component and precision; both UNet graphs share theirs."""
        for precision in self.options.precisions:
            model = self.half if precision == "fp16" and self.half is not None else self.model
            for file in dict.fromkeys(graphs.GRAPHS.values()):
                name = f"onnx/{precision}/{file}.safetensors"
                if not self.shop.fresh(name, self._inputs(precision)) and not self.explaining:
                    self._made(
                        name,
                        self.shop.make(name, self._inputs(precision), partial(graphs.write_weights, model, file))[0],
                    )

    def trace_graphs(self) -> None:
        """Every graph of every precision, the slowest first, in worker processes."""
        jobs = []
        for graph in ("unet_dynamic", "unet_merged", "decoder", "encoder", "mfm"):
            for precision in self.options.precisions:
                name = f"onnx/{precision}/{graph}.onnx"
                if not self.shop.fresh(name, self._graph_inputs(precision)):
                    path = self.shop.path(name)
                    weights = path.with_name(f"{graphs.GRAPHS[graph]}.safetensors")
                    opset = graphs.OPSETS[precision]
                    jobs.append(TraceJob(name, precision, graph, path.with_name(f".{graph}.tmp.onnx"), weights, opset))
        if jobs and not self.explaining:
            traced = trace_all(self.source, jobs, self.options.workers)
            for job, seconds in progress(traced, len(jobs), "tracing"):
                job.path.replace(self.shop.path(job.name))
                self._made(job.name, self.shop.record(job.name, self._graph_inputs(job.precision), seconds))

    def write_conditions(self) -> None:
        """The modulation at each condition's prototype."""
        for condition in self.conditions:
            name, inputs = f"conditions/{condition}.safetensors", {"model": self.trained, "sources": self.sources}
            if not self.shop.fresh(name, inputs) and not self.explaining:
                maker = partial(conditions.write_condition, self.model, condition)
                self._made(name, self.shop.make(name, inputs, maker)[0])

    def build_engines(self) -> None:
        """For each engine target: mfm, encoder, decoder, the dynamic UNet, and a merged UNet for each condition."""
        precision = self.options.precisions[-1]
        for target in (TARGETS[name] for name in self.options.targets if name in TARGETS):
            jobs: dict[Path, tuple[str, dict]] = {}
            planned = []
            with tempfile.TemporaryDirectory(dir=self.shop.root) as scratch:
                for engine, graph, condition in engine_list(self.conditions):
                    name = f"engines/{target.name}/{engine}.engine"
                    inputs = self._engine_inputs(target.name, precision, graph, condition)
                    if self.shop.fresh(name, inputs) or self.explaining:
                        continue
                    job = EngineJob(
                        self._engine_graph(precision, graph, condition, Path(scratch)),
                        self.shop.path(name),
                        target,
                        profile(self.components()[graph], self.options.batch, self.options.size),
                        () if target.built_on_gpu else self.options.capabilities,
                    )
                    planned.append(job)
                    jobs[job.engine_path] = name, inputs
                built = build_engines(planned, self.options.workers)
                for job, record in progress(built, len(planned), f"{target.name} engines") if planned else ():
                    name, inputs = jobs[job.engine_path]
                    self._made(name, self.shop.record(name, inputs, record.seconds, asdict(record)))

    def _engine_graph(self, precision: str, graph: str, condition: str | None, scratch: Path) -> Path:
        onnx_path = self.shop.path(f"onnx/{precision}/{graph}.onnx")
        if condition is None:
            return onnx_path
        folder = scratch / condition
        folder.mkdir()
        return conditions.write_merged_graph(
            onnx_path,
            onnx_path.with_name("unet.safetensors"),
            conditions.merge_entries(self.model),
            conditions.modulation_of(self.model, condition),
            folder,
        )

    def components(self) -> dict[str, Component]:
        """The manifest's `components`, read off the graphs."""
        paths = {p: {g: self.shop.path(f"onnx/{p}/{g}.onnx") for g in graphs.GRAPHS} for p in self.options.precisions}
        return read_components(paths)

    def measure_parity(self) -> tuple[list[Figure], dict[str, Path]]:
        """The figures on each sample, and the restored samples as pictures."""
        bundle = self._provisional_bundle()
        name = "report/parity.json"
        apart = ("engines/", "report/")
        files = {path: entry.sha256 for path, entry in self.shop.used.items() if not path.startswith(apart)}
        sources = hash_sources((ROOT / "export").glob("parity.py"))
        inputs = {"files": files, "samples": hash_samples(self.samples), "sources": sources, "torch": torch.__version__}
        pictures = {path.name: f"report/{path.stem}.png" for path in self.samples}
        wanted = [name, *pictures.values()]
        stale = [each for each in wanted if not self.shop.fresh(each, inputs)]  # all are asked, so that all are used
        if stale:
            for each in wanted:  # one that is taken over may be a link to the file of the bundle before
                self.shop.path(each).unlink(missing_ok=True)
            start = time.monotonic()
            loaded = [load_sample(path, bundle, self.conditions) for path in self.samples]
            rows: list[Figure] = []
            proofs = prove(self.model, self.half, bundle, loaded)
            for path, (figures, restored) in zip(self.samples, progress(proofs, len(loaded), "parity"), strict=True):
                rows += figures
                report.write_comparison(path, restored, self.shop.path(pictures[path.name]))
                self.shop.record(pictures[path.name], inputs, 0)
            report.write_figures(rows, self.shop.path(name))
            self.shop.record(name, inputs, time.monotonic() - start)
        return report.read_figures(self.shop.path(name)), {n: self.shop.path(p) for n, p in pictures.items()}

    def _provisional_bundle(self) -> Bundle:
        """The files made so far, as the runtime sees them: what is proven is what it will run."""
        data = self.manifest([])
        data["files"] = {n: {"bytes": e.bytes, "sha256": e.sha256} for n, e in self.shop.used.items()}
        return Bundle(self.shop.folder, Manifest.parse(data))

    def manifest(self, figures: Sequence[Figure]) -> dict:
        """`bundle.json` without its files."""
        preset, options = self.model.preset, self.options
        precisions = {}
        for precision in options.precisions:
            folder = f"onnx/{precision}"
            precisions[precision] = {
                "onnx": {graph: f"{folder}/{graph}.onnx" for graph in graphs.GRAPHS},
                "weights": {graph: f"{folder}/{file}.safetensors" for graph, file in graphs.GRAPHS.items()},
                "fp32_islands": list(self.source.islands) if precision == "fp16" else [],
            }
        return {
            "schema": 1,
            "name": preset.name,
            "tools": {"dod-toolkit": dod.__version__, **{tool: version(tool) for tool in TOOLS}},
            "model": {
                "preset": preset.name,
                "checkpoint": str(options.checkpoint),
                "base_sha256": self.model.base_sha256,
                "checkpoint_sha256": self.trained,
            },
            "size_multiple": preset.size_multiple,
            "profile": {"batch": list(options.batch), "size": list(options.size)},
            "crops": {"count": preset.mfm.crops, "size": preset.mfm.crop_size},
            "components": self.components(),
            "precisions": precisions,
            "merge": conditions.merge_entries(self.model),
            "conditions": {name: f"conditions/{name}.safetensors" for name in self.conditions},
            "targets": {name: self._target(name) for name in options.targets},
            "files": {},
            "parity": report.rows(figures),
        }

    def _target(self, name: str) -> dict:
        if name not in TARGETS:
            return {"precisions": list(self.options.precisions), "version": version(name)}
        engines = {engine: f"engines/{name}/{engine}.engine" for engine, _, _ in engine_list(self.conditions)}
        facts = [self.shop.used[path].facts for path in engines.values()]
        return {
            "precision": self.options.precisions[-1],
            "version": facts[0]["version"],
            "gpu": facts[0]["gpu"] or "",
            "compute_capabilities": list(facts[0]["compute_capabilities"]),
            "engines": engines,
        }

    def _inputs(self, precision: str) -> dict[str, object]:
        islands = list(self.source.islands) if precision == "fp16" else []
        return {
            "base": self.model.base_sha256,
            "checkpoint": self.trained,
            "precision": precision,
            "fp32 islands": islands,
            "sources": self.sources,
        }

    def _graph_inputs(self, precision: str) -> dict[str, object]:
        return {**self._inputs(precision), "opset": graphs.OPSETS[precision], "torch": torch.__version__}

    def _engine_inputs(self, target: str, precision: str, graph: str, condition: str | None) -> dict[str, object]:
        gpu = gpu_here() if TARGETS[target].built_on_gpu else None
        return {
            "graph": self._hash(f"onnx/{precision}/{graph}.onnx"),
            "weights": self._hash(f"onnx/{precision}/{graphs.GRAPHS[graph]}.safetensors"),
            "condition": condition and self._hash(f"conditions/{condition}.safetensors"),
            "batch": list(self.options.batch),
            "size": list(self.options.size),
            "compute capabilities": list(self.options.capabilities) if gpu is None else [],
            "gpu": gpu and gpu.name,
            "library": library_version(target),
        }

    def _hash(self, name: str) -> str | None:
        entry = self.shop.used.get(name)
        return entry and entry.sha256

    def _made(self, name: str, entry: Entry) -> None:
        print(f"{name:<44} {entry.bytes / 1e6:8.2f} MB {entry.seconds:7.1f} s", flush=True)
