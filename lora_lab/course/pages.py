"""Makes readable pages of notebooks: HTML that needs no network, no script and no wide screen, by day or in the dark.

Formulas become MathML, which browsers draw by themselves; figures carry their sentence as the text alternative; links
from notebook to notebook become links from page to page. ``page.html`` holds the frame and the style of every page.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from lora_lab.course import links

if TYPE_CHECKING:
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode

COURSE = "LoRA Lab"
GLOSSARY, TEACHING = "GLOSSARY.md", "TEACHING.md"  # beside the notebooks
HOME = f'<a href="index.html">{COURSE}</a>'
NARROW = 36  # characters of code that fit on a phone, 390 pixels wide; longer lines scroll


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
    body = to_body(notebook)
    place = list(course).index(path)
    before = [f'<a rel="prev" href="{p.stem}.html">← {escape(title(p))}</a>' for p in course[:place][-1:]]
    after = [f'<a rel="next" href="{p.stem}.html">{escape(title(p))} →</a>' for p in course[place + 1 :][:1]]
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{path.stem}.html"
    write_framed(page, name=title(path), links=[*before, HOME, *_links(path.parent, GLOSSARY), *after], body=body)
    for text in _beside(path.parent, GLOSSARY, TEACHING):
        write_text(text, folder)
    write_index([p for p in course if (folder / f"{p.stem}.html").exists()], folder)
    return page


def write_text(path: Path, folder: Path) -> Path:
    """Write a Markdown file as a page, and give the page's path.

    Raises:
        ValueError: it has no title, or a formula of it is not TeX that can be drawn.
    """
    text = path.read_text(encoding="utf-8")
    page = folder / f"{path.stem}.html"
    write_framed(page, name=_heading(text, path.name)[0], links=[HOME], body=to_html(text))
    return page


def write_index(course: Sequence[Path], folder: Path) -> None:
    """Write ``index.html``: for each of these notebooks a link to its page, and what its first cell promises."""
    lessons = [f'<h2><a href="{p.stem}.html">{escape(title(p))}</a></h2>\n{to_html(_opening(p)[1])}' for p in course]
    body = "\n".join([f"<h1>{COURSE}</h1>", "<p>The lessons, as they ran on this machine.</p>", *lessons])
    links = _links(course[0].parent, GLOSSARY, TEACHING) if course else []
    write_framed(folder / "index.html", name="", links=links, body=body)


def _beside(notebooks: Path, *names: str) -> list[Path]:
    """Give those of these texts that lie beside the notebooks."""
    return [notebooks / name for name in names if (notebooks / name).exists()]


def _links(notebooks: Path, *names: str) -> list[str]:
    """Give links to the pages of those of these texts that lie beside the notebooks."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in _beside(notebooks, *names)}
    return [f'<a href="{stem}.html">{escape(_heading(text, stem)[0])}</a>' for stem, text in texts.items()]


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


def to_body(notebook: NotebookNode, *, code: bool = True) -> str:
    """Give the HTML of the cells of a notebook, without a frame; ``code=False`` leaves out the code, not its outputs.

    Raises:
        ValueError: a formula of the notebook is not TeX that can be drawn.
    """
    shown = copy.copy(notebook)
    shown.cells = [cell for cell in notebook.cells if cell.get("id") != links.SETUP]  # it does nothing on a page
    body: str = _exporter(code).from_notebook_node(shown)[0]
    return body


@functools.cache
def _exporter(code: bool) -> HTMLExporter:
    """Give nbconvert's converter of notebooks, with our reading of text cells."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input=not code)
    exporter.register_filter("markdown2html", to_html)
    return exporter


def to_html(text: str) -> str:
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


def _reached(name: str) -> str:
    """Give the attributes of a box that may scroll: the keyboard reaches it, and a screen reader says what it is."""
    return f'tabindex="0" role="group" aria-label="{name}"'


def _scrolling(body: str) -> str:
    """Give the HTML with what may be wider than a phone in boxes that scroll: tables, figures, long lines."""

    def block(match: re.Match[str]) -> str:
        lines = unescape(re.sub(r"<[^>]+>", "", match[2])).splitlines()
        name = "Code" if match[1] else "Output"
        return (
            f"{match[1] or ''}<pre {_reached(name)}>{match[2]}</pre>"
            if max(map(len, lines), default=0) > NARROW
            else match[0]
        )

    body = re.sub(r'<div class="output_png', rf'<div {_reached("Figure")} class="scroll output_png', body)
    body = re.sub(r"<table.*?</table>", rf'<div class="scroll" {_reached("Table")}>\g<0></div>', body, flags=re.DOTALL)
    return re.sub(r'(<div class="highlight[^>]*>)?<pre>(.*?)</pre>', block, body, flags=re.DOTALL)


def _sections(body: str) -> str:
    """Give the list of a page's sections, as links; nothing if they are too few to get lost among."""
    found = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body)
    return (
        "<ul>" + "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in found) + "</ul>"
        if found[2:]
        else ""
    )


def write_framed(path: Path, *, name: str, links: Sequence[str], body: str) -> None:
    """Write a page: its name, the links at its top and its end, and what it says, in the frame of all pages."""
    frame = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    parts = {
        "title": escape(f"{name} · {COURSE}" if name else COURSE),
        "links": "\n".join(links),
        "sections": _sections(body),
        "body": _scrolling(body),
        "colours": code_colours("xcode"),
        "dark": code_colours("github-dark"),
    }
    path.write_text(frame.substitute(parts), encoding="utf-8")


def code_colours(style: str) -> str:
    """Give the colours of the words of code in a style of Pygments, as CSS, and nothing but the colours."""
    from pygments.formatters import HtmlFormatter

    rules: str = HtmlFormatter(style=style).get_style_defs(".highlight")
    return "\n".join(re.findall(r"^\.highlight .*", rules, re.MULTILINE))
