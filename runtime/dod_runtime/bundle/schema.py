"""What `bundle.json` says, as frozen dataclasses, and the checks it must pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from ..errors import BundleError
from .checked import Node, wrong

__all__ = [
    "COMPONENTS",
    "GATE",
    "REDUCED",
    "REFITTED",
    "SCHEMA",
    "Component",
    "Crops",
    "FileRecord",
    "Manifest",
    "MergeEntry",
    "Precision",
    "Profile",
    "Target",
    "TensorSpec",
    "dimension",
]

SCHEMA = 5
COMPONENTS = ("mfm", "encoder", "unet_dynamic", "unet_merged", "decoder")
GATE = "gate"
"""The component of models with post-processing: it decides once per image how much of it passes the model."""
REFITTED = "unet_merged"
"""The engine of a merged UNet whose conditional weights are exchanged when another condition is asked for."""
REDUCED = {"bf16": "fp32"}
"""Precisions that a backend can compute in without graphs of their own, and whose graphs they take."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. A dimension is a number or an expression in batch, height and width."""

    name: str
    dtypes: Mapping[str, str] | str
    shape: tuple[int | str, ...]

    def dtype(self, precision: str) -> str:
        """numpy's name of the dtype of this tensor in the graphs of `precision`."""
        return self.dtypes if isinstance(self.dtypes, str) else self.dtypes[precision]

    def sized(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Its shape for so many images of this size in pixels."""
        known = {"batch": batch, "height": height, "width": width}
        return tuple(dimension(size, known) for size in self.shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """What a shape of this tensor says of batch, height and width: `sized` the other way round."""
        parts = [str(size).partition("/") for size in self.shape]
        return {
            name: length * int(divisor or 1)
            for (name, _, divisor), length in zip(parts, shape, strict=True)
            if not name.isdecimal()
        }


def dimension(size: int | str, known: Mapping[str, int]) -> int:
    """A dimension as a number: 4, "batch", "height", "height/8"."""
    if isinstance(size, int):
        return size
    name, _, divisor = size.partition("/")
    return known[name] // int(divisor or 1)


@dataclass(frozen=True)
class Component:
    """The inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Profile:
    """Least, best and largest batch, and height or width in pixels, that the engines take."""

    batch: tuple[int, int, int]
    size: tuple[int, int, int]


@dataclass(frozen=True)
class Crops:
    """The MFM sees `count` (a square number) crops of `size` x `size` pixels."""

    count: int
    size: int


@dataclass(frozen=True)
class Precision:
    """The graphs of one precision by component, the weights that each points into, and what stayed in float32."""

    onnx: Mapping[str, str]
    weights: Mapping[str, str]
    fp32_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergeEntry:
    """One conditional layer: its place in the modulation, its scale, and its tensors in the UNet's weights.

    bias: None where the merged graph has none. bias_into: the layer whose bias takes what this one's is after that
    layer's weight (a value's, which attention does not change). input, output: where the layer is always called with
    the same tensor `input` [1, T, in], the graph holds the result `output` [1, T, out] and no weight. transposed: the
    layer is a transposed convolution, weight [in, out, kh, kw] and A [in, r, kh, kw].
    """

    layer: str
    index: int
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
        """The tensors of the merged graph that hold this layer."""
        return tuple(name for name in (self.output or self.weight, self.bias) if name is not None)


@dataclass(frozen=True)
class Target:
    """What was built for one backend. `engines` go by component, a merged UNet by `unet_<condition>`, or by `REFITTED`
    one for all of them.

    precisions: those of its graphs or engines, and those of `REDUCED` that passed the gate of the export.
    """

    precisions: tuple[str, ...]
    version: str = ""
    gpu: str = ""
    compute_capabilities: tuple[str, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file, and the key of the inputs that it was built from."""

    bytes: int
    sha256: str
    key: str = ""


@dataclass(frozen=True)
class Manifest:
    """The whole of `bundle.json`."""

    name: str
    size_multiple: int
    profile: Profile
    crops: Crops
    components: Mapping[str, Component]
    precisions: Mapping[str, Precision]
    merge: tuple[MergeEntry, ...]
    conditions: Mapping[str, str]
    targets: Mapping[str, Target]
    files: Mapping[str, FileRecord]
    tools: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    parity: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def parse(cls, data: Any) -> Manifest:
        """Checks the JSON of a manifest. Raises BundleError that names the first entry that is wrong.

        Keys that this version does not know are passed over.
        """
        root = Node(data, "")
        schema = root["schema"].integer()
        if schema != SCHEMA:
            what = "newer than" if schema > SCHEMA else "older than"
            mend = "update dod-runtime" if schema > SCHEMA else "rebuild with: python export/build_engines.py"
            raise BundleError(f"the bundle has schema {schema}, {what} schema {SCHEMA} that this runtime reads: {mend}")
        manifest = cls(
            name=root["name"].text(),
            size_multiple=root["size_multiple"].integer(1),
            profile=Profile(root["profile"]["batch"].range(), root["profile"]["size"].range()),
            crops=Crops(root["crops"]["count"].integer(1), root["crops"]["size"].integer(1)),
            components={name: _component(node) for name, node in root["components"].items()},
            precisions={name: _precision(node) for name, node in root["precisions"].items()},
            merge=tuple(_merge_entry(node) for node in root["merge"].list()),
            conditions={name: node.file() for name, node in root["conditions"].items()},
            targets={name: _target(node) for name, node in root["targets"].items()},
            files={Node(name, f"files.{name}").file(): _record(node) for name, node in root["files"].items()},
            tools={name: node.text() for name, node in root["tools"].items()} if "tools" in root else {},
            model=dict(root["model"].items(plain=True)) if "model" in root else {},
            parity=tuple(dict(node.items(plain=True)) for node in root["parity"].list()) if "parity" in root else (),
        )
        manifest._check()
        return manifest

    @property
    def gated(self) -> bool:
        """Whether the model has post-processing, which a gate controls."""
        return GATE in self.components

    @property
    def filters(self) -> int:
        """The number of filters that the sharpening kernel is mixed from; 0 without post-processing."""
        return int(self.components[GATE].outputs[1].shape[1]) if self.gated else 0

    def _check_gate(self) -> None:
        """Raises BundleError where the gate's outputs are not what the decoder takes."""
        if not self.gated:
            return
        taken = [spec.name for spec in self.components["decoder"].inputs]
        given = [(spec.name, len(spec.shape)) for spec in self.components[GATE].outputs]
        if given != [("share", 2), ("gains", 2)] or not {"degraded", "share", "gains"} <= set(taken):
            raise wrong(f"components.{GATE}", f"gives {given} and the decoder takes {taken}: they do not match")
        if not isinstance(self.components[GATE].outputs[1].shape[1], int):
            raise wrong(f"components.{GATE}.outputs[1].shape[1]", "is not a number")

    def _check(self) -> None:
        """What no single entry can show: that the entries agree with each other."""
        if self.profile.batch[0] != 1:
            raise wrong("profile.batch", "must begin with 1")
        if isqrt(self.crops.count) ** 2 != self.crops.count:
            raise wrong("crops.count", f"is {self.crops.count}, not a square number")
        for reserved in {"auto", "dynamic", "merged", "routed"} & self.conditions.keys():
            raise wrong(f"conditions.{reserved}", "is a reserved name")
        for name in COMPONENTS:
            if name not in self.components:
                raise wrong(f"components.{name}", "is missing")
        self._check_gate()
        for name, precision in self.precisions.items():
            for part, files in (("onnx", precision.onnx), ("weights", precision.weights)):
                for component in (*COMPONENTS, *([GATE] if self.gated else ())):
                    if component not in files:
                        raise wrong(f"precisions.{name}.{part}.{component}", "is missing")
        for where, path in self._mentioned():
            if path not in self.files:
                raise wrong(where, f"names {path}, which is not among the bundle's files")
        for target in self.targets.values():
            for precision in target.precisions:
                if REDUCED.get(precision, precision) not in self.precisions:
                    raise wrong("targets", f"name the precision {precision}, which the bundle does not have")

    def _mentioned(self) -> list[tuple[str, str]]:
        """Every file that an entry names, with the entry."""
        found = [(f"conditions.{name}", path) for name, path in self.conditions.items()]
        for name, precision in self.precisions.items():
            for part, files in (("onnx", precision.onnx), ("weights", precision.weights)):
                found += [(f"precisions.{name}.{part}.{key}", path) for key, path in files.items()]
        for name, target in self.targets.items():
            found += [(f"targets.{name}.engines.{key}", path) for key, path in target.engines.items()]
        return found


def _component(node: Node) -> Component:
    def spec(entry: Node) -> TensorSpec:
        dtype = entry["dtype"]
        dtypes = dtype.value if isinstance(dtype.value, str) else {key: item.text() for key, item in dtype.items()}
        shape = tuple(size.integer(1) if isinstance(size.value, int) else size.text() for size in entry["shape"].list())
        return TensorSpec(entry["name"].text(), dtypes, shape)

    inputs, outputs = (tuple(spec(entry) for entry in node[part].list()) for part in ("inputs", "outputs"))
    return Component(inputs, outputs)


def _precision(node: Node) -> Precision:
    fp32_modules = tuple(name.text() for name in node["fp32_modules"].list()) if "fp32_modules" in node else ()
    onnx, weights = ({key: item.file() for key, item in node[part].items()} for part in ("onnx", "weights"))
    return Precision(onnx, weights, fp32_modules)


def _merge_entry(node: Node) -> MergeEntry:
    names = {key: node[key].text() for key in ("layer", "weight", "A", "B")}
    optional = {key: node[key].text() for key in ("bias_into", "input", "output") if key in node}
    bias = None if node["bias"].value is None else node["bias"].text()
    transposed = "transposed" in node and node["transposed"].boolean()
    index, scale = node["index"].integer(0), node["scale"].number()
    return MergeEntry(index=index, scale=scale, bias=bias, transposed=transposed, **names, **optional)


def _target(node: Node) -> Target:
    def optional(key: str) -> str:
        return node[key].text() if key in node else ""

    several = "precisions" in node
    return Target(
        precisions=tuple(item.text() for item in node["precisions"].list()) if several else (node["precision"].text(),),
        version=optional("version"),
        gpu=optional("gpu"),
        compute_capabilities=tuple(item.text() for item in node["compute_capabilities"].list())
        if "compute_capabilities" in node
        else (),
        engines={key: item.file() for key, item in node["engines"].items()} if "engines" in node else {},
    )


def _record(node: Node) -> FileRecord:
    digest = node["sha256"].text()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise wrong(f"{node.where}.sha256", f"is {digest!r}, not 64 hexadecimal digits")
    return FileRecord(node["bytes"].integer(0), digest, node["key"].text() if "key" in node else "")
