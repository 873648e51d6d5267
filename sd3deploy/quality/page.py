"""The result as one page of HTML that needs nothing else: to look at, and to post."""

from __future__ import annotations

from html import escape

from sd3deploy import __version__, messages
from sd3deploy.quality.gallery import STYLE, gallery
from sd3deploy.quality.pictures import Pictures
from sd3deploy.quality.result import COLUMNS, Result, Row

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --back: #fff; --bar: #9ec5fe; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --line: #30363d; --back: #0d1117; --bar: #1f4f99; } }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
body { color: var(--ink); background: var(--back); }
h1 { font-size: 1.4rem; } p, summary, footer { color: var(--soft); } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: end; white-space: nowrap; }
th:first-child, td:first-child { text-align: start; } th.bar { padding-right: 6.2rem; } thead th { color: var(--soft); font-weight: 600; }
td.bar::after { content: ""; display: inline-block; width: 5rem; height: .8rem; margin-left: .6rem; }
td.bar::after { background: linear-gradient(var(--bar), var(--bar)) left / var(--share) 100% no-repeat; }
td.text { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; } details td { font-size: .875rem; }
td.cell { background: linear-gradient(var(--bar), var(--bar)) left bottom / var(--share) .25rem no-repeat content-box; }
"""
_BARS = (1, 2, 3, 6)  # columns: size, error, worst, encode


def page(result: Result) -> str:
    """The whole page, in the language that is spoken."""
    title = escape(messages.text("quality.page.title", source=result.source))
    omissions = "".join(f"<li>{escape(one)}</li>" for one in result.omissions)
    made = ", ".join(f"{name} {version}" for name, version in result.versions.items() if version)
    return f"""<!doctype html>
<html lang="{messages.language()}">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{_STYLE}{STYLE if result.pictures else ''}</style>
<h1>{title}</h1>
<p>{escape(result.title)}</p>
<div class="wide"><table>
{_head([messages.text("quality.column.choice"), *(messages.text(f"quality.column.{name}") for name in COLUMNS)], _BARS)}
<tbody>
{_rows(result)}
</tbody></table></div>
<p>{escape(messages.text("quality.page.how"))}</p>
{f"<ul>{omissions}</ul>" if omissions else ""}
<details><summary>{escape(messages.text("quality.page.prompts", count=len(result.prompts)))}</summary>
<div class="wide"><table>
{_head([messages.text("quality.column.prompt"), messages.text("quality.column.tokens"), *(row.choice.name for row in result.rows)])}
<tbody>
{_prompts(result)}
</tbody></table></div></details>
{_pictures(result.pictures) if result.pictures else ""}
<footer><p>SD3 Deploy {__version__} · {escape(made)}</p></footer>
</html>
"""


def _head(names: list[str], bars: tuple[int, ...] = ()) -> str:
    """bars: places of the columns with room for a bar beside the number."""
    classes = [' class="bar"' if place in bars else "" for place in range(len(names))]
    cells = (f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(classes, names, strict=True))
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _rows(result: Result) -> str:
    largest = [max((_numbers(row)[place] for row in result.rows), default=0.0) for place in range(len(COLUMNS))]
    lines = []
    for row in result.rows:
        cells = enumerate(zip(row.cells, _numbers(row), largest, strict=True), 1)
        drawn = "".join(
            f"<td{_bar('bar', number, most) if place in _BARS else ''}>{escape(text)}</td>" for place, (text, number, most) in cells
        )
        lines.append(f'<tr><th scope="row">{escape(row.choice.name)}</th>{drawn}</tr>')
    return "\n".join(lines)


def _prompts(result: Result) -> str:
    most = max((row.worst for row in result.rows), default=0.0)
    lines = []
    for place, prompt in enumerate(result.prompts):
        errors = [row.measured[place].error for row in result.rows]
        cells = "".join(f"<td{_bar('cell', error, most)}>{error:.4f}</td>" for error in errors)
        text = escape(prompt.text) or f"<i>{escape(messages.text('quality.page.empty'))}</i>"
        lines.append(f'<tr><td class="text" dir="auto">{text}</td><td>{prompt.tokens}</td>{cells}</tr>')
    return "\n".join(lines)


def _pictures(pictures: Pictures) -> str:
    heads, *lines = pictures.table
    heads[0] = messages.text("quality.column.choice")
    drawn = []
    for name, *cells in lines:
        drawn.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>')
    return gallery(pictures, _head(heads), "\n".join(drawn))


def _numbers(row: Row) -> tuple[float, ...]:
    """For COLUMNS."""
    return row.bytes, row.error, row.worst, row.cosine, row.lowest, row.encode_s


def _bar(kind: str, number: float, most: float) -> str:
    return f' class="{kind}" style="--share: {100 * number / most if most else 0:.1f}%"'
