"""`evaluation.html`: methods side by side in one page that needs no network and no script."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from emcid_jax.reporting import published
from emcid_jax.reporting.pages import components as page
from emcid_jax.reporting.pages.components import cells, escape, table
from emcid_jax.reporting.plots import comparison
from emcid_jax.reporting.plots.before_after import Grid, Shot
from emcid_jax.reporting.tables import COST, UNEDITED, counts, short

Row = Mapping[str, Any]

GROUPS: dict[str, dict[str, str]] = {
    "what was asked": {
        "gone": "source gone",
        "shown": "destination shown",
        "gone_unseen": "gone, unseen",
        "shown_unseen": "shown, unseen",
    },
    "what must stay": {"own": "own name", "acc_s": "Acc_s", "acc_told": "told"},
    "both in one": {
        "h": "H",
        "h_unseen": "H, unseen",
        "h_dest": "H_dest",
        "h_dest_unseen": "H_dest, unseen",
    },
}
"""Columns of the main table."""
QUALITY = {"clip": "CLIP", "fid": "FID"}
"""General quality, where it was measured; FID is against the unedited model."""


class Gathered(NamedTuple):
    """A figure of another task."""

    title: str
    caption: str
    image: bytes
    kind: str
    """MIME type."""


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonData:
    """All the page shows, as plain data; what is None or empty is left out."""

    model: str
    rows: Sequence[Row]
    """Cells, as in `evaluation.json`."""
    grid: Grid | None = None
    gathered: Sequence[Gathered] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def report_html(data: ComparisonData) -> str:
    """The whole page as text."""
    sections = [_head(data)]
    if data.rows:
        sections += [_curves(data.rows), _main(data.rows), _published(data.rows)]
    if data.grid is not None:
        sections.append(_grid(data.grid))
    if data.rows:
        sections.append(_cost(data.rows))
    sections += [_gathered(data.gathered), page.settings(data.config, data.versions)]
    sections.append(
        "<footer>Every figure is also in evaluation.json and evaluation.csv, every judged request "
        "in cells/.</footer>"
    )
    return page.document(f"Methods compared on {data.model}", sections)


def _head(data: ComparisonData) -> str:
    head = (
        '<p class="over">emcid_jax · comparison</p>'
        f"<h1>Editing {escape(data.model)}: methods side by side</h1>"
    )
    if not data.rows:
        return head + "<p>No cell has been measured yet.</p>"
    first, last = data.rows[0]["name"], counts(data.rows)[-1]
    lines = []
    for row in data.rows:
        if row["name"] == first and row["count"] == last:
            done, stays = _value(row, "shown_unseen"), _value(row, "acc_s")
            clean = row["clean"].get("acc_s", {}).get("value")
            lines.append(
                f"After {last:,} requests at once, <b>{escape(first)}</b> shows the destination on "
                f"<b>{short(done)}</b> of the pictures of unseen sentences, and "
                f"<b>{short(stays)}</b> of what nobody edited is right (unedited model: "
                f"{short(clean)})."
            )
    lines.append(_winners(data.rows))
    body = "".join(f'<p class="lead">{line}</p>' for line in lines if line)
    note = (
        "A picture is judged by the first choice of an independent classifier. <b>H</b> is the "
        "harmonic mean of “source gone” and Acc_s, the share right of names that nobody edited; "
        "<b>H_dest</b> that of “destination shown” and what is left of the clean model's Acc_s. "
        "Intervals are 95 % bootstrap ones. All methods: same model, requests, prompts, seeds."
    )
    return f'{head}{body}<p class="note">{note}</p>'


def _winners(rows: Sequence[Row]) -> str:
    """Who is best by H_dest in unseen sentences, number by number."""
    best = []
    for count in counts(rows):
        mine = [row for row in rows if row["count"] == count]
        top = max(mine, key=lambda row: _value(row, "h_dest_unseen") or 0.0)
        value = short(_value(top, "h_dest_unseen"))
        verdict = "" if _intact(top) else ", but the guard calls the model broken"
        best.append(f"n = {count:,}: {escape(top['name'])} ({value}{verdict})")
    return f"Best H_dest in unseen sentences: {'; '.join(best)}."


def _curves(rows: Sequence[Row]) -> str:
    plot = page.plot(
        comparison.curves(rows),
        "curves of every method over the number of requests",
        "Shares over the number of requests, with 95 % intervals. Hollow: the guard says that the "
        "model is broken, that is, it no longer draws anything in particular.",
    )
    return f'<section><h2>Over the number of requests</h2><div class="broad">{plot}</div></section>'


def _main(rows: Sequence[Row]) -> str:
    named = dict(GROUPS)
    if any("clip" in row["edited"] for row in rows):
        named["general quality"] = QUALITY
    top = [
        f'<th class="n" colspan="{len(part)}">{escape(name)}</th>' for name, part in named.items()
    ]
    columns = [(key, name) for part in named.values() for key, name in part.items()]
    second = "".join(f'<th class="n">{escape(name)}</th>' for _, name in columns)
    head = (
        f"<th></th>{''.join(top)}<th></th></tr><tr><th>method</th>{second}",
        '<th class="n">draws</th>',
    )
    body = []
    for count in counts(rows):
        mine = [row for row in rows if row["count"] == count]
        title = f"{count:,} request" + ("s" if count > 1 else "")
        body.append(f'<tr class="group"><th colspan="{len(columns) + 2}">{title}</th></tr>')
        clean = {"name": UNEDITED, "edited": mine[0]["clean"], "guard": {"intact": True}}
        best = {key: _best(mine, key) for key, _ in columns}
        body.append(_row(clean | {"quiet": True}, columns, {}))
        body += [_row(row, columns, best) for row in mine]
    text = (
        "Bold: the best of its column; “gone” of models that still draw alone, for a broken one "
        "forgets everything. “Unseen”: sentences that the edit never saw. “Own name”: the "
        "destination asked for by its own name. “Told”: names that rows with “names kept” are "
        "told; Acc_s is of names that nobody is told. “Draws”: the guard's verdict."
    )
    return (
        f"<section><h2>All methods</h2><p>{text}</p>{table(head, body, 'scroll dense')}</section>"
    )


def _best(rows: Sequence[Row], key: str) -> float | None:
    fair = [row for row in rows if _fair(row, key)]
    values = [_value(row, key) for row in fair]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return min(known) if key == "fid" else max(known)


def _row(row: Row, columns: Sequence[tuple[str, str]], best: Mapping[str, float | None]) -> str:
    def cell(key: str) -> str:
        value = _value(row, key)
        if value is None:
            return "–"
        text = short(value)
        if best.get(key) is not None and short(value) == short(best[key]) and _fair(row, key):
            text = f"<b>{text}</b>"
        return text + _spread(row["edited"].get(key, {}))

    kind = "n other" if row.get("quiet") else "n"
    verdict = "yes" if _intact(row) else '<span class="bad">no</span>'
    return (
        f"<tr><th>{escape(row['name'])}</th>"
        f"{cells((cell(key) for key, _ in columns), kind)}<td class='{kind}'>{verdict}</td></tr>"
    )


def _fair(row: Row, key: str) -> bool:
    """Whether a cell may be best: a broken model's forgetting is no merit."""
    return _intact(row) or not key.startswith("gone")


def _intact(row: Row) -> bool:
    return row["guard"]["intact"]


def _value(row: Row, key: str) -> float | None:
    """A figure of a cell's edited model."""
    return row["edited"].get(key, {}).get("value")


def _spread(figure: Mapping[str, Any]) -> str:
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None:
        return ""
    return f"<br><small>{short(low)}–{short(high)}</small>"


def _published(rows: Sequence[Row]) -> str:
    """Our figures beside published ones of other models."""
    text = (
        "<b>Another model, other concepts, other judges</b>: Stable Diffusion 1.4. The grey "
        "columns say what is usual in the field and how fast methods decay, not what this model "
        "should reach; the white ones are this run's."
    )
    ours = {name: [row for row in rows if row["name"] == name] for name in _names(rows)}
    known = counts(rows)
    head = ["<th>H, erasing</th>"]
    head += [f'<th class="n">n = {count:,}</th>' for count in known]
    head += [f'<th class="n other">SD 1.4, n = {n}</th>' for n in published.H_COUNTS]
    body = [
        f"<tr><th>{escape(name)}<br><small>this run, mixed requests, H</small></th>"
        + cells(_by_count(mine, known, "h"))
        + cells(["" for _ in published.H_COUNTS], "n other")
        + "</tr>"
        for name, mine in ours.items()
    ]
    body += [
        f"<tr><th>{escape(name)}<br><small>celebrities, SPEED's protocol</small></th>"
        + cells(["" for _ in known])
        + cells((short(value) for value in values), "n other")
        + "</tr>"
        for name, values in published.PUBLISHED_H.items()
    ]
    mixed = "; ".join(
        f"{name} {short(a)}, {short(b)} and {short(c)}"
        for name, (a, b, c) in published.PUBLISHED_MIXED.items()
    )
    note = (
        f"With 2,072 mixed concepts a user study on SD 1.4 gives, for celebrities, art and "
        f"characters: {escape(mixed)} (H)."
    )
    parts = [table(head, body), f'<p class="note">{note}</p>']
    for metric, methods in published.PUBLISHED_OTHERS.items():
        meaning = published.MEANINGS[metric]
        head = [f"<th>AICE, {escape(meaning.group)}: {escape(meaning.name)}</th>"]
        head += [f'<th class="n">n = {count:,}</th>' for count in known]
        head += [f'<th class="n other">SD 1.4, n = {n}</th>' for n in published.OTHERS_COUNTS]
        body = [
            f"<tr><th>{escape(name)}<br><small>this run, objects among the requests</small></th>"
            + cells(_short(_aice(mine, count, metric)) for count in known)
            + cells(["" for _ in published.OTHERS_COUNTS], "n other")
            + "</tr>"
            for name, mine in ours.items()
        ]
        body += [
            f"<tr><th>{escape(name)}</th>"
            + cells(["" for _ in known])
            + cells((_short(value) for value in values), "n other")
            + "</tr>"
            for name, values in methods.items()
        ]
        parts.append(table(head, body))
    return f"<section><h2>Beside published figures</h2><p>{text}</p>{''.join(parts)}</section>"


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in rows))


def _by_count(rows: Sequence[Row], known: Sequence[int], key: str) -> Iterable[str]:
    for count in known:
        mine = [row for row in rows if row["count"] == count]
        yield short(_value(mine[0], key)) if mine else ""


def _aice(rows: Sequence[Row], count: int, metric: str) -> float | None:
    for row in rows:
        if row["count"] == count:
            return row["aice"]["aice"].get(metric, {}).get("value")
    return None


def _short(value: float | None) -> str:
    return "" if value is None else page.number(value)


def _grid(grid: Grid) -> str:
    parts = []
    for part, shots in grid.shots.items():
        title = (
            f"The {len(shots)} {part}" if part != "median" else f"{len(shots)} around the median"
        )
        body = "".join(_shot(shot) for shot in shots)
        parts.append(f'<h3>{title}</h3><div class="pairs">{body}</div>')
    text = (
        f"{escape(grid.title)}. Chosen by rank among the {grid.judged} judged requests and not by "
        "looks: ordered by how much probability the destination gains in unseen sentences (top "
        "right). One prompt each, the same seed in all its pictures; “wanted” is the clean model "
        "asked for the destination."
    )
    return f"<section><h2>Before and after</h2><p>{text}</p>{''.join(parts)}</section>"


def _shot(shot: Shot) -> str:
    record = shot.record
    words = [("before", shot.before), ("after", shot.after)]
    if shot.wanted is not None:
        words.append(("wanted", shot.wanted))
    pictures = [
        page.plain_picture(path, word, f"{word}: {record['prompt']}") for word, path in words
    ]
    change = f"{record['source']} → {record['dest'] or 'nothing'}"
    return page.card(change, record["score"], record["prompt"], pictures)


def _cost(rows: Sequence[Row]) -> str:
    exponents = comparison.exponents(rows)
    known = counts(rows)
    head = ["<th>method</th>", *(f'<th class="n">n = {count:,}</th>' for count in known)]
    head.append('<th class="n">exponent, n ≥ 100</th>')
    parts = []
    for key, unit in COST.items():
        body = []
        for name in _names(rows):
            found = {row["count"]: row[key] for row in rows if row["name"] == name}
            values = [found.get(count) for count in known]
            shown = ["" if value is None else f"{value:,.0f}" for value in values]
            slope = exponents[key].get(name)
            shown.append("" if slope is None else page.number(slope)[:5])
            body.append(f"<tr><th>{escape(name)}</th>{cells(shown)}</tr>")
        parts.append(f"<h3>{escape(_COST_NAMES[key])}, {escape(unit)}</h3>{table(head, body)}")
    plot = page.plot(
        comparison.cost(rows),
        "processor time and memory of every method over the number of requests",
        "What an edit takes. Lines of slope 1 grow as the number of requests does.",
    )
    text = (
        "The edit itself: memories (Stage I) included as if none had been there, second moments, "
        "once per model, left out. Exponents are fitted to log cost over log n."
    )
    return f"<section><h2>Cost</h2><p>{text}</p>{plot}{''.join(parts)}</section>"


_COST_NAMES = {
    "seconds": "Wall time",
    "processor": "Processor time of all cores",
    "mebibytes": "Peak memory of the process while writing",
}


def _gathered(figures: Sequence[Gathered]) -> str:
    if not figures:
        return ""
    plots = "".join(
        f'<h3>{escape(one.title)}</h3><figure class="plot"><img '
        f'src="{page.data_uri(one.image, one.kind)}" alt="{escape(one.title)}">'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in figures
    )
    return f"<section><h2>Ablations and other tasks</h2>{plots}</section>"
