"""The steps of a build in order. The cache makes stale files, and the bundle is written at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dod.checkpoint import load_model, preset_of, read_metadata
from dod.model.dod import sized_model
from dod_runtime.bundle.bundle import REPORT, Bundle
from dod_runtime.bundle.schema import Manifest
from export import report
from export.cache import Artifact, BuildCache
from export.engines.targets import TARGETS
from export.fingerprints import hash_images
from export.graphs.components import graphs_of
from export.graphs.condition_files import without_prototypes
from export.graphs.fp16 import check_fp32_modules
from export.interface import ComponentSpecs, read_components
from export.manifest import describe, describe_target
from export.memory import MemoryMeter
from export.options import BuildOptions
from export.parity.compare import ParityResult, check
from export.plan import make_plan
from export.precision import record as precision_record
from export.preflight import check_exportable, check_memory, check_out, check_room, check_sizes, image_paths
from export.replacement import Identity, check_replacement
from export.results import verdict
from export.steps import engines, model_files, parity, precision, simplification

__all__ = ["Build"]


class Build:
    """One build of one model. Making it checks the options and loads the model.

    Args:
        options: options of the build.
        say: function that prints progress: files, measurements and the parity table. Verdict and warnings are always
            printed.

    Raises:
        UsageError: an option does not fit the model, or the bundle at `out` must not be replaced.
        OSError: the disk or the memory is too small.
    """

    def __init__(self, options: BuildOptions, say: Callable[[str], None] = print) -> None:
        self.start, self.say = time.monotonic(), say
        images = image_paths(options.images)
        source = options.checkpoint, options.base, options.ddpm
        _check_options(options)
        cache = BuildCache(options.out)
        cache.hash_ahead()
        model = load_model(*source)
        check_fp32_modules(model, options.fp32_modules or ())
        self.options, self.cache = options, cache
        self.plan = make_plan(options, model, cache, images)
        inputs = {**self.plan.inputs, "images": hash_images(images[:1])}
        self.simplification = simplification.Simplification(model, images[0], inputs)
        self.copies = model_files.MetaCopies(self.plan)

    def explain(self) -> int:
        """Print for each file why it is cached or stale. A file that needs a stale file is stale too.

        Returns:
            The exit code.
        """
        with self.cache:
            steps = [self.simplification.artifacts()]
            self.simplification.apply()
            steps += [precision.artifacts(self.plan), self._files(), self._parity(), self._engines()]
            for artifact in (artifact for step in steps for artifact in step):
                self.cache.is_cached(artifact)
        for name, reason in self.cache.reasons.items():
            print(f"{name}: {reason}")
        return 0

    def run(self) -> int:
        """Make what is stale, check parity, and write the bundle.

        Returns:
            The exit code.

        Raises:
            ParityError: a result is below its threshold; no bundle is written.
        """
        if not self.plan.conditions:
            model = {"preset": self.plan.model.preset.name, "checkpoint": self.options.checkpoint}
            print(f"warning: {without_prototypes(model)}", file=sys.stderr, flush=True)
        with self.cache, MemoryMeter() as memory:
            bundle, results = self._make_bundle()
        print(*verdict(bundle, results), sep="\n")
        size = sum(entry.bytes for entry in self.cache.used.values())
        print(
            f"{self.options.out}: {len(self.cache.used)} files, {size / 1e6:.1f} MB, built in "
            f"{time.monotonic() - self.start:.0f} s with at most {memory.peak / 1e9:.1f} GB of memory"
        )
        return 0

    def _make_bundle(self) -> tuple[dict[str, Any], list[ParityResult]]:
        """Make everything. Returns the content of `bundle.json` and the parity results."""
        self._make(self.simplification.artifacts())
        self.simplification.apply()
        self._measure_precision()
        self._make(self._files())
        self._make(self._parity())
        simplified = simplification.read_results(self.cache.path(simplification.COSTS))
        results = [*simplified, *parity.read_results(self.plan)]
        self.say(report.parity_table(results, paths=("auto", *self.plan.conditions)))
        check(results)
        self.plan.model.to("meta")  # frees memory for the engine builders, which read files
        self._make(self._engines())
        manifest = self._manifest(results, self.options.targets)
        text = report.report_text(
            manifest,
            self.cache.used,
            results,
            {image.name: parity.comparison_file(image) for image in self.plan.images},
            simplification.read_costs(self.cache.path(simplification.COSTS)),
            precision.read_record(self.plan),
        )
        self.cache.path(REPORT).write_text(text, "utf-8")
        self.cache.finish(manifest)
        return manifest, results

    def _make(self, artifacts: Iterable[Artifact]) -> None:
        for name, entry in self.cache.make(artifacts):
            self.say(f"{name:<44} {entry.bytes / 1e6:8.2f} MB {entry.seconds:7.1f} s")

    def _measure_precision(self) -> None:
        if not self.options.precisions:
            self.cache.abandon()  # no bundle was asked for, so there is nothing to resume
        self._make(precision.artifacts(self.plan))
        record = precision.read_record(self.plan)
        if record is not None:
            precision_record.check(record, self.options.measured_precisions)

    def _files(self) -> list[Artifact]:
        """The model's files. Weights come first, because graphs point into them."""
        weights, graphs = model_files.weights(self.plan, self.copies), model_files.graphs(self.plan, self.copies)
        return [*weights, *graphs, *model_files.conditions_of(self.plan)]

    def _parity(self) -> list[Artifact]:
        return parity.artifacts(self.plan, self._provisional_bundle, self._take_values)

    def _engines(self) -> list[Artifact]:
        return engines.artifacts(self.plan, self._components)

    def _take_values(self) -> Any:
        """Return the outputs of the reference that the simplification step computed, and free them in that step.

        They are as large as the skips of an image.
        """
        values, self.simplification.values = self.simplification.values, {}
        return values

    def _components(self) -> dict[str, ComponentSpecs]:
        """Return the manifest's `components`, read from the finished graphs."""
        names = graphs_of(self.plan.model)
        return read_components(
            {
                each: {graph: self.cache.path(model_files.graph_file(each, graph)) for graph in names}
                for each in self.options.precisions
            }
        )

    def _provisional_bundle(self) -> Bundle:
        """Return the finished files as a bundle: parity is checked on the files that the runtime will load."""
        data = self._manifest([], ("onnxruntime", *(name for name in self.options.targets if name == "openvino")))
        if "openvino" in data["targets"]:
            data["targets"]["openvino"]["precisions"] = list(parity.openvino_precisions(self.plan))
        data["files"] = {n: {"bytes": e.bytes, "sha256": e.sha256} for n, e in self.cache.used.items()}
        return Bundle(self.cache.folder, Manifest.parse(data))

    def _manifest(self, results: Sequence[ParityResult], targets: Sequence[str]) -> dict[str, Any]:
        described = {name: describe_target(name, self.plan, results) for name in targets}
        return describe(self.plan, self._components(), precision.read_fp32_modules(self.plan), described, results)


def _check_options(options: BuildOptions) -> None:
    """Raise for options that cannot work, as far as no weights are needed."""
    preset, folder = preset_of(options.checkpoint, options.base, options.ddpm)
    check_exportable(preset)
    sized = sized_model(preset)
    check_sizes(options.size, options.batch, preset.size_multiple)
    check_out(options.out)
    if not options.explain:
        stated = read_metadata(folder).get("conditions", ()) if folder else ()
        shape = len(sized.layers), preset.lora.rank
        planned = Identity(frozenset((preset.name,)), *shape, tuple(options.conditions or stated))
        check_replacement(options.out, planned, force=options.force)
    check_room(options.out, sized, len(options.precisions), sum(name in TARGETS for name in options.targets))
    check_memory(sized)
