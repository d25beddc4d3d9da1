"""Hooks of `mkdocs build`: pages outside `docs/`, generated references, links."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import emcid_jax
import links
import settings_page
from emcid_jax import main

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "project/overview.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "launch/README.md": "project/launch.md",
    "benchmarks/README.md": "project/benchmarks.md",
    "emcid_jax/sprites/weights/README.md": "project/sprites.md",
    "emcid_jax/sprites/weights_xl/README.md": "project/sprites_xl.md",
}
"""Pages of the repository beside `docs/`, and where they are on the site."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings have the anchors that GitHub gives them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = links.anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside `docs/` and the generated ones."""
    contents = {site: (ROOT / path).read_text("utf8") for path, site in OUTSIDE.items()}
    contents["reference/settings.md"] = settings_page.page(_tasks())
    contents["reference/api.md"] = _api_page()
    for path, content in contents.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site."""
    sites = {f"docs/{file.src_uri}": file.src_uri for file in files} | OUTSIDE
    inverse = {site: path for path, site in sites.items()}
    return links.for_site(markdown, inverse[page.file.src_uri], sites)


def _tasks() -> list[settings_page.Task]:
    modules: dict[str, Any] = {
        name: importlib.import_module(f"emcid_jax.tasks.{name}") for name in main.TASKS
    }
    return [
        settings_page.Task(name, module.Config, getattr(module, "UNREAD", ()))
        for name, module in modules.items()
    ]


def _api_page() -> str:
    """A section for every name of `import emcid_jax`."""
    names = [getattr(emcid_jax, name) for name in emcid_jax.__all__]
    parts = [f"::: {found.__module__}.{found.__qualname__}" for found in names]
    about = "The names of `import emcid_jax`. [Use from Python](../python.md) shows them at work."
    return "\n\n".join(["# Python interface", about, *parts])
