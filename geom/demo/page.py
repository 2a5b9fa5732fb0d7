"""The tour's page: one HTML file, its links relative, nothing loaded from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Formatter
from typing import Any

from geom.demo.tour import Chapter, Result

__all__ = ["render_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #777; }
body { max-width: 72rem; margin: 3rem auto; padding: 0 1.5rem; font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; margin-bottom: 0; } h2 { margin-top: 3rem; } h3 { margin: 2.5rem 0 .3rem; }
p { max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; white-space: nowrap; }
th, td { text-align: right; padding: .35rem .8rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: .6rem 0; width: fit-content; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
figcaption { display: flex; } figcaption span { flex: 1; text-align: center; }
"""


def render_page(
    chapters: Sequence[Chapter], results: Sequence[Sequence[Result]], versions: Mapping[str, str | None]
) -> str:
    """The whole page as HTML: for each chapter its opening, its table, and a picture with words for each result."""
    body = "\n".join(_chapter(c, done) for c, done in zip(chapters, results, strict=True))
    made = ", ".join(f"{escape(name)} {escape(number or 'absent')}" for name, number in versions.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>geom: a tour</title><style>{_STYLE}</style></head><body>
<h1>geom: a tour</h1>
<p class="soft">{made}. All numbers: <a href="numbers.json">numbers.json</a>.</p>
{body}
</body></html>
"""


def _chapter(chapter: Chapter, results: Sequence[Result]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *chapter.columns))
    rows = "\n".join(_row(chapter, result) for result in results)
    return f"""<h2>{escape(chapter.title)}</h2>
<p>{escape(chapter.text)}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table></div>
{"".join(_result(result) for result in results)}"""


def _row(chapter: Chapter, result: Result) -> str:
    if "problem" in result.numbers:
        cells = f'<td colspan="{len(chapter.columns)}">failed</td>'
    else:
        texts = (_cell(form, result.numbers) for form in chapter.columns.values())
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    return f"<tr><td>{escape(result.name)}</td>{cells}</tr>"


def _cell(form: str, numbers: Mapping[str, Any]) -> str:
    """One number as text; a dash where this job has none."""
    names = {name for _, name, _, _ in Formatter().parse(form) if name}
    return form.format(**numbers) if names <= numbers.keys() else "-"


def _result(result: Result) -> str:
    figure = ""
    if result.picture:
        under = "".join(f"<span>{escape(caption)}</span>" for caption in result.captions)
        alt = escape(f"{result.name}: {', '.join(result.captions)}")
        figure = f"""<figure><img src="{escape(result.picture)}" alt="{alt}">
<figcaption>{under}</figcaption></figure>"""
    scene = f' <a href="{escape(result.scene)}">Turn it.</a>' if result.scene else ""
    return f"""
<h3>{escape(result.name)}</h3>
<p>{escape(result.words)}{scene}</p>
{figure}"""
