"""Tables of statistics."""

from __future__ import annotations

from dod.random_weights.tables import by_block, summary


def test_layers_are_grouped_by_block() -> None:
    layers = {"down_blocks.0.conv1": (0.5, 3.0), "down_blocks.0.conv2": (1.5, 9.0), "conv_out": (0.1, 1.0)}
    _, *rows = by_block({"unet": layers}).splitlines()
    assert [row.split() for row in rows] == [
        ["unet", "down_blocks.0", "2", "0.500", "1.000", "1.500", "9.0"],
        ["unet", "conv_out", "1", "0.100", "0.100", "0.100", "1.0"],
    ]


def test_a_summary_has_a_line_for_each_measurement() -> None:
    assert [line.split() for line in summary({"latent": 0.25, "image": 1}).splitlines()] == [
        ["latent", "0.2500"],
        ["image", "1.0000"],
    ]
