"""Hashes that identify the inputs of a build."""

from __future__ import annotations

from pathlib import Path

import torch

from export.fingerprints import hash_images, hash_tensors


def test_tensors_are_hashed_in_fp32_whatever_their_order() -> None:
    first, second = torch.arange(3.0), torch.ones(2)
    assert hash_tensors({"a": first, "b": second}) == hash_tensors({"b": second, "a": first.half()})


def test_images_are_hashed_by_content(tmp_path: Path) -> None:
    for name, text in (("a.png", "x"), ("b.png", "x"), ("c.png", "y")):
        (tmp_path / name).write_text(text)
    found = hash_images([tmp_path / name for name in ("a.png", "b.png", "c.png")])
    assert found["a.png"] == found["b.png"] != found["c.png"]
