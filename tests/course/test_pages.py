"""A page shows all that its notebook has, on any screen, without a network and without a script."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest

from lora_lab.course.links import SETUP
from lora_lab.course.pages import title, to_mathml, write_page

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Tags(HTMLParser):
    """The tags of a page with their attributes, in order, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        """Give the attributes of every tag of that name."""
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def page(tmp_path):
    """Give the page of a notebook with this text, between two other notebooks."""

    def page(text, *cells):
        sources = {"00_a": "# First & foremost", "01_b": f"# Try `it` on $W$\n\n{text}", "02_c": "# Last"}
        for name, source in sources.items():
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source), *cells])
            nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        course = sorted(tmp_path.glob("*.ipynb"))
        notebook = nbformat.read(course[1], as_version=4)
        return Tags(write_page(notebook, course[1], course, tmp_path / "pages").read_text(encoding="utf-8"))

    return page


def test_page_needs_no_network_and_no_script(page):
    tags = page("$x$")
    assert not tags.all("script")
    assert not tags.all("link")
    for _, attributes in tags.tags:
        for value in (attributes.get("src"), attributes.get("href")):
            assert not (value or "").startswith(("http", "//"))


def test_page_fits_a_phone_and_names_its_language(page):
    tags = page("text")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tags.all("meta")
    assert tags.all("html") == [{"lang": "en"}]
    assert "Try it on W · LoRA Lab" in tags.text


def test_paper_has_all_of_a_long_line(page, tmp_path):
    page("text")
    style = (tmp_path / "pages" / "01_b.html").read_text(encoding="utf-8")
    on_paper = style[style.index("@media print") : style.index("</style>")]
    assert "pre { white-space: pre-wrap;" in on_paper, "on a screen a long line scrolls; on paper it would be cut off"


def test_page_links_to_its_neighbours_and_the_index(page):
    tags = page("text")
    assert {"rel": "prev", "href": "00_a.html"} in tags.all("a")
    assert {"rel": "next", "href": "02_c.html"} in tags.all("a")
    assert {"href": "index.html"} in tags.all("a")
    assert "← First & foremost" in tags.text


def test_link_to_a_notebook_becomes_a_link_to_its_page(page):
    tags = page("[back](00_a.ipynb), [a part](00_a.ipynb#part), [afar](https://example.org/x.ipynb)")
    links = [attributes["href"] for attributes in tags.all("a")]
    assert {"00_a.html", "00_a.html#part", "https://example.org/x.ipynb"} <= set(links)


def test_the_cell_for_colab_is_not_on_the_page(page):
    setup, other = (nbformat.v4.new_code_cell(source, id=name) for name, source in [(SETUP, "!git"), ("x", "x = 1")])
    text = page("Text.", setup, other).text
    assert "git" not in text
    assert "x = 1" in text


def test_figure_has_its_sentence(page):
    display = nbformat.v4.new_output(
        "display_data",
        {"image/png": PIXEL, "text/plain": "Rank 1 is enough."},
        metadata={"image/png": {"alt": "Rank 1 is enough.", "width": 614}},
    )
    [image] = page("text", nbformat.v4.new_code_cell("show()", outputs=[display], execution_count=1)).all("img")
    assert (image["alt"], image["width"]) == ("Rank 1 is enough.", "614")
    assert image["src"] == f"data:image/png;base64,{PIXEL}"


def test_what_is_wider_than_a_phone_scrolls_and_the_keyboard_reaches_it(page):
    def code(width):
        printed = nbformat.v4.new_output("stream", text="<" * width)
        return nbformat.v4.new_code_cell("x" * width, outputs=[printed], execution_count=1)

    tags = page("| word | meaning |\n|---|---|\n| rank | columns |", code(36), code(37))
    reached = [(tag, attributes.get("aria-label")) for tag, attributes in tags.tags if "tabindex" in attributes]
    assert reached == [("main", None), ("div", "Table"), ("pre", "Code"), ("pre", "Output")]
    assert len(tags.all("pre")) == 4


def test_page_lists_its_sections_if_there_are_many(page):
    def names(text):
        return [link["href"] for link in page(text).all("a") if link.get("class") != "anchor-link"]

    assert "#Two" not in names("## One\n\n## Two")
    assert names("## One\n\n## Two\n\n## Three").count("#Two") == 2, "folded on a phone, beside the text on a desk"


def test_day_and_dark_differ_in_colours_alone(page, tmp_path):
    page("text")
    style = (tmp_path / "pages" / "01_b.html").read_text(encoding="utf-8")
    assert style.count("line-height: 125%") == 0, "it would make the lines of code narrower in the dark"


def channels(colour):
    """Give the linear red, green and blue of a colour such as #1a1a1a or #fff."""
    digits = colour.lstrip("#")
    pairs = [digit * 2 for digit in digits] if len(digits) == 3 else re.findall("..", digits)
    shares = [int(pair, 16) / 255 for pair in pairs]
    return [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]


def contrast(colour, ground):
    """Give the contrast ratio of two colours, by WCAG 2.1."""
    light, dark = sorted((np.dot([0.2126, 0.7152, 0.0722], channels(one)) for one in (colour, ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_words_and_code_stand_out_by_day_and_in_the_dark(page, tmp_path):
    assert contrast("#000", "#fff") == pytest.approx(21)
    page("text")
    style = (tmp_path / "pages" / "01_b.html").read_text(encoding="utf-8")
    start, end = style.index("@media screen and (prefers-color-scheme: dark)"), style.index("@media print")
    for rules in (style[:start], style[start:end]):
        ground = re.search(r"^body \{.*background: (#\w+)", rules, re.M)[1]
        code_ground = re.search(r"^\.highlight \{.*background: (#\w+); border", rules, re.M)[1]
        words = [re.search(rf"^{tag} \{{.*?color: (#\w+)", rules, re.M)[1] for tag in ("body", "a")]
        code = re.findall(r"^\.highlight \.(?!hll|linenos|w\b)\w+ \{[^}]*?\bcolor: (#\w+)", rules, re.M)
        assert len(code) > 20
        assert min(contrast(word, ground) for word in words) >= 4.5
        poor = {word for word in code if contrast(word, code_ground) < 4.5}
        assert not poor


@pytest.fixture
def with_glossary(page, tmp_path):
    (tmp_path / "GLOSSARY.md").write_text('# Words\n\n- <a id="rank"></a>**rank**: $r$, see [a](00_a.ipynb)\n')
    return page("A [rank](GLOSSARY.md#rank)")


def test_the_glossary_is_a_page_and_every_page_links_to_it(with_glossary, tmp_path):
    links = [attributes["href"] for attributes in with_glossary.all("a")]
    assert {"GLOSSARY.html#rank", "GLOSSARY.html"} <= set(links)
    index, words = (Tags((tmp_path / "pages" / f"{name}.html").read_text("utf-8")) for name in ("index", "GLOSSARY"))
    assert {"href": "GLOSSARY.html"} in index.all("a")
    assert {"id": "rank"} in words.all("a")
    assert {"href": "00_a.html"} in words.all("a")
    assert words.all("math")
    assert "Words · LoRA Lab" in words.text


def test_the_page_for_teachers_is_linked_from_the_index(page, tmp_path):
    (tmp_path / "TEACHING.md").write_text("# For teachers\n\nPlans.")
    page("text")
    index, teaching = (Tags((tmp_path / "pages" / f"{name}.html").read_text("utf-8")) for name in ("index", "TEACHING"))
    assert {"href": "TEACHING.html"} in index.all("a")
    assert "For teachers" in index.text
    assert "Plans." in teaching.text


def test_the_glossary_of_the_course_is_in_order_and_leads_to_lessons_that_use_the_word():
    folder = Path(__file__).parents[2] / "notebooks"
    entries = re.findall(
        r'^- <a id="([^"]+)"></a>\*\*([^*]+)\*\* · \*[^*]+\*.*: .*\[(\d\d)\]\((\3_\w+\.ipynb)\)$',
        (text := (folder / "GLOSSARY.md").read_text(encoding="utf-8")), re.M,
    )  # fmt: skip
    assert len(entries) == text.count("\n- ") > 40
    assert len({name for name, *_ in entries}) == len(entries)
    words = [word.lower() for _, word, *_ in entries]
    assert words == sorted(words)
    for word, (*_, lesson) in zip(words, entries, strict=True):
        cells = nbformat.read(folder / lesson, as_version=4).cells
        stem = re.split(r"[, –]", word)[0].rstrip("s")[:7]
        assert any(stem in cell.source.lower() for cell in cells), f"{word} is not in {lesson}"


def test_formulas_become_mathml(page):
    tags = page("Inline $W_r$, and\n\n$$W = BA$$\n\n\\begin{align}a &= b\\end{align}\n\nIt costs \\$5 and `$x$`.")
    assert [attributes["display"] for attributes in tags.all("math")] == ["inline", "block", "block"]
    assert "It costs $5 and $x$." in tags.text
    assert "$$" not in tags.text


FORMULAS = [
    r"W + \frac{\alpha}{r} B A",
    r"\lVert W - W_r \rVert_F^2 = \sum_{i > r} \sigma_i^2",
    r"W \in \mathbb{R}^{m \times n}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"U \Sigma V^\top \approx \hat{W} \quad \text{for } r \ll \min(m, n)",
    r"\underbrace{9 \cdot 9}_{81}",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_mathml_is_read_and_leaves_no_tex(formula):
    root = ET.fromstring(to_mathml(formula))
    assert root.tag == "{http://www.w3.org/1998/Math/MathML}math"
    assert "\\" not in "".join(root.itertext())


@pytest.mark.parametrize(
    ("formula", "reason"),
    [(r"\left( x", "ExtraLeftOrMissingRightError"), (r"\nosuch{x}", r"\\nosuch is no command that a page can draw")],
)
def test_unreadable_formula_is_an_error_that_shows_it(page, formula, reason):
    with pytest.raises(ValueError, match=rf"cannot read the formula '.*x}}?': {reason}"):
        page(f"${formula}$")


def test_index_tells_what_each_notebook_promises(page, tmp_path):
    page("**You will be able to**\n\n- write $W$ as [two](02_c.ipynb) factors")
    index = Tags((tmp_path / "pages" / "index.html").read_text(encoding="utf-8"))
    assert [attributes.get("href") for attributes in index.all("a")] == ["#text", "01_b.html", "02_c.html"]
    assert "Try it on W" in index.text
    assert "You will be able to" in index.text
    assert index.all("math")


@pytest.mark.parametrize("first", [nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("# no title")])
def test_title_is_asked_for(tmp_path, first):
    nbformat.write(nbformat.v4.new_notebook(cells=[first]), tmp_path / "00_a.ipynb")
    with pytest.raises(ValueError, match=r"00_a\.ipynb has no title"):
        title(tmp_path / "00_a.ipynb")
