"""A real bundle on OpenVINO compared with ONNX Runtime, with convolutions as they are and by Winograd's algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dod_runtime import Restorer
from dod_runtime.backends.openvino import branches, winograd
from dod_runtime.bundle.merge import Allocator
from export.parity.compare import psnr_db, snr_db

SLOW_CASES = (("auto", False), ("auto", True), ("noise", False))


@pytest.mark.parametrize("condition", ["auto", "noise"])
def test_openvino_restores_what_onnxruntime_does(
    tiny_bundle: Path, photographs: Path, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []
    join = branches.join
    monkeypatch.setattr(branches, "join", lambda model, places: joined.extend(join(model, places)))
    with Restorer(tiny_bundle, "openvino") as restorer, Restorer(tiny_bundle, "onnxruntime_cpu") as other:
        prepared = restorer.prepare(photographs / "noise.png", condition)
        crops = None if prepared.crops is None else prepared.crops[None]
        found, expected = (each.run_components(prepared.image[None], crops, condition) for each in (restorer, other))
    assert len(joined) == (4 if condition == "auto" else 0)  # a feed-forward block's first layer in each transformer
    assert snr_db(expected, found) >= 80 and psnr_db(expected, found) >= 80


@pytest.mark.parametrize(
    ("condition", "large"),
    [("noise", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
)
def test_winograd_restores_the_same(
    tiny_bundle: Path, photographs: Path, condition: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten: dict[str, tuple[str, ...]] = {}

    def rewrite(model: Any, places: Allocator | None, smallest: dict[str, tuple[int, ...]]) -> None:
        if "latent" in smallest:  # the latent of the image below
            smallest = {**smallest, "latent": (1, 4, 16, 12)}
        rewritten[" ".join(smallest)] = winograd_rewrite(model, places, smallest)

    winograd_rewrite = winograd.rewrite
    monkeypatch.setattr(winograd, "CHANNELS", 4)
    monkeypatch.setattr(winograd, "PRODUCTS", 1)
    monkeypatch.setattr(winograd, "STRIP", 1 << 16)
    monkeypatch.setattr(winograd, "rewrite", rewrite)
    if large:
        monkeypatch.setattr("dod_runtime.backends.sessions.LARGE", 1)
    with Restorer(tiny_bundle, "openvino") as restorer, Restorer(tiny_bundle, "onnxruntime_cpu") as other:
        prepared = restorer.prepare(photographs / "noise.png", condition)
        crops = None if prepared.crops is None else prepared.crops[None]
        image = prepared.image[None, :, :128, :96]
        found, expected = (each.run_components(image, crops, condition) for each in (restorer, other))
    assert len(rewritten) == (4 if condition == "auto" else 3)
    assert all(names for inputs, names in rewritten.items() if inputs != "crops"), "none was rewritten"
    assert snr_db(expected, found) >= 80 and psnr_db(expected, found) >= 80
