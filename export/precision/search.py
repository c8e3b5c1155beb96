"""Search for a small set of modules that stay in fp32 so that fp16 reaches its threshold with a margin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from dod.model.dod import DOD
from export.graphs.fp16 import COMPONENTS, fp16_copy, is_inside, network_tails
from export.parity.compare import THRESHOLDS
from export.precision.calibration import Quality, measure_quality, restore, worst
from export.precision.probe import Operation
from export.precision.ranges import SAFETY, CalibrationReference, PrecisionComparison, ValueRange, compare
from export.precision.sensitivity import rank

__all__ = ["MARGIN", "THRESHOLD", "ModuleChoice", "ModuleSearch", "Trial"]

THRESHOLD = THRESHOLDS["pipeline", "torch fp16"][1]
"""Minimum PSNR of fp16 in dB."""
MARGIN = 3.0
"""dB above the threshold that the search requires, because it measures small images and the parity check whole ones."""
ROUNDS, PRUNINGS = 12, 6
"""Maximum number of modules that are added against overflow, and of attempts to remove one after the bisection."""
HARD_IMAGES = 2
"""Maximum number of images in a search: the worst image, then also the image that is worst with the found set."""


@dataclass(frozen=True)
class Trial:
    """A set of fp32 modules that was measured.

    Attributes:
        description: Description of the set.
        fp32_modules: The modules.
        images: Number of images.
        psnr_db: Lowest PSNR of the decoded images in dB.
        z0_snr_db: Lowest SNR of the restored latents in dB.
        seconds: Time that the measurement took.
    """

    description: str
    fp32_modules: tuple[str, ...]
    images: int
    psnr_db: float
    z0_snr_db: float
    seconds: float


@dataclass
class ModuleChoice:
    """The result of a search.

    Attributes:
        fp32_modules: Reason for each chosen module.
        trials: All measured sets.
        overflows: Module of each operation or weight beyond the safe range of float16.
        uncovered: Overflows that no fp32 module covers.
        comparison: Last comparison on the worst image.
    """

    fp32_modules: dict[str, str] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    overflows: dict[str, str] = field(default_factory=dict)
    uncovered: list[str] = field(default_factory=list)
    comparison: PrecisionComparison | None = None


class ModuleSearch:
    """Search over fp16 copies of one model.

    Args:
        model: The model in fp32.
        references: The fp32 pipeline on each calibration image.
        comparisons: fp16 without fp32 modules on each image.
        ranges: Range of each operation in fp32.
        weights: Range of each weight.
        say: Function that is called with each line of progress.
    """

    def __init__(
        self,
        model: DOD,
        references: Sequence[CalibrationReference],
        comparisons: Sequence[PrecisionComparison],
        ranges: dict[str, ValueRange],
        weights: dict[str, ValueRange],
        say: Callable[[str], None],
    ) -> None:
        self.model, self.references, self.ranges, self.weights, self.say = model, references, ranges, weights, say
        self.choice = ModuleChoice(comparison=comparisons[worst(comparisons)])
        self._compared: Sequence[PrecisionComparison] = comparisons
        self._compared_with: tuple[str, ...] = ()
        self._cost: dict[str, float] = {}
        self._record("none", (), comparisons, 0.0)
        self._beyond = self._overflowing(comparisons[0].reduced)
        for operation in (*self._beyond, *(each for one in comparisons for each in one.overflows[:1])):
            self.choice.overflows.setdefault(operation.name, operation.stack[-1])

    def measure(self, fp32_modules: Sequence[str]) -> ModuleChoice:
        """Measure a given set.

        Args:
            fp32_modules: Names of modules.

        Returns:
            The set with its measurements.
        """
        self.choice.fp32_modules = dict.fromkeys(fp32_modules, "given")
        self._compare("as given")
        return self._finished()

    def choose(self) -> ModuleChoice:
        """Search for a small set of modules with which fp16 is `MARGIN` dB above its threshold.

        Modules that overflow come first. The others are ranked by the error that they add, and a bisection finds how
        many of them are needed. The set need not be the smallest one.

        Returns:
            The set with its measurements.
        """
        for operation in self._beyond:
            self._cover(operation, f"{operation.name} reaches {self._largest(operation.name):.3g}")
        comparisons = self._cure()
        hard: list[CalibrationReference] = []
        fixed = dict(self.choice.fp32_modules)
        while self._lowest(comparisons) < THRESHOLD + MARGIN and len(hard) < HARD_IMAGES:
            hard.append(self.references[worst(comparisons)])
            self.choice.fp32_modules = self._add(fixed, hard)
            comparisons = self._compare("chosen")
            if any(each is self.references[worst(comparisons)] for each in hard):
                break
        return self._finished()

    def trial(
        self, description: str, fp32_modules: Collection[str], references: Sequence[CalibrationReference]
    ) -> float:
        """Measure a set without intermediate results.

        Args:
            description: Description of the set.
            fp32_modules: Names of modules.
            references: Images to measure on.

        Returns:
            The lowest PSNR in dB.
        """
        start, names = time.monotonic(), tuple(fp32_modules)
        fp16 = fp16_copy(self.model, names)
        qualities = [measure_quality(restore(fp16, each.image), each.output) for each in references]
        return self._record(description, names, qualities, time.monotonic() - start)

    def _compare(self, description: str) -> Sequence[PrecisionComparison]:
        """Compare the current set with fp32, operation by operation, on every image."""
        start, names = time.monotonic(), tuple(self.choice.fp32_modules)
        if names != self._compared_with:
            fp16 = fp16_copy(self.model, names)
            self._compared, self._compared_with = [compare(fp16, each) for each in self.references], names
            self._record(description, names, self._compared, time.monotonic() - start)
            self.choice.comparison = self._compared[worst(self._compared)]
        return self._compared

    def _record(self, description: str, names: tuple[str, ...], tried: Sequence[Quality], seconds: float) -> float:
        psnr, snr = self._lowest(tried), min(each.z0_snr_db for each in tried)
        self.choice.trials.append(Trial(description, names, len(tried), psnr, snr, seconds))
        self.say(f"{len(names)} fp32 modules, {description}: PSNR {psnr:.1f} dB, z0 SNR {snr:.1f} dB, {seconds:.1f} s")
        return psnr

    def _finished(self) -> ModuleChoice:
        choice, kept = self.choice, self.choice.fp32_modules
        choice.uncovered = [name for name, module in choice.overflows.items() if not is_inside(module, kept)]
        return choice

    def _lowest(self, tried: Sequence[Quality]) -> float:
        return min(each.psnr_db for each in tried)

    def _overflowing(self, reduced: Collection[str]) -> list[Operation]:
        """Return what is beyond the safe range in fp32 and reduced in fp16: operations in order, then weights."""
        found = []
        for name, span in self.ranges.items():
            if span.headroom < math.log2(SAFETY) and (name in reduced or name.endswith(" scores")):
                found.append(Operation(name, span.stack))
        stacks = {span.stack[-1]: span.stack for span in self.ranges.values()}
        for name, span in self.weights.items():
            module = name.rpartition(".")[0]
            if span.headroom < 0:
                found.append(Operation(name, stacks.get(module, (module,))))
        return found

    def _largest(self, name: str) -> float:
        return (self.weights if name in self.weights else self.ranges)[name].largest

    def _cover(self, operation: Operation, why: str, in_fp16: bool = False) -> None:
        """Keep in fp32 the smallest module that contains an operation and whose own result is in range.

        If that module is kept already, `in_fp16` keeps the whole component: the operation still overflows in fp16.
        """
        returns_float32 = {*COMPONENTS, *(tail[-1] for tail in network_tails(self.model))}
        module = operation.stack[0]
        if not is_inside(operation.stack[-1], self.choice.fp32_modules):
            for module in reversed(operation.stack):
                last = [span.headroom for span in self.ranges.values() if module in span.stack][-1:]
                if module in returns_float32 or not last or last[0] >= math.log2(SAFETY):
                    break
        elif not in_fp16:
            return
        kept = {name: reason for name, reason in self.choice.fp32_modules.items() if not is_inside(name, {module})}
        self.choice.fp32_modules = {**kept, module: why}
        self.say(f"{module} stays in fp32: {why}")

    def _cure(self) -> Sequence[PrecisionComparison]:
        """Add modules until fp16 is finite on every image; fp16 may overflow where the range in fp32 is safe."""
        comparisons = self._compare("against overflow")
        for _ in range(ROUNDS):
            lost = [each.overflows[0] for each in comparisons if each.overflows]
            if not lost:
                break
            self._cover(lost[0], f"{lost[0].name} is not finite in fp16", in_fp16=True)
            comparisons = self._compare("against overflow")
        return comparisons

    def _add(self, fixed: dict[str, str], hard: Sequence[CalibrationReference]) -> dict[str, str]:
        """Rank the other candidates by their error, find by bisection how many are needed, then try to remove some.

        If all candidates together are not enough, whole components are kept instead.
        """
        self.choice.fp32_modules = fixed
        ranked, self._cost = rank(self.model, fp16_copy(self.model, tuple(fixed)), hard[-1], fixed)
        everything = len(ranked)

        def enough(names: Sequence[str]) -> bool:
            first = names == ranked[: len(names)]
            description = f"the first {len(names)} of {everything}" if first else "one fewer"
            return self.trial(description, {**fixed, **dict.fromkeys(names)}, hard) >= THRESHOLD + MARGIN

        if not enough(ranked):  # the sums between blocks are in no block
            return self._whole(fixed, hard)
        low, high = 0, everything
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(ranked[:middle]) else (middle, high)
        names = ranked[:high]
        for name in reversed(names[:-1][-PRUNINGS:]):
            fewer = [each for each in names if each != name]
            names = fewer if enough(fewer) else names
        kept = {name: why for name, why in fixed.items() if not is_inside(name, names)}
        places = {name: ranked.index(name) + 1 for name in names}
        return kept | {name: f"number {place} of {everything} by its error" for name, place in places.items()}

    def _whole(self, fixed: dict[str, str], hard: Sequence[CalibrationReference]) -> dict[str, str]:
        """Keep whole components, those with the largest error at the image first, until the threshold is reached."""
        names: list[str] = []
        fp32_modules = fixed
        for name in sorted(self._cost, key=lambda name: -self._cost[name]):
            names.append(name)
            kept = {each: why for each, why in fixed.items() if not is_inside(each, names)}
            fp32_modules = kept | dict.fromkeys(names, "whole component: its blocks alone do not reach the threshold")
            if self.trial("whole components", fp32_modules, hard) >= THRESHOLD + MARGIN:
                break
        return fp32_modules
