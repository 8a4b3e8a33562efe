"""The sliders of the lessons in JupyterLab in a real browser: a key moves each of them, and its figure changes."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from tests.course.slider_cells import LESSONS, needed, sliders

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Give the address of a JupyterLab of this Python, with nobody's settings, and the folder that it shows."""
    pytest.importorskip("jupyterlab", reason="no JupyterLab")
    folder = tmp_path_factory.mktemp("lab")
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    settings = folder / "settings" / "@jupyterlab"
    for extension, text in (
        ("notebook-extension/tracker", '{"windowingMode": "none"}'),  # all cells stand in the page, seen or not
        ("apputils-extension/notification", '{"checkForUpdates": false, "fetchNews": "false"}'),
    ):
        path = settings / f"{extension}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "lessons").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.open_browser": False,
        "ServerApp.root_dir": folder / "lessons",
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": True,
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())],
        env={**os.environ, **own, "JUPYTERLAB_SETTINGS_DIR": str(settings.parent)},
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address, folder / "lessons"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_key_moves_each_slider_and_its_figure_changes(lesson, lab, browser):
    address, folder = lab
    cells, places = sliders(lesson)
    short = sorted({above for place in places for above in needed(cells, place)})
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell(cells[place].source, id=cells[place].id) for place in short]
    nbformat.write(notebook, folder / lesson.name)

    page, wrong = browser.new_page(viewport={"width": 1200, "height": 1000}), []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{address}/lab/tree/{lesson.name}?reset")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=60_000)
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready")  # waits for the kernel
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    try:
        boxes = page.locator(".jp-OutputArea-output .widget-vbox")
        boxes.nth(len(places) - 1).locator("img").wait_for(timeout=120_000)
        for n in range(len(places)):
            image, handles = boxes.nth(n).locator("img"), boxes.nth(n).get_by_role("slider")
            assert handles.count() >= 1
            for handle in handles.all():
                before = {name: image.get_attribute(name) for name in ("src", "alt")}
                handle.press("ArrowRight" if may_rise(handle) else "ArrowLeft")
                deadline = time.monotonic() + 60
                while image.get_attribute("src") == before["src"] and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert image.get_attribute("src") != before["src"], "the picture is the same"
                assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
                assert image.get_attribute("alt").endswith(".")
        assert boxes.count() == len(places)
        assert wrong == []
    finally:
        page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll()")
        page.close()


def may_rise(handle):
    """Tell whether a slider can go further to the right."""
    return float(handle.get_attribute("aria-valuenow")) < float(handle.get_attribute("aria-valuemax"))
