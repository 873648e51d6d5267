"""The pictures as a part of the page: a line for each prompt, a column for each choice, and the reference stays in sight beside them."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from sd3deploy import messages
from sd3deploy.quality.pictures import Pictures, written
from sd3deploy.quality.prompts import Prompt

if TYPE_CHECKING:
    import numpy

__all__ = ["STYLE", "gallery"]

STYLE = """
h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.pictures { width: auto; } .pictures th, .pictures td { text-align: start; vertical-align: top; border: 0; padding: .25rem .5rem .25rem 0; }
.pictures img { display: block; width: 13rem; height: auto; border-radius: .25rem; }
.pictures tr > :first-child:not([colspan]) { position: sticky; left: 0; background: var(--back); }
.pictures thead th { white-space: normal; } .pictures th[colspan] { padding-top: 1.2rem; }
.pictures small { display: block; color: var(--soft); }
.pictures th span { display: inline-block; position: sticky; left: 0; max-width: min(70rem, 100vw - 2rem); white-space: normal; }
.pictures th span { font-weight: 400; overflow-wrap: anywhere; } @media (max-width: 40rem) { .pictures img { width: 9.5rem; } }
"""
_HOW = {"psnr": "quality.pictures.how-psnr", "lpips": "quality.pictures.how-lpips", "clip": "quality.pictures.how-clip"}
_QUALITY = 80  # of WebP, 0 to 100: about 30 kB for 512 × 512 px


def gallery(pictures: Pictures, head: str, rows: str) -> str:
    """The section. head, rows: of the table with the numbers, as page.py draws tables."""
    how = messages.joined(*map(messages.text, ("quality.pictures.how", *(_HOW[one] for one in pictures.measures if one in _HOW))))
    notes = "".join(f"<li>{escape(one)}</li>" for one in pictures.notes)
    names = [messages.text("quality.pictures.reference"), *(one.choice.name for one in pictures.shown)]
    lines = "\n".join(_line(pictures, place, prompt, names) for place, prompt in enumerate(pictures.prompts))
    numbers = f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>' if pictures.measures else ""
    return f"""<h2>{escape(messages.text("quality.pictures.heading"))}</h2>
<p>{escape(pictures.title)}</p>
{numbers}
<p>{escape(how)}</p>
{f"<ul>{notes}</ul>" if notes else ""}
<div class="wide" tabindex="0" role="region" aria-label="{escape(messages.text("quality.pictures.heading"))}"><table class="pictures">
<thead><tr>{"".join(f'<th scope="col">{escape(name)}</th>' for name in names)}</tr></thead>
<tbody>
{lines}
</tbody></table></div>"""


def _line(pictures: Pictures, place: int, prompt: Prompt, names: list[str]) -> str:
    text = escape(prompt.text) or f"<i>{escape(messages.text('quality.page.empty'))}</i>"
    scores = [{}, *(one.scores[place] for one in pictures.shown)]
    made = [pictures.reference[place], *(one.pictures[place] for one in pictures.shown)]
    cells = ""
    for name, picture, numbers in zip(names, made, scores, strict=True):
        told = "".join(f"<small>{measure.upper()} {escape(written(measure, value))}</small>" for measure, value in numbers.items())
        edge = pictures.setting.size
        cells += f'<td><img width="{edge}" height="{edge}" alt="{escape(name)}" src="{_data(picture)}">{told}</td>'
    return f'<tr><th scope="rowgroup" colspan="{len(names)}"><span dir="auto">{text}</span></th></tr>\n<tr>{cells}</tr>'


def _data(picture: numpy.ndarray) -> str:
    """The picture itself as an address."""
    from PIL import Image

    Image.fromarray(picture).save(data := io.BytesIO(), "webp", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
