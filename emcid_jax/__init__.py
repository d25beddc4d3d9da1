"""Text encoders of Stable Diffusion, edited: `docs/python.md` shows these names at work.

They are loaded when one of them is first used, so that `import emcid_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emcid_jax.api import (
        ConceptBank,
        EditRequest,
        ModelConfig,
        Pipeline,
        RunConfig,
        SecondMoments,
        StageOneConfig,
        StageTwoConfig,
        UserError,
        WeightEdit,
        apply,
        export,
        load_pipeline,
        run_stage_one,
        sample,
        second_moments,
        solve,
    )

__all__ = [
    "ConceptBank",
    "EditRequest",
    "ModelConfig",
    "Pipeline",
    "RunConfig",
    "SecondMoments",
    "StageOneConfig",
    "StageTwoConfig",
    "UserError",
    "WeightEdit",
    "apply",
    "export",
    "load_pipeline",
    "run_stage_one",
    "sample",
    "second_moments",
    "solve",
]
_RENAMED = {"measure": "second_moments", "memorize": "run_stage_one"}


def __getattr__(name: str) -> Any:
    """The public name `name` of `emcid_jax.api`. AttributeError if there is none."""
    if name in _RENAMED:
        raise AttributeError(f"emcid_jax.{name} is now called emcid_jax.{_RENAMED[name]}")
    if name not in __all__:
        raise AttributeError(f"module 'emcid_jax' has no attribute {name!r}")
    return getattr(importlib.import_module("emcid_jax.api"), name)


def __dir__() -> list[str]:
    """What there is already, and the names that are not loaded yet."""
    return sorted({*globals(), *__all__})
