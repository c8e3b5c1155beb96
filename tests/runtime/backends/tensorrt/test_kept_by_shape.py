"""Groups of values by shape."""

from __future__ import annotations

from dod_runtime.backends.tensorrt.kept_by_shape import KeptByShape


def test_buffers_are_kept_by_shape() -> None:
    freed: list[str] = []
    kept = KeptByShape(freed.append, most=2)
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    for shape in ("small", "large", "small"):
        kept.select(shape)
        assert kept.get("latent", lambda shape=shape: make(f"{shape} latent")) == f"{shape} latent"
    assert made == ["small latent", "large latent"] and freed == []
    kept.select("new")
    assert freed == ["large latent"]
    kept.get("latent", lambda: make("new latent"))
    kept.shrink()
    assert freed == ["large latent", "small latent"]
    kept.shrink(0)
    assert freed[-1] == "new latent"
