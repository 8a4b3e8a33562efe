"""The house style of every figure, and ``show``, which never shows a picture without the sentence that says the same.

Colours are those of Okabe and Ito (2008), which readers with any common colour blindness can tell apart. Colour is
never the only cue: each line of the cycle also has its own marker and its own dashes.

Draw on ``canvas()``, then ``show`` the figure::

    fig, ax = canvas()
    ax.plot(ranks, errors, label="the table")
    show(fig, "The error of the multiplication table falls to 0 at rank 1.")

Matplotlib is imported at the first figure, not before.
"""

from __future__ import annotations

import base64
import io
import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"  # for areas only: a yellow line on white is too faint
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#6B6B6B"  # for axes, grids and remarks, never for data

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", "-.", ":", "-", "--", "-.")

SEQUENTIAL = "cividis"  # for quantities from low to high
DIVERGING = "RdBu_r"  # for quantities on both sides of zero; give it vmin = -vmax

SCREEN_DPI = 96  # CSS pixels in an inch: the size at which a page shows the figure
FILE_DPI = 144  # pixels stored for an inch: sharp on a fine screen, small in a notebook

STYLE: dict[str, Any] = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "figure.facecolor": "white",
    "figure.titlesize": 13,
    "font.family": "DejaVu Sans",  # it comes with Matplotlib, so every machine draws the same letters
    "font.size": 10.5,
    "grid.alpha": 0.25,
    "grid.color": GREY,
    "image.cmap": SEQUENTIAL,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}


def canvas(
    rows: int = 1, columns: int = 1, *, width: float = 6.4, height: float = 3.8, **options: Any
) -> tuple[Figure, Any]:
    """Give a new figure in the house style and its axes: one ``Axes``, or an array of them where there are several.

    The figure belongs to you alone: Matplotlib keeps no list of it, so nothing is shown before ``show``.

    Args:
        rows, columns: the grid of axes.
        width, height: inches on the screen; 6.4 fills the text width of a page.
        options: passed to ``Figure.subplots`` (``sharex``, ``sharey``, ``width_ratios``, ``squeeze``, ...).
    """
    import matplotlib.style
    from cycler import cycler
    from matplotlib.figure import Figure

    cycle = cycler(color=COLOURS) + cycler(marker=MARKERS) + cycler(linestyle=LINE_STYLES)
    matplotlib.style.use({**STYLE, "axes.prop_cycle": cycle})
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **options)


def write_in_cell(ax: Axes, colour: tuple[float, float, float, float], x: float, y: float, text: str) -> None:
    """Write ``text`` at (x, y) of a map, in black or white, whichever is easier to read on the cell's RGBA colour."""
    red, green, blue, _ = colour
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"  # luma, ITU-R BT.601
    ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=9)


def png_bytes(fig: Figure) -> bytes:
    """Give the figure as a PNG file, the same bytes each time: fixed resolution, no date and no program name in it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=FILE_DPI, metadata={"Software": None})
    return buffer.getvalue()


def save(fig: Figure, path: str | Path) -> None:
    """Write the figure into a PNG file; ``data/README.md`` says which call made which file."""
    Path(path).write_bytes(png_bytes(fig))


def show(fig: Figure, alt: str) -> None:
    """Display a figure with the sentence that says what it shows, and close it.

    The sentence is the picture's text alternative: a screen reader speaks it, and the tests of the notebooks compare
    it, so it states the finding with its number.

    Args:
        fig: a Matplotlib figure.
        alt: one or more sentences, such as "The error falls to 0 at rank 1."

    Raises:
        TypeError: ``fig`` is no figure or ``alt`` no string.
        ValueError: ``alt`` is not a sentence: fewer than three words, or no full stop at its end.
    """
    from IPython.display import publish_display_data

    alt = _checked(fig, alt)
    publish_display_data(
        {"image/png": base64.b64encode(png_bytes(fig)).decode("ascii"), "text/plain": alt},
        {"image/png": {"alt": alt, "width": round(fig.get_figwidth() * SCREEN_DPI)}},
    )
    _close(fig)


def image_html(fig: Figure, alt: str) -> str:
    """Give a figure as one HTML image, with its sentence, in the size in which ``show`` displays it, and close it.

    The picture is in the text itself, and its size is known before it is decoded, so nothing jumps when one image takes
    the place of another.

    Args:
        fig: a Matplotlib figure.
        alt: one or more sentences, as ``show`` takes them.

    Raises:
        TypeError: ``fig`` is no figure or ``alt`` no string.
        ValueError: ``alt`` is not a sentence.
    """
    alt = _checked(fig, alt)
    width, height = (round(inches * SCREEN_DPI) for inches in fig.get_size_inches())
    source = f"data:image/png;base64,{base64.b64encode(png_bytes(fig)).decode('ascii')}"
    _close(fig)
    shape = f'width="{width}" height="{height}" style="max-width: 100%; height: auto" decoding="sync"'
    return f'<img alt="{escape(alt)}" {shape} src="{source}">'


def _checked(fig: Figure, alt: str) -> str:
    """Give the sentence, or say that it is none or that ``fig`` is no figure."""
    from matplotlib.figure import Figure

    if not isinstance(fig, Figure):
        raise TypeError(f"fig takes a Matplotlib figure, got {type(fig).__name__}")
    return _sentence(alt)


def _close(fig: Figure) -> None:
    """Close a figure that was made by pyplot, which would show it a second time."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)


def _sentence(alt: str) -> str:
    """Give the text with single spaces, or say why it is no sentence."""
    if not isinstance(alt, str):
        raise TypeError(f"alt takes a sentence, got {type(alt).__name__}")
    words = alt.split()
    if len(words) < 3 or words[-1][-1] not in ".!?":
        raise ValueError(f"alt takes a sentence that says what the figure shows and ends with a full stop, got {alt!r}")
    return " ".join(words)
