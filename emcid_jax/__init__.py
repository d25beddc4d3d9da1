"""Text encoders of Stable Diffusion, edited: `docs/python.md` shows the calls below at work.

Names are loaded when they are first used, so that `import emcid_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emcid_jax.api import (
        ConceptBank,
        apply,
        export,
        load_pipeline,
        measure,
        memorize,
        sample,
        solve,
    )

__all__ = [
    "ConceptBank",
    "apply",
    "export",
    "load_pipeline",
    "measure",
    "memorize",
    "sample",
    "solve",
]


def __getattr__(name: str) -> Any:
    """The public name `name` of `emcid_jax.api`."""
    if name not in __all__:
        raise AttributeError(f"module 'emcid_jax' has no attribute {name!r}")
    return getattr(importlib.import_module("emcid_jax.api"), name)
