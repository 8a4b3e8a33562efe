"""Figures of a fine-tune: how the loss fell, how many questions each system answers, what the rank changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.course.experiments import mean_score
from lora_lab.course.experiments.sql_sweeps import one_sweep
from lora_lab.course.figures import BLACK, BLUE, COLOURS, GREY, LINE_STYLES, MARKERS, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lora_lab.finetune import Evaluation, History

HATCHES = ("", "///", "...", "xx")  # the second cue beside the colour of a bar


SWEPT_AXES = {  # what a column of ``sweeps_figure`` changes, and what its axis is called
    "rank": "rank",
    "targets": "targets",
    "examples": "training examples",
    "learning_rate": "learning rate",
}


def training_curve(history: History, *, window: int = 10) -> Figure:
    """Draw the training loss of every step, its moving average over ``window`` steps, and the validation loss.

    The loss is in nats per answer token, on a logarithmic axis.
    """
    fig, ax = canvas()
    _draw_losses(ax, history, window)
    return fig


def training_curves(history: History, *, window: int = 10) -> Figure:
    """Draw what ``training_curve`` draws and, beside it, the share of right answer tokens at each validation.

    Without validation there is nothing to stand beside it. A dotted line marks the step whose weights were kept.
    """
    if not history.accuracy:
        return training_curve(history, window=window)
    fig, (left, right) = canvas(1, 2, width=9.6)
    _draw_losses(left, history, window)
    looks, shares = zip(*history.accuracy, strict=True)
    right.plot(
        looks, [100 * share for share in shares], color=COLOURS[1], marker="s", linestyle="--", label="validation"
    )
    right.set_xlim(left.get_xlim())
    right.set_ylim(0, 105)
    right.set_xlabel("step")
    right.set_ylabel("right answer tokens (%)")
    if history.best_step is not None:
        for ax in (left, right):
            ax.axvline(history.best_step, color=BLACK, linestyle=":", marker="", linewidth=1, label="weights kept")
            ax.legend(frameon=True, framealpha=0.9, edgecolor="none")  # the line may run below it
    return fig


def _draw_losses(ax: Axes, history: History, window: int) -> None:
    """Draw the training loss, its moving average and the validation loss into ``ax``."""
    steps = range(1, len(history.losses) + 1)
    smooth = [sum(history.losses[max(0, i - window) : i]) / min(i, window) for i in steps]
    ax.plot(steps, history.losses, color=GREY, linestyle="-", marker="", linewidth=0.8, label="each step")
    ax.plot(
        steps, smooth, color=BLUE, linestyle="-", marker="", linewidth=2.5, label=f"mean of the last {window} steps"
    )
    if history.validation:
        looks, losses = zip(*history.validation, strict=True)
        ax.plot(looks, losses, color=COLOURS[1], marker="s", linestyle="--", label="validation")
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("loss (nats per answer token)")
    ax.legend()


def score_bars(scores: Mapping[str, Mapping[str, Evaluation]]) -> Figure:
    """Draw the share of right answers of each system on each test split, with 95 % intervals.

    Args:
        scores: for each system, its ``Evaluation`` on each split; all systems have the same splits.
    """
    splits = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    fig, ax = canvas()
    for i, (system, by_split) in enumerate(scores.items()):
        places = [x + (i - (len(scores) - 1) / 2) * width for x in range(len(splits))]
        shares = [100 * by_split[split].score for split in splits]
        low = [share - 100 * by_split[split].interval[0] for share, split in zip(shares, splits, strict=True)]
        high = [100 * by_split[split].interval[1] - share for share, split in zip(shares, splits, strict=True)]
        ax.bar(places, shares, width, color=COLOURS[i], hatch=HATCHES[i % 4], edgecolor="white", label=system)
        # a share of exactly 0 or 1 can leave a distance of −0.0…01, which Matplotlib refuses
        bounds = [[max(0.0, value) for value in side] for side in (low, high)]
        ax.errorbar(places, shares, yerr=bounds, fmt="none", ecolor=BLACK, elinewidth=1, capsize=3)
    ax.set_xticks(range(len(splits)), [f"unseen {split}" for split in splits])
    ax.set_ylim(0, 105)
    ax.set_ylabel("right answers (%)")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=len(scores))
    return fig


def rank_figure(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the share of right answers against the rank, one line a split: the mean of the seeds, and each seed.

    Args:
        runs: entries of ``lora_lab.course.experiments.rank_sweep``.
    """
    splits = list(runs[0]["correct"])
    ranks = sorted({run["rank"] for run in runs})
    fig, ax = canvas()
    for i, split in enumerate(splits):
        means = [100 * mean_score(runs, rank, split) for rank in ranks]
        look = {"color": COLOURS[i], "marker": MARKERS[i]}
        ax.plot(ranks, means, linestyle=LINE_STYLES[i], label=f"unseen {split}", **look)
        for run in runs:
            ax.plot(run["rank"], 100 * run["correct"][split] / run["test"], alpha=0.35, markersize=4, **look)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_ylim(0, 105)
    ax.set_xlabel("rank of the update")
    ax.set_ylabel("right answers (%)")
    ax.legend()
    return fig


def sweeps_figure(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the sweeps of an experiment: right answers above, what was forgotten below, one column a setting.

    A line joins the means of the seeds, and small marks show each. Below, the dashed line is the untouched model.

    Args:
        runs: entries of the experiment ``sql-sweeps``.
    """
    untouched = next(run for run in runs if run["method"] == "untouched")
    splits = list(untouched["correct"])
    fig, axes = canvas(2, len(SWEPT_AXES), width=10.5, height=5.4, sharey="row")
    for column, (setting, label) in enumerate(SWEPT_AXES.items()):
        found = one_sweep(runs, setting)
        values = list(dict.fromkeys(run[setting] for run in found))
        upper, lower = axes[0][column], axes[1][column]
        for i, split in enumerate(splits):
            shares = [[100 * run["correct"][split] / run["test"] for run in found if run[setting] == v] for v in values]
            look = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINE_STYLES[i]}
            _draw_seeds(upper, shares, **look, label=f"unseen {split}")
        losses = [[run["ordinary loss"] for run in found if run[setting] == value] for value in values]
        _draw_seeds(lower, losses, color=GREY, marker="o", linestyle="-")
        lower.axhline(untouched["ordinary loss"], color=GREY, linestyle="--", linewidth=1)
        upper.set_xticks(range(len(values)), [""] * len(values))
        lower.set_xticks(range(len(values)), [f"{v:g}" if not isinstance(v, str) else v for v in values])
        if setting in ("targets", "learning_rate"):
            for tick in lower.get_xticklabels():
                tick.set(rotation=40, ha="right", rotation_mode="anchor")
        lower.set_xlabel(label)
    axes[0][0].set(ylim=(0, 100), ylabel="right answers (%)")
    axes[1][0].set_ylabel("loss on ordinary text\n(nats a token)")
    axes[0][0].legend(fontsize=8, loc="lower right")
    return fig


def _draw_seeds(ax: Axes, seeds: Sequence[Sequence[float]], *, label: str | None = None, **look: Any) -> None:
    """Draw a line through the mean of each place, and a small mark for each of its values."""
    ax.plot(range(len(seeds)), [sum(some) / len(some) for some in seeds], label=label, **look)
    for place, some in enumerate(seeds):
        ax.plot([place] * len(some), some, **{**look, "linestyle": "none"}, alpha=0.35, markersize=4)
