"""Components that are ready to be traced, and copies without storage."""

from __future__ import annotations

import pickle

from dod.model.dod import DOD
from export.graphs.components import meta_copy, plan


def test_plans_of_decoder_and_merged_unet(model: DOD) -> None:
    decoder, merged = plan(model, "decoder"), plan(model, "unet_merged")
    assert list(decoder.inputs) == ["latent_restored", "skip_0", "skip_1"] and decoder.outputs == ("image",)
    assert decoder.axes["skip_1"] == decoder.axes["latent_restored"] == {0: "batch", 2: "height/2", 3: "width/2"}
    assert decoder.axes["skip_0"] == {0: "batch", 2: "height", 3: "width"}
    assert list(merged.inputs) == ["latent"] and not [n for n, _ in merged.module.named_parameters() if "lora" in n]


def test_a_meta_copy_has_the_structure_and_no_values(model: DOD) -> None:
    bare = meta_copy(model)
    assert {tensor.device.type for tensor in bare.state_dict().values()} == {"meta"}
    assert {name: value.shape for name, value in bare.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    pickle.loads(pickle.dumps(bare))  # worker processes receive it
