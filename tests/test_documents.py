"""README.md, docs/ and the other pages: links and paths lead somewhere, numbers have their zero."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    {
        page
        for pattern in ("*.md", "docs/*.md", "*/README.md", "emcid_jax/**/*.md")
        for page in ROOT.glob(pattern)
        if page.name != "CHANGELOG.md"  # It names files as they were.
    }
)
CODE = re.compile(r"```.*?```", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text("utf8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text("utf8")
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text)):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if re.match(r"[a-z]+:", link) is None and not (
            file.exists() and (not anchor or anchor in anchors(file))
        ):
            wrong.append(link)
    paths = re.findall(r"`((?:emcid_jax|benchmarks|studies|configs|launch|tests)/[\w./]+)`", text)
    wrong += [path for path in paths if not (ROOT / path).exists()]
    modules = re.findall(r"python -m ((?:benchmarks|studies)\.\w+)", text)
    files = [(name, ROOT / name.replace(".", "/")) for name in modules]
    wrong += [
        name
        for name, file in files
        if not file.with_suffix(".py").exists() and not (file / "__main__.py").exists()
    ]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_the_package_exist(page: Path) -> None:
    wrong = []
    for name in re.findall(r"`(emcid_jax(?:\.\w+)+)", page.read_text("utf8")):
        path = name.replace(".", "/")
        module, _, attribute = path.rpartition("/")
        files = [ROOT / f"{module}.py", ROOT / module / "__init__.py"]
        text = "".join(file.read_text("utf8") for file in files if file.exists())
        is_module = (ROOT / path).is_dir() or (ROOT / f"{path}.py").exists()
        if not is_module and not re.search(rf"\b{attribute}\b", text):
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_numbers_have_a_leading_zero(page: Path) -> None:
    assert not re.findall(r"(?<![\w.\])])\.\d+", page.read_text("utf8"))
