"""URLs of mirrors: what is missing is named."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.mirror.remote_folder import open_remote


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("gcsfs"):
            raise ImportError("No module named 'gcsfs'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"config\.run\.mirror is 'gs.*gcsfs.*\[mirror-gcs\]"):
        open_remote("gs://bucket/run", "config.run.mirror is 'gs://bucket/run'")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"^it: Protocol not known: nowhere.*; give a URL"):
        open_remote("nowhere://bucket/run", "it")
