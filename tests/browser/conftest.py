"""A browser for the tests that look at what a reader sees."""

import shutil

import pytest


@pytest.fixture(scope="session")
def browser():
    """Give a Chromium that is on this machine, driven by Playwright."""
    driver = pytest.importorskip("playwright.sync_api", reason='no Playwright: pip install -e ".[browser]"')
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no browser: there is no chromium, chromium-browser or google-chrome on the path")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def read(browser):
    """Give a function that opens a file without a network: the open page, and what went wrong while it was read."""
    contexts = {}

    def read(path, *, width=1280, height=720, scheme="light", query=""):
        size = {"width": width, "height": height}
        key = (width, height, scheme)
        if key not in contexts:
            contexts[key] = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        page, wrong = contexts[key].new_page(), []
        page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith(("http", "ws")) else None)
        page.goto(path.as_uri() + f"?{query}" * bool(query))
        return page, wrong

    yield read
    for context in contexts.values():
        context.close()


@pytest.fixture(scope="session")
def barriers():
    """Give a function that asks axe-core what keeps readers out of a page, and gives it in a line each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason='no axe: pip install -e ".[browser]"')

    def barriers(page):
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        return [f"{one['id']} ({one['impact']}): {node['html'][:120]}" for one in found for node in one["nodes"]]

    return barriers
