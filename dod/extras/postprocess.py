"""Fit the post-processing, gate and sharpening filters, to how images are degraded, after both stages.

    python -m dod.extras.postprocess --photographs photographs/train --preset mini --soft 0.6 --misty 0.3

Each sample is seen once and the UNet never runs: the kernel is fitted by the second moments of blurred and clean pairs,
the gate's share by a classifier on the spectrum, the histogram and the condition c. The command continues from the
checkpoint that the preset names, or from that of a copy; to fit it again takes `--overwrite`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dod_runtime.console import Parser

from ..checkpoint import load_checkpoint, save_checkpoint
from ..data.dataset import CLEAN
from ..errors import ConfigError, run_command
from ..model.dod import DOD
from ..model.modulation import native_crops
from ..model.postprocess import Gate, Postprocess
from ..training.arguments import Samples, add_output, add_source, samples_from
from ..training.output import open_output, part_path, training_preset, was_fitted
from ..training.processes import say
from ..training.state import Schedule
from .moments import LEAST, Moments, inverse_filters, moments_of, turned_orders, without_mean

HELD_BACK = 20
"""Every so many samples one is kept from the fit, to be tried afterwards."""
OPTIONS = ("steps", "batch_size", "crop", "learning_rate", "weight_decay", "seed", "workers", "save_every")
"""The fields of `Schedule` that are options of this command; `steps` are those of the kernel's fit."""
DEFAULTS = Schedule(steps=12000, batch_size=256, crop=448, learning_rate=2e-3, weight_decay=0.03, save_every=2000)
GATE = {"steps": 2500, "learning_rate": 1e-3, "weight_decay": 0.1, "save_every": 500}
"""The schedule of the gate's fit where it differs."""
TOLERANCE = 0.02
"""Share of a blurred image's error below which lowering it further counts little."""
ALONE, ALONE_DB = 3.0, 40.0
"""Weight of a change to a clean image, and the PSNR in dB at which such a change counts as much as all of an error."""
PRICE = 5.0
"""Weight of letting a degraded image pass: it then loses all that the model gains."""
UNDEGRADED_DB = 40.0
"""PSNR in dB of a degraded image from which on nothing has to be removed from it."""
NOISE, DROPPED = 0.1, 0.2
"""Deviation of the noise added to each standardized feature of the gate, and its dropout, during the fit."""


@dataclass(frozen=True)
class Seen:
    """What the gate sees of N images, spectrum [N, L] and other features [N, 2 S + C]; passes [N], whether an image
    should pass; kinds [N], its degradation."""

    spectrum: Tensor
    other: Tensor
    passes: Tensor
    kinds: Tensor


class _Measured(Dataset[tuple[Tensor, ...]]):
    """Each pair of blurred or clean images as spectrum, moments, and whether it is blurred."""

    def __init__(self, pairs: Samples, model: DOD) -> None:
        self.pairs, self.model, self.gate = pairs, model, cast(Gate, model.gate)
        self.taps = cast(Postprocess, model.postprocess).filters.kernel_size[0]

    @torch.no_grad()
    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        degraded, clean, kind = self.pairs[i]
        spectrum = self.gate.spectrum(self.model.crops(degraded[None]))[0]
        blurred = torch.tensor(self.pairs.names[kind] != CLEAN)
        return spectrum, *moments_of(degraded, clean, self.taps), blurred


class _Looked(Dataset[tuple[Tensor, ...]]):
    """Each degraded image as spectrum, histogram and crops, its kind and its squared error."""

    def __init__(self, pairs: Samples, model: DOD) -> None:
        self.pairs, self.model, self.gate = pairs, model, cast(Gate, model.gate)

    @torch.no_grad()
    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        degraded, clean, kind = self.pairs[i]
        mfm = self.model.preset.mfm
        crops = native_crops(degraded[None], mfm.crops, mfm.crop_size)
        error = (clean - degraded).square().mean().clamp(min=LEAST)
        return self.gate.spectrum(crops)[0], self.gate.histogram(crops)[0], crops[0], torch.tensor(kind), error


def measure(pairs: Samples, model: DOD, count: int, workers: int = 0) -> Moments:
    """The moments of the first `count` pairs of a data set of blurred and clean images."""
    loader = DataLoader(_Measured(pairs, model), 32, sampler=range(count), num_workers=workers)
    batches = list(tqdm(loader, "moments", unit="batch", disable=None))
    return Moments(*(torch.cat(values) for values in zip(*batches, strict=True)))


@torch.no_grad()
def look(pairs: Samples, model: DOD, count: int, workers: int = 0, precision: str = "fp32") -> Seen:
    """What the gate sees of the first `count` images of a data set. precision: "fp32", or "bf16" of the MFM."""
    loader = DataLoader(_Looked(pairs, model), 4, sampler=range(count), num_workers=workers)
    passing = torch.tensor([name in (*_passing(model), CLEAN) for name in pairs.names])
    batches = []
    for spectrum, histogram, crops, kinds, error in tqdm(loader, "gate", unit="batch", disable=None):
        passes = passing[kinds] | (10 * (4 / error).log10() >= UNDEGRADED_DB)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            condition = model.mfm.condition(crops)
        batches.append((spectrum, torch.cat([histogram, condition], 1), passes, kinds))
    return Seen(*(torch.cat(values) for values in zip(*batches, strict=True)))


def fit_kernel(gate: Gate, post: Postprocess, moments: Moments, schedule: Schedule) -> list[dict[str, Any]]:
    """Fit filters and gains, in place: the logarithm of what remains of a blurred image's error, and no change to a
    clean one. The log has the gain in dB on blurred samples that are kept from the fit (of the same photographs)."""
    filters, scale = inverse_filters(*post.filters.weight.shape[::2])
    post.filters.weight.data.copy_(filters)
    mean, spread = moments.spectrum.mean(0), moments.spectrum.std()
    orders = turned_orders(int(gate.waves.shape[-1]))
    rest, tried = _held_back(len(moments.squared))
    shown = moments.taken(tried)
    drop = nn.Dropout(0.1)
    groups = [{"params": [*gate.sharpness.parameters()], "rate": 1.0}, {"params": [post.filters.weight], "rate": 0.1}]
    optimizer = torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)

    def chosen(spectrum: Tensor) -> Tensor:
        gains = _run(gate.sharpness, (spectrum - mean) / spread, drop) * scale
        return torch.einsum("nf,fij->nij", gains, without_mean(post.filters.weight[:, 0]))

    def gain() -> float:
        drop.eval()
        with torch.no_grad():
            gains = 10 * (shown.squared / shown.left(chosen(shown.spectrum))).log10()
        drop.train()
        return float(gains[shown.blurred].mean())

    log = []
    for step in tqdm(range(schedule.steps), "kernel", unit="step", disable=None):
        turn = int(torch.randint(8, ()))
        some = moments.taken(rest[torch.randint(len(rest), (schedule.batch_size,))], turn, orders[turn])
        kernels = chosen(some.spectrum)
        sharper = (some.left(kernels) / some.squared + TOLERANCE).log()
        changed = ALONE * some.added(kernels) / (12 * 10 ** (-ALONE_DB / 10))
        _step(optimizer, torch.where(some.blurred, sharper, changed).mean(), schedule, step)
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            log.append({"step": step + 1, "blur_gain_db": gain()})
            say(f"step {step + 1}: blurred samples that were kept from the fit gain {log[-1]['blur_gain_db']:+.2f} dB")
    with torch.no_grad():  # the standardization before the network and the scale after it go into its weights
        first, last = cast(nn.Linear, gate.sharpness[0]), cast(nn.Linear, gate.sharpness[-1])
        gate.spectrum_mean.copy_(mean)
        first.weight /= spread
        last.weight *= scale[:, None]
        last.bias *= scale
        post.filters.weight.copy_(without_mean(post.filters.weight[:, 0])[:, None])
    return log


def fit_gate(gate: Gate, seen: Seen, kinds: Sequence[str], schedule: Schedule) -> list[dict[str, Any]]:
    """Fit the share, in place, by cross entropy with `PRICE`. kinds: the names that `seen.kinds` counts in.

    The gate's `spectrum_mean` is that of `fit_kernel`. The log has the mean share of each kind on samples that are kept
    from the fit (of the same photographs)."""
    spectrum, other = seen.spectrum - gate.spectrum_mean.detach(), seen.other - seen.other.mean(0)
    features = torch.cat([spectrum, other], 1)
    center, spread = features.mean(0), features.std(0).clamp(min=0.02)
    behind = torch.arange(spectrum.shape[1], features.shape[1])
    orders = [torch.cat([order, behind]) for order in turned_orders(int(gate.waves.shape[-1]))]
    rest, tried = _held_back(len(features))
    drop = nn.Dropout(DROPPED)
    optimizer = torch.optim.AdamW(gate.passing.parameters(), weight_decay=schedule.weight_decay)

    def logits(some: Tensor) -> Tensor:
        return _run(gate.passing, (some - center) / spread, drop)[:, 0]

    def shares() -> dict[str, float]:
        drop.eval()
        with torch.no_grad():
            share, of = logits(features[tried]).sigmoid(), seen.kinds[tried]
        drop.train()
        return {name: float(share[of == i].mean()) for i, name in enumerate(kinds) if (of == i).any()}

    log = []
    for step in tqdm(range(schedule.steps), "gate", unit="step", disable=None):
        which = rest[torch.randint(len(rest), (schedule.batch_size,))]
        some = features[which][:, orders[int(torch.randint(8, ()))]]
        found, right = logits(some + NOISE * spread * torch.randn_like(some)), seen.passes[which]
        loss = F.binary_cross_entropy_with_logits(found, right.float(), torch.where(right, 1.0, PRICE))
        _step(optimizer, loss, schedule, step)
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            log.append({"step": step + 1, "loss": float(loss.detach()), "share": shares()})
            text = ", ".join(f"{name} {share:.2f}" for name, share in log[-1]["share"].items())
            say(f"step {step + 1}: loss {log[-1]['loss']:.3f}; mean share where it is tried: {text}")
    with torch.no_grad():  # the standardization goes into the weights
        first = cast(nn.Linear, gate.passing[0])
        gate.other_mean.copy_(seen.other.mean(0))
        first.weight /= spread
        first.bias -= first.weight @ center
    return log


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    preset = training_preset(arguments)
    schedule = replace(DEFAULTS, **{key: getattr(arguments, key) for key in OPTIONS})
    _check(arguments, schedule, preset.size_multiple)
    if preset.postprocess is None or preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} has no postprocess to be fitted: set it, and a checkpoint")
    passing = tuple(name for name in preset.conditions if name in preset.postprocess.passing)
    if not set(preset.conditions) - set(passing):
        raise ConfigError(f"all conditions pass the model ({', '.join(passing)}): add one that has to be restored")
    preset = open_output(arguments, preset, {"checkpoint": not was_fitted(preset, "postprocess")})
    folder, model = part_path(preset, "checkpoint"), DOD.from_preset(preset)
    training = load_checkpoint(model, folder, without_postprocess=True).get("training", [])
    gate, post = cast(Gate, model.gate), cast(Postprocess, model.postprocess)
    pairs = samples_from(arguments, schedule, preset.conditions, arguments.clean_fraction)
    torch.manual_seed(schedule.seed)
    for layer in (*gate.sharpness, *gate.passing):
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    for parameter in cast(nn.Linear, gate.sharpness[-1]).parameters():
        nn.init.zeros_(parameter)
    log: dict[str, Any] = {}
    if passing:
        blurred = samples_from(_without_more(arguments), schedule, passing, 0.3)
        log["kernel"] = fit_kernel(gate, post, measure(blurred, model, arguments.pairs, schedule.workers), schedule)
    seen = look(pairs, model, arguments.num_samples, schedule.workers, arguments.precision)
    log["gate"] = fit_gate(gate, seen, pairs.names, replace(schedule, **GATE))
    given = {key: getattr(arguments, key) for key in (*OPTIONS, "num_samples", "pairs", "clean_fraction", "precision")}
    done = {"stage": "postprocess", "schedule": given, "log": log, "samples": pairs.identity}
    save_checkpoint(model, folder, torch.float16, training=[*training, done])
    return 0


def _parser() -> Parser:
    parser = Parser(prog="dod-train postprocess", description="Fit the post-processing.")
    add_source(parser)
    add_output(parser)
    add = parser.add_argument
    add("--checkpoint", default="mini", help="name, folder or file of the preset (default: mini)")
    add("--num-samples", type=int, default=12000, help="images that the gate's share is fitted to (default: 12000)")
    add("--pairs", type=int, default=16000, help="pairs that the kernel is fitted to (default: 16000)")
    add("--clean-fraction", type=float, default=0.25, help="share of the gate's images left clean (default: 0.25)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the MFM (default: %(default)s)")
    for option in OPTIONS:
        value = getattr(DEFAULTS, option)
        add(f"--{option.replace('_', '-')}", type=type(value), default=value, help=f"(default: {value})")
    return parser


def _check(arguments: Namespace, schedule: Schedule, multiple: int) -> None:
    if schedule.crop % multiple:
        raise ConfigError(f"--crop {schedule.crop}: the model takes multiples of {multiple}")
    for name in ("num_samples", "pairs"):
        if getattr(arguments, name) < HELD_BACK:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: it must be at least {HELD_BACK}")


def _without_more(arguments: Namespace) -> Namespace:
    return Namespace(**{**vars(arguments), "oversample": []})


def _passing(model: DOD) -> tuple[str, ...]:
    return () if model.preset.postprocess is None else model.preset.postprocess.passing


def _held_back(count: int) -> tuple[Tensor, Tensor]:
    """The indices of the samples that are fitted, and of those that are tried."""
    tried = torch.arange(count) % HELD_BACK == HELD_BACK - 1
    return (~tried).nonzero()[:, 0], tried.nonzero()[:, 0]


def _run(network: nn.Sequential, x: Tensor, drop: nn.Dropout) -> Tensor:
    for layer in network:
        x = drop(layer(x)) if isinstance(layer, nn.ReLU) else layer(x)
    return x


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, schedule: Schedule, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate_at(step) * group.get("rate", 1.0)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], schedule.clip)
    optimizer.step()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
