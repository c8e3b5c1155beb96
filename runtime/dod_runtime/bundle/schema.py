"""The schema of `bundle.json` as frozen dataclasses, and the checks that a manifest must pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Annotated, Any

from msgspec import Meta

from ..errors import BundleError
from .tensor_spec import TensorSpec, dimension
from .validation import convert, invalid, is_inside

__all__ = [
    "COMPONENTS",
    "GATE",
    "REDUCED",
    "REFITTED",
    "SCHEMA",
    "ComponentSpec",
    "Crops",
    "FileRecord",
    "Manifest",
    "MergeEntry",
    "PrecisionFiles",
    "ShapeProfile",
    "TargetEntry",
    "TensorSpec",
    "dimension",
]

SCHEMA = 5
"""Schema version of the manifests that this runtime reads and the export writes."""
COMPONENTS = ("mfm", "encoder", "unet_dynamic", "unet_merged", "decoder")
"""Components that every bundle has."""
GATE = "gate"
"""Component of models with post-processing. It decides once per image how much of the image bypasses the model."""
REFITTED = "unet_merged"
"""Engine of a merged UNet that serves all conditions: it is refitted when another condition is requested."""
REDUCED = {"bf16": "fp32"}
"""Precisions without graphs of their own, and the precision whose graphs a backend converts for them."""
RESERVED = {"auto", "dynamic", "merged", "routed"}
"""Names that no condition may have."""

Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True)
class ComponentSpec:
    """Inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ShapeProfile:
    """Minimum, optimal and maximum shape that the engines take.

    Attributes:
        batch: minimum (always 1), optimal and maximum number of images.
        size: minimum, optimal and maximum height or width in pixels.
    """

    batch: tuple[Positive, Positive, Positive]
    size: tuple[Positive, Positive, Positive]


@dataclass(frozen=True)
class Crops:
    """Crops of an image at its native resolution, which the MFM and the gate see.

    Attributes:
        count: number of crops, a square number.
        size: height and width of a crop in pixels.
    """

    count: Positive
    size: Positive


@dataclass(frozen=True)
class PrecisionFiles:
    """Files of one precision.

    Attributes:
        onnx: graph of each component.
        weights: safetensors file with the external data of each component's graph.
        fp32_modules: modules of the model that are kept in fp32.
    """

    onnx: Mapping[str, str]
    weights: Mapping[str, str]
    fp32_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergeEntry:
    """One conditional layer of the UNet, and the tensors of the stored weights that merging it reads and changes.

    Attributes:
        layer: name of the layer.
        index: index of the layer in the modulation.
        scale: factor s of the low-rank branch.
        weight: tensor W.
        bias: tensor b; None if the merged graph has none.
        A: tensor of the branch's down-projection.
        B: tensor of the branch's up-projection.
        bias_into: layer whose bias absorbs this layer's shift, after multiplication by that layer's weight. Attention
            leaves the constant shift of a value projection as it is, so the output projection can absorb it.
        input: constant tensor `[1, T, in]` that the layer is always applied to, such as the prompt.
        output: tensor `[1, T, out]` that the merged graph holds in place of the weight, if `input` is given.
        transposed: True for a transposed convolution, with W `[in, out, kh, kw]` and A `[in, r, kh, kw]`.
    """

    layer: str
    index: Natural
    scale: float
    weight: str
    bias: str | None
    A: str
    B: str
    bias_into: str | None = None
    input: str | None = None
    output: str | None = None
    transposed: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """Tensors of the merged graph that hold this layer."""
        return tuple(name for name in (self.output or self.weight, self.bias) if name is not None)


@dataclass(frozen=True)
class TargetEntry:
    """Build for one backend.

    Attributes:
        precisions: precisions of the graphs or engines, and those of `REDUCED` that passed the parity check.
        version: version of the backend's library at build time.
        gpu: name of the GPU that the engines were built on; empty if they were built without one.
        compute_capabilities: compute capabilities that the engines run on, such as `8.9`.
        engines: engine file of each component. Merged UNets have the key `unet_<condition>`, or `REFITTED` for one that
            serves all conditions.
    """

    precisions: tuple[str, ...]
    version: str = ""
    gpu: str = ""
    compute_capabilities: tuple[str, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of one file.

    Attributes:
        bytes: size of the file.
        sha256: SHA-256 of the content in hexadecimal.
    """

    bytes: Natural
    sha256: Sha256


@dataclass(frozen=True)
class Manifest:
    """Content of `bundle.json`.

    Attributes:
        name: name of the model.
        size_multiple: number that height and width of the graphs' images are multiples of, in pixels.
        profile: shapes that the engines take.
        crops: crops that the MFM and the gate see.
        components: graphs by name.
        precisions: files by precision.
        merge: conditional layers.
        conditions: safetensors file of each condition.
        targets: builds by backend.
        files: files of the bundle by path, without `bundle.json`, `build.json` and the report.
        tools: versions of the libraries that built the bundle.
        model: preset, checkpoint and their hashes.
        parity: rows of the parity checks.
    """

    name: str
    size_multiple: Positive
    profile: ShapeProfile
    crops: Crops
    components: Mapping[str, ComponentSpec]
    precisions: Mapping[str, PrecisionFiles]
    merge: tuple[MergeEntry, ...]
    conditions: Mapping[str, str]
    targets: Mapping[str, TargetEntry]
    files: Mapping[str, FileRecord]
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parity: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def parse(cls, data: Any) -> Manifest:
        """Convert the JSON of a manifest and check it. Unknown keys are ignored.

        Args:
            data: what `json.loads` returns.

        Returns:
            The manifest.

        Raises:
            BundleError: the schema is another one, or an entry is not valid. The message names the first such entry.
        """
        schema = convert(data, _SchemaVersion).schema
        if schema != SCHEMA:
            relation = "newer than" if schema > SCHEMA else "older than"
            remedy = "update dod-runtime" if schema > SCHEMA else "rebuild it with: dod-export build"
            raise BundleError(
                f"the bundle has schema {schema}, {relation} schema {SCHEMA} that this runtime reads: {remedy}"
            )
        manifest = convert(data, cls)
        manifest._check_ranges()
        manifest._check_components()
        manifest._check_files()
        return manifest

    @property
    def gated(self) -> bool:
        """True if the model has post-processing, which the gate controls."""
        return GATE in self.components

    @property
    def filters(self) -> int:
        """Number of filters that the sharpening kernel is mixed from; 0 without post-processing."""
        return int(self.components[GATE].outputs[1].shape[1]) if self.gated else 0

    def _check_ranges(self) -> None:
        for name, numbers in (("batch", self.profile.batch), ("size", self.profile.size)):
            if sorted(numbers) != list(numbers):
                raise invalid(f"profile.{name}", f"is {list(numbers)}, not three ascending numbers")
        if self.profile.batch[0] != 1:
            raise invalid("profile.batch", "must begin with 1")
        if isqrt(self.crops.count) ** 2 != self.crops.count:
            raise invalid("crops.count", f"is {self.crops.count}, not a square number")

    def _check_components(self) -> None:
        for name in COMPONENTS:
            if name not in self.components:
                raise invalid(f"components.{name}", "is missing")
        if self.gated:
            self._check_gate()
        for name, precision in self.precisions.items():
            for part, files in (("onnx", precision.onnx), ("weights", precision.weights)):
                for component in (*COMPONENTS, *([GATE] if self.gated else ())):
                    if component not in files:
                        raise invalid(f"precisions.{name}.{part}.{component}", "is missing")
        for name, target in self.targets.items():
            for precision in target.precisions:
                if REDUCED.get(precision, precision) not in self.precisions:
                    where = f"targets.{name}.precisions"
                    raise invalid(where, f"has {precision}, which is not among the bundle's precisions")

    def _check_gate(self) -> None:
        """Raise BundleError if the outputs of the gate are not the inputs that the decoder takes."""
        taken = [spec.name for spec in self.components["decoder"].inputs]
        given = [(spec.name, len(spec.shape)) for spec in self.components[GATE].outputs]
        if given != [("share", 2), ("gains", 2)] or not {"degraded", "share", "gains"} <= set(taken):
            raise invalid(f"components.{GATE}", f"has outputs {given}, which do not match the decoder's inputs {taken}")
        if not isinstance(self.components[GATE].outputs[1].shape[1], int):
            raise invalid(f"components.{GATE}.outputs[1].shape[1]", "is not a number")

    def _check_files(self) -> None:
        for reserved in RESERVED & self.conditions.keys():
            raise invalid(f"conditions.{reserved}", "is a reserved name")
        for name in self.files:
            if not is_inside(name):
                raise invalid("files", f"has {name!r}, which is not a path inside the bundle")
        for where, name in self._references():
            if not is_inside(name):
                raise invalid(where, f"is {name!r}, not a path inside the bundle")
            if name not in self.files:
                raise invalid(where, f"names {name}, which is not among the bundle's files")

    def _references(self) -> list[tuple[str, str]]:
        """Return (entry, file) for every entry that names a file."""
        found = [(f"conditions.{name}", path) for name, path in self.conditions.items()]
        for name, precision in self.precisions.items():
            for part, files in (("onnx", precision.onnx), ("weights", precision.weights)):
                found += [(f"precisions.{name}.{part}.{key}", path) for key, path in files.items()]
        for name, target in self.targets.items():
            found += [(f"targets.{name}.engines.{key}", path) for key, path in target.engines.items()]
        return found


@dataclass(frozen=True)
class _SchemaVersion:
    """The part of a manifest that is read first: other entries differ from schema to schema."""

    schema: int
