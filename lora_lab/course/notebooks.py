"""Runs the notebooks of the course, each in a fresh kernel of this very Python; makes pages of them, or stores them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbclient import NotebookClient
    from nbformat import NotebookNode

LIVE_TAG = "nbval-ignore-output"  # a cell whose output differs from run to run; nbval compares the others

WIDGET_TYPE = "application/vnd.jupyter.widget-view+json"

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}


class NotebookError(RuntimeError):
    """A cell failed; the message names the notebook, the cell and the reason in one line."""


def notebooks() -> list[Path]:
    """Give the notebooks of the course in their order.

    They lie in ``notebooks/``, beside the package or in the working directory.

    Raises:
        FileNotFoundError: neither place has them.
    """
    places = [Path(__file__).resolve().parents[2] / "notebooks", Path.cwd() / "notebooks"]
    for place in places:
        if found := sorted(place.glob("[0-9][0-9]_*.ipynb")):
            return found
    raise FileNotFoundError(f"no notebooks in {' or '.join(map(str, places))}: run this in the folder of the course")


def run(
    names: Sequence[str | Path] = (),
    *,
    output: str | Path = "_build",
    store: bool = False,
    timeout: float = 1800,
) -> int:
    """Execute notebooks from top to bottom, and write each as a page, or store its outputs in the notebook itself.

    A line with its time is printed for each notebook. The first cell that fails ends the run; the line that says where
    and why goes to standard error.

    Args:
        names: which notebooks: paths, or the beginnings of names such as ``"01"``; by default the whole course.
        output: the folder that gets the pages and their ``index.html``; with ``store`` it is not touched.
        store: write the outputs into the notebooks, in normal form, instead of making pages. Where nothing changed,
            neither does a byte of the file.
        timeout: the seconds that one cell may take.

    Returns:
        0, or 1 if a cell failed: the exit status of the command.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the beginning of a name fits several notebooks.
        OSError: the pages cannot be written to ``output``; no notebook has run then.
    """
    from lora_lab.course.pages import write_page

    paths = [find(name) for name in names] or notebooks()
    if not store:
        _make_folder(Path(output))
    for path in paths:
        start = time.monotonic()
        try:
            notebook = execute(path, timeout=timeout)
        except NotebookError as error:
            print(error, file=sys.stderr)
            return 1
        if store:
            store_outputs(notebook, path)
        else:
            write_page(notebook, path, _with_pages(paths, Path(output)), Path(output))
        print(f"{path.name:<40} {time.monotonic() - start:6.1f} s", flush=True)
    if not store:
        print(f"Open {Path(output) / 'index.html'} in a browser to read the pages.")
    return 0


def find(name: str | Path) -> Path:
    """Give the notebook at a path, or the one in the course whose name begins so.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the beginning of a name fits several notebooks.
    """
    if (path := Path(name)).suffix == ".ipynb" and path.is_file():
        return path.resolve()
    course = notebooks()
    found = [path for path in course if path.name.startswith(str(name))]
    if len(found) > 1:
        raise ValueError(f"{str(name)!r} begins {', '.join(path.stem for path in found)}: write more of the name")
    if not found:
        raise FileNotFoundError(f"no notebook {str(name)!r}; there are {', '.join(path.stem for path in course)}")
    return found[0]


def execute(path: Path, *, timeout: float = 1800) -> NotebookNode:
    """Give the notebook with the outputs of a run from top to bottom, in its own folder, with a bar for its cells.

    The kernel is the Python that runs this function, whatever is installed under the notebook's kernel name.

    Raises:
        NotebookError: a cell failed, took too long, or took the kernel down.
        KeyboardInterrupt: somebody pressed Control-C; the kernel is stopped first.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from tqdm import tqdm

    notebook, kernel = nbformat.read(path, as_version=4), _this_python()
    with tqdm(total=len(code_cells(notebook)), desc=path.name, unit="cell", leave=False, disable=None) as bar:
        client = NotebookClient(
            notebook,
            km=kernel,
            resources={"metadata": {"path": str(path.parent)}},
            timeout=timeout,
            store_widget_state=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=CRITICAL"],  # a failing cell is told by nbclient
            on_cell_executed=lambda **_: bar.update(),
        )
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(_execution(client, kernel))
        except CellExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".splitlines()[0].rstrip(": ")
        except CellTimeoutError:
            reason = f"it took longer than {timeout:g} seconds"
        except DeadKernelError:
            reason = "its kernel stopped; perhaps memory ran out"
        except RuntimeError as error:  # what Jupyter says of a kernel that never answered
            reason = f"its kernel did not start: {error}"
            client.km = kernel  # nbclient has let go of it, and asks for it once more when Python ends
        else:
            return normal_form(notebook)
    raise NotebookError(f"{path.name}, cell {client.code_cells_executed}: {reason}")


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that leaves Control-C to asyncio: nbclient would take it, and stumble over what it then stops."""

    def add_signal_handler(self, *_: object) -> None:
        """Refuse, as a loop does outside the main thread."""
        raise RuntimeError("Control-C belongs to the runner of this loop")


async def _execution(client: NotebookClient, kernel: Any) -> None:
    """Execute a notebook, and stop its kernel if Control-C cancels this, whatever nbclient makes of it."""
    task = asyncio.current_task()
    try:
        await client.async_execute(cleanup_kc=True)
    except BaseException:
        if task is None or not task.cancelling():
            raise
        if kernel.has_kernel:  # nbclient stops it only if it was ready
            await kernel.shutdown_kernel(now=True)
        raise asyncio.CancelledError from None


def normal_form(notebook: NotebookNode) -> NotebookNode:
    """Give the notebook without what would differ in the next run: timings, widgets, the version of Python.

    It keeps the sources, the identifiers and tags of the cells, and the outputs that a page can show. Of a widget it
    keeps what the widget says of itself in Markdown, as the sliders of ``vary`` do, and nothing of any other.
    """
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _outlives_its_kernel(output)]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET_TYPE, None)
    notebook.metadata = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE}
    return notebook


def _outlives_its_kernel(output: NotebookNode) -> bool:
    """Tell whether an output can be read where no kernel runs: it is no widget, or one that says so in Markdown."""
    data = output.get("data", {})
    return WIDGET_TYPE not in data or "text/markdown" in data


def store_outputs(notebook: NotebookNode, path: Path) -> None:
    """Write an executed notebook over the one at ``path``; where nothing changed, neither does a byte of the file.

    A live cell would change each time, so it keeps the outputs that the file has. To renew them, clear them first.
    """
    import nbformat

    for cell, before in zip(notebook.cells, nbformat.read(path, as_version=4).cells, strict=True):
        if is_live(cell) and before.outputs:
            cell.outputs = before.outputs
    nbformat.validate(notebook)
    nbformat.write(normal_form(notebook), path)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Give the cells that a run executes and counts 1..n: those with code in them."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def is_live(cell: NotebookNode) -> bool:
    """Tell whether the output of a cell may differ from run to run: it is tagged, so nbval leaves it alone."""
    return LIVE_TAG in cell.metadata.get("tags", [])


def _make_folder(folder: Path) -> None:
    """Make the folder of the pages, or say why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the pages cannot go to {folder} ({error.strerror}): choose another folder") from error


def _with_pages(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Give the notebooks that have a page from an earlier run or get one in this run, in the order of the course."""
    course = {path for chosen in paths for path in chosen.parent.glob("*.ipynb")}
    return sorted(path for path in course if path in paths or (folder / f"{path.stem}.html").exists())


def _this_python() -> Any:
    """Give a kernel manager that starts this very Python, whatever the kernel is called."""
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(KernelSpecManager):
        """Answers every question for a kernel with this Python."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            """Give the kernel of this Python."""
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    return AsyncKernelManager(kernel_spec_manager=ThisPython())
