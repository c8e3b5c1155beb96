"""Replacing the base of a checkpoint by one with a trained decoder, so that both change together or not at all."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL

from ..checkpoint import copy_trained, read_metadata
from ..model.dod import DOD
from .parts import backup_of, publish, read_part, read_record, replace_folder
from .processes import is_main_process, process, say

__all__ = ["rebased", "recover_base"]


def rebased(model: DOD, run: dict[str, object]) -> DOD:
    """Write the base of a model with the decoder that it trained, and return the model on that base.

    Args:
        model: the model. The base's folder, which its preset names, is rewritten.
        run: record of the run, which is added to those of the base.

    Returns:
        A model with the same trained weights on the new base.
    """
    preset = model.preset
    folder = preset.folder / preset.base.source / "vae"
    vae = read_part(AutoencoderKL, folder)
    vae.load_state_dict({**vae.state_dict(), **model.decoder.base_parameters()})
    publish(vae, folder, [*read_record(folder), run])
    process().wait_for_everyone()
    on_new_base = DOD.from_preset(preset)
    copy_trained(model, on_new_base)
    return on_new_base


def recover_base(base: Path, checkpoint: Path) -> None:
    """Restore the base if a run was killed after it wrote the base and before it wrote the checkpoint.

    The run can then resume from its state.

    Args:
        base: folder of the base's autoencoder.
        checkpoint: folder of the checkpoint.
    """
    backup = backup_of(base)
    if is_main_process() and backup.is_dir():
        runs, recorded = read_record(base), read_metadata(checkpoint).get("training", [])
        changed = read_record(backup) == runs[:-1] != runs and runs[-1].get("stage") == 2
        if changed and runs[-1] not in recorded:
            say(f"a run was killed between base and checkpoint: {base} is restored to its former weights")
            replace_folder(backup, base)
    process().wait_for_everyone()
