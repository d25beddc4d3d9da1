"""What a release says of itself: one version everywhere, renamed things listed, a citation."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import emcid_jax
from emcid_jax.config import renamed

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf8")


def test_one_version_everywhere() -> None:
    newest = re.findall(r"^## (\S+)", CHANGELOG, re.MULTILINE)[0]
    packaged = re.findall(r'version="(.*)"', (ROOT / "setup.py").read_text("utf8"))
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))["version"]
    assert [newest, *packaged] == [cited, cited]


def test_the_changelog_lists_what_was_renamed_beside_its_new_name() -> None:
    rows = [line.split("|")[1:3] for line in CHANGELOG.splitlines() if line.startswith("| ")]
    names = {**renamed.SETTINGS, **renamed.TASKS, **emcid_jax._RENAMED}
    missing = [
        old
        for old, new in names.items()
        if not any(
            f"{old.removeprefix('config.')}`" in before and new in after for before, after in rows
        )
    ]
    assert not missing


def test_the_citation_names_the_papers_authors() -> None:
    """Fields that version 1.2.0 of the format asks for; its authors must differ from each other."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == (
        ["Xiong", "Wu", "Xie", "Wu", "Li", "Liu"]
    )
    assert len({tuple(author.values()) for author in paper["authors"]}) == 6
    assert paper["url"].endswith("2403.13807")


def test_forms_for_issues_have_the_fields_that_github_asks_for() -> None:
    forms = [
        path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"
    ]
    assert forms
    for form in forms:
        content = yaml.safe_load(form.read_text("utf8"))
        assert {"name", "description", "body"} <= content.keys(), form.name
        ids = [field["id"] for field in content["body"]]
        assert len(set(ids)) == len(ids), form.name
        assert all(field["attributes"]["label"] for field in content["body"]), form.name
