"""The decks of all lessons in a real browser: each slide fits, the keyboard turns it, and nobody needs a network."""

import nbformat
import pytest

from lora_lab.course.notebooks import notebooks
from lora_lab.course.slides import slides, write_slides

LESSONS = {path.stem: path for path in notebooks()}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give the folder with the decks of the whole course."""
    folder = tmp_path_factory.mktemp("slides")
    write_slides(list(LESSONS.values()), folder)
    return folder


@pytest.fixture
def deck(folder, read):
    """Give a function that opens the deck of a lesson."""
    opened = []

    def deck(name, query=""):
        page, wrong = read(folder / f"{name}.html", query=query)
        page.wait_for_function("() => Reveal.isReady?.()")
        opened.append(page)
        return page, wrong

    yield deck
    for page in opened:
        page.close()


LOOK = """() => {
    const slide = Reveal.getCurrentSlide(), box = slide.querySelector('.fit').getBoundingClientRect()
    const parts = [...slide.querySelectorAll('.fit *')].map(part => part.getBoundingClientRect())
    const cut = [...slide.querySelectorAll('.fit pre')].filter(block => block.scrollWidth > block.clientWidth + 1)
    const words = [...slide.querySelectorAll('.fit :is(p, li, td)')]
        .map(part => parseFloat(getComputedStyle(part).fontSize))
    return {
        bottom: Math.max(box.bottom, ...parts.map(part => part.bottom)),
        right: Math.max(...parts.map(part => part.right)),
        cut: cut.length,
        heading: slide.querySelector('h1, h2, h3')?.textContent ?? '',
        words: Math.min(...words),
        images: [...slide.querySelectorAll('img')].map(image => [image.alt.trim(), image.naturalWidth, image.height]),
    }
}"""


@pytest.mark.parametrize("name", LESSONS)
def test_each_slide_fits_and_can_be_read(deck, name):
    page, wrong = deck(name)
    total = len(slides(nbformat.read(LESSONS[name], as_version=4)))
    assert page.evaluate("() => Reveal.getTotalSlides()") == total
    images = 0
    for number in range(total):
        page.evaluate("number => Reveal.slide(number)", number)
        seen = page.evaluate(LOOK)
        where = f"slide {number + 1} of {name}, {seen['heading']!r}"
        assert seen["heading"], where
        assert seen["bottom"] <= 670, f"{where} is too high"
        assert seen["right"] <= 1280, f"{where} is too wide"
        assert seen["cut"] == 0, f"{where}: a line of code is cut off"
        assert seen["words"] >= 16, f"{where}: the words are too small"
        assert all(alt and width > 0 and height >= 150 for alt, width, height in seen["images"]), where
        images += len(seen["images"])
    assert images > 0
    assert wrong == []


def test_the_keyboard_turns_the_slides_and_opens_an_answer(deck):
    page, _ = deck("01_rank_and_factorization")
    seen = [page.evaluate("() => Reveal.getState().indexh")]
    while not page.evaluate("() => Reveal.isLastSlide()"):
        page.keyboard.press("ArrowRight")
        seen.append(page.evaluate("() => Reveal.getState().indexh"))
    assert sorted(set(seen)) == list(range(page.evaluate("() => Reveal.getTotalSlides()")))
    answer = page.locator("section.present .answer")
    assert not answer.evaluate("part => part.classList.contains('visible')")
    page.keyboard.press("ArrowRight")
    assert answer.evaluate("part => part.classList.contains('visible')")
    page.keyboard.press("ArrowLeft")
    assert not answer.evaluate("part => part.classList.contains('visible')")


def test_the_speaker_has_notes(deck):
    page, _ = deck("01_rank_and_factorization")
    with page.context.expect_page() as opening:
        page.keyboard.press("s")
    notes = opening.value
    notes.wait_for_function("() => document.body.innerText.includes('No other linear algebra')")
    notes.close()


def test_a_deck_prints_with_all_of_its_slides(deck, folder):
    name = "00_start_here"
    page, _ = deck(name, query="print-pdf")
    page.wait_for_selector(".pdf-page")
    sheets = page.locator(".pdf-page")
    assert sheets.count() == len(slides(nbformat.read(LESSONS[name], as_version=4)))
    assert page.evaluate(
        "() => [...document.querySelectorAll('.pdf-page .fit')].every(part => part.scrollHeight <= 660)"
    )
    paper = page.pdf(prefer_css_page_size=True)
    assert paper.count(b"/Type /Page\n") == sheets.count()


@pytest.mark.parametrize("name", [*LESSONS, "index"])
def test_a_deck_keeps_nobody_out(folder, read, barriers, name):
    page, wrong = read(folder / f"{name}.html")
    if name != "index":
        page.wait_for_function("() => Reveal.isReady?.()")
    found = barriers(page)
    if name != "index":
        for number in range(1, page.evaluate("() => Reveal.getTotalSlides()"), 4):
            page.evaluate("number => Reveal.slide(number)", number)
            found += barriers(page)
    assert [line for line in found if "(serious)" in line or "(critical)" in line] == []
    assert wrong == []
    page.close()


def test_the_index_leads_to_every_deck(folder, read):
    page, wrong = read(folder / "index.html")
    links = page.evaluate("() => [...document.querySelectorAll('main a')].map(link => link.getAttribute('href'))")
    assert {f"{name}.html" for name in LESSONS} <= set(links)
    assert {f"{name}.html?print-pdf" for name in LESSONS} <= set(links)
    assert wrong == []
    page.close()
