from __future__ import annotations

import multiprocessing
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from dod.data.dataset import PhotographCrops
from dod.errors import CheckpointError, ConfigError, DataError, TrainingError
from dod.model.dod import DOD
from dod.training import loop
from dod.training.loop import batches, train
from dod.training.objectives import Adaptation
from dod.training.state import Log, Schedule
from tests.dod.small_model import smaller
from tests.dod.small_training import QUICK, Pairs


class Broken(Pairs):
    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        raise DataError("broken.png: cannot be read")


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


class Denoise(loop.Objective):
    """A toy objective; it draws noise from the step's generator, as the real ones may. At step `nan` it fails."""

    def __init__(self, model: nn.Module, nan: int | None = None) -> None:
        super().__init__()
        self.model, self.nan, self.steps = model, nan, 0

    def forward(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        noise = 0.01 * torch.randn(batch[0].shape, generator=generator)
        error = (self.model(batch[0] + noise) - batch[1]).square().mean()
        self.steps += 1
        return {"error": error * (float("nan") if self.steps - 1 == self.nan else 1)}


def run(model: nn.Module, folder: Path, schedule: Schedule = QUICK, stop: int | None = None, **more: Any) -> Log:
    return train("toy", Denoise(model), Pairs(stop), schedule, folder, **more)


def interrupted(folder: Path, **more: Any) -> None:
    """Leave the state of two steps of four in the folder."""
    with pytest.raises(KeyboardInterrupt):
        run(toy(), folder, stop=2 * QUICK.batch, **more)


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_few_steps_reduce_the_loss(tmp_path: Path) -> None:
    log = run(toy(), tmp_path, replace(QUICK, steps=100, batch=4))
    assert [entry["step"] for entry in log] == [50, 100]
    assert log[1]["loss"] < 0.7 * log[0]["loss"]


def test_10_steps_and_10_resumed_are_20_steps_to_the_bit(tmp_path: Path) -> None:
    whole, halves, schedule = toy(), toy(), replace(QUICK, steps=20, save_every=5)
    run(whole, tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        run(halves, tmp_path / "halves", schedule, stop=10 * 2)
    resumed = toy()
    log = run(resumed, tmp_path / "halves", schedule)
    assert log[-1]["step"] == 20
    assert all(torch.equal(a, b) for a, b in zip(values(whole), values(resumed), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values(whole), values(halves), strict=True))
    assert sorted(path.name for path in (tmp_path / "halves").iterdir()) == ["tensorboard", "toy.state.safetensors"]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    model, again = toy(), toy()
    log = run(model, tmp_path)
    assert run(again, tmp_path, stop=0) == log
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(again), strict=True))


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 6), ("batch", 3), ("seed", 1), ("warmup", 2), ("clip", 0.5), ("precision", "bf16")]
)
def test_a_changed_schedule_is_refused_and_its_key_named(tmp_path: Path, key: str, value: Any) -> None:
    interrupted(tmp_path)
    message = rf"toy.state.safetensors was written with {key} = {getattr(QUICK, key)}, this run has {value}"
    with pytest.raises(TrainingError, match=message):
        run(toy(), tmp_path, replace(QUICK, **{key: value}))


def test_state_of_other_frozen_weights_or_parameters_is_refused(tmp_path: Path) -> None:
    one = {"frozen weights": "one base", "tile": [192]}
    interrupted(tmp_path, stands_on=one)
    with pytest.raises(TrainingError, match="written with frozen weights = one base, this run has another base; give"):
        run(toy(), tmp_path, stands_on={**one, "frozen weights": "another base"})
    with pytest.raises(TrainingError, match=r"written with tile = \[192\], this run has \[192, 512\]; give the same"):
        run(toy(), tmp_path, stands_on={**one, "tile": (192, 512)})
    other = toy()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(TrainingError, match=r"written with the weights it started from = [0-9a-f]{12}\.\.\., this run"):
        run(other, tmp_path, stands_on=one)
    with pytest.raises(TrainingError, match="holds other parameters"):
        run(nn.Conv2d(3, 3, 1), tmp_path, stands_on=one)
    (tmp_path / "toy.state.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"toy.state.safetensors: not a readable safetensors file"):
        run(toy(), tmp_path, stands_on=one)


def test_state_of_other_samples_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    samples = Pairs()
    samples.identity = {"recoloured": 0.3}
    with pytest.raises(TrainingError, match=r"with recoloured = None, this run has 0\.3; .* another --state"):
        train("toy", Denoise(toy()), samples, QUICK, tmp_path)


@pytest.mark.parametrize(
    "changed", [{"steps": 6}, {"seed": 1}, {"learning_rate": 1e-3}, "start", "parameters"], ids=str
)
def test_a_finished_run_does_not_block_another(
    tmp_path: Path, changed: dict[str, Any] | str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run computes what it computes in an empty folder, and is resumed like any."""
    schedule = replace(QUICK, **changed) if isinstance(changed, dict) else QUICK

    def model() -> nn.Module:
        made = toy()
        with torch.no_grad():
            next(made.parameters()).add_(changed == "start")
        return nn.Conv2d(3, 3, 1, bias=False) if changed == "parameters" else made

    run(toy(), tmp_path)
    assert not capsys.readouterr().out
    torch.manual_seed(3)
    second = model()
    torch.manual_seed(3)
    alone = model()
    with pytest.raises(KeyboardInterrupt):
        run(second, tmp_path, schedule, stop=2 * QUICK.batch)
    printed = capsys.readouterr().out
    named = f"{next(iter(changed))} =" if isinstance(changed, dict) else {"start": "started from"}.get(changed, changed)
    assert named in printed and "toy.state.safetensors" in printed and printed.count("\n") == 1
    torch.manual_seed(3)
    assert run(resumed := model(), tmp_path, schedule)[-1]["step"] == schedule.steps
    run(alone, tmp_path / "alone", schedule)
    assert all(torch.equal(a, b) for a, b in zip(values(alone), values(resumed), strict=True))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ({"steps": 0}, "--steps 0: it must be at least 1"),
        ({"batch": 0}, "--batch 0: it must be at least 1"),
        ({"save_every": 0}, "--save-every 0: it must be at least 1"),
        ({"workers": -1}, "--workers -1: it must be at least 0"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: it must be above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: it must be above 0"),
    ],
)
def test_numbers_out_of_range_are_named(number: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(QUICK, **number)


def test_an_error_in_a_worker_process_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^broken\.png: cannot be read$") as caught:
        train("toy", Denoise(toy()), Broken(), replace(QUICK, workers=1), tmp_path)
    assert caught.tb and not multiprocessing.active_children(), (
        "the traceback keeps the loader's iterator, with which its workers would end"
    )


def test_fp16_takes_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(TrainingError, match="--precision fp16 needs a GPU"):
        run(toy(), tmp_path, replace(QUICK, precision="fp16"))


@pytest.mark.gpu
def test_two_groups_learn_in_fp16(tmp_path: Path) -> None:
    model = DOD.from_preset(smaller()).cuda()
    schedule = replace(QUICK, precision="fp16")
    AcceleratorState._reset_state()  # a process has one precision: that of the tests before
    try:
        log = train("stage-1", Adaptation(model, rec=0.0, dmd=1.0), Pairs(), schedule, tmp_path)
    finally:
        AcceleratorState._reset_state()
    assert log[-1]["step"] == 4


def test_nan_stops_with_the_step_and_a_lower_rate_goes_on(tmp_path: Path) -> None:
    model = toy()
    message = (
        r"toy: step 3 gave loss nan, gradient norm nan on sample 6, sample 7; run again with a lower --learning-rate: "
        rf"it goes on from step 2, in {tmp_path}/toy.state.safetensors"
    )
    with pytest.raises(TrainingError, match=message):
        train("toy", Denoise(model, nan=3), Pairs(), QUICK, tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())
    assert run(toy(), tmp_path, replace(QUICK, learning_rate=1e-3))[-1]["step"] == 4


def test_nan_names_the_photographs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (40, 40), "teal").save(tmp_path / f"{name}.png")
    crops = PhotographCrops(tmp_path, 16, seed=0)
    message = (
        f"on {crops.describe(2)}, {crops.describe(3)}; run again with a lower --learning-rate: it starts anew, for no "
        "state was saved yet"
    )
    assert {crops.describe(i) for i in range(8)} == {"one.png", "two.png"}
    with pytest.raises(TrainingError, match=re.escape(message)):
        train("toy", Denoise(toy(), nan=1), crops, QUICK, tmp_path / "state")


def test_accumulated_steps_are_those_of_a_larger_batch(tmp_path: Path) -> None:
    class Plain(Denoise):
        def forward(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return {"error": (self.model(batch[0]) - batch[1]).square().mean()}

    large, small = toy(), toy()
    train("toy", Plain(large), Pairs(), QUICK, tmp_path / "large")
    train("toy", Plain(small), Pairs(), replace(QUICK, batch=1, accumulation=2), tmp_path / "small")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values(large), values(small), strict=True))


def test_processes_share_the_batches_of_a_step() -> None:
    schedule = replace(QUICK, batch=2, accumulation=2, steps=3)
    whole = [batch[0] for batch in batches(Pairs(), replace(schedule, batch=4), 1)]
    shares = [[batch[0] for batch in batches(Pairs(), schedule, 1, process, 2)] for process in range(2)]
    assert len(whole) == len(shares[0]) == 4
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*shares, strict=True), strict=True))


def test_rate_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 1.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.51) and 0.02 <= rates[-1] < 0.03


def test_batches_start_where_the_run_stopped() -> None:
    first = [batch[0] for batch in batches(Pairs(), QUICK, 0)]
    assert len(first) == 4 and first[0].shape == (2, 3, 16, 16)
    resumed = [batch[0] for batch in batches(Pairs(), QUICK, 3)]
    assert len(resumed) == 1 and torch.equal(resumed[0], first[3])
