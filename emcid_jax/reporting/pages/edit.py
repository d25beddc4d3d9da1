"""`report.html`: one file that needs no network, no script and no second look to be understood."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from emcid_jax.evaluation.benchmarks.aice_gallery import Evaluation
from emcid_jax.evaluation.benchmarks.aice_protocol import RequestRecord
from emcid_jax.evaluation.statistics.bootstrap import Metric
from emcid_jax.reporting.pages import components as page
from emcid_jax.reporting.pages.components import cells, escape, number, table
from emcid_jax.reporting.plots import theme
from emcid_jax.reporting.published import (
    MEANINGS,
    PUBLISHED_REQUESTS,
    published_column,
    published_value,
)
from emcid_jax.runtime.files import write_atomically

SHOWN = 6
"""Requests shown from the top, the middle and the bottom of the ranking."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReportData:
    """All a report shows, as plain data; what is None or empty is left out."""

    model: str
    """Name of the edited model."""
    requests: int
    """Edit requests of the run."""
    evaluation: Evaluation | None = None
    loss_curves: Float[np.ndarray, "request step"] | None = None
    """Stage I's training losses."""
    layers: Sequence[theme.LayerBar] = ()
    """Stage II, one entry per edited block."""
    distance: tuple[float, float] | None = None
    """Root mean square distance of the states to their memories before and after Stage II."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Wall time per phase, in order."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The resolved settings."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Packages, commit, device."""


def write_report(path: Path, data: ReportData) -> None:
    """Write the report atomically; pictures named in `data` must exist."""
    write_atomically(path, report_html(data).encode())


def report_html(data: ReportData) -> str:
    """The whole page as text."""
    sections = [_head(data)]
    if data.evaluation is not None:
        sections += [
            _cards(data.evaluation.result.metrics),
            _aggregates(data.evaluation, data.requests),
            _gallery(data.evaluation),
            _holdout(data.evaluation),
            _requests(data.evaluation),
        ]
    sections += [_making(data), page.settings(data.config, data.versions), _footer()]
    title = f"{data.requests} edits of {data.model}"
    return page.document(title, sections)


def _head(data: ReportData) -> str:
    what = "concept" if data.requests == 1 else "concepts"
    head = (
        f'<p class="over">emcid_jax · report</p><h1>{data.requests} {what} edited in '
        f"{escape(data.model)}</h1>"
    )
    if data.evaluation is None:
        return head + "<p>This run was not evaluated.</p>"
    raw = data.evaluation.result.raw
    sentences = []
    if "post_source_dest_cls_score_general" in raw:
        sentences.append(
            "Asked for an edited concept in a sentence it never saw, the model now draws the "
            "destination with a mean probability of "
            f"<b>{number(raw['post_source_dest_cls_score_general'])}</b> "
            f"(before: {number(raw['pre_source_dest_cls_score_general'])}), and the old concept "
            f"with <b>{number(raw['post_source_cls_score_general'])}</b> "
            f"(before: {number(raw['pre_source_cls_score_general'])})."
        )
    if "post_cls_score_specificity" in raw:
        sentences.append(
            "What nobody edited is drawn right with "
            f"<b>{number(raw['post_cls_score_specificity'])}</b> "
            f"(before: {number(raw['pre_cls_score_specificity'])})."
        )
    note = (
        "A probability is the softmax output of an independent image classifier, the judge, for "
        "the class in question: mean over the images of a request, then over requests."
    )
    body = "".join(f'<p class="lead">{sentence}</p>' for sentence in sentences)
    return f'{head}{body}<p class="note">{note}</p>'


_HEADLINES = (
    (
        "generalization_source2dest",
        "Source → destination",
        "How much probability the destination gains in sentences the edit never saw.",
    ),
    (
        "generalization_source_forget",
        "Source is gone",
        "How much probability the source itself loses in the same sentences.",
    ),
    (
        "holdout_delta",
        "Everything else stays",
        "How the right class's probability changes for concepts nobody edited.",
    ),
    (
        "average_score",
        "Both in one number",
        "Mean of the first and the third, the released code's “F1”.",
    ),
)


def _cards(metrics: Mapping[str, Metric]) -> str:
    cards = []
    for key, title, text in _HEADLINES:
        if key not in metrics:
            continue
        metric, meaning = metrics[key], MEANINGS[key]
        spread = page.interval(metric)
        if metric.reachable is not None:
            text += f" Orange, {number(metric.reachable)}: the clean model asked for it outright."
        where = "" if meaning.group in ("Both", "Specificity") else f"{meaning.group} "
        cards.append(
            f'<div class="card"><h3>{title}</h3><div class="number">{number(metric.value)}</div>'
            f'<div class="interval">{"95 %: " + spread if spread else "no interval"}</div>'
            f'{page.gauge(metric)}<p>{text}</p><p class="name">{escape(where + meaning.name)}</p>'
            "</div>"
        )
    return f'<section class="cards">{"".join(cards)}</section>'


def _aggregates(evaluation: Evaluation, requests: int) -> str:
    metrics, count = evaluation.result.metrics, len(evaluation.result.records)
    nearest = PUBLISHED_REQUESTS[published_column(requests)]
    rows, group = [], ""
    for key, meaning in MEANINGS.items():
        if key not in metrics:
            continue
        if meaning.group != group:
            group = meaning.group
            rows.append(f'<tr class="group"><th colspan="6">{escape(group)}</th></tr>')
        metric = metrics[key]
        published = published_value(key, requests)
        rows.append(
            f"<tr><th>{escape(meaning.name)}<br><small>{escape(meaning.text)}</small></th>"
            + cells([f"<b>{number(metric.value)}</b><br><small>{page.interval(metric)}</small>"])
            + cells([str(metric.count), number(metric.bound)], "n wide")
            + cells([number(published)], "n other")
            + f'<td class="wide short">{escape(meaning.best)}</td></tr>'
        )
    head = (
        "<th>aggregate</th>",
        '<th class="n">this run<br><small>95 % interval</small></th>',
        '<th class="n wide">averaged over</th>',
        '<th class="n wide">limit</th>',
        f'<th class="n other">published, SD 1.4<br>n = {nearest}</th>',
        '<th class="wide">better</th>',
    )
    text = (
        f"AICE over {count} requests and {len(evaluation.result.holdout)} hold-out classes, "
        f"{evaluation.result.images} images per model. Intervals resample requests (aliases with "
        "their request, hold-out classes on their own). The grey column belongs to another "
        "model: EMCID on Stable Diffusion 1.4 at the nearest published number of edits, read off "
        "the authors' plots to about ±0.005 to ±0.015. It says what is usual, not what this model "
        "should reach. Its average is the mean of the two published figures."
    )
    skipped = "".join(f"<li>{escape(line)}</li>" for line in evaluation.result.skipped)
    if skipped:
        skipped = (
            f"<details><summary>Requests that AICE cannot score: {len(evaluation.result.skipped)}"
            f"</summary><ul>{skipped}</ul></details>"
        )
    return f"<section><h2>All aggregates</h2><p>{text}</p>{table(head, rows)}{skipped}</section>"


def _gain(record: RequestRecord) -> float:
    scores = record.general or record.edit
    return scores["post_source_dest"] - scores["pre_source_dest"]


def _gallery(evaluation: Evaluation) -> str:
    ranked = sorted(evaluation.result.records, key=lambda r: (-_gain(r), r.index))
    if not ranked:
        return ""
    if len(ranked) <= 3 * SHOWN:
        groups = [(f"All {len(ranked)} requests, best first", ranked)]
        choice = "All requests"
    else:
        middle = (len(ranked) - SHOWN) // 2
        groups = [
            (f"The {SHOWN} best", ranked[:SHOWN]),
            (f"The {SHOWN} around the median", ranked[middle : middle + SHOWN]),
            (f"The {SHOWN} worst", ranked[-SHOWN:]),
        ]
        choice = f"{3 * SHOWN} of {len(ranked)} requests, chosen by rank and not by looks"
    parts = []
    for title, records in groups:
        made = [
            page.request_card(evaluation.pairs[r.index], r.source, r.dest, _gain(r))
            for r in records
        ]
        parts.append(f'<h3>{title}</h3><div class="pairs">{"".join(made)}</div>')
    text = (
        f"{choice}: ordered by Source2Dest of the request (top right). One prompt each, the same "
        "seed in all three pictures; “wanted” is the clean model asked for the destination. Under "
        "a picture: what the judge sees, and how sure it is."
    )
    return f"<section><h2>Before and after</h2><p>{text}</p>{''.join(parts)}</section>"


def _holdout(evaluation: Evaluation) -> str:
    pairs = evaluation.holdout_pairs
    if not pairs:
        return ""
    text = (
        f"{len(pairs)} classes that no request edits, spread evenly over the list of "
        f"{len(evaluation.result.holdout)} before anything was drawn; before the edit on the left, "
        "after it on the right."
    )
    strip = "".join(page.holdout_card(pair) for pair in pairs)
    return (
        f"<section><h2>What must not change</h2><p>{text}</p>"
        f'<div class="strip">{strip}</div></section>'
    )


def _requests(evaluation: Evaluation) -> str:
    records = evaluation.result.records
    if not records:
        return ""
    scores = [record.general or record.edit for record in records]
    svg = theme.scores_figure(
        np.array([s["pre_source_dest"] for s in scores], np.float64),
        np.array([s["post_source_dest"] for s in scores], np.float64),
    )
    chart = page.plot(
        svg,
        "destination probability per request before and after the edit",
        "Probability of the destination on source prompts, one column per request.",
    )
    rows = [_request_row(record) for record in records]
    head = (
        '<th class="n">#</th><th>source → destination</th>',
        '<th class="n">source, templates</th><th class="n">destination, templates</th>',
        '<th class="n">source, sentences</th><th class="n">destination, sentences</th>',
        '<th class="n">own name of destination</th>',
    )
    opened = " open" if len(records) <= 3 * SHOWN else ""
    return (
        f"<section><h2>Request by request</h2>{chart}<details{opened}><summary>Table of all "
        f"{len(records)} requests</summary><p class='note'>Mean probability before → after "
        f"the edit.</p>{table(head, rows)}</details></section>"
    )


def _request_row(record: RequestRecord) -> str:
    def change(scores: Mapping[str, float] | None, name: str) -> str:
        if scores is None:
            return "–"
        return f"{scores[f'pre_{name}']:.2f} → <b>{scores[f'post_{name}']:.2f}</b>"

    return (
        f'<tr><td class="n">{record.index + 1}</td>'
        f"<th>{escape(record.source)} → {escape(record.dest)}</th>"
        + cells(
            [
                change(record.edit, "source"),
                change(record.edit, "source_dest"),
                change(record.general, "source"),
                change(record.general, "source_dest"),
                change(record.general or record.edit, "dest"),
            ]
        )
        + "</tr>"
    )


def _making(data: ReportData) -> str:
    plots = []
    if data.loss_curves is not None and data.loss_curves.size:
        plots.append(
            page.plot(
                theme.loss_figure(data.loss_curves),
                "training loss of Stage I against step",
                f"Stage I: training loss of {len(data.loss_curves)} memories. Lower means that the "
                "source prompt behaves more like the destination prompt.",
            )
        )
    if data.layers:
        caption = (
            "Stage II: what each block was asked to write, what regularisation left of it, and "
            "how much its weights changed."
        )
        if data.distance is not None:
            caption += (
                f" Distance to the memories: {data.distance[0]:.3g} before, "
                f"{data.distance[1]:.3g} after."
            )
        plots.append(
            page.plot(
                theme.layers_figure(data.layers),
                "residuals and weight change of every edited block",
                caption,
            )
        )
    if not plots and not data.seconds:
        return ""
    return (
        f'<section><h2>How the edit was made</h2><div class="plots">{"".join(plots)}</div>'
        f"{_seconds(data.seconds)}</section>"
    )


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    longest = max(max(seconds.values()), 1e-9)
    rows = [
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td class='n'>{value:.1f} s</td>"
        f'<td style="width: 60%"><span class="bar" style="width: {100 * value / longest:.1f}%">'
        "</span></td></tr>"
        for name, value in seconds.items()
    ]
    total = f'<th>phase</th><th class="n">{sum(seconds.values()):.1f} s in all</th><th></th>'
    return table((total,), rows)


def _footer() -> str:
    return (
        "<footer>Protocol: AICE, arbitrary ImageNet concept editing (arXiv 2403.13807). All "
        "figures are also in metrics.json, pictures in images/.</footer>"
    )
