"""The report as a reader gets it: rendered by Chromium, whole, escaped, without any network."""

from __future__ import annotations

import base64
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emcid_jax.editing.bank.memories import Memory
from emcid_jax.evaluation.benchmarks.aice.gallery import Evaluation, Pair, Seen
from emcid_jax.evaluation.benchmarks.aice.protocol import AiceResult, HoldoutRecord, RequestRecord
from emcid_jax.evaluation.benchmarks.aice.scores import (
    HoldoutScores,
    SplitScores,
    aggregates,
    raw_scores,
)
from emcid_jax.evaluation.benchmarks.other_forms import FormRecall
from emcid_jax.evaluation.statistics.bootstrap import Metric
from emcid_jax.reporting.pages.edit import (
    FoundMemory,
    ReportData,
    Written,
    report_html,
    write_report,
)
from emcid_jax.reporting.pages.render import environment, number
from emcid_jax.reporting.plots.theme import LayerBar, layers_figure, loss_figure
from emcid_jax.reporting.published import published_value

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",  # for the wrapper that looks into the report
    "--virtual-time-budget=20000",
)
EVIL = '<script>document.title="taken"</script>" onerror="x {{7*7}} $\\frac{a$'


def image(path: Path, seed: int, size: int = 8) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def evaluation(folder: Path, requests: int = 3) -> Evaluation:
    def scores(gain: float) -> dict[str, float]:
        return {
            "pre_source": 0.9,
            "post_source": 0.1,
            "pre_source_dest": 0.05,
            "post_source_dest": 0.05 + gain,
            "pre_dest": 0.95,
            "post_dest": 0.9,
        }

    records, pairs = [], {}
    for i in range(requests):
        source = EVIL if i == 0 else f"source {i}"
        records.append(
            RequestRecord(i, source, f"dest {i}", i, i + 1, scores(0.8), scores(i / requests), {})
        )
        seen = Seen(image(folder / f"{i}.png", i, 300 if i == 1 else 8), f"dest {i}", 0.5)
        pairs[i] = Pair(source, f"a photo of {source}", i, seen, seen, seen)
    split = {
        name: SplitScores(
            **{f: np.array([getattr(r, name)[f] for r in records]) for f in SplitScores._fields}
        )
        for name in ("edit", "general")
    }
    held = HoldoutScores(np.array([0.9, 0.8]), np.array([0.85, 0.8]))
    sets = (split["edit"], split["general"], None, held)
    holdout = tuple(
        HoldoutRecord(f"class {i}", i, *pair) for i, pair in enumerate(zip(*held, strict=True))
    )
    result = AiceResult(
        aggregates(*sets), raw_scores(*sets), tuple(records), holdout, (f"request 9: {EVIL}",), 77
    )
    strip = tuple(Pair(f"class {i}", f"a class {i}", i, seen, seen) for i in range(2))
    return Evaluation(result, pairs, strip)


def written(*layers: int) -> Written:
    return Written([LayerBar(i, 2.0, 0.5, 0.01 * i) for i in layers], (3.25, 0.75))


def memory(before: float, after: float) -> Memory:
    point, losses = np.zeros(2, np.float32), np.array([1, 0, 0, 0], np.float32)
    return Memory(point, point, np.zeros(1, np.float32), before * losses, after * losses)


def report(folder: Path, requests: int = 3) -> ReportData:
    return ReportData(
        model="a <b>model</b>",
        requests=requests,
        evaluation=evaluation(folder, requests),
        forms=(FormRecall("the name itself", 3, 0.8671), FormRecall("plural", 2, 0.0125)),
        loss_curves=np.exp(-np.arange(30)[None] / 10 + np.zeros((requests, 1))),
        memories=[
            FoundMemory(f"source {i} → {EVIL if i == 7 else i}", memory(2.0, i / 8))
            for i in range(12)
        ],
        written={"text_encoder": written(7, 8, 9)},
        seconds={"stage_one": 12.5, "evaluation": 30.0},
        config={"task": EVIL, "stage_one": {"layer": 10}},
        versions={"jax": "0.10.2", "git": "abc123"},
    )


def dump_dom(page: Path, profile: Path) -> str:
    """What Chromium makes of the page after everything has loaded."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=300, check=True)
    return done.stdout.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_chromium_shows_every_number_and_picture(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report(tmp_path))
    # The wrapper looks into the report from outside: the report itself has no script.
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        # The page's load waits for the frame's, and the frame's for its pictures: no race.
        """<pre id="text"></pre><pre id="images"></pre><pre id="loads"></pre><script>
        const frame = document.createElement("iframe");
        frame.onload = () => {
          const inside = frame.contentWindow, page = inside.document;
          const put = (id, value) => { document.getElementById(id).textContent = value; };
          put("text", page.body.textContent);
          put("images", [...page.images].map((one) => one.naturalWidth).join(" "));
          const loads = inside.performance.getEntriesByType("resource");
          put("loads", loads.filter((one) => !one.name.startsWith("data:")).length);
        };
        frame.src = "report.html";
        document.body.append(frame);</script>"""
    )
    dom = dump_dom(wrapper, tmp_path / "profile")

    def part(name: str) -> str:
        found = re.search(rf'<pre id="{name}">(.*?)</pre>', dom, re.DOTALL)
        assert found, dom[:2000]
        return found[1]

    widths = [int(width) for width in part("images").split()]
    # 3 requests x 3 pictures, 2 hold-outs x 2, 3 plots; the 300 px pictures were made smaller.
    assert len(widths) == 9 + 4 + 3
    assert widths[:3] != [300] * 3
    assert min(widths) >= 8
    assert sorted(set(widths[:9])) == [8, 256]
    assert part("loads") == "0"
    text = " ".join(part("text").split())
    for shown in (
        "3 concepts edited in a &lt;b&gt;model&lt;/b&gt;",
        "0.333",  # generalization Source2Dest: (0 + 1/3 + 2/3) / 3
        "0.800",  # both Source Forgets
        "−0.025",  # Holdout Delta
        "0.154",  # (1/3 - 0.025) / 2
        "0.565",  # published, n = 10
        "source 2 → dest 2",
        "+0.667",
        "All 3 requests, best first",
        "the name itself387 %",
        "plural21.2 %",
        "The 10 of 12 with the largest share",
        "left source 11 → 112.0001.37569 % source 10",
        "class 1",
        "12.5 s",
        "42.5 s in all",
        "3.25 before, 0.75 after",
        "0.10.2",
        '&lt;script&gt;document.title="taken"&lt;/script&gt;" onerror="x {{7*7}} $\\frac{a$',
    ):
        assert shown in text, shown
    assert "<title>taken" not in dom


def test_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    html = report_html(report(tmp_path))
    bare = re.sub(r'src="data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+"', "", html)
    assert "src=" not in bare
    assert "href" not in bare
    assert "url(" not in bare
    assert "@import" not in bare
    assert "http://" not in bare
    assert "https://" not in bare
    assert "<script" not in html
    assert 'onerror="x' not in html
    assert EVIL not in html


def test_same_data_same_bytes(tmp_path: Path) -> None:
    data = report(tmp_path)
    assert report_html(data) == report_html(data)


def test_choice_is_best_median_worst(tmp_path: Path) -> None:
    html = report_html(report(tmp_path, requests=25))
    best, rest = html.split("The 6 best")[1].split("The 6 around the median")
    middle, worst = rest.split("The 6 worst")

    def sources(part: str) -> list[int]:
        return [int(n) for n in re.findall(r"<header><span>source (\d+) ", part)]

    assert sources(best) == [24, 23, 22, 21, 20, 19]
    assert sources(middle) == [15, 14, 13, 12, 11, 10]
    assert sources(worst) == [5, 4, 3, 2, 1]  # and request 0, whose name is not "source 0"
    assert "18 of 25 requests, chosen by rank" in html


def test_without_evaluation(tmp_path: Path) -> None:
    html = report_html(dataclasses.replace(report(tmp_path), evaluation=None))
    assert "This run was not evaluated." in html
    assert "Stage I" in html
    assert "All aggregates" not in html
    empty = report_html(ReportData("m", 1))
    assert "1 concept edited in m" in empty
    assert "<h2>" not in empty


def test_every_text_encoder_has_its_bars() -> None:
    one = report_html(ReportData("m", 1, written={"text_encoder": written(7, 8)}))
    assert one.count("<img") == 1
    assert "Stage II: the residual" in one
    other = Written(written(3).layers, (1.5, 0.25))
    parts = {"text_encoder": written(7, 8), "text_encoder_2": other}
    both = report_html(ReportData("m", 1, written=parts))
    bars = [base64.b64encode(layers_figure(part.layers)).decode() for part in parts.values()]
    places = [both.index(bar) for bar in bars]
    first, second = both[places[0] : places[1]], both[places[1] :]
    assert "Stage II in text_encoder:" in first
    assert "3.25 before, 0.75 after" in first
    assert "Stage II in text_encoder_2:" in second
    assert "1.5 before, 0.25 after" in second
    alone = report_html(ReportData("m", 1, written={"text_encoder_2": other}))
    assert "Stage II in text_encoder_2:" in alone


def test_requests_nobody_could_score(tmp_path: Path) -> None:
    result = AiceResult({}, {}, (), (), ("request 1: why",), 0)
    html = report_html(ReportData("m", 1, Evaluation(result, {}, ())))
    assert "request 1: why" in html


def test_numbers() -> None:
    assert [number(v) for v in (0.1234, -0.5, -0.0001, None)] == ["0.123", "−0.500", "0.000", "–"]
    assert number(0.5, sign=True) == "+0.500"
    assert number(-0.5, sign=True) == "−0.500"


def test_gauge_of_a_loss_ends_at_zero() -> None:
    gauge = environment().get_template("pieces.html").module.gauge
    svg = gauge(Metric(-0.25, -0.5, 0.0, 4, -1.0))
    # 4 to 196 spans -1 to 0: the bar runs from -0.25 (148) to 0 (196), the whisker from 100.
    assert '<rect x="148.0" y="8" width="48.0"' in svg
    assert "M100.0 12H196.0" in svg


def test_published_figures() -> None:
    assert published_value("holdout_delta", 300) == -0.174
    assert published_value("holdout_delta", 26) == -0.043  # nearest: n = 10
    assert published_value("generalization_source2dest", 60) == 0.543
    assert published_value("average_score", 300) == pytest.approx((0.508 - 0.174) / 2)
    assert published_value("alias_forget", 300) is None


def test_figures_do_not_touch_global_state() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    assert b"<svg" in loss_figure(np.zeros((2, 3)))
    assert b"<svg" in layers_figure([LayerBar(0, 1.0, 0.5, 0.1)])
    assert dict(mpl.rcParams) == before
