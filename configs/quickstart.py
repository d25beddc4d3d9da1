"""Edits 30 requests in the bundled sprite model and measures the result, in minutes on a laptop."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from emcid_jax import config as settings


def get_config() -> ConfigDict:
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(
                path=str(Path(__file__).resolve().parent / "quickstart.json")
            ),
        )
    )
