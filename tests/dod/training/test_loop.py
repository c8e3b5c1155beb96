"""The optimisation loop: determinism, resuming, errors, batches of several processes."""

from __future__ import annotations

import multiprocessing
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
from dod.errors import CheckpointError, DataError, TrainingError
from dod.model.dod import DOD
from dod.training import loop
from dod.training.loop import batches, train
from dod.training.stage_objectives import AdaptationObjective
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
    """A toy objective that draws noise from the step's generator. Its loss is NaN at step `nan`."""

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
    """Write the state of a run of four steps that was interrupted after two."""
    with pytest.raises(KeyboardInterrupt):
        run(toy(), folder, stop=2 * QUICK.batch_size, **more)


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_few_steps_reduce_the_loss(tmp_path: Path) -> None:
    log = run(toy(), tmp_path, replace(QUICK, steps=100, batch_size=4))
    assert [entry["step"] for entry in log] == [50, 100]
    assert log[1]["loss"] < 0.7 * log[0]["loss"]


def test_10_steps_and_10_resumed_are_bit_identical_to_20(tmp_path: Path) -> None:
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
    ("key", "value"),
    [("steps", 6), ("batch_size", 3), ("seed", 1), ("warmup", 2), ("clip", 0.5), ("precision", "bf16")],
)
def test_a_changed_schedule_is_refused_and_named(tmp_path: Path, key: str, value: Any) -> None:
    interrupted(tmp_path)
    message = rf"toy.state.safetensors .*{key} = {getattr(QUICK, key)}, .* {value}"
    with pytest.raises(TrainingError, match=message):
        run(toy(), tmp_path, replace(QUICK, **{key: value}))


def test_state_of_other_frozen_weights_or_parameters_is_refused(tmp_path: Path) -> None:
    one = {"frozen weights": "one base", "tile_size": [192]}
    interrupted(tmp_path, depends_on=one)
    with pytest.raises(TrainingError, match="frozen weights = one base, .* another base.*--state"):
        run(toy(), tmp_path, depends_on={**one, "frozen weights": "another base"})
    with pytest.raises(TrainingError, match=r"tile_size = \[192\], .* \[192, 512\]"):
        run(toy(), tmp_path, depends_on={**one, "tile_size": (192, 512)})
    other = toy()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(TrainingError, match=r"initial weights = [0-9a-f]{12}\.\.\., "):
        run(other, tmp_path, depends_on=one)
    with pytest.raises(TrainingError, match="other parameters"):
        run(nn.Conv2d(3, 3, 1), tmp_path, depends_on=one)
    (tmp_path / "toy.state.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="toy.state.safetensors"):
        run(toy(), tmp_path, depends_on=one)


def test_state_of_other_samples_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    samples = Pairs()
    samples.identity = {"color_jitter": 0.3}
    with pytest.raises(TrainingError, match=r"color_jitter = None, .* 0\.3.*--state"):
        train("toy", Denoise(toy()), samples, QUICK, tmp_path)


@pytest.mark.parametrize(
    "changed", [{"steps": 6}, {"seed": 1}, {"learning_rate": 1e-3}, "start", "parameters"], ids=str
)
def test_a_finished_run_does_not_block_another(
    tmp_path: Path, changed: dict[str, Any] | str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run gives the same result as in an empty folder, and can be resumed."""
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
        run(second, tmp_path, schedule, stop=2 * QUICK.batch_size)
    printed = capsys.readouterr().out
    named = (
        f"{next(iter(changed))} =" if isinstance(changed, dict) else {"start": "initial weights"}.get(changed, changed)
    )
    assert named in printed and "toy.state.safetensors" in printed and printed.count("\n") == 1
    torch.manual_seed(3)
    assert run(resumed := model(), tmp_path, schedule)[-1]["step"] == schedule.steps
    run(alone, tmp_path / "alone", schedule)
    assert all(torch.equal(a, b) for a, b in zip(values(alone), values(resumed), strict=True))


def test_an_error_in_a_worker_process_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^broken\.png: cannot be read$") as caught:
        train("toy", Denoise(toy()), Broken(), replace(QUICK, workers=1), tmp_path)
    assert caught.tb and not multiprocessing.active_children(), "workers outlive the error"


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrainingError, match="fp16.*GPU"):
        run(toy(), tmp_path, replace(QUICK, precision="fp16"))


@pytest.mark.gpu
def test_two_groups_learn_in_fp16(tmp_path: Path) -> None:
    model = DOD.from_preset(smaller()).cuda()
    schedule = replace(QUICK, precision="fp16")
    AcceleratorState._reset_state()  # a process keeps its first precision, here that of earlier tests
    try:
        log = train("stage-1", AdaptationObjective(model, rec=0.0, dmd=1.0), Pairs(), schedule, tmp_path)
    finally:
        AcceleratorState._reset_state()
    assert log[-1]["step"] == 4


def test_nan_names_the_step_and_a_lower_learning_rate_resumes(tmp_path: Path) -> None:
    model = toy()
    message = (
        rf"toy: step 3 .*nan.* sample 6, sample 7; .*--learning-rate.* step 2, in {tmp_path}/toy.state.safetensors"
    )
    with pytest.raises(TrainingError, match=message):
        train("toy", Denoise(model, nan=3), Pairs(), QUICK, tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())
    assert run(toy(), tmp_path, replace(QUICK, learning_rate=1e-3))[-1]["step"] == 4


def test_nan_names_the_photographs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (40, 40), "teal").save(tmp_path / f"{name}.png")
    crops = PhotographCrops(tmp_path, 16, seed=0)
    message = f"{crops.describe(2)}, {crops.describe(3)}; .*--learning-rate.* step 0"
    assert {crops.describe(i) for i in range(8)} == {"one.png", "two.png"}
    with pytest.raises(TrainingError, match=message):
        train("toy", Denoise(toy(), nan=1), crops, QUICK, tmp_path / "state")


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    class Plain(Denoise):
        def forward(self, batch: Sequence[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return {"error": (self.model(batch[0]) - batch[1]).square().mean()}

    large, small = toy(), toy()
    train("toy", Plain(large), Pairs(), QUICK, tmp_path / "large")
    train("toy", Plain(small), Pairs(), replace(QUICK, batch_size=1, accumulation=2), tmp_path / "small")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values(large), values(small), strict=True))


def test_processes_share_the_batches_of_a_step() -> None:
    schedule = replace(QUICK, batch_size=2, accumulation=2, steps=3)
    whole = [batch[0] for batch in batches(Pairs(), replace(schedule, batch_size=4), 1)]
    shares = [[batch[0] for batch in batches(Pairs(), schedule, 1, process, 2)] for process in range(2)]
    assert len(whole) == len(shares[0]) == 4
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*shares, strict=True), strict=True))


def test_batches_start_where_the_run_stopped() -> None:
    first = [batch[0] for batch in batches(Pairs(), QUICK, 0)]
    assert len(first) == 4 and first[0].shape == (2, 3, 16, 16)
    resumed = [batch[0] for batch in batches(Pairs(), QUICK, 3)]
    assert len(resumed) == 1 and torch.equal(resumed[0], first[3])
