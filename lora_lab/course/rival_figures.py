"""The figures of LoRA and its rivals: where each sits, what it scores, what it costs, and what a paper's tables allow.

Every function draws numbers that were measured, or printed in a paper, and gives a Matplotlib figure in the house
style, ready for ``show``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.course.figures import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LINE_STYLES,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    canvas,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Run = Mapping[str, Any]

WIDTH = 8.4  # inches on the screen
FAMILIES = {  # by the beginning of a way's name: what it is called, and how it is drawn
    "full": ("full fine-tuning", {"color": BLACK, "marker": "X", "linestyle": "-"}),
    "head": ("head only", {"color": PURPLE, "marker": "P", "linestyle": "-"}),
    "bitfit": ("BitFit", {"color": ORANGE, "marker": "v", "linestyle": "-"}),
    "bottleneck": ("bottleneck adapters", {"color": GREEN, "marker": "^", "linestyle": "-."}),
    "lora": ("LoRA on all layers", {"color": BLUE, "marker": "o", "linestyle": "-"}),
    "lora-qv": ("LoRA on q and v", {"color": VERMILLION, "marker": "s", "linestyle": "--"}),
}
BESIDE = {  # where the rank or width stands from its mark, in points; adapters 4 and LoRA 1 have nearly the same mark
    "lora": (-10, 3),
    "lora-qv": (0, -15),
}
METHODS = {  # the names of Hu et al., table 4, in families
    "fine-tuning": "full",
    "BitFit": "bitfit",
    "adapter (Houlsby)": "bottleneck",
    "LoRA": "lora",
}


def family(way: str) -> str:
    """Give the family of a way of fine-tuning: "lora-qv-8" is of the family "lora-qv".

    Raises:
        ValueError: it is of no family that is drawn.
    """
    name = way.rpartition("-")[0] or way
    if name not in FAMILIES:
        raise ValueError(f"way: got {way!r}, takes one that begins with {', '.join(FAMILIES)}")
    return name


def size(way: str) -> str:
    """Give the rank or width in the name of a way; nothing where it has none."""
    return way.rpartition("-")[2] if "-" in way else ""


def said(way: str) -> str:
    """Give the words for a way: "LoRA 8", "adapters 16", "LoRA 8 on q, v", "BitFit"."""
    words = {"full": "full", "head": "head only", "bitfit": "BitFit", "bottleneck": "adapters", "lora": "LoRA"}
    name = family(way)
    if name == "lora-qv":
        return f"LoRA {size(way)} on q, v"
    return f"{words[name]} {size(way)}".rstrip()


def places_figure() -> Figure:
    """Draw a transformer block five times, and in each what one rival trains in it."""
    fig, axes = canvas(1, 5, width=WIDTH, height=4.2)
    titles = ("full", "head only", "BitFit", "adapters", "LoRA")
    for ax, title in zip(axes, titles, strict=True):
        _block(ax, title)
    axes[0].set_ylabel("")
    return fig


def _block(ax: Axes, title: str) -> None:
    """Draw one block, from the bottom up, and colour what trains."""
    ax.set(xlim=(0, 10), ylim=(0, 19), title=title)
    ax.axis("off")
    whole = title == "full"
    ax.plot([5, 5], [0.3, 17], color=GREY, marker="", linestyle="-", linewidth=1, zorder=0)
    for low, words in ((1.5, "attention"), (8.5, "MLP")):
        _box(ax, 2.2, low, 5.6, 2.6, words, trains=whole)
        ax.plot([5, 0.8, 0.8, 5], [low - 0.7, low - 0.7, low + 5.4, low + 5.4], **_GREY_LINE)
        ax.plot([5], [low + 5.4], marker="o", color=GREY, markersize=7, markerfacecolor="white", zorder=3)
        ax.text(5, low + 5.4, "+", ha="center", va="center", fontsize=8, color=GREY, zorder=4)
        if title == "BitFit":
            _box(ax, 8.1, low, 1.3, 2.6, "b", trains=True)
        if title == "adapters":
            _box(ax, 3.2, low + 3.3, 3.6, 1.3, "adapter", trains=True, small=True)
        if title == "LoRA":
            _box(ax, 8.1, low, 1.3, 1.2, "A", trains=True, small=True)
            _box(ax, 8.1, low + 1.4, 1.3, 1.2, "B", trains=True, small=True)
    _box(ax, 2.2, 15.8, 5.6, 2.0, "head", trains=True)


_GREY_LINE: dict[str, Any] = {"color": GREY, "marker": "", "linestyle": "-", "linewidth": 1, "zorder": 0}


def _box(ax: Axes, x: float, y: float, w: float, h: float, words: str, *, trains: bool, small: bool = False) -> None:
    """Draw a box with a word in it: filled and with a thick edge where it trains, hatched where it is frozen."""
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = (
        {"facecolor": YELLOW, "edgecolor": BLACK, "linewidth": 1.8}
        if trains
        else {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.8, "linestyle": "--"}
    )
    ax.add_patch(Rectangle((x, y), w, h, zorder=2, **look))
    ax.text(x + w / 2, y + h / 2, words, ha="center", va="center", fontsize=7.5 if small else 9, zorder=3)


def scores_figure(runs: Sequence[Run], *, sentences: int | None = None) -> Figure:
    """Draw the score of each way against what it trains and against what it stores: seeds faint, their mean bold.

    Args:
        runs: the runs of the experiment ``rivals``: way, seed, trainable, bytes, score.
        sentences: how many sentences were scored; given, the standard error of one score is drawn as a bar.

    Raises:
        ValueError: there are no runs.
    """
    if not runs:
        raise ValueError("runs must hold a run at least, got none")
    fig, axes = canvas(1, 2, width=WIDTH, height=4.9, sharey=True)
    ways = list(dict.fromkeys(run["way"] for run in runs))
    handles: dict[str, Any] = {}
    for ax, figure, words in zip(
        axes, ("trainable", "bytes"), ("trainable parameters", "bytes stored a task"), strict=True
    ):
        for name in dict.fromkeys(map(family, ways)):
            label, look = FAMILIES[name]
            means = []
            for way in (way for way in ways if family(way) == name):
                mine = [run for run in runs if run["way"] == way]
                x, scores = mine[0][figure], [run["score"] for run in mine]
                ax.plot([x] * len(scores), scores, **{**look, "linestyle": "none"}, alpha=0.3, markersize=4)
                means.append((x, statistics.fmean(scores)))
                place = BESIDE.get(name, (0, 8))
                ax.annotate(size(way), means[-1], place, textcoords="offset points", ha="center", fontsize=8.5)
            (handles[label],) = ax.plot(*zip(*sorted(means), strict=True), **look, markersize=7)
        ax.set(xscale="log", xlabel=words)
    axes[0].set_ylabel("right answers")
    if sentences is not None:
        _one_error(axes[1], [run["score"] for run in runs], sentences)
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return fig


def _one_error(ax: Axes, scores: Sequence[float], sentences: int) -> None:
    """Draw the standard error of one score, √(p (1 − p) / n), beside the lowest scores."""
    p = statistics.fmean(scores)
    error = (p * (1 - p) / sentences) ** 0.5
    middle = min(scores) + error
    ax.errorbar(
        [0.68], [middle], [error], transform=ax.get_yaxis_transform(), color=GREY, capsize=4, marker="", zorder=0
    )
    words = f"± one standard\nerror of {sentences:,}\nsentences"
    ax.text(0.71, middle, words, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color=GREY)


def rates_figure(panels: Mapping[str, Sequence[Run]], *, common: float | None = None) -> Figure:
    """Draw the validation score against the learning rate: a line a way, its best circled.

    Args:
        panels: by title, runs of ``learning-rates``: way, learning_rate, validation.
        common: one rate for all, drawn as an upright line.

    Raises:
        ValueError: there is no panel, or one has no runs.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels must have one panel at least, and a run in each")
    fig, axes = canvas(1, len(panels), width=WIDTH, height=4.6, sharey=True, squeeze=False)
    for ax, (title, runs) in zip(axes[0], panels.items(), strict=True):
        if common is not None:
            ax.axvline(common, color=GREY, linestyle=":", marker="", zorder=0, label=f"{common:g} for all")
        for i, way in enumerate(dict.fromkeys(run["way"] for run in runs)):
            means = mean_by_rate(runs, way)
            look = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": LINE_STYLES[i % 7]}
            ax.plot(list(means), list(means.values()), label=said(way), **look)
            best = max(means, key=lambda rate: (means[rate], -rate))  # of equal ones the smallest, as best_rates has it
            ax.plot([best], [means[best]], "o", color=look["color"], markerfacecolor="none", markersize=13)
        ax.set(xscale="log", xlabel="learning rate", title=title)
        ax.legend(loc="lower left", fontsize=9)
    axes[0, 0].set_ylabel("right answers, validation")
    return fig


def mean_by_rate(runs: Sequence[Run], way: str) -> dict[float, float]:
    """Give the mean validation score of a way at each learning rate, the lowest rate first."""
    scores: dict[float, list[float]] = {}
    for run in runs:
        if run["way"] == way:
            scores.setdefault(run["learning_rate"], []).append(run["validation"])
    return {rate: statistics.fmean(scores[rate]) for rate in sorted(scores)}


def costs_figure(seconds: Mapping[str, Sequence[float]], memory: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw what a training step takes, and the memory that training adds: measured beside predicted.

    Args:
        seconds: by way, the seconds of a step in every round of a race; drawn as a ratio to full fine-tuning in the
            same round, or to the first way where that did not run: median and quartiles.
        memory: by way, bytes measured and bytes predicted.

    Raises:
        ValueError: one of the two is empty.
    """
    if not seconds or not memory:
        raise ValueError("seconds and memory must hold a way at least, got none")
    fig, (left, right) = canvas(1, 2, width=WIDTH, height=0.34 * max(len(seconds), len(memory)) + 1.6)
    base = "full" if "full" in seconds else next(iter(seconds))
    for place, way in enumerate(seconds):
        _median_and_quartiles(left, place, _ratios(seconds, way, base), FAMILIES[family(way)][1])
    _ways_down(left, list(seconds))
    left.set(xlabel=f"time of a step, {said(base)} = 1", xlim=(0, None))
    for place, (measured, predicted) in enumerate(memory.values()):
        right.plot([measured / 1e6], [place], "o", color=BLUE, label="measured" if not place else None)
        right.plot([predicted / 1e6], [place], "|", color=VERMILLION, markersize=15, markeredgewidth=2.5,
                   label="said by account" if not place else None)  # fmt: skip
    _ways_down(right, list(memory))
    right.set(xlabel="MB that training adds to the weights", xlim=(0, None))
    fig.legend(loc="outside lower right", ncols=2)
    return fig


def latency_figure(races: Mapping[int, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw what an answer takes, as a ratio to the plain model in the same round: median and quartiles.

    The band is what two copies of the plain model differ by, so what is inside it is not told apart.

    Args:
        races: by sentences at once, and by name, seconds in every round; "plain" and "plain-again" among them.

    Raises:
        ValueError: a race lacks one of the two.
    """
    for seconds in races.values():
        if not {"plain", "plain-again"} <= set(seconds):
            raise ValueError(f"races must each have 'plain' and 'plain-again', got {', '.join(seconds)}")
    longest = max(len(seconds) for seconds in races.values())
    fig, axes = canvas(1, len(races), width=WIDTH, height=0.36 * longest + 1.5, squeeze=False, sharey=True)
    for ax, (batch, seconds) in zip(axes[0], races.items(), strict=True):
        names = [name for name in seconds if name not in ("plain", "plain-again")]
        twin = statistics.quantiles(_ratios(seconds, "plain-again"), n=4, method="inclusive")
        ax.axvspan(twin[0], twin[2], color=SKY, alpha=0.35, linewidth=0)
        ax.axvline(1, color=GREY, linestyle="-", linewidth=1, marker="")
        for place, name in enumerate(names):
            look = {**FAMILIES[family(name.removesuffix("-folded"))][1]}
            if name.endswith("-folded"):
                look["markerfacecolor"] = "white"
            _median_and_quartiles(ax, place, _ratios(seconds, name), look)
        ax.set_yticks(range(len(names)), [_served(name) for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set(title=f"{batch} sentence{'s' if batch > 1 else ''} at once", xlabel="time of an answer, plain model = 1")
    return fig


def _ratios(seconds: Mapping[str, Sequence[float]], name: str, base: str = "plain") -> list[float]:
    """Give the ratio to another of the race, by default the plain model, round by round."""
    return [mine / its for mine, its in zip(seconds[name], seconds[base], strict=True)]


def _served(name: str) -> str:
    """Give the words for a model that answers."""
    if name.endswith("-folded"):
        return f"{said(name.removesuffix('-folded'))}, merged"
    return f"{said(name)}, beside" if family(name) == "lora" else said(name)


def _median_and_quartiles(ax: Axes, place: float, some: Sequence[float], look: Mapping[str, Any]) -> None:
    """Draw a point at the median and a line from quartile to quartile."""
    lower, median, upper = statistics.quantiles(some, n=4, method="inclusive")
    ax.plot([lower, upper], [place, place], color=look["color"], linestyle="-", marker="", linewidth=3, alpha=0.5)
    ax.plot([median], [place], **{**look, "linestyle": "none"}, markersize=7)


def _ways_down(ax: Axes, ways: list[str]) -> None:
    """Name the ways down the side, the first on top."""
    ax.set_yticks(range(len(ways)), [said(way) for way in ways])
    ax.set_ylim(len(ways) - 0.4, -0.6)


def attention_tables_figure(paper: Mapping[str, Any]) -> Figure:
    """Draw tables 5 and 6 of Hu et al. (2021) with the fluctuation that the paper states as error bars.

    On the left one budget of parameters, spread over other matrices; on the right ranks. WikiSQL is above, MultiNLI
    below.

    Args:
        paper: what ``load_paper`` gives.
    """
    fig, axes = canvas(2, 2, width=WIDTH, height=6.2, sharey="row")
    for row, (task, name) in enumerate((("wikisql", "WikiSQL"), ("multinli", "MultiNLI"))):
        left, right = axes[row]
        table = paper["table_5"]
        for place, one in enumerate(table["rows"]):
            left.errorbar([place], [one[task]], table["fluctuation"][task], color=BLACK, marker="o", capsize=4)
        named = [f"{', '.join(one['weights'])}\nr = {one['rank']}" for one in table["rows"]]
        left.set_xticks(range(len(named)), named, fontsize=8.5)
        left.set_ylabel(f"{name}, %")
        table = paper["table_6"]
        ranks = sorted({one["rank"] for one in table["rows"]})
        for i, weights in enumerate(dict.fromkeys(one["weights"] for one in table["rows"])):
            mine = {one["rank"]: one[task] for one in table["rows"] if one["weights"] == weights}
            places = [ranks.index(rank) + 0.12 * (i - 1) for rank in mine]
            look = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINE_STYLES[i]}
            right.errorbar(
                places, list(mine.values()), table["fluctuation"][task], capsize=3, label=", ".join(weights), **look
            )
        right.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    axes[0, 0].set_title("Table 5: one budget, other matrices")
    axes[0, 1].set_title("Table 6: ranks")
    axes[1, 1].set_xlabel("rank r")
    axes[0, 1].legend(loc="center", bbox_to_anchor=(0.5, 0.6), ncols=3)
    return fig


def against_tuning_figure(paper: Mapping[str, Any]) -> Figure:
    """Draw table 4 of Hu et al. (2021): the score of each method less that of full fine-tuning, with both fluctuations.

    A bar is as long as the two fluctuations together, so a bar that touches zero means that the two are not told apart.

    Args:
        paper: what ``load_paper`` gives.
    """
    table = paper["table_4"]
    base, *rows = table["rows"]
    tasks = (("wikisql", "WikiSQL", None), ("multinli", "MultiNLI", None), ("samsum", "SAMSum, Rouge-L", 2))
    fig, axes = canvas(1, 3, width=WIDTH, height=3.9, sharey=True)
    for ax, (task, title, part) in zip(axes, tasks, strict=True):
        fluctuation = _part(table["fluctuation"][task], part)
        ax.axvline(0, color=GREY, linestyle="-", linewidth=1, marker="")
        for place, row in enumerate(rows):
            look = FAMILIES[METHODS[row["method"]]][1] if row["method"] in METHODS else _PREFIX
            gap = _part(row[task], part) - _part(base[task], part)
            ax.errorbar([gap], [place], xerr=2 * fluctuation, capsize=3, **{**look, "linestyle": "-"})
        ax.set(title=title, xlabel="points more than full")
    names = [f"{row['method']}\n{row['trainable_millions']:g} M" for row in rows]
    axes[0].set_yticks(range(len(rows)), names, fontsize=8.5)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return fig


_PREFIX: dict[str, Any] = {"color": SKY, "marker": "D"}


def _part(value: Any, part: int | None) -> float:
    """Give a score, or one of several."""
    return float(value if part is None else value[part])
