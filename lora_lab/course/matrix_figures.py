"""The figures of matrices, factors, counts and errors. Each function draws numbers that you computed.

Every function gives a Matplotlib figure in the house style, ready for ``show`` or ``savefig``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.course.figures import BLUE, DIVERGING, GREEN, GREY, SEQUENTIAL, VERMILLION, canvas
from lora_lab.lowrank import LowRank, break_even_rank, parameter_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches on the screen


def factorization_figure(low: LowRank | None = None, *, entry: tuple[int, int] | None = None) -> Figure:
    """Draw ``matrix = left · right`` as three coloured grids with their counts, the shared dimension marked.

    Each grid has colours of its own, from its smallest entry to its largest.

    Args:
        low: The matrix in factors, small enough to read every entry. By default the 9×9 multiplication table as
            9×1 times 1×9.
        entry: Row and column of an entry of the matrix, counted from 0. It is framed, together with what it is made
            of: the row of ``left`` and the column of ``right``.
    """
    if low is None:
        numbers = np.arange(1, 10)
        low = LowRank(numbers[:, None], numbers[None, :])
    (m, n), r = low.shape, low.rank
    left_at, right_at = n + 2.0, n + r + 4.4  # where the factors begin, in cells
    total = right_at + n
    fig, ax = canvas(width=WIDTH, height=WIDTH * (max(m, r) + 3.4) / total)
    _draw_grid(ax, low.dense())
    _draw_grid(ax, low.left, x=left_at)
    _draw_grid(ax, low.right, x=right_at, y=(m - r) / 2)
    ax.text(n + 1, m / 2, "=", ha="center", va="center", fontsize=20)
    ax.text(left_at + r + 0.9, m / 2, "·", ha="center", va="center", fontsize=28, weight="bold")
    for x, y, text in (
        (n / 2, m, f"{m} × {n}\n{m * n} numbers"),
        (left_at + r / 2, m, f"{m} × {r}\n{m * r} numbers"),
        (right_at + n / 2, (m + r) / 2, f"{r} × {n}\n{r * n} numbers"),
    ):
        ax.text(x, y + 0.35, text, ha="center", va="top", linespacing=1.5)
    shared = {"color": VERMILLION, "weight": "bold"}
    ax.text(left_at + r / 2, -0.3, _count(r, "column"), ha="center", va="bottom", **shared)
    ax.text(right_at - 0.3, m / 2, _count(r, "row"), ha="right", va="center", rotation=90, **shared)
    if entry is not None:
        row, column = entry
        _frame(ax, column, row, 1, 1)
        _frame(ax, left_at, row, r, 1)
        _frame(ax, right_at + column, (m - r) / 2, 1, r)
    ax.set(xlim=(-0.1, total + 0.1), ylim=(max(m, r) + 2.2, -1.2))
    return fig


def layers_figure(low: LowRank) -> Figure:
    """Draw a matrix as the sum of its layers: column k of ``left`` times row k of ``right``, for every k.

    Args:
        low: The matrix in factors, small enough to read every entry, of rank 1 at least.
    """
    layers = [np.outer(column, row) for column, row in zip(low.left.T, low.right, strict=True)]
    titles = ["the matrix", *(f"layer {k}" for k in range(1, low.rank + 1))]
    matrices = [low.dense(), *layers]
    limits = min(W.min() for W in matrices), max(W.max() for W in matrices)  # one scale of colour for all
    return _side_by_side(matrices, titles, signs=["=", *["+"] * (low.rank - 1)], limits=limits)


def tables_figure(tables: Mapping[str, ArrayLike]) -> Figure:
    """Draw small matrices side by side, each as a coloured grid with its entries, its name, and its own colours."""
    matrices = [np.asarray(table) for table in tables.values()]
    return _side_by_side(matrices, list(tables), signs=[""] * (len(tables) - 1))


def damage_figure(W: ArrayLike, approximation: ArrayLike) -> Figure:
    """Draw ``W - approximation`` entry by entry: where an approximation is too low (red) and too high (blue).

    The colours go as far as the largest difference, but what is written as 0.00 everywhere stays white.

    Args:
        W: Matrix (m, n), small enough to read every entry.
        approximation: Matrix (m, n).
    """
    damage = np.asarray(W) - np.asarray(approximation)
    m, n = damage.shape
    fig, ax = canvas(width=5.8, height=5.8 * m / n)
    largest = max(np.abs(damage).max(), 0.005)
    _draw_grid(ax, damage, colours=DIVERGING, limits=(-largest, largest), text_size=8)
    for row in range(m):
        ax.text(-0.3, row + 0.5, str(row + 1), ha="right", va="center", color=GREY)
    for column in range(n):
        ax.text(column + 0.5, -0.15, str(column + 1), ha="center", va="bottom", color=GREY)
    ax.set(xlim=(-0.7, n + 0.1), ylim=(m + 0.1, -0.7))
    return fig


def storage_figure(m: int, n: int) -> Figure:
    """Draw how many numbers the factors of an m×n matrix store at every rank, with the break-even rank marked."""
    ranks = np.arange(min(m, n) + 1)
    counts = [parameter_count(m, n, int(rank)) for rank in ranks]
    last = break_even_rank(m, n)
    fig, ax = canvas()
    ax.plot(ranks, counts, color=BLUE, marker="o", clip_on=False, zorder=3, label=f"the factors: rank · {m + n}")
    ax.axhline(m * n, color=VERMILLION, linestyle="--", label=f"the matrix itself: {m * n}")
    ax.axvspan(0, last, color=GREEN, alpha=0.15, linewidth=0, label=f"a saving: up to rank {last}")
    for rank in (last, last + 1):
        ax.annotate(f"rank {rank}: {counts[rank]}", (rank, counts[rank]), xytext=(10, -5), textcoords="offset points")
    ax.set(xlabel="rank", ylabel="numbers stored", xlim=(0, None), ylim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=10)
    ax.legend()
    return fig


def error_figure(errors: Mapping[str, ArrayLike]) -> Figure:
    """Draw relative error against rank, one curve for each name; a curve holds the errors of ranks 0, 1, 2, ..."""
    fig, ax = canvas()
    for name, curve in errors.items():
        ax.plot(np.asarray(curve), clip_on=False, label=name)
    ax.set(xlabel="rank kept", ylabel="relative error", xlim=(0, None), ylim=(0, 1.04))
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=10)
    ax.legend()
    return fig


def _side_by_side(
    matrices: list[np.ndarray],
    titles: list[str],
    *,
    signs: list[str],
    limits: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """Draw matrices in a row, with a sign in each gap and a title over each."""
    gap = 1.6
    starts = np.cumsum([0.0] + [W.shape[1] + gap for W in matrices])  # in cells
    height = max(len(W) for W in matrices)
    total = starts[-1] - gap
    fig, ax = canvas(width=WIDTH, height=WIDTH * (height + 1.4) / total)
    for W, x, title in zip(matrices, starts[:-1], titles, strict=True):
        _draw_grid(ax, W, x=x, limits=limits, text_size=min(8.5, 190 / total))
        ax.text(x, -0.35, title, ha="left", va="bottom", fontsize=11)
    for x, sign in zip(starts[1:-1], signs, strict=True):
        ax.text(x - gap / 2, height / 2, sign, ha="center", va="center", fontsize=18)
    ax.set(xlim=(-0.1, total + 0.1), ylim=(height + 0.1, -1.3))
    return fig


def _draw_grid(
    ax: Axes,
    W: np.ndarray,
    *,
    x: float = 0.0,
    y: float = 0.0,
    colours: str = SEQUENTIAL,
    limits: tuple[float | None, float | None] = (None, None),
    text_size: float = 8.5,
) -> None:
    """Draw a matrix as coloured cells of size 1 with their entries, its upper left corner at (x, y)."""
    m, n = W.shape
    mesh = ax.pcolormesh(
        x + np.arange(n + 1),
        y + np.arange(m + 1),
        W,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        edgecolor="white",
        linewidth=0.8,
    )
    for (row, column), entry in np.ndenumerate(W):
        ink = _ink(tuple(mesh.to_rgba(entry))[:3])
        ax.text(x + column + 0.5, y + row + 0.5, _short(entry), ha="center", va="center", color=ink, fontsize=text_size)
    ax.set_aspect("equal")
    ax.axis("off")


def _ink(colour: tuple[float, float, float]) -> str:
    """Choose black or white, whichever stands out more on a colour: the contrast is then 4.58 : 1 at least.

    The contrast of two colours is (L + 0.05) / (l + 0.05), L the relative luminance of the lighter and l of the darker.

    Args:
        colour: Red, green and blue, each from 0 to 1, in sRGB.

    Source:
        Web Content Accessibility Guidelines 2.2 (2023), "contrast ratio" and "relative luminance".
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def _frame(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    """Draw a thick frame around cells, its upper left corner at (x, y)."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=VERMILLION, linewidth=3, zorder=3))


def _short(entry: Any) -> str:
    """Write an entry in a few characters: whole numbers whole, others with two decimals, and never "-0.00"."""
    return f"{entry:.0f}" if float(entry).is_integer() else f"{entry:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _count(number: int, noun: str) -> str:
    """Write a number with its noun: 1 column, 2 columns."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
