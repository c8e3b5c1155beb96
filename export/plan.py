"""The plan of a build, which all of its steps share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dod.model.dod import DOD
from export.cache import BuildCache
from export.fingerprints import hash_model, hash_tensors, settings_of
from export.graphs.condition_files import chosen_conditions, engine_conditions
from export.options import BuildOptions
from export.sources import MODEL, hash_sources

__all__ = ["BuildPlan", "make_plan"]


@dataclass(frozen=True)
class BuildPlan:
    """Options, model, cache and fingerprints that the steps of a build share.

    Attributes:
        options: options of the build.
        model: the model; the steps simplify it in place, and release its weights once the files hold them.
        cache: the build cache. Steps read finished files from it; only `pipeline` has it make them.
        images: calibration images, sorted by name.
        conditions: condition paths to build.
        engine_conditions: conditions that get an engine.
        checkpoint_sha256: hash of the trained tensors and prototypes.
        inputs: inputs of every artifact that depends on the model: hashes of its weights, settings and code.
    """

    options: BuildOptions
    model: DOD
    cache: BuildCache
    images: tuple[Path, ...]
    conditions: tuple[str, ...]
    engine_conditions: tuple[str, ...]
    checkpoint_sha256: str
    inputs: Mapping[str, Any]


def make_plan(options: BuildOptions, model: DOD, cache: BuildCache, images: tuple[Path, ...]) -> BuildPlan:
    """Return the plan for a model that has just been loaded.

    Args:
        options: options of the build.
        model: the model, before any simplification.
        cache: the build cache.
        images: calibration images, sorted by name.

    Raises:
        UsageError: the model does not know a condition, or an engine is asked for one that is not built.
    """
    conditions = chosen_conditions(model, options.conditions)
    return BuildPlan(
        options=options,
        model=model,
        cache=cache,
        images=images,
        conditions=conditions,
        engine_conditions=engine_conditions(conditions, options.engine_conditions),
        checkpoint_sha256=hash_model(model),
        inputs={
            "base": model.base_sha256,
            "checkpoint": hash_tensors(model.trained_tensors()),
            "settings": settings_of(model),
            "sources": hash_sources(*MODEL),
        },
    )
