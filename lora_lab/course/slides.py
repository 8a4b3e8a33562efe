"""Makes a deck of slides of each lesson, from the cells that have a slide's tag, for a teacher before a class.

A deck is one HTML file that opens without a network: reveal.js, which turns the slides, stands inside it. Formulas,
figures and code look as on the pages. ``deck.html`` holds the frame and the style of every deck. The tags:

- ``slide``: a new slide begins with this cell;
- ``slide-next``: this cell goes on with the slide;
- ``slide-output``, beside one of these: the slide shows what the code gave, and not the code.

What is folded in the lesson, an answer to a prediction or to a question of the quiz, comes with the next key. The text
that stands between two slides in the lesson is in the notes of the first one, for the speaker's eyes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from lora_lab import assets
from lora_lab.course import pages

if TYPE_CHECKING:
    from nbformat import NotebookNode

BEGIN, NEXT, OUTPUT = "slide", "slide-next", "slide-output"

KEYS = """<p>Open a deck with a click; it needs no network. The arrow keys go on and back, and <kbd>?</kbd> shows all
keys: <kbd>S</kbd> opens the notes for the speaker, <kbd>O</kbd> shows all slides at once, <kbd>F</kbd> fills the
screen, <kbd>B</kbd> makes it black. For paper or PDF, print from the second link.</p>"""


@dataclass
class Slide:
    """One slide: the cells that it shows, the section of the lesson that it belongs to, and its speaker's notes.

    Attributes:
        cells: the cells, in their order; of one with the tag ``slide-output`` only the output is shown.
        section: the heading that came last before the slide, or "" if its own first line is one.
        notes: the text that follows in the lesson before the next slide.
    """

    cells: list[NotebookNode]
    section: str
    notes: str = ""


def slides(notebook: NotebookNode) -> list[Slide]:
    """Give the slides of a lesson. A quiz on a slide becomes a slide a question.

    Raises:
        ValueError: a tag is no tag of a slide, or is at a place where it means nothing; the message names the cell.
    """
    deck: list[Slide] = []
    section = ""
    for cell in notebook.cells:
        tags = _tags(cell)
        if NEXT in tags and not deck:
            raise ValueError(f"cell {cell.id}: no slide is there that {NEXT!r} could go on with; it takes {BEGIN!r}")
        if BEGIN in tags:
            for part, rest in _parts(cell):
                deck.append(Slide([part], "" if part.source.startswith("#") else section, rest))
        elif NEXT in tags:
            deck[-1].cells.append(cell)
        elif deck and cell.cell_type == "markdown":
            deck[-1].notes += f"\n\n{cell.source}"
        if cell.cell_type == "markdown" and (headings := re.findall(r"^## (.+)$", cell.source, re.MULTILINE)):
            section = headings[-1]
    if deck:
        deck[-1].notes = ""  # those would be the exercises and sources
    return deck


def _tags(cell: NotebookNode) -> set[str]:
    """Give the tags of a cell that are about slides, if they make sense together."""
    tags = {tag for tag in cell.metadata.get("tags", []) if tag.startswith(BEGIN)}
    if unknown := sorted(tags - {BEGIN, NEXT, OUTPUT}):
        raise ValueError(f"cell {cell.id}: {unknown[0]!r} is no tag of a slide; there are {BEGIN}, {NEXT} and {OUTPUT}")
    if tags and len(tags & {BEGIN, NEXT}) != 1:
        raise ValueError(
            f"cell {cell.id}: got the tags {', '.join(sorted(tags))}; a slide takes one of {BEGIN} and {NEXT}"
        )
    if OUTPUT in tags and not cell.get("outputs"):
        raise ValueError(f"cell {cell.id}: {OUTPUT!r} shows the output of a cell, and this one has none")
    return tags


def _parts(cell: NotebookNode) -> list[tuple[NotebookNode, str]]:
    """Give what a cell is on slides, each with what of it goes into the notes.

    A quiz is a slide a question, under the quiz's own heading; an opening ends before what a learner needs.
    """
    import nbformat

    if cell.source.startswith("# "):
        shown, need, rest = cell.source.partition("**You need**")
        return [(nbformat.v4.new_markdown_cell(shown, id=cell.id), need + rest)]
    heading, *questions = re.split(r"^(?=\*\*\d\.\*\* )", cell.source, flags=re.MULTILINE)
    if cell.id == "quiz" and questions:
        title = "## " + heading.splitlines()[0].lstrip("# ")
        return [(nbformat.v4.new_markdown_cell(f"{title}\n\n{question}"), "") for question in questions]
    return [(cell, "")]


def write_slides(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write a deck of each of these notebooks, from its stored outputs, and an index of them; give the decks' paths.

    Raises:
        ValueError: a notebook has no slides, or a tag of it is wrong; the message names notebook and cell.
        lora_lab.assets.AssetError: reveal.js is not in the cache and cannot be fetched.
        OSError: the folder cannot be written.
    """
    import nbformat

    reveal = assets.fetch("reveal-js").parent
    found: dict[Path, list[Slide]] = {}
    for path in paths:
        try:
            found[path] = slides(nbformat.read(path, as_version=4))
        except ValueError as error:
            raise ValueError(f"{path.name}, {error}") from error
        if not found[path]:
            raise ValueError(f"{path.name} has no slides: give the cells that begin one the tag {BEGIN!r}")
    folder.mkdir(parents=True, exist_ok=True)
    decks = [_write_deck(path, deck, folder, reveal) for path, deck in found.items()]
    for text in {path.parent / pages.GLOSSARY for path in paths}:
        if text.exists():
            pages.write_text(text, folder)
    entries = [
        f'<li><a href="{path.stem}.html">{escape(pages.title(path))}</a>, {len(deck)} slides '
        f'(<a href="{path.stem}.html?print-pdf">{escape(pages.title(path)[:2])} to print</a>)</li>'
        for path, deck in found.items()
    ]
    body = f"<h1>Slides</h1>\n{KEYS}\n<ul>{''.join(entries)}</ul>"
    pages.write_framed(folder / "index.html", name="Slides", links=[], body=body)
    return decks


def _write_deck(path: Path, deck: Sequence[Slide], folder: Path, reveal: Path) -> Path:
    """Write the deck of one lesson."""
    frame = Template((Path(__file__).parent / "deck.html").read_text(encoding="utf-8"))
    parts = {name: (reveal / name).read_text(encoding="utf-8") for name in ("reveal.js", "reveal.css", "notes.js")}
    target = folder / f"{path.stem}.html"
    text = frame.substitute(
        title=escape(f"{pages.title(path)} · {pages.COURSE}"),
        slides="\n".join(map(_section, deck)),
        colours=pages.code_colours("xcode"),
        licence=(reveal / "LICENSE").read_text(encoding="utf-8"),
        **{name.replace(".", "_"): part for name, part in parts.items()},
    )
    target.write_text(text, encoding="utf-8")
    return target


def _section(slide: Slide) -> str:
    """Give the HTML of one slide, with its heading and its notes; what is folded in the lesson waits for a key."""
    heading = f'<h2 class="section">{pages.to_html(slide.section)}</h2>' if slide.section else ""
    notes = f'<aside class="notes">{pages.to_html(slide.notes)}</aside>' if slide.notes else ""
    body = f'<div class="fit">{heading}{"".join(map(_shown, slide.cells))}</div>\n{notes}'
    body = re.sub(r' id="[^"]*"', "", re.sub(r'<a class="anchor-link".*?</a>', "", body))
    folded = r"<details>\s*<summary>.*?</summary>(.*?)</details>"
    body = re.sub(folded, r'<div class="fragment answer">\1</div>', body, flags=re.DOTALL)
    return f"<section>\n{body}</section>"


def _shown(cell: NotebookNode) -> str:
    """Give the HTML of a cell as a slide shows it."""
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[cell])
    return pages.to_body(notebook, code=OUTPUT not in cell.metadata.get("tags", []))


def spoiled(deck: Sequence[Slide]) -> list[str]:
    """Give the cells whose prediction a deck spoils: their slide goes on with the result, or no slide follows it.

    A cell that has its answer folded in it spoils nothing.
    """
    bad = []
    for place, slide in enumerate(deck, start=1):
        asking = [cell for cell in slide.cells if re.search(r"^\*\*Predict\b", cell.source, re.MULTILINE)]
        is_last = [cell is slide.cells[-1] and place < len(deck) for cell in asking]
        bad += [c.id for c, last in zip(asking, is_last, strict=True) if not last and "<details>" not in c.source]
    return bad
