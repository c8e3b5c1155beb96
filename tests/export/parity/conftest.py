"""Fixtures of the parity tests."""

from __future__ import annotations

import pytest

from dod.model.dod import DOD
from export.parity import check
from export.parity.runs import ParitySample
from tests.dod.small_model import image
from tests.export.parity.stand_ins import Substitute, bundle_process_of


@pytest.fixture
def sample() -> ParitySample:
    values = {"image": image(1, 16, 24).numpy(), "crops": image(4, 32, 32)[None].numpy()}
    return ParitySample("rain.png", "rain", values)


@pytest.fixture
def substitute(monkeypatch: pytest.MonkeyPatch) -> Substitute:
    """Function that makes one model stand in for the fp32 graphs of a bundle, and another for the fp16 graphs."""

    def stand_in(fp32: DOD, fp16: DOD | None = None) -> None:
        monkeypatch.setattr(check, "bundle_process", bundle_process_of(fp32, fp16))

    return stand_in
