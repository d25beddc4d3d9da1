"""The text-space report as one file of HTML that needs no network and no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.editing.diagnostics.predicted_conflicts import Prediction, most_similar
from emcid_jax.evaluation.text_space.measure import Drift, TextSpace
from emcid_jax.reporting.pages import components
from emcid_jax.reporting.pages.components import cells, escape, number, table
from emcid_jax.reporting.plots import text_space as text_figures
from emcid_jax.reporting.plots import theme
from emcid_jax.runtime.files import write_atomically

SHOWN = 20
"""Rows of a table that are not folded away."""


def write_text_report(
    path: Path, model: str, found: TextSpace, seconds: Mapping[str, float], config: Mapping
) -> None:
    """Writes the page, by one rename; arguments as in `text_report_html`."""
    write_atomically(path, text_report_html(model, found, seconds, config).encode())


def text_report_html(
    model: str, found: TextSpace, seconds: Mapping[str, float], config: Mapping[str, Any]
) -> str:
    """The page.

    Args:
        model: name of the edited model.
        found: what was measured.
        seconds: wall time per phase.
        config: the resolved settings.
    """
    count = len(found.reached)
    what = "concept" if count == 1 else "concepts"
    title = f"{count} {what} in text space"
    settings = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    sections = [
        f'<p class="over">emcid_jax · text space</p><h1>{count} {what} edited in {escape(model)}, '
        "without an image</h1>",
        _cards(found),
        _reached(found),
        _kept(found),
        _captions(found),
        _solve(found),
        conflict_section(found.prediction),
        "<section><h2>Settings</h2><p>"
        + ", ".join(f"{escape(name)} {value:.1f} s" for name, value in seconds.items())
        + f"</p><details><summary>Settings of this run</summary><pre>{escape(settings)}</pre>"
        "</details></section>",
        "<footer>All figures are also in text_report.json.</footer>",
    ]
    return _document(title, sections)


def conflicts_html(prediction: Prediction) -> str:
    """A page of what keys alone say of a bank, before it is solved."""
    kept = [
        f"<tr><th>{escape(one.name)}</th>"
        + cells([f"{one.drift:.3f}"])
        + f"<td>{escape(one.nearest)}</td>"
        + cells([number(one.similarity)])
        + "</tr>"
        for one in prediction.kept
    ]
    unmet = [
        f"<tr><th>{escape(name)}</th>{cells([f'{share:.3f}'])}</tr>"
        for name, share in prediction.unmet
    ]
    head = ("<th>kept</th>", '<th class="n">predicted drift</th>', "<th>nearest edit</th>")
    sections = [
        '<p class="over">emcid_jax · before the solve</p><h1>Conflicts and neighbours</h1>',
        conflict_section(prediction),
        "<section><h2>Kept concepts</h2>"
        + _folded((*head, '<th class="n">cosine</th>'), kept)
        + "</section><section><h2>What will be missed</h2>"
        + _folded(("<th>edit</th>", '<th class="n">share of its offset</th>'), unmet)
        + "</section>",
    ]
    return _document("Conflicts and neighbours", sections)


def conflict_section(prediction: Prediction) -> str:
    """Contradictions, collisions and the heat map of key cosines."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in prediction.contradictions)
    rows = [
        f"<tr><th>{escape(pair.sources[0])}, {escape(pair.sources[1])}</th>"
        + cells([number(pair.similarity), number(pair.targets)])
        + "</tr>"
        for pair in prediction.collisions
    ]
    keys = most_similar(prediction.keys)
    chart = components.plot(
        text_figures.heat_map(*keys),
        "heat map of the cosines of keys",
        f"Cosines of keys, whitened by the second moment, mean over layers: the "
        f"{len(keys.columns)} edits most like others, below the line the "
        f"{len(keys.rows) - len(keys.columns)} kept names most like them. What is dark the solve "
        "can hardly tell apart.",
    )
    collisions = (
        _folded(
            (
                "<th>edits with nearly the same key</th>",
                '<th class="n">cosine of keys</th><th class="n">cosine of targets</th>',
            ),
            rows,
        )
        if rows
        else "<p>No two edits have nearly the same key.</p>"
    )
    return (
        f"<section><h2>Keys</h2>{chart}{f'<ul>{lines}</ul>' if lines else ''}{collisions}</section>"
    )


def _document(title: str, sections: Sequence[str]) -> str:
    return components.document(title, sections)


def _cards(found: TextSpace) -> str:
    left = np.array([one.left for one in found.reached])
    cosine = np.array([one.cosine for one in found.reached])
    cards = [
        _card(
            "Left of the targets",
            f"{np.median(left):.1%}",
            f"worst {left.max():.1%}",
            "|z − h| over |z − h0|, median over concepts: 0 is there, 100 % has not moved.",
        ),
        _card(
            "Direction",
            number(float(np.median(cosine))),
            f"worst {number(float(cosine.min()))}",
            "Cosine of the change made with the change asked, median over concepts.",
        ),
    ]
    if found.kept:
        drift = np.array([one.drift for one in found.kept])
        cards.append(
            _card(
                "Kept concepts",
                f"{np.median(drift):.1%}",
                f"worst {drift.max():.1%}",
                f"How far the states of {drift.size} names move that nobody edits, median.",
            )
        )
    if found.apart is not None:
        cards.append(
            _card(
                "Captions",
                f"{found.apart.median:.1%}",
                f"95 %: {found.apart.p95:.1%}",
                f"How far the final features of {found.apart.count} captions move that name no "
                "edit, median.",
            )
        )
    return f'<section class="cards">{"".join(cards)}</section>'


def _card(title: str, value: str, spread: str, text: str) -> str:
    return (
        f'<div class="card"><h3>{title}</h3><div class="number">{value}</div>'
        f'<div class="interval">{spread}</div><p>{text}</p></div>'
    )


def _reached(found: TextSpace) -> str:
    chart = components.plot(
        text_figures.left_figure(
            np.array([one.left for one in found.reached]),
            np.array([one.gap for one in found.reached]),
        ),
        "how much is left of every target",
        "Share of concepts with at most so much left.",
    )
    rows = []
    for one in found.reached:
        near = found.neighbours.get(one.source)
        values = [f"{one.asked:.3g}", f"<b>{one.left:.3f}</b>", number(one.cosine)]
        values += ["–" if one.elsewhere is None else f"{one.elsewhere:.3f}", f"{one.gap:.3f}"]
        rows.append(
            f"<tr><th>{escape(one.source)} → {escape(one.dest)}</th>{cells(values)}"
            f"<td>{escape(near.name) if near else '–'}</td>"
            + cells([number(near.similarity), f"{near.drift:.3f}"] if near else ["–", "–"])
            + "</tr>"
        )
    head = (
        "<th>source → destination</th>",
        '<th class="n">asked</th><th class="n">left</th><th class="n">cosine</th>',
        '<th class="n">left, other prompts</th><th class="n">left to destination</th>',
        '<th>nearest kept</th><th class="n">cosine of keys</th><th class="n">its drift</th>',
    )
    return (
        "<section><h2>Targets</h2><p>What the memory asked of the state at block L and how much "
        "of it is left after the edit; in other prompts of the request the same change is asked. "
        "The destination is compared at the end token of the final features.</p>"
        f'<div class="plots">{chart}</div>{_folded(head, rows)}</section>'
    )


def _kept(found: TextSpace) -> str:
    if not found.kept:
        return ""
    chart = components.plot(
        text_figures.drift_figure(
            np.array([one.predicted for one in found.kept]),
            np.array([one.drift for one in found.kept]),
        ),
        "predicted and measured drift of kept concepts",
        "One dot a kept name: what the keys predict before the solve, and what it did.",
    )
    rows = [
        f"<tr><th>{escape(one.name)}</th>"
        + cells([f"<b>{one.drift:.3f}</b>", f"{one.features:.3f}", f"{one.predicted:.3f}"])
        + f"<td>{escape(one.nearest)}</td>{cells([number(one.similarity)])}</tr>"
        for one in found.kept
    ]
    head = (
        "<th>kept</th>",
        '<th class="n">drift</th><th class="n">of final features</th>',
        '<th class="n">predicted</th><th>nearest edit</th><th class="n">cosine of keys</th>',
    )
    return (
        "<section><h2>Neighbours</h2><p>Names that nobody edits, the worst first; all drifts are "
        f'relative.</p><div class="plots">{chart}</div>{_folded(head, rows)}</section>'
    )


def _captions(found: TextSpace) -> str:
    def row(title: str, drift: Drift | None) -> str:
        if drift is None:
            return ""
        values = [str(drift.count), *(f"{value:.4f}" for value in drift[1:])]
        return f"<tr><th>{title}</th>{cells(values)}</tr>"

    head = "".join(
        f'<th class="n">{name}</th>' for name in ("captions", "mean", "median", "95 %", "most")
    )
    rows = [row("name no edit", found.apart), row("name an edit", found.naming)]
    worst = [
        f"<tr><th>{escape(text)}</th>{cells([f'{drift:.4f}'])}</tr>" for text, drift in found.worst
    ]
    named = table(("<th>caption</th>", '<th class="n">drift</th>'), worst)
    return (
        "<section><h2>Captions</h2><p>|F′ − F| / |F| of the final features of all tokens up to "
        f"the end token.</p>{table(('<th></th>', head), rows)}<details><summary>Those that drift "
        f"most and name no edit</summary>{named}</details></section>"
    )


def _solve(found: TextSpace) -> str:
    bars = [theme.LayerBar(one.layer, one.asked, one.left, one.change) for one in found.layers]
    chart = components.plot(
        theme.layers_figure(bars),
        "residuals and weight change of every edited block",
        f"Distance to the targets {found.distance[0]:.3g} before, {found.distance[1]:.3g} after.",
    )
    rows = [
        f'<tr><td class="n">{one.layer}</td><td>{escape(one.form)}</td>'
        + cells(
            [
                f"{one.condition:.2g}",
                f"{one.asked:.3g}",
                f"{one.left:.3g}",
                f"{one.norm:.3g}",
                f"{one.change:.2%}",
            ]
        )
        + "</tr>"
        for one in found.layers
    ]
    head = (
        '<th class="n">block</th><th>system</th><th class="n">condition number</th>',
        '<th class="n">asked</th><th class="n">left</th>',
        '<th class="n">|ΔW|</th><th class="n">of |W|</th>',
    )
    return (
        f'<section><h2>The solve</h2><div class="plots">{chart}</div>{table(head, rows)}</section>'
    )


def _folded(head: Sequence[str], rows: Sequence[str]) -> str:
    """The first rows as a table, the whole of a long one folded."""
    if len(rows) <= SHOWN:
        return table(head, rows)
    return (
        f"{table(head, rows[:SHOWN])}<details><summary>All {len(rows)}</summary>"
        f"{table(head, rows)}</details>"
    )
