"""The plan of a build: its conditions and the fingerprints of the model."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from dod.model.dod import DOD
from dod_runtime.errors import UsageError
from export.fingerprints import hash_model, hash_tensors, settings_of
from export.plan import make_plan
from tests.export.conftest import MakePlan


def test_conditions(make: MakePlan) -> None:
    plan = make()
    assert plan.conditions == ("rain", "haze") and plan.engine_conditions == ("rain",)


def test_prototypes_do_not_change_the_inputs_of_graphs(model: DOD, make: MakePlan) -> None:
    plan, changed = make(), copy.deepcopy(model)
    changed.prototypes["rain"] = changed.prototypes["rain"] + 1
    assert plan.inputs["checkpoint"] == hash_tensors(changed.trained_tensors())
    assert plan.checkpoint_sha256 == hash_model(model) != hash_model(changed)
    name, value = next(iter(changed.trained_tensors().items()))
    assert hash_tensors({name: value + 1}) != hash_tensors({name: value}) != hash_tensors({f"{name}.": value})
    assert plan.inputs["settings"] == settings_of(changed)


def test_an_unknown_engine_condition(make: MakePlan) -> None:
    plan = make()
    with pytest.raises(UsageError, match="rian"):
        make_plan(replace(plan.options, engine_conditions=["rian"]), plan.model, plan.cache, ())
