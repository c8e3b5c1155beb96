"""Which modules stay in float32: the smallest set, found by measurement, with which half precision meets its budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dod.model.adm import AttentionBlock, ResBlock
from dod.model.detail import DetailEnhancement
from dod.model.dod import DOD
from dod.model.modulation import ModulationNetwork
from export.graphs.fp16 import COMPONENTS, cast_to, ends, fp16_copy, within
from export.parity.compare import THRESHOLDS
from export.precision.probe import Operation
from export.precision.ranges import SAFETY, Comparison, Judged, Range, Reference, compare, judged, restore, worst

THRESHOLD = THRESHOLDS["pipeline", "torch fp16"][1]
MARGIN = 3.0
"""dB over the budget that the search asks for: it sees small images, the proof whole ones."""
ROUNDS, PRUNINGS = 12, 6
"""At most so many islands against overflow one after the other, and so many attempts to do without one of a set."""
HARD = 2
"""Images that a set is searched on: the worst, then with it the one that is the worst with that set."""
BLOCKS = (
    *(ResnetBlock2D, Transformer2DModel, Attention, Upsample2D, Downsample2D, TimestepEmbedding, LoraLayer),
    *(ResBlock, AttentionBlock, DetailEnhancement, ModulationNetwork),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One set of islands tried: the least PSNR at the image and SNR at z0 over the images it was tried on."""

    what: str
    fp32_modules: tuple[str, ...]
    images: int
    psnr_db: float
    z0_snr_db: float
    seconds: float


@dataclass
class Choice:
    """The islands, each with the reason, the trials that led to them, and the last comparison on the worst image.

    overflows: what is beyond the safe range of float16, each with its module; uncured: those that no island covers.
    """

    fp32_modules: dict[str, str] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    overflows: dict[str, str] = field(default_factory=dict)
    uncured: list[str] = field(default_factory=list)
    comparison: Comparison | None = None


class Search:
    """Half copies of one model held against its float32 references. none: half without an island, on each image."""

    def __init__(
        self,
        model: DOD,
        references: Sequence[Reference],
        none: Sequence[Comparison],
        ranges: dict[str, Range],
        weights: dict[str, Range],
        say: Say,
    ) -> None:
        self.model, self.references, self.ranges, self.weights, self.say = model, references, ranges, weights, say
        self.choice = Choice(comparison=none[worst(none)])
        self._compared: Sequence[Comparison] = none
        self._compared_with: tuple[str, ...] = ()
        self._cost: dict[str, float] = {}
        self._record("none", (), none, 0.0)
        self._beyond = self._overflowing(none[0].low)
        for operation in (*self._beyond, *(each for one in none for each in one.overflows[:1])):
            self.choice.overflows.setdefault(operation.name, operation.stack[-1])

    def judge(self, fp32_modules: Sequence[str]) -> Choice:
        """The set that the user gave, measured."""
        self.choice.fp32_modules = dict.fromkeys(fp32_modules, "given")
        self._compare("as given")
        return self._finished()

    def choose(self) -> Choice:
        """The smallest set that the search finds: first what overflows, then, where the budget asks for more, what adds
        most of the error."""
        for operation in self._beyond:
            self._cover(operation, f"{operation.name} reaches {self._largest(operation.name):.3g}")
        comparisons = self._cure()
        hard: list[Reference] = []
        fixed = dict(self.choice.fp32_modules)
        while self._least(comparisons) < THRESHOLD + MARGIN and len(hard) < HARD:
            hard.append(self.references[worst(comparisons)])
            self.choice.fp32_modules = self._add(fixed, hard)
            comparisons = self._compare("chosen")
            if any(each is self.references[worst(comparisons)] for each in hard):
                break
        return self._finished()

    def trial(self, what: str, fp32_modules: Collection[str], references: Sequence[Reference]) -> float:
        """The least PSNR of a set over the images, without a look inside."""
        start, names = time.monotonic(), tuple(fp32_modules)
        fp16 = fp16_copy(self.model, names)
        outcomes = [judged(restore(fp16, each.image), each.outcome) for each in references]
        return self._record(what, names, outcomes, time.monotonic() - start)

    def _compare(self, what: str) -> Sequence[Comparison]:
        """The set as it stands, layer by layer, on every image."""
        start, names = time.monotonic(), tuple(self.choice.fp32_modules)
        if names != self._compared_with:
            fp16 = fp16_copy(self.model, names)
            self._compared, self._compared_with = [compare(fp16, each) for each in self.references], names
            self._record(what, names, self._compared, time.monotonic() - start)
            self.choice.comparison = self._compared[worst(self._compared)]
        return self._compared

    def _record(self, what: str, names: tuple[str, ...], tried: Sequence[Judged], seconds: float) -> float:
        psnr, snr = self._least(tried), min(each.z0_snr_db for each in tried)
        self.choice.trials.append(Trial(what, names, len(tried), psnr, snr, seconds))
        self.say(
            f"fp32 islands, {what}: {len(names)} modules, PSNR {psnr:.1f} dB, SNR at z0 {snr:.1f} dB, {seconds:.1f} s"
        )
        return psnr

    def _finished(self) -> Choice:
        choice = self.choice
        choice.uncured = [name for name, module in choice.overflows.items() if not within(module, choice.fp32_modules)]
        return choice

    def _least(self, tried: Sequence[Judged]) -> float:
        return min(each.psnr_db for each in tried)

    def _overflowing(self, low: Collection[str]) -> list[Operation]:
        """What is beyond the safe range in float32 and would be in half, in the order of the chain, then weights."""
        found = []
        for name, span in self.ranges.items():
            if span.headroom < math.log2(SAFETY) and (name in low or name.endswith(" scores")):
                found.append(Operation(name, span.stack))
        stacks = {span.stack[-1]: span.stack for span in self.ranges.values()}
        for name, span in self.weights.items():
            module = name.rpartition(".")[0]
            if span.headroom < 0:
                found.append(Operation(name, stacks.get(module, (module,))))
        return found

    def _largest(self, name: str) -> float:
        return (self.weights if name in self.weights else self.ranges)[name].largest

    def _cover(self, operation: Operation, why: str) -> None:
        """Put the smallest module around an operation whose own result is in range into float32."""
        float32 = {*COMPONENTS, *(chain[-1] for chain in ends(self.model))}
        module = operation.stack[0]
        if not within(operation.stack[-1], self.choice.fp32_modules):
            for module in reversed(operation.stack):
                last = [span.headroom for span in self.ranges.values() if module in span.stack][-1:]
                if module in float32 or not last or last[0] >= math.log2(SAFETY):
                    break
        elif "not finite" not in why:
            return
        kept = {name: reason for name, reason in self.choice.fp32_modules.items() if not within(name, {module})}
        self.choice.fp32_modules = {**kept, module: why}
        self.say(f"fp32 island {module}: {why}")

    def _cure(self) -> Sequence[Comparison]:
        """Islands until half is finite on every image: what float32 does not show may still overflow in half."""
        comparisons = self._compare("against overflow")
        for _ in range(ROUNDS):
            lost = [each.overflows[0] for each in comparisons if each.overflows]
            if not lost:
                break
            self._cover(lost[0], f"{lost[0].name} is not finite in half")
            comparisons = self._compare("against overflow")
        return comparisons

    def _add(self, fixed: dict[str, str], hard: Sequence[Reference]) -> dict[str, str]:
        """Rank what is left by its part in the error, find by bisection how many of the first it takes, then try to do
        without some of these. Whole components where nothing less will do."""
        self.choice.fp32_modules = fixed
        ranked = self.rank(hard[-1])
        everything = len(ranked)

        def enough(names: Sequence[str]) -> bool:
            what = f"the first {len(names)} of {everything}" if names == ranked[: len(names)] else "one fewer"
            return self.trial(what, {**fixed, **dict.fromkeys(names)}, hard) >= THRESHOLD + MARGIN

        if not enough(ranked):  # what rounds the stream between blocks is in no block
            return self._whole(fixed, hard)
        least, most = 0, everything
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (least, middle) if enough(ranked[:middle]) else (middle, most)
        names = ranked[:most]
        for name in reversed(names[:-1][-PRUNINGS:]):
            fewer = [each for each in names if each != name]
            names = fewer if enough(fewer) else names
        kept = {name: why for name, why in fixed.items() if not within(name, names)}
        places = {name: ranked.index(name) + 1 for name in names}
        return kept | {
            name: f"number {place} of {everything} by its part in the error" for name, place in places.items()
        }

    def _whole(self, fixed: dict[str, str], hard: Sequence[Reference]) -> dict[str, str]:
        """Whole components, the costliest at the image first, until the budget is met."""
        names: list[str] = []
        fp32_modules = fixed
        for name in sorted(self._cost, key=lambda name: -self._cost[name]):
            names.append(name)
            kept = {each: why for each, why in fixed.items() if not within(each, names)}
            fp32_modules = kept | dict.fromkeys(names, "whole, for its blocks alone do not meet the budget")
            if self.trial("whole components", fp32_modules, hard) >= THRESHOLD + MARGIN:
                break
        return fp32_modules

    def rank(self, reference: Reference) -> list[str]:
        """Every candidate that is not in float32 yet, that which adds most to the error at the image first.

        An estimate from six runs: what each component alone costs at the image, shared out among its blocks by the
        relative error that each makes on the float32 input.
        """
        fp16 = fp16_copy(self.model, tuple(self.choice.fp32_modules))
        cost = {name: 10 ** (-each.psnr_db / 10) for name, each in alone(self.model, fp16, reference).items()}
        self._cost = cost
        errors = _local_errors(self.model, fp16, reference, self.choice.fp32_modules)
        totals = {part: sum(e for n, e in errors.items() if within(n, {part})) or 1.0 for part in COMPONENTS}
        parts = {name: name.partition(".")[0] for name in errors}
        return sorted(errors, key=lambda name: -cost[parts[name]] * errors[name] / totals[parts[name]])


def alone(model: DOD, fp16: DOD, reference: Reference) -> dict[str, Judged]:
    """The chain with one component in half and all others in float32, for each component."""
    parts, known = dict.fromkeys(COMPONENTS, model), {}
    mixed = {name: restore({**parts, name: fp16}, reference.image, known=known) for name in COMPONENTS}
    return {name: judged(outcome, reference.outcome) for name, outcome in mixed.items()}


def candidates(model: DOD) -> list[str]:
    """What the search may put into float32: blocks (residual, attention, sampling, detail) and layers outside them."""
    found: list[str] = []

    def descend(name: str, module: nn.Module) -> None:
        if isinstance(module, BLOCKS) or (not list(module.children()) and list(module.parameters())):
            found.append(name)
            return
        for child, part in module.named_children():
            descend(f"{name}.{child}", part)

    for component in COMPONENTS:
        descend(component, model.get_submodule(component))
    return found


def _local_errors(model: DOD, fp16: DOD, reference: Reference, fp32_modules: Collection[str]) -> dict[str, float]:
    """The relative error power that each candidate makes by itself: both models on the float32 model's inputs, in one
    run, so that nothing is kept but the numbers."""
    errors: dict[str, float] = {}
    hooks = []

    def comparing(name: str) -> Callable[..., None]:
        twin = fp16.get_submodule(name)

        def compare(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            given, named = cast_to(args, torch.float16), cast_to(kwargs, torch.float16)
            expected, found = _first(output).double(), _first(twin(*given, **named)).double()  # type: ignore[misc]
            power = float(expected.square().sum()) or 1.0
            errors[name] = max(errors.get(name, 0.0), float((found - expected).square().sum()) / power)

        return compare

    for name in candidates(model):
        if within(name, fp32_modules):
            continue
        hooks.append(model.get_submodule(name).register_forward_hook(comparing(name), with_kwargs=True))
    try:
        restore(model, reference.image)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: error if math.isfinite(error) else math.inf for name, error in errors.items()}


def _first(output: object) -> Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    assert isinstance(output, Tensor)
    return output
