"""The PyTorch adapter computes what the model does, on every path and in mixed precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from dod.model import clora
from dod.model.dod import DOD
from export.graphs.condition_files import modulation_of
from export.graphs.fp16 import COMPONENTS, fp16_copy
from export.parity.reference import DECODED, TorchPipeline, from_numpy
from tests.dod.small_model import image, snr_db
from tests.export.parity.stand_ins import passing_model

PIXELS, CROPS = image(2, 16, 24), image(8, 32, 32).reshape(2, 4, 3, 32, 32)


@pytest.mark.parametrize("gated", [False, True])
def test_auto_is_the_model(model: DOD, gated: bool) -> None:
    model = passing_model(model) if gated else model
    order: list[str] = []

    @contextmanager
    def around(component: str) -> Iterator[None]:
        order.append(component)
        yield

    pipeline = TorchPipeline(model)
    values = pipeline.restore(PIXELS, CROPS, around=around)
    with torch.no_grad():
        torch.testing.assert_close(values["image"], model(PIXELS, crops=CROPS), rtol=0, atol=1e-5)
    gate = ["gate"] if gated else []
    assert order == list(pipeline.path("auto")) == ["mfm", *gate, "encoder", "unet_dynamic", "decoder"]
    assert torch.equal(values["degraded"], PIXELS)
    assert torch.equal(values[DECODED], values["image"]) is not gated


def test_a_named_condition_is_merged(model: DOD) -> None:
    pipeline = TorchPipeline(model)
    found = pipeline.restore(PIXELS, None, "rain")["image"]
    unet = clora.merged_copy(model.unet, torch.from_numpy(modulation_of(model, "rain")))
    with torch.no_grad():
        latent, skips = model.encoder(PIXELS)
        expected = model.decoder(unet(latent), skips)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    pipeline.merge(("rain", "haze"))
    assert set(pipeline.merged) == {"rain", "haze"}
    torch.testing.assert_close(pipeline.restore(PIXELS, None, "rain")["image"], expected, rtol=0, atol=1e-4)
    pipeline.merge(("haze",))
    assert pipeline.merged == ("haze",)


def test_a_condition_fixes_the_share(model: DOD) -> None:
    passing = passing_model(model)
    pipeline = TorchPipeline(passing)
    assert "gate" in pipeline.path("rain") and "gate" not in pipeline.path("haze")
    values = pipeline.restore(PIXELS, CROPS, "rain")
    assert values["share"].tolist() == [[1.0], [1.0]]
    assert snr_db(PIXELS, values["image"]) > snr_db(PIXELS, values[DECODED])
    assert "share" not in pipeline.restore(PIXELS, None, "haze")


def test_mixed_precision_and_reused_outputs(model: DOD) -> None:
    fp16, reuse = fp16_copy(model, ()), {}
    fp32 = TorchPipeline(model).restore(PIXELS, CROPS, reuse=reuse)["image"]
    for component in COMPONENTS:
        pipeline = TorchPipeline({**dict.fromkeys(COMPONENTS, model), component: fp16})
        found = pipeline.restore(PIXELS, CROPS, reuse=reuse)["image"]
        assert found.dtype == torch.float32 and 30 < snr_db(fp32, found) < 110, component
    assert set(reuse) == {(name, id(each)) for name in ("mfm", "encoder") for each in (model, fp16)}


def test_run_takes_and_returns_arrays(model: DOD) -> None:
    pipeline = TorchPipeline(copy.deepcopy(model))
    encoded = pipeline.run("encoder", {"image": PIXELS.numpy()})
    assert encoded.keys() == {"latent", "skip_0", "skip_1"}
    skips = {name: value for name, value in encoded.items() if name != "latent"}
    decoded = pipeline.run("decoder", {"latent_restored": encoded["latent"], **skips})
    assert decoded.keys() == {"image"} and decoded["image"].dtype == np.float32


def test_arrays_that_are_mapped_are_copied() -> None:
    mapped = np.arange(3.0)
    mapped.flags.writeable = False
    assert from_numpy(mapped).tolist() == [0, 1, 2]
