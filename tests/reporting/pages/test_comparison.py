"""The page of a comparison as a reader gets it: rendered by Chromium, without any network."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emcid_jax.reporting.pages.comparison import ComparisonData, Gathered, report_html
from emcid_jax.reporting.plots.before_after import choose, make_grid, sheet
from emcid_jax.reporting.plots.comparison import exponents
from emcid_jax.reporting.plots.curves import Curves, Point, exponent, figure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--virtual-time-budget=20000",
)
EVIL = '<script>document.title="taken"</script>" {{7*7}} $\\frac{a$'
WRAPPER = """<pre id="found"></pre><script>
const frame = document.createElement("iframe");
frame.onload = () => {
  const inside = frame.contentWindow, page = inside.document;
  const loads = inside.performance.getEntriesByType("resource");
  document.getElementById("found").textContent = [
    loads.filter((one) => !one.name.startsWith("data:")).length,
    page.scripts.length,
    [...page.images].map((one) => one.naturalWidth).join(" "),
    page.body.textContent,
  ].join("\\u0001");
};
frame.src = "page.html";
document.body.append(frame);</script>"""


def cell(name: str, count: int, shown: float, stays: float, *, intact: bool = True) -> dict:
    def figures(**values: float) -> dict[str, Any]:
        return {key: {"value": x, "low": x - 0.05, "high": x} for key, x in values.items()}

    h = 2 / (1 / shown + 1 / stays)
    return {
        "count": count,
        "name": name,
        "clean": figures(gone=0.1, shown=0.02, acc_s=0.96, own=0.98),
        "edited": figures(gone=0.99, shown=shown, acc_s=stays, h=h, h_dest_unseen=h)
        | {"shown_unseen": {"value": shown, "low": None, "high": None}},
        "guard": {"intact": intact},
        "seconds": 3.0 * count,
        "processor": 5.0 * count**1.5,
        "mebibytes": None if name == EVIL else 700.0 + count,
        "aice": {"aice": {"holdout_delta": {"value": -0.125}}},
        "forms": {"plural": {"names": 38, "value": stays / 10}} if name == "EMCID" else {},
    }


ROWS = [
    cell(name, count, shown - count / 5000, stays - count / 5000, intact=name == "EMCID")
    for count in (10, 100, 300, 1000)
    for name, shown, stays in (("EMCID", 0.94, 0.91), (EVIL, 0.99, 0.3))
]


def records(folder: Path, many: int) -> list[dict[str, Any]]:
    found = []
    for i in range(many):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        for side in ("before", "after"):
            (folder / side).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / side / f"{i}.png")
        names = {"source": f"source {i}", "dest": f"dest {i}", "prompt": f"a source {i}"}
        names |= {"picture": f"{i}.png", "wanted": f"{i}.png" if i % 2 else None}
        found.append(names | {"score": i / many, "task": "update"})
    return found


def data(folder: Path) -> ComparisonData:
    grid = make_grid(
        "EMCID, 100 requests", records(folder, 9), folder / "before", folder / "after", 2
    )
    image = (folder / "before" / "0.png").read_bytes()
    gathered = [Gathered("Which layers", EVIL, image, "image/png")]
    return ComparisonData("a model", ROWS, grid, gathered, {"task": EVIL}, {"jax": "0.10.2"})


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_html(data(tmp_path_factory.mktemp("comparison")))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_chromium_shows_tables_curves_and_pictures(html: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html, "utf8")
    (tmp_path / "wrapper.html").write_text(WRAPPER)
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "wrapper.html").as_uri()],
        capture_output=True,
        timeout=300,
        check=True,
    )
    dom = done.stdout.decode()
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[:2000]
    loads, scripts, widths, text = found[1].split("\x01")
    text = " ".join(text.replace("&nbsp;", " ").split())
    assert (loads, scripts) == ("0", "0")
    sizes = [int(width) for width in widths.split()]
    # Curves; six requests before and after, three of them also as wanted; cost; one gathered.
    assert len(sizes) == 1 + 6 * 2 + 3 + 1 + 1
    assert min(sizes) == 8
    for shown in (
        "After 1,000 requests at once, EMCID shows the destination in 0.74",
        "Of the held-out names 0.71 are drawn right (unedited model: 0.96)",
        "n = 10: EMCID (0.92)",
        '&lt;script&gt;document.title="taken"&lt;/script&gt;" {{7*7}} $\\frac{a$',
        "unedited",
        "dest 8",
        "The 2 best",
        "SD 1.4, n = 50",
        "celebrities, SPEED's protocol",
        "1,000 requests. Methods that leave the text encoder as it is are not here.",
        "plural380.07",
        "−0.125",
        "−0.174",  # Published.
        "1.500",  # Exponent of processor time.
        "Which layers",
        "0.10.2",
    ):
        assert shown in text, shown
    assert "<title>taken" not in dom


def test_page_refers_to_nothing_outside_itself(html: str, tmp_path: Path) -> None:
    bare = re.sub(r'src="data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+"', "", html)
    for word in ("src=", "href", "url(", "@import", "http://", "https://", "<script"):
        assert word not in bare
    empty = report_html(dataclasses.replace(data(tmp_path), rows=(), grid=None, gathered=()))
    assert "No cell has been measured yet" in empty


def test_bold_is_the_best_but_a_broken_models_forgetting(html: str) -> None:
    emcid = re.findall(r"(?s)<tr><th>EMCID</th>.*?</tr>", html)[0]
    broken = re.findall(r"(?s)<tr><th>&lt;script.*?</tr>", html)[0]
    bold = [re.findall(r"<b>(.*?)</b>", row) for row in (emcid, broken)]
    # Both erase 0.99. One side: source erased, held out, H, H_dest; the other: edit success, twice.
    assert bold == [["0.99", "0.91", "0.92", "0.92"], ["0.99", "0.99"]]
    assert '<span class="bad">no</span>' in broken


def test_pictures_are_chosen_by_rank(tmp_path: Path) -> None:
    chosen = choose(records(tmp_path, 9), 3)
    names = {part: [one["source"][-1] for one in found] for part, found in chosen.items()}
    assert names == {"best": list("876"), "median": list("543"), "worst": list("210")}
    grid = make_grid("t", records(tmp_path, 2), tmp_path / "before", tmp_path / "after", 3)
    with Image.open(write(tmp_path / "grid.png", sheet(grid))) as image:
        assert image.width == round(7.5 * 110)


def test_exponents_by_hand() -> None:
    points = [Point(count, 2.0 * count**1.5) for count in (10, 100, 300, 1000)]
    assert exponent([Point(10, 1e9), *points[1:]]) == pytest.approx(1.5)
    assert exponent(points[1:3]) is None
    found = exponents(ROWS)
    assert found["seconds"]["EMCID"] == pytest.approx(1.0)
    assert found["mebibytes"][EVIL] is None


def test_curves_are_drawn_alike_every_time() -> None:
    panel = Curves("t", {"a": [Point(1, 0.5), Point(10, 0.4, 0.3, 0.5, True)], "b": []})
    assert figure([panel], ["a", "b"]) == figure([panel], ["a", "b"])
    assert figure([panel], ["a", "b"], kind="png").startswith(b"\x89PNG")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
