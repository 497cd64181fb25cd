"""Write a page of tables and sections as HTML that needs no network."""
import base64
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

PAGE = Template('''<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>$title</title>
<style>
:root { color-scheme: light; --line: #d7dce1; --soft: #5b6670; --blue: 0, 114, 178 }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2329; background: #fff; max-width: 62rem;
  margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem }
h3 { font-size: 1rem }
p { margin: .5rem 0 } .soft { color: var(--soft) } img { width: 100% } a { color: rgb(var(--blue)) }
audio { display: block; width: 19rem; max-width: 100%; height: 2.2rem; margin: .3rem 0 }
.wide { overflow-x: auto } .beside { display: flex; flex-wrap: wrap; gap: 0 3rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem;
  line-height: 1.35 }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere }
td { border-top: 1px solid var(--line); min-width: 6rem }
th { font-weight: 600; vertical-align: bottom; overflow-wrap: normal }
.n { text-align: right; padding: .25rem .9rem .25rem .3rem; white-space: nowrap; min-width: 0 }
tr.marked td { font-weight: 700; background: #eef5fa }
table.matrix { line-height: 1 }
.matrix td { border: 1px solid #eceff1; text-align: center; padding: 0; min-width: 1.6em;
  height: 1.8em; vertical-align: middle; overflow-wrap: normal; print-color-adjust: exact }
.matrix th { font-weight: 400; text-align: right; padding: 0 .4rem; white-space: nowrap;
  vertical-align: middle }
.matrix tr:first-child th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .4em 0 }
.settings { columns: 2 15rem; column-gap: 3rem } .settings table { width: 100% }
.settings .wide { overflow: visible }
@media print {
  body { max-width: none; margin: 0; font-size: 11px } .wide { overflow: visible }
  audio { display: none } h2, h3 { break-after: avoid } tr { break-inside: avoid } }
$css</style></head><body>
<h1>$title</h1><p class="soft">$lead</p>
$sections
<p class="soft">Written $time. $program writes this page again.</p>
</body></html>
''')


class Html(str):
    """Text that is HTML already."""


def as_html(value: Any) -> str:
    """Return a value as HTML: texts escaped, numbers to four decimals, None and NaN as a dash."""
    if isinstance(value, Html):
        return value
    if value is None or isinstance(value, float) and math.isnan(value):
        return '–'
    if isinstance(value, float):
        return f'{value:.4f}' if abs(value) >= 1e-3 or value == 0 else f'{value:.3g}'
    return escape(str(value))


def table(columns: Sequence[str], rows: Sequence[Sequence], marked: Collection[int] = ()) -> str:
    """Return a table as HTML. Columns of numbers are aligned to the right.

    Args:
        columns: their names.
        rows: texts and numbers.
        marked: indices of the rows to print in bold.
    """
    has_numbers = [any(isinstance(row[i], (int, float)) for row in rows)
                   for i in range(len(columns))]
    css = [' class="n"' if numbers else '' for numbers in has_numbers]

    def cells(tag, values):
        return ''.join(f'<{tag}{its_css}>{as_html(value)}</{tag}>'
                       for its_css, value in zip(css, values))

    head = f'<tr>{cells("th", columns)}</tr>\n' if any(columns) else ''
    body = ''.join(f'<tr{" class=marked" if i in marked else ""}>{cells("td", row)}</tr>\n'
                   for i, row in enumerate(rows))
    return f'<div class="wide"><table>\n{head}{body}</table></div>\n'


def picture(png: bytes, description: str) -> str:
    """Return HTML that holds a picture itself. description: for those who cannot see it."""
    address = data_address(png, 'image/png')
    return f'<img alt="{escape(description)}" src="{address}">\n'


def report_link(exp_dir: Path, name: str, page_folder: Path) -> str:
    """Return a link to an experiment's report.html, or the name alone if there is none.

    Args:
        exp_dir: the experiment's directory.
        name: the text of the link.
        page_folder: where the page with the link will be.
    """
    report = exp_dir / 'report.html'
    if not report.exists():
        return name
    address = quote(os.fsencode(Path(os.path.relpath(report, page_folder)).as_posix()))
    return Html(f'<a href="{address}">{escape(name)}</a>')


def data_address(data: bytes, media_type: str) -> str:
    """Return an address that holds the data itself."""
    return f'data:{media_type};base64,{base64.b64encode(data).decode()}'


def section(title: str, make: Callable[..., str], *args: Any) -> str:
    """Return a heading and what make(*args) returns.

    If that fails, the section says why: what is missing must not take away the rest of the page.
    """
    try:
        body = make(*args)
    except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        reason = escape(f'{type(error).__name__}: {error}')
        body = f'<p class="soft">Not known: {reason}</p>\n'
    return f'<h2>{escape(title)}</h2>\n{body}'


def page(title: str, lead: str, sections: Iterable[str], time: str, program: str = 'report.py',
         css: str = '') -> str:
    """Return the whole page.

    Args:
        title, lead, time: texts.
        sections: HTML.
        program: the program that writes the page again, if the user wants it.
        css: further style.
    """
    html = PAGE.substitute(title=escape(title), lead=escape(lead), sections='\n'.join(sections),
                           time=time, program=program, css=css)
    return html.encode('utf-8', 'replace').decode()  # the bytes of a path need not be UTF-8
