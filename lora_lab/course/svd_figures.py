"""The figures of the SVD: a circle on its way to an ellipse, the matrices by shape, layers and their sums, and rivals.

Every function gives a Matplotlib figure in the house style, ready for ``show`` or ``savefig``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.course.figures import (
    BLACK,
    BLUE,
    COLOURS,
    GREY,
    LINE_STYLES,
    MARKERS,
    ORANGE,
    SEQUENTIAL,
    SKY,
    VERMILLION,
    canvas,
)
from lora_lab.lowrank import truncated_svd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches on the screen
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def circle_figure(W: ArrayLike) -> Figure:
    """Draw the unit circle and what a 2×2 matrix makes of it: an ellipse, with its longest and shortest radius.

    Args:
        W: Matrix (2, 2) with two singular values that differ.
    """
    W, (_, s, Vt) = _decomposed(W)
    fig, axes = canvas(1, 3, width=WIDTH, height=3.5, width_ratios=[1, 0.22, 1])
    limits = _limits(W, s)
    _draw_disc(axes[0], np.eye(2), Vt.T, ("v₁", "v₂"), limits=limits)
    _draw_disc(axes[2], W, Vt.T, ("σ₁u₁", "σ₂u₂"), limits=limits)
    axes[0].set_title("every unit vector x")
    axes[2].set_title("what becomes of it, W x")
    _draw_arrow(axes[1], (0.05, 0.5), (0.95, 0.5), "W")
    return fig


def steps_figure(W: ArrayLike) -> Figure:
    """Draw a 2×2 matrix twice: in one go across the top, and as rotate, stretch, rotate around the bottom.

    The four panels are the unit circle, the circle after ``Vt``, after ``s``, and after ``U``; in each of them the two
    vectors that began as v₁ and v₂ are marked.

    Args:
        W: Matrix (2, 2) with two singular values that differ.
    """
    W, (U, s, Vt) = _decomposed(W)
    fig, axes = canvas(3, 3, width=7.6, height=6.9, width_ratios=[4, 1.1, 4], height_ratios=[4, 1.0, 4])
    limits = _limits(W, s)
    for place, M, labels, title in (
        ((0, 0), np.eye(2), ("v₁", "v₂"), "the unit circle"),
        ((2, 0), Vt, ("e₁", "e₂"), f"after Vᵀ: {_turn(Vt)}"),
        ((2, 2), s[:, None] * Vt, ("σ₁e₁", "σ₂e₂"), f"after diag(s): × {s[0]:.2f} and × {s[1]:.2f}"),
        ((0, 2), W, ("σ₁u₁", "σ₂u₂"), f"after U: {_turn(U)}"),
    ):
        _draw_disc(axes[place], M, Vt.T, labels, limits=limits)
        axes[place].set_title(title, fontsize=11)
    _draw_arrow(axes[0, 1], (0.0, 0.5), (1.0, 0.5), "W")
    _draw_arrow(axes[1, 0], (0.5, 1.0), (0.5, 0.0), "Vᵀ  rotate")
    _draw_arrow(axes[2, 1], (0.0, 0.5), (1.0, 0.5), "stretch")
    _draw_arrow(axes[1, 2], (0.5, 0.0), (0.5, 1.0), "U  rotate")
    axes[1, 1].axis("off")
    return fig


def shapes_figure(m: int, n: int, rank: int) -> Figure:
    """Draw U, s and Vᵀ of an m×n matrix to scale, with what the full, the thin and the truncated SVD hold.

    Args:
        m: Number of rows, not below n.
        n: Number of columns.
        rank: How many singular values the truncated SVD keeps, 1 ≤ rank ≤ n.

    Raises:
        ValueError: If not 1 ≤ rank ≤ n ≤ m.
    """
    if not 1 <= rank <= n <= m:
        raise ValueError(f"m, n and rank must satisfy 1 ≤ rank ≤ n ≤ m, got m = {m}, n = {n}, rank = {rank}")
    gap = 1.3
    starts = np.cumsum([0, n + gap, m + gap, n + gap])  # of W, U, s, Vt, in cells
    total = starts[-1] + n
    fig, ax = canvas(width=WIDTH, height=WIDTH * (m + 4.3) / (total + 0.4))
    for x, height, width, kept_height, kept_width, name in (
        (starts[0], m, n, m, n, f"W\n{m} × {n}\n"),
        (starts[1], m, m, m, rank, f"U\n{m} × {m}\nkept: {m} × {rank}"),
        (starts[2], m, n, rank, rank, f"s\n{n}\nkept: {rank}"),
        (starts[3], n, n, rank, n, f"Vᵀ\n{n} × {n}\nkept: {rank} × {n}"),
    ):
        plain = x == starts[0]
        if not plain:
            _block(ax, x, height, width, "white", "..", GREY)
            _block(ax, x, min(height, m if x == starts[1] else n), min(width, n), "#d6e9f5", "", GREY)
        _block(ax, x, kept_height, kept_width, "#dddddd" if plain else BLUE, "", BLACK)
        ax.text(x + width / 2, -0.4, name, ha="center", va="bottom", fontsize=11, linespacing=1.4)
    for k in range(n):  # the singular values stand on the diagonal
        ax.plot(starts[2] + k + 0.5, k + 0.5, "o", color="white" if k < rank else GREY, markersize=4)
    for x, sign in zip(starts[1:], ("=", "·", "·"), strict=True):
        ax.text(x - gap / 2, n / 2, sign, ha="center", va="center", fontsize=24 if sign == "·" else 18, weight="bold")
    y = m + 0.75
    for x, face, hatch, text in (
        (starts[0], BLUE, "", f"kept at rank {rank}"),
        (starts[0] + 0.3 * total, "#d6e9f5", "", f"in the thin SVD too ({n} columns of U)"),
        (starts[0] + 0.72 * total, "white", "..", "in the full SVD alone"),
    ):
        _block(ax, x, 0.7, 0.9, face, hatch, GREY, y=y)
        ax.text(x + 1.2, y + 0.35, text, va="center")
    ax.set(xlim=(-0.2, total + 0.2), ylim=(m + 1.6, -2.7), aspect="equal")
    ax.axis("off")
    return fig


def layers_figure(W: ArrayLike, ranks: Sequence[int]) -> Figure:
    """Draw the layers of a picture and their sums: above, layer k = σₖ · uₖ · vₖᵀ; below, all layers up to k.

    A layer is light where it adds, dark where it takes away, and grey where it does neither. Sums are grey, from the
    smallest entry of W to its largest.

    Args:
        W: Matrix (m, n), a picture.
        ranks: Which layers to draw, each with the sum up to it: whole numbers from 1 to min(m, n).
    """
    W = np.asarray(W, dtype=np.float64)
    U, s, Vt = truncated_svd(W, max(ranks))
    shares = s**2 / np.sum(W**2)
    height = WIDTH / len(ranks) * W.shape[0] / W.shape[1]
    fig, axes = canvas(2, len(ranks), width=WIDTH, height=2 * height + 0.85, squeeze=False)
    for column, k in enumerate(ranks):
        layer = s[k - 1] * np.outer(U[:, k - 1], Vt[k - 1])
        largest = np.abs(layer).max()
        axes[0, column].imshow(layer, cmap=SEQUENTIAL, vmin=-largest, vmax=largest, interpolation="nearest")
        axes[0, column].set_title(f"layer {k}: {_percent(shares[k - 1])}", fontsize=10.5)
        partial = U[:, :k] * s[:k] @ Vt[:k]
        axes[1, column].imshow(partial, cmap="gray", vmin=W.min(), vmax=W.max(), interpolation="nearest")
        axes[1, column].set_title(_span(k), fontsize=10.5)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(True)
    return fig


def sum_figure(W: ArrayLike, rank: int) -> Figure:
    """Draw a picture at one rank: the last layer that is kept, the sum of all that are, and what is still missing.

    The layer is light where it adds, dark where it takes away, as in ``layers_figure``. What is missing is drawn on one
    scale at every rank, from minus the largest entry of W (dark) to plus that (light), so that it fades as the rank
    grows.

    Args:
        W: Matrix (m, n), a picture.
        rank: How many layers are kept, 1 ≤ rank ≤ min(m, n).
    """
    W = np.asarray(W, dtype=np.float64)
    U, s, Vt = truncated_svd(W, rank)
    layer, kept = s[-1] * np.outer(U[:, -1], Vt[-1]), U * s @ Vt
    missing = np.linalg.norm(W - kept) / np.linalg.norm(W)
    height = WIDTH / 3 * W.shape[0] / W.shape[1]
    fig, axes = canvas(1, 3, width=WIDTH, height=height + 0.45)
    for ax, picture, title, limit in (
        (axes[0], layer, f"layer {rank}: {_percent(s[-1] ** 2 / np.sum(W**2))} of the energy", np.abs(layer).max()),
        (axes[1], kept, _span(rank), None),
        (axes[2], W - kept, f"missing: an error of {_percent(missing)}", np.abs(W).max()),
    ):
        colours = {"cmap": "gray", "vmin": W.min(), "vmax": W.max()}
        if limit is not None:
            colours = {"cmap": SEQUENTIAL, "vmin": -limit, "vmax": limit}
        ax.imshow(picture, interpolation="nearest", **colours)
        ax.set_title(title, fontsize=10.5)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(True)
    return fig


def rivals_figure(rivals: Mapping[str, ArrayLike], best: float, *, bins: int = 40) -> Figure:
    """Draw how the errors of rivals are spread, one histogram for each kind, and the SVD's error as a line.

    Args:
        rivals: For each kind of rival its relative errors.
        best: The relative error of the truncated SVD.
        bins: How many bars a histogram has.
    """
    fig, ax = canvas(width=WIDTH, height=4.0)
    errors = {name: np.asarray(values, dtype=np.float64) for name, values in rivals.items()}
    width = (max(values.max() for values in errors.values()) - best) / bins
    edges = best + width * np.arange(-np.ceil(best / width), bins + 2)  # a bar ends where the SVD's line stands
    fills = (ORANGE, SKY, "#bbbbbb", VERMILLION)
    hatches = ("", "///", "...", "xx")
    for (name, values), face, hatch in zip(errors.items(), fills, hatches, strict=False):
        ax.hist(values, edges, color=face, hatch=hatch, edgecolor="white", alpha=0.9, label=f"{name}: {len(values):,}")
    ax.axvline(best, color=BLACK, linestyle="-", marker="", linewidth=2.2, label=f"the SVD: {best:.3f}")
    ax.set(xlabel="relative error", ylabel="rivals", xlim=(0, None))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1.4, handletextpad=0.5)
    return fig


def _decomposed(W: ArrayLike) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Give a 2×2 matrix and its SVD."""
    W = np.asarray(W, dtype=np.float64)
    if W.shape != (2, 2):
        raise ValueError(f"W must be a 2×2 matrix, got shape {W.shape}")
    U, s, Vt = truncated_svd(W, 2)
    return W, (U, s, Vt)


def _limits(W: np.ndarray, s: np.ndarray) -> tuple[float, float]:
    """Give half the width and half the height that the circle, the ellipse, and its labels need."""
    return 1.2 * max(float(s[0]), 1.0), 1.45 * max(float(np.linalg.norm(W[1])), 1.0)


def _draw_disc(
    ax: Axes, M: np.ndarray, marked: np.ndarray, labels: tuple[str, str], *, limits: tuple[float, float], lines: int = 9
) -> None:
    """Draw what a 2×2 matrix M makes of the unit disc, of the square grid on it, and of two marked vectors."""
    angles = np.linspace(0, 2 * np.pi, 181)
    edge = M @ np.vstack([np.cos(angles), np.sin(angles)])  # (2, 181)
    ax.fill(*edge, color=SKY, alpha=0.18, linewidth=0)
    for place in np.linspace(-1, 1, lines)[1:-1]:
        half = np.sqrt(1 - place**2)
        for ends in ([[place, place], [-half, half]], [[-half, half], [place, place]]):
            ax.plot(*(M @ np.array(ends)), color=GREY, linestyle="-", marker="", linewidth=0.7, alpha=0.55)
    ax.plot(*edge, color=BLACK, linestyle="-", marker="", linewidth=1.4)
    for vector, label, colour, dashes, marker in zip(
        (M @ marked).T, labels, COLOURS, LINE_STYLES, MARKERS, strict=False
    ):
        direction = vector / np.linalg.norm(vector)
        ax.plot(*zip((0, 0), vector, strict=True), color=colour, linestyle=dashes, marker="", linewidth=2.6)
        ax.plot(*vector, color=colour, marker=marker, markersize=9)
        ax.annotate(
            label,
            vector,
            xytext=12 * direction,
            textcoords="offset points",
            ha="left" if direction[0] > 0.5 else "right" if direction[0] < -0.5 else "center",
            va="bottom" if direction[1] > 0.5 else "top" if direction[1] < -0.5 else "center",
            color=colour,
            fontsize=12,
            weight="bold",
        )
    wide, tall = limits
    ax.set(xlim=(-wide, wide), ylim=(-tall, tall), aspect="equal")
    ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def _draw_arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    """Draw an arrow across otherwise empty axes, with a word beside it."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 2.5, "mutation_scale": 22})
    upright = start[0] == end[0]
    ax.text(
        0.56 if upright else 0.5,
        0.5 if upright else 0.56,
        text,
        ha="left" if upright else "center",
        va="center" if upright else "bottom",
        fontsize=12,
        color=BLACK,
    )
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")


def _block(
    ax: Axes, x: float, height: float, width: float, face: str, hatch: str, edge: str, *, y: float = 0.0
) -> None:
    """Draw a rectangle whose upper left corner is at (x, y)."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, facecolor=face, hatch=hatch, edgecolor=edge, linewidth=1))


def _turn(Q: np.ndarray) -> str:
    """Say what an orthogonal 2×2 matrix does: by how many degrees it turns, and whether it mirrors."""
    degrees = np.degrees(np.arctan2(Q[1, 0], Q[0, 0]))
    turned = f"turned by {degrees:.0f}°".replace("-", "−")
    return turned if np.linalg.det(Q) > 0 else f"mirrored, {turned}"


def _span(k: int) -> str:
    """Name the first k layers."""
    return {1: "layer 1", 2: "layers 1 and 2"}.get(k, f"layers 1 to {k}")


def _percent(share: Any) -> str:
    """Write a share in per cent with what digits it deserves: 93 %, 4.2 %, 0.07 %."""
    percent = 100 * float(share)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %" if percent >= 0.95 else f"{percent:.2f} %"
