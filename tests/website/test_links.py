"""Links of the repository as links of the site, and the list of pages."""

from __future__ import annotations

import re
from pathlib import Path

from website.links import anchor, for_site

ROOT = Path(__file__).parents[2]
SITES = {
    "README.md": "project/overview.md",
    "docs/README.md": "README.md",
    "docs/bank.md": "bank.md",
    "docs/images/a.png": "images/a.png",
    "launch/README.md": "project/launch.md",
}


def test_links_lead_to_the_same_page() -> None:
    text = "[a](docs/bank.md#add) ![b](docs/images/a.png) [c [d]](launch/README.md) [e](#here)"
    assert for_site(text, "README.md", SITES) == (
        "[a](../bank.md#add) ![b](../images/a.png) [c [d]](launch.md) [e](#here)"
    )
    assert for_site("[up](../README.md), [x](README.md#y)", "docs/bank.md", SITES) == (
        "[up](project/overview.md), [x](README.md#y)"
    )
    assert for_site("[d](../docs/README.md)", "launch/README.md", SITES) == "[d](../README.md)"


def test_what_is_not_on_the_site_is_words_and_code_stays() -> None:
    text = "[results](benchmarks/results.json) [w](https://a.b/c)\n```\n[a](docs/bank.md)\n```\n"
    assert for_site(text, "README.md", SITES) == text.replace(
        "[results](benchmarks/results.json)", "results"
    )


def test_anchors_are_those_of_github() -> None:
    assert anchor("Where EMCID is not better") == "where-emcid-is-not-better"
    assert anchor("Stage II's solver: A & B") == "stage-iis-solver-a--b"


def test_the_site_lists_every_page_of_docs_once() -> None:
    listed = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf8"), re.MULTILINE)
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(page for page in listed if "/" not in page) == sorted(pages)
