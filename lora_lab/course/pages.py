"""Makes readable pages of notebooks: HTML that needs no network, no script and no wide screen, by day or in the dark.

Formulas become MathML, which browsers draw by themselves; figures carry their sentence as the text alternative; links
from notebook to notebook become links from page to page. ``page.html`` holds the frame and the style of every page.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode

COURSE = "LoRA Lab"
GLOSSARY = "GLOSSARY.md"  # beside the notebooks


def write_page(notebook: NotebookNode, path: Path, course: Sequence[Path], folder: Path) -> Path:
    """Write a notebook as a page with links to its neighbours, bring the index up to date, and give the page's path.

    Args:
        notebook: the notebook with its outputs.
        path: the notebook's file.
        course: the files of all notebooks that have a page or are about to, in their order; ``path`` is among them.
        folder: where the pages lie; it is made if it is not there.

    Raises:
        ValueError: a formula of the notebook is not TeX that can be drawn.
    """
    body, _ = _exporter().from_notebook_node(notebook)
    place = list(course).index(path)
    before = [f'<a rel="prev" href="{p.stem}.html">← {escape(title(p))}</a>' for p in course[:place][-1:]]
    after = [f'<a rel="next" href="{p.stem}.html">{escape(title(p))} →</a>' for p in course[place + 1 :][:1]]
    links = "\n".join([*before, f'<a href="index.html">{COURSE}</a>', *_glossary_link(path.parent), *after])
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{path.stem}.html"
    _write(page, title=f"{title(path)} · {COURSE}", links=links, body=body)
    if (path.parent / GLOSSARY).exists():
        write_text(path.parent / GLOSSARY, folder)
    write_index([p for p in course if (folder / f"{p.stem}.html").exists()], folder)
    return page


def write_text(path: Path, folder: Path) -> Path:
    """Write a Markdown file as a page, and give the page's path.

    Raises:
        ValueError: it has no title, or a formula of it is not TeX that can be drawn.
    """
    text = path.read_text(encoding="utf-8")
    name = _heading(text, path.name)[0]
    page = folder / f"{path.stem}.html"
    _write(page, title=f"{name} · {COURSE}", links=f'<a href="index.html">{COURSE}</a>', body=_to_html(text))
    return page


def write_index(course: Sequence[Path], folder: Path) -> None:
    """Write ``index.html``: for each of these notebooks a link to its page, and what its first cell promises."""
    lessons = [f'<h2><a href="{p.stem}.html">{escape(title(p))}</a></h2>\n{_to_html(_opening(p)[1])}' for p in course]
    body = "\n".join([f"<h1>{COURSE}</h1>", "<p>The lessons, as they ran on this machine.</p>", *lessons])
    links = "\n".join(_glossary_link(course[0].parent) if course else [])
    _write(folder / "index.html", title=COURSE, links=links, body=body)


def _glossary_link(notebooks: Path) -> list[str]:
    """Give the link to the glossary, if the notebooks have one beside them."""
    page = Path(GLOSSARY).with_suffix(".html")
    return [f'<a href="{page}">Glossary</a>'] if (notebooks / GLOSSARY).exists() else []


def title(path: Path) -> str:
    """Give the title of a notebook, the first line of its first cell, as plain text.

    Raises:
        ValueError: that line is no heading.
    """
    return re.sub(r"[`*$]", "", _opening(path)[0])


def _opening(path: Path) -> tuple[str, str]:
    """Give the first heading of a notebook and the text below it in the same cell."""
    import nbformat

    first = nbformat.read(path, as_version=4).cells[0]
    return _heading(first.source if first.cell_type == "markdown" else "", path.name)


def _heading(text: str, where: str) -> tuple[str, str]:
    """Give the heading that a text begins with, and what comes after it."""
    heading = re.match(r"#[ ]+(.+)\n*", text)
    if heading is None:
        raise ValueError(f"{where} has no title: it takes a heading, '# ...', in its first line")
    return heading[1].strip(), text[heading.end() :]


def to_mathml(formula: str, display: str = "inline") -> str:
    """Give a TeX formula as MathML: ``display`` is "inline", or "block" for a line of its own.

    Raises:
        ValueError: the formula cannot be read; the message shows it.
    """
    from latex2mathml.converter import convert

    try:
        mathml: str = convert(formula.strip(), display=display)
    except Exception as error:  # latex2mathml has a dozen kinds, with no common one
        raise ValueError(f"cannot read the formula {formula!r}: {type(error).__name__}") from error
    if unknown := re.search(r"\\\w+", mathml):
        raise ValueError(f"cannot read the formula {formula!r}: {unknown[0]} is no command that a page can draw")
    return mathml


@functools.cache
def _exporter() -> HTMLExporter:
    """Give nbconvert's converter of notebooks, with our reading of text cells."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic")
    exporter.register_filter("markdown2html", _to_html)
    return exporter


def _to_html(text: str) -> str:
    """Give the HTML of a text cell: formulas as MathML, links to notebooks and to the glossary as links to pages."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return to_mathml(body)

        def block_math(self, body: str) -> str:
            return to_mathml(body, "block")

        def latex_environment(self, name: str, body: str) -> str:
            return to_mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

        def link(self, text: str, url: str, title: str | None = None) -> str:
            return super().link(text, re.sub(r"^([\w-]+)\.(ipynb|md)\b", r"\1.html", url), title)

    return MarkdownWithMath(renderer=Renderer(escape=False)).render(text)


def _write(path: Path, **parts: Any) -> None:
    """Write a file: the frame of all pages with these parts in it."""
    from pygments.formatters import HtmlFormatter

    frame = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    colours, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("xcode", "github-dark"))
    path.write_text(frame.substitute(parts, colours=colours, dark=dark), encoding="utf-8")
