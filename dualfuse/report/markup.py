"""Building blocks of the HTML of reports."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")


def document(title: str, body: Sequence[str]) -> str:
    """Return a page that loads nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>\n'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str, lead: str = "") -> str:
    """Return a headed section; ``lead`` is plain text under the heading."""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{''.join(parts)}</section>"


def figure(title: str, svg: str) -> str:
    """Return a chart with its title."""
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def grid(parts: Sequence[str], kind: str = "") -> str:
    """Return a grid with as many columns as the width allows."""
    return f'<div class="grid {kind}">{"".join(parts)}</div>'


def pairs_table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a card with a table of names and values."""
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="card"><table class="pairs">{lines}</table></div>'


def comparison_table(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a card with a table of a name and several values per row; the first row is the heading."""
    (corner, heading), *others = rows
    head = "".join(f"<th>{escape(text)}</th>" for text in (corner, *heading))
    lines = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for name, values in others
    )
    table = f'<table class="compared"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="card wide">{table}</div>'


def bar(share: float, text: str) -> str:
    """Return a text with a bar behind it, of the given share of the width."""
    return f'<span class="bar" style="--share:{max(0.0, min(1.0, share)):.4f}">{escape(text)}</span>'


def tile(value: str, text: str) -> str:
    """Return a large number with a caption."""
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>'


def commands(lines: Sequence[str]) -> str:
    """Return commands to copy into a terminal."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def legend(entries: Sequence[tuple[str, int, bool]]) -> str:
    """Return a legend of (text, number of the colour, whether dashed)."""
    items = (
        f'<span><i class="{"dash" if is_dashed else "rule"}" style="color:var(--series-{series})"></i>'
        f"{escape(text)}</span>"
        for text, series, is_dashed in entries
    )
    return f'<p class="legend">{"".join(items)}</p>'
