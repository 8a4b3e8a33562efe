"""The pages of all lessons in a real browser: whole with no network, on a desk and a phone, by day and in the dark."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from lora_lab.course.notebooks import notebooks
from lora_lab.course.pages import write_page

NAMES = [*(path.stem for path in notebooks()), "index", "GLOSSARY", "TEACHING"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Give the folder with the pages of the whole course, made of the stored outputs."""
    folder, course = tmp_path_factory.mktemp("site"), notebooks()
    for path in course:
        write_page(nbformat.read(path, as_version=4), path, course, folder)
    return folder


@pytest.fixture(scope="module")
def anchors(site, read):
    """Give what can be linked to: of each page the names of its parts."""
    found = {}
    for path in site.glob("*.html"):
        page, _ = read(path)
        found[path.name] = set(page.evaluate("() => [...document.querySelectorAll('[id]')].map(part => part.id)"))
        page.close()
    return found


def test_every_lesson_and_every_text_is_a_page(site):
    assert {path.stem for path in site.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_page_is_whole(site, read, anchors, name):
    page, wrong = read(site / f"{name}.html", **DESK)
    assert wrong == []
    images = page.evaluate("() => [...document.images].map(image => [image.alt.trim(), image.naturalWidth])")
    assert all(alt and width > 0 for alt, width in images)
    drawn = page.evaluate(
        "() => [...document.querySelectorAll('main math')].filter(math => !math.closest('details:not([open])'))"
        ".map(math => math.getBoundingClientRect()).map(box => box.width * box.height)"
    )
    assert all(drawn)
    if name == "00_start_here":
        assert images
        assert drawn
    links = page.evaluate("() => [...document.querySelectorAll('a[href]')].map(link => link.href)")
    within = [urlsplit(link) for link in links if link.startswith("file:")]
    assert within
    for link in within:
        target = Path(unquote(link.path)).name
        assert target in anchors, f"{name} links to {target}, which is no page"
        names = {link.fragment, unquote(link.fragment)}  # a browser tries both
        assert names == {""} or names & anchors[target], f"no part {link.fragment} in {target}"
    page.close()


@pytest.mark.parametrize("name", NAMES)
def test_page_fits_a_phone_and_can_be_read_there(site, read, name):
    page, wrong = read(site / f"{name}.html", **PHONE)
    assert wrong == []
    page.evaluate("() => document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert page.evaluate("() => document.scrollingElement.scrollWidth") <= PHONE["width"]
    lost = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(part => {
            if (part.getBoundingClientRect().right <= innerWidth + 1) return false
            for (let box = part; box.id !== 'text'; box = box.parentElement)
                if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return false
            return true
        }).map(part => part.outerHTML.slice(0, 120))"""
    )
    assert lost == [], "it is cut off at the edge, and no box around it scrolls"
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('main :is(p, li, td, th, pre, code)')]
            .map(part => parseFloat(getComputedStyle(part).fontSize))"""
    )
    assert min(sizes) >= 13
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", NAMES)
def test_page_keeps_nobody_out(site, read, barriers, name, size, scheme):
    page, _ = read(site / f"{name}.html", scheme=scheme, **size)
    assert barriers(page) == []
    page.close()


def test_the_checks_can_fail(tmp_path, read, barriers):
    (tmp_path / "bad.html").write_text(
        "<title>x</title><img src=nothing.png><script>fetch('https://example.org')</script><p style='width:60rem'>x"
    )
    page, wrong = read(tmp_path / "bad.html", **PHONE)
    page.wait_for_timeout(200)
    assert any(line.startswith("https://example.org") for line in wrong)
    assert any(line.startswith("console") for line in wrong)
    assert any("image-alt" in line for line in barriers(page))
    assert any("html-has-lang" in line for line in barriers(page))
    assert page.evaluate("() => document.scrollingElement.scrollWidth") > PHONE["width"]
    page.close()


def test_the_keyboard_skips_to_the_text_and_scrolls_what_is_wide(site, read):
    page, _ = read(site / "01_rank_and_factorization.html", **PHONE)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the text"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "text"
    wide = page.locator("pre[tabindex]").first
    wide.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.activeElement.scrollLeft > 0")
    page.close()
