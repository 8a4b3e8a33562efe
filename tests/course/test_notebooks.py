"""Notebooks run in this Python, from top to bottom, stop at the first error, and are stored as the same bytes."""

import json
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from lora_lab.course.notebooks import NotebookError, execute, is_live, normal_form, notebooks, run

LIVE = {"tags": ["nbval-ignore-output"]}


@pytest.fixture
def write(tmp_path):
    """Give a function that writes a notebook of these code cells (a source, or a source and its metadata)."""

    def write(name, *cells, kernel="python3"):
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": kernel}})
        notebook.cells = [nbformat.v4.new_markdown_cell(f"# Notebook {name}", id="title")]
        for n, cell in enumerate(cells):
            source, metadata = (cell, {}) if isinstance(cell, str) else cell
            notebook.cells.append(nbformat.v4.new_code_cell(source, id=f"cell-{n}", metadata=metadata))
        nbformat.write(notebook, tmp_path / name)
        return tmp_path / name

    return write


def outputs(path):
    """Give the text that each code cell of a notebook file has stored."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return ["".join(o.get("text") or o.data["text/plain"] for o in cell.outputs) for cell in cells]


def test_course_begins_with_notebook_00():
    names = [path.name for path in notebooks()]
    assert names == sorted(names)
    assert names[0] == "00_start_here.ipynb"


def test_no_notebooks_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr("lora_lab.course.notebooks.__file__", str(tmp_path / "lora_lab" / "course" / "notebooks.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="run this in the folder of the course"):
        notebooks()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_third.ipynb").touch()
    (tmp_path / "notebooks" / "scratch.ipynb").touch()
    assert [path.name for path in notebooks()] == ["03_third.ipynb"]


def test_unknown_notebook_lists_the_known():
    with pytest.raises(FileNotFoundError, match=r"no notebook '77'; there are 00_start_here"):
        run(["77"])


def test_beginning_of_several_names_is_no_name():
    with pytest.raises(ValueError, match=r"^'0' begins 00_start_here, .*: write more of the name$"):
        run(["0"])


def test_pages_that_cannot_be_written_are_told_before_anything_runs(write, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("lora_lab.course.notebooks.execute", lambda *_, **__: pytest.fail("a notebook has run"))
    with pytest.raises(OSError, match=r"the pages cannot go to .*file \(File exists\): choose another folder"):
        run([write("00_a.ipynb", "1")], output=tmp_path / "file")


def test_kernel_is_this_python_in_the_folder_of_the_notebook(write):
    path = write("00_try.ipynb", "import os, sys\nsys.executable", "os.getcwd()", kernel="a-kernel-nobody-installed")
    cells = execute(path).cells
    assert cells[1].outputs[0].data["text/plain"] == repr(sys.executable)
    assert cells[2].outputs[0].data["text/plain"] == repr(str(path.parent))


def test_store_keeps_outputs_and_changes_no_byte_twice(write):
    path = write(
        "00_try.ipynb",
        "import sys\nfor n in range(3):\n    print(n)\n    sys.stdout.flush()",
        "",
        ("import time\ntime.time_ns()", LIVE),
        "from IPython.display import display\nhandle = display('first', display_id=True)\nhandle.update('last')",
        "import ipywidgets\nipywidgets.IntProgress()",
        ("1 + 1", {"collapsed": True, "execution": {"iopub.status.busy": "2026"}}),
    )
    assert run([path], store=True) == 0
    stored = path.read_bytes()
    assert run([path], store=True) == 0
    assert path.read_bytes() == stored

    first, empty, live, updated, widget, second = outputs(path)
    assert (first, empty, updated, widget, second) == ("0\n1\n2\n", "", "'last'", "", "2")
    assert live.isdigit(), "the first run fills an empty live cell"
    notebook = json.loads(stored)
    assert [cell.get("execution_count") for cell in notebook["cells"]] == [None, 1, None, 2, 3, 4, 5]
    assert [cell["metadata"] for cell in notebook["cells"]] == [{}, {}, {}, LIVE, {}, {}, {}]
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert "version" not in notebook["metadata"]["language_info"]
    assert stored.startswith(b'{\n "cells": [\n  {')
    assert stored.endswith(b"}\n")


def test_normal_form_keeps_what_the_author_wrote(write):
    notebook = nbformat.read(write("00_try.ipynb", ("x = 1", LIVE)), as_version=4)
    title, cell = normal_form(notebook).cells
    assert (title.id, title.source) == ("title", "# Notebook 00_try.ipynb")
    assert (cell.id, cell.source, is_live(cell), is_live(title)) == ("cell-0", "x = 1", True, False)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('rank takes\\n1 to 9')", "ValueError: rank takes"),
        ("raise ValueError", "ValueError\n"),
        ("if True print()", "SyntaxError"),
        ("import os\nos._exit(1)", "its kernel stopped"),
        ("import time\ntime.sleep(60)", "it took longer than 3 seconds"),
    ],
)
def test_failing_cell_is_named_in_one_line(write, capsys, tmp_path, source, reason):
    good, bad, never = write("00_a.ipynb", "1"), write("01_b.ipynb", "1", "", source, "2"), write("02_c.ipynb", "3")
    before = bad.read_bytes()
    assert run([good, bad, never], store=True, timeout=3) == 1
    said = capsys.readouterr()
    assert said.out.startswith("00_a.ipynb ")
    assert "02_c" not in said.out
    line = said.err.splitlines(keepends=True)[-1]
    assert line.startswith(f"01_b.ipynb, cell 2: {reason}")
    assert bad.read_bytes() == before
    assert outputs(never) == [""]


def test_kernel_that_does_not_start_is_told_in_one_line(write, monkeypatch):
    async def never(*_: object) -> None:
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr("jupyter_client.asynchronous.client.AsyncKernelClient.wait_for_ready", lambda *_, **__: never())
    with pytest.raises(NotebookError, match=r"00_a\.ipynb, .*: its kernel did not start: Kernel didn't respond"):
        execute(write("00_a.ipynb", "1"))


def test_error_carries_the_same_line(write):
    with pytest.raises(NotebookError, match=r"^00_a\.ipynb, cell 1: NameError: name 'missing' is not defined$"):
        execute(write("00_a.ipynb", "missing"))


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal that Windows does not have")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", ["while the kernel starts", "in a cell"])
def test_control_c_stops_the_run_and_its_kernel(write, tmp_path, moment):
    path = write("00_a.ipynb", "import pathlib, time\npathlib.Path('there').touch()\ntime.sleep(60)")
    arguments = ["run", str(path), "--output", str(tmp_path / "pages")]
    process = subprocess.Popen([sys.executable, "-m", "lora_lab", *arguments], stderr=subprocess.PIPE, text=True)
    while not (kernels := psutil.Process(process.pid).children()) or (
        moment == "in a cell" and not (tmp_path / "there").exists()
    ):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (said, process.returncode) == ("lora-lab: interrupted\n", 130)
    assert not any(kernel.is_running() for kernel in kernels)


def test_run_writes_pages_and_leaves_the_notebooks_alone(write, tmp_path, capsys):
    first, second = write("00_a.ipynb", "6 * 7"), write("01_b.ipynb", "'b'")
    before = first.read_bytes(), second.read_bytes()
    pages = tmp_path / "pages"
    assert run([first], output=pages) == 0
    assert "01_b" not in (pages / "00_a.html").read_text() + (pages / "index.html").read_text()
    assert run([second], output=pages) == 0
    assert 'href="00_a.html"' in (pages / "01_b.html").read_text()
    index = (pages / "index.html").read_text()
    assert index.index('href="00_a.html"') < index.index('href="01_b.html"')
    assert "42" in (pages / "00_a.html").read_text()
    assert (first.read_bytes(), second.read_bytes()) == before
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["00_a.ipynb", "Open"] * 1 + [
        "01_b.ipynb",
        "Open",
    ]
