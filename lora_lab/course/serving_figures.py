"""The figures of merging, sharing and serving: what rounding takes, what an adapter uses and reads, what memory holds.

Every function draws numbers that you computed, and gives a Matplotlib figure in the house style, ready for ``show``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.course.figures import BLACK, BLUE, COLOURS, GREY, LINE_STYLES, MARKERS, ORANGE, SKY, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches on the screen
HATCHES = ("", "///", "...", "xx")  # the second cue beside the colour of a bar


def lost_figure(changes: ArrayLike, lost: Mapping[str, ArrayLike], *, marked: Mapping[str, float]) -> Figure:
    """Draw the share of an update that rounding takes against the update's size, a line for each type of weight.

    Args:
        changes: ‖ΔW‖ / ‖W‖ of each update, above 0.
        lost: for each type, the share lost of each update; the axis ends at 0.01 % and shares below it lie outside.
        marked: sizes to mark with a vertical line, by name.
    """
    changes = np.asarray(changes, dtype=float)
    fig, ax = canvas(width=WIDTH, height=4.2)
    for name, shares in lost.items():
        ax.plot(changes, 100 * np.asarray(shares, dtype=float), label=name, markersize=5)
    ax.set(xscale="log", yscale="log", ylim=(1e-2, 250), xlim=(changes.min(), changes.max()))
    ax.axhline(100, color=BLACK, linewidth=0.8, linestyle="-", marker="")
    ax.text(changes.max() / 1.2, 115, "all of it", ha="right", va="bottom", color=GREY)
    for name, change in marked.items():
        ax.axvline(change, color=GREY, linewidth=1, linestyle=":", marker="")
        ax.text(change * 1.1, 1.3e-2, name, color=GREY, va="bottom")
    ax.set(xlabel="size of the update, ‖ΔW‖ / ‖W‖", ylabel="share lost in rounding (%)")
    ax.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lost))
    return fig


def rank_by_layer_figure(errors: Mapping[str, Sequence[ArrayLike]]) -> Figure:
    """Draw, for each kind of layer, what is left out of each layer's update when it is cut down to rank 1, 2, ...

    Args:
        errors: for each kind, the error curve of each layer in turn: entry r is the relative error at rank r, and
            the last entry that of the full rank. All curves have the same length; the first entry and the last are
            not drawn.
    """
    fig, axes = canvas(1, len(errors), width=WIDTH, height=3.8, sharey=True, squeeze=False)
    for ax, (kind, curves) in zip(axes[0], errors.items(), strict=True):
        table = np.array([np.asarray(curve, dtype=float) for curve in curves])  # (layers, ranks)
        for rank in range(1, table.shape[1] - 1):
            ax.plot(table[:, rank], label=f"cut to rank {rank}", markersize=4, linewidth=1.3)
        ax.set(title=kind, xlabel="layer", ylim=(0, 1))
    axes[0, 0].set_ylabel("share of the update left out (error)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return fig


def reading_figure(tokens: Sequence[str], strengths: ArrayLike, *, written: int) -> Figure:
    """Draw how strongly a direction reacts at each token: a bar for each, up or down.

    Args:
        tokens: the text of each token.
        strengths: the reaction at each, of either sign.
        written: index of the first token that the model itself wrote; bars from there on have another colour and
            hatching.
    """
    strengths = np.asarray(strengths, dtype=float)
    if len(tokens) != len(strengths):
        raise ValueError(f"strengths must be one for each of {len(tokens)} tokens, got {len(strengths)}")
    fig, ax = canvas(width=WIDTH, height=3.6)
    for begin, end, colour, hatch, name in (
        (0, written, SKY, "", "the question"),
        (written, len(tokens), ORANGE, "///", "the answer"),
    ):
        ax.bar(range(begin, end), strengths[begin:end], color=colour, hatch=hatch, edgecolor=BLACK, label=name)
    ax.axhline(0, color=BLACK, linewidth=0.8, linestyle="-", marker="")
    ax.set_xticks(
        range(len(tokens)),
        [token.strip() or ("↵" if "\n" in token else "␣") for token in tokens],
        rotation=90,
        fontsize=8.5,
    )
    ax.set(xlim=(-0.7, len(tokens) - 0.3), ylabel="reaction a · x")
    ax.grid(visible=False, axis="x")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return fig


def extraction_figure(errors: Mapping[str, ArrayLike], ranks: Mapping[str, int]) -> Figure:
    """Draw the error curves of extracted layers, with a ring where the rank was chosen.

    Args:
        errors: the error curve of each layer by name: entry r is the relative error at rank r.
        ranks: the chosen rank of each layer, by the same names.
    """
    fig, ax = canvas(width=WIDTH, height=4.4)
    for k, (name, curve) in enumerate(errors.items()):
        curve, colour = np.asarray(curve, dtype=float), COLOURS[k % len(COLOURS)]
        every = max(1, len(curve) // 12)
        style = LINE_STYLES[(k // 2) % len(LINE_STYLES)]
        marker = MARKERS[k % len(MARKERS)]
        label = f"{name}: rank {ranks[name]}"
        ax.plot(curve, color=colour, linestyle=style, marker=marker, markevery=every, markersize=4, label=label)
        ax.plot(ranks[name], curve[ranks[name]], "o", color=BLACK, markersize=11, fillstyle="none", linestyle="")
    ax.set(xlabel="rank", ylabel="relative error", ylim=(0, 1.03), xlim=(0, None))
    ax.legend(loc="upper right")
    return fig


def levels_figure(levels: ArrayLike, numbers: ArrayLike) -> Figure:
    """Draw how the numbers of a weight are spread, and the levels that they are rounded to.

    Args:
        levels: the levels, from −1 to 1.
        numbers: the numbers of the weight, each divided by the largest magnitude of its block.
    """
    levels = np.asarray(levels, dtype=float)
    fig, ax = canvas(width=WIDTH, height=3.6)
    ax.hist(np.asarray(numbers, dtype=float).ravel(), bins=np.linspace(-1, 1, 81), color=SKY, label="the numbers")
    top = ax.get_ylim()[1]
    ax.vlines(levels, 0, top, color=BLUE, linewidth=1.2, linestyles="--", label=f"the {len(levels)} levels")
    ax.plot(levels, np.full(len(levels), top), "v", color=BLUE, linestyle="", markersize=7)
    ax.set(xlabel="number / largest of its block", ylabel="how many", ylim=(0, 1.06 * top), xlim=(-1.04, 1.04))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return fig


def memory_figure(megabytes: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw what a model holds in memory as stacked bars, one for each way to keep it, with the sum at the end.

    Args:
        megabytes: for each way its parts by name, in MB; all ways have the same parts.
    """
    names = list(next(iter(megabytes.values())))
    fig, ax = canvas(width=WIDTH, height=0.6 * len(megabytes) + 1.5)
    for k, part in enumerate(names):
        before = [sum(parts[name] for name in names[:k]) for parts in megabytes.values()]
        sizes = [parts[part] for parts in megabytes.values()]
        hatch = HATCHES[k % len(HATCHES)]
        ax.barh(list(megabytes), sizes, left=before, color=COLOURS[k], hatch=hatch, edgecolor="white", label=part)
    for k, parts in enumerate(megabytes.values()):
        ax.text(sum(parts.values()), k, f"  {sum(parts.values()):.0f} MB", va="center")
    largest = max(sum(parts.values()) for parts in megabytes.values())
    ax.set(xlabel="MB", xlim=(0, 1.15 * largest))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names))
    return fig
