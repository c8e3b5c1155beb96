"""What a preset's model is made of: the parameters of each part, and how many of them each stage trains.

    python -m dod          # sd21, the paper's scale
    python -m dod mini

Counted on the meta device, from the preset alone: no weights are loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from torch import nn

from .config import load_preset
from .errors import run_command
from .model.dod import DOD, sized_model


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dod", description="Count the parameters of a preset's model.")
    parser.add_argument("preset", nargs="?", default="sd21", help="name, folder or YAML file; default sd21")
    preset = load_preset(parser.parse_args(argv).preset)
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
    """The number of parameters of each part, in the groups "frozen", "stage 1 trains" and "stage 2 trains", and
    "post-processing" where the preset has it."""
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
