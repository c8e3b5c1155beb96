"""Symbolic shapes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dod_runtime.bundle.tensor_spec import TensorSpec


@given(batch=st.integers(1, 8), height=st.integers(1, 64), width=st.integers(1, 64))
def test_sizes_is_the_inverse_of_sized(batch: int, height: int, width: int) -> None:
    spec = TensorSpec("latent", "float32", ("batch", 4, "height/8", "width/8"))
    shape = spec.sized(batch, 8 * height, 8 * width)
    assert shape == (batch, 4, height, width)
    assert spec.sizes(shape) == {"batch": batch, "height": 8 * height, "width": 8 * width}


def test_dtype_by_precision() -> None:
    assert TensorSpec("x", {"fp32": "float32", "fp16": "float16"}, ()).dtype_in("fp16") == "float16"
    assert TensorSpec("x", "float32", ()).dtype_in("fp16") == "float32"
