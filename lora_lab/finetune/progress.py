"""One progress bar for terminals and notebooks, silent everywhere else."""

import html
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """A progress bar: a line on a terminal's standard error, a bar under a notebook's cell, nothing in a log file.

    When the work is done the terminal's line disappears and the notebook's bar becomes the sentence
    ``"training: 60 of 60"``, without times, so that a stored notebook does not change from run to run.

    Example:
        >>> with Progress(3, "training", shown=False) as bar:
        ...     for step in range(3):
        ...         bar.advance(note=f"step {step}")
    """

    def __init__(self, total: int, title: str, *, shown: bool = True) -> None:
        """Prepare a bar of ``total`` steps, headed ``title``; ``shown=False`` shows nothing."""
        self.total, self.title, self.done = total, title, 0
        self._started = time.monotonic()
        self._notebook: Any = None
        self._line: Any = None
        if shown and _in_notebook():
            from IPython.display import display

            self._notebook = display(self._bar(""), display_id=True)
        elif shown and sys.stderr.isatty():
            self._line = tqdm(total=total, desc=title, leave=False, file=sys.stderr)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by ``steps`` and show ``note`` beside the bar."""
        self.done += steps
        if self._notebook is not None:
            self._notebook.update(self._bar(note))
        if self._line is not None:
            self._line.set_postfix_str(note, refresh=False)
            self._line.update(steps)

    def __enter__(self) -> "Progress":
        """Give the bar itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state behind in a notebook, and nothing on a terminal."""
        if self._notebook is not None:
            self._notebook.update(_plain(f"{self.title}: {self.done:,} of {self.total:,}"))
        if self._line is not None:
            self._line.close()

    def _bar(self, note: str) -> Any:
        """Give the bar of this moment as something a notebook displays."""
        passed = time.monotonic() - self._started
        left = f"{passed / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        words = " · ".join(part for part in (f"{self.title}: {self.done:,} of {self.total:,}", note, left) if part)
        return _plain(words, bar=f'<progress value="{self.done}" max="{self.total}"></progress> ')


def _plain(words: str, bar: str = "") -> Any:
    """Give ``words``, after an optional bar, with a text form for readers that show no HTML."""

    class Shown:
        def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
            return {"text/plain": words, "text/html": f"<div>{bar}<code>{html.escape(words)}</code></div>"}

    return Shown()


def _in_notebook() -> bool:
    """Say whether this code runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
