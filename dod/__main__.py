"""Parameter counts of a model: those of each part, and those that each stage trains.

    dod-evaluate parameters                      # sd21, the scale of the paper
    dod-evaluate parameters --checkpoint mini

The model is built on the meta device. No weights are loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from torch import nn

from dod_runtime.console import Parser

from .checkpoint import preset_of
from .errors import run_command
from .model.dod import DOD, sized_model

__all__ = ["main", "parameters", "parser"]


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="dod-evaluate parameters", description="Count the parameters of a model.")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint",
        default="sd21",
        metavar="PRESET",
        help="preset or checkpoint folder whose model is counted: name, folder or preset.yaml (default: %(default)s)",
    )
    model.add_argument("former", nargs="?", help=argparse.SUPPRESS)  # before --checkpoint, the preset was positional
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = parser().parse_args(argv)
    preset, _ = preset_of(arguments.former or arguments.checkpoint)
    model = sized_model(preset)
    lora = preset.lora
    print(
        f"{preset.name}: rank {lora.rank}, conditional {lora.conditional}, N = {len(model.layers)} conditional layers"
    )
    for group, parts in parameters(model).items():
        print(f"\n{group:<24}{sum(parts.values()):>13,}{sum(parts.values()) / 1e6:>9.2f} M")
        for part, count in parts.items():
            print(f"  {part:<22}{count:>13,}{count / 1e6:>9.2f} M")
    return 0


def parameters(model: DOD) -> dict[str, dict[str, int]]:
    """Count the parameters of a model.

    Args:
        model: model, which may be on the meta device.

    Returns:
        Counts by part in the groups "frozen", "stage 1 trains (PLA)", "stage 2 trains (DEM)" and, if the model has it,
        "post-processing".
    """
    adaptation, detail = model.adaptation_parameters(), model.detail_parameters()
    fitted = model.postprocess_parameters()
    trained = {id(parameter) for part in (adaptation, detail, fitted) for parameter in part.values()}

    def frozen(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters() if id(p) not in trained)

    def counted(among: Mapping[str, nn.Parameter], start: str) -> int:
        return sum(p.numel() for name, p in among.items() if name.startswith(start))

    prompts = counted(adaptation, "modulation.prompts")
    post = {"gate": counted(fitted, "gate."), "sharpening filters": counted(fitted, "postprocess.")}
    return {
        "frozen": {
            "VAE encoder": frozen(model.encoder),
            "VAE decoder": frozen(model.decoder.post_quant_conv, model.decoder.decoder),
            "UNet": frozen(model.unet),
            "DDPM encoder": frozen(model.mfm.h_space),
        },
        "stage 1 trains (PLA)": {
            "LoRA of the UNet": counted(adaptation, "unet."),
            "LoRA of the encoder": counted(adaptation, "encoder."),
            "prompts": prompts,
            "M": counted(adaptation, "modulation.") - prompts,
        },
        "stage 2 trains (DEM)": {"detail modules": sum(p.numel() for p in detail.values())},
    } | ({"post-processing": post} if fitted else {})


if __name__ == "__main__":
    raise SystemExit(run_command(main))
