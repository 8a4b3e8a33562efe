"""The figures of a fine-tune draw the numbers they are given."""

import pytest

from lora_lab.course.training_figures import rank_figure, score_bars, sweeps_figure, training_curve, training_curves
from lora_lab.finetune import Answered, Evaluation, History, TextToSQL

EXAMPLES = TextToSQL(seed=0).test("questions", 8)


def evaluation(correct: int) -> Evaluation:
    return Evaluation(tuple(Answered(one, "", i < correct, "") for i, one in enumerate(EXAMPLES)))


def test_the_curve_draws_every_step_its_mean_and_the_validation():
    history = History(losses=[4.0, 2.0, 1.0], validation=[(2, 1.5)])
    steps, mean, validation = training_curve(history, window=2).axes[0].lines
    assert list(steps.get_ydata()) == [4, 2, 1]
    assert list(mean.get_ydata()) == [4, 3, 1.5]
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([2], [1.5])


def test_the_curves_draw_the_loss_the_right_tokens_and_the_step_that_was_kept():
    history = History(losses=[4.0, 2.0, 1.0], validation=[(2, 1.5)], accuracy=[(2, 0.25)], best_step=2)
    left, right = training_curves(history, window=2).axes
    assert [list(line.get_ydata()) for line in left.lines[:3]] == [[4, 2, 1], [4, 3, 1.5], [1.5]]
    assert (list(right.lines[0].get_xdata()), list(right.lines[0].get_ydata())) == ([2], [25])
    assert [list(ax.lines[-1].get_xdata()) for ax in (left, right)] == [[2, 2], [2, 2]]
    assert len(training_curves(History(losses=[4.0])).axes) == 1


def test_the_bars_are_percentages_with_their_intervals():
    scores = {"before": {"a": evaluation(0), "b": evaluation(1)}, "after": {"a": evaluation(8), "b": evaluation(4)}}
    ax = score_bars(scores).axes[0]
    assert [bar.get_height() for container in ax.containers[::2] for bar in container] == [0, 12.5, 100, 50]
    segments = [line for bars in ax.containers[1::2] for line in bars.lines[2][0].get_segments()]
    low, high = evaluation(1).interval
    assert segments[1][:, 1] == pytest.approx([100 * low, 100 * high])
    hatches = {bar.get_hatch() for container in ax.containers[::2] for bar in container}
    assert len(hatches) == 2  # colour is not the only cue


def test_the_rank_figure_draws_the_mean_and_each_seed():
    runs = [
        {"rank": rank, "seed": seed, "correct": {"questions": correct}, "test": 10}
        for rank, seed, correct in ((1, 0, 2), (1, 1, 4), (8, 0, 9), (8, 1, 10))
    ]
    lines = rank_figure(runs).axes[0].lines
    assert list(lines[0].get_xdata()) == [1, 8]
    assert list(lines[0].get_ydata()) == pytest.approx([30, 95])
    assert [line.get_ydata()[0] for line in lines[1:]] == pytest.approx([20, 40, 90, 100])


def test_the_sweeps_figure_has_a_column_for_each_setting_and_a_mark_for_each_seed():
    settings = {"rank": 8, "targets": "qv", "examples": 480, "learning_rate": 4e-3}
    untouched = {"method": "untouched", **dict.fromkeys(settings), "seed": None, "correct": {"a": 1}, "test": 8}
    runs = [{**untouched, "ordinary loss": 4.5}]
    for changes, right in (({}, 4), ({"rank": 1}, 2), ({"targets": "mlp"}, 6), ({"learning_rate": 1e-3}, 8)):
        for seed in range(2):
            figures = {"correct": {"a": right + seed}, "test": 10, "ordinary loss": 5.0 + seed, "trainable": right}
            runs.append({"method": "LoRA", **settings, **changes, "seed": seed, **figures})
    axes = sweeps_figure(runs).axes
    assert len(axes) == 8
    ranks, targets, examples, rates = axes[:4]
    assert list(ranks.lines[0].get_ydata()) == [25, 45]  # the means of the seeds, in percent
    assert [list(line.get_ydata()) for line in ranks.lines[1:]] == [[20, 30], [40, 50]]
    assert list(targets.lines[0].get_ydata()) == [45, 65]
    assert list(examples.lines[0].get_ydata()) == [45]
    assert list(rates.lines[0].get_ydata()) == [85, 45]
    assert [tick.get_text() for tick in axes[7].get_xticklabels()] == ["0.001", "0.004"]
    assert list(axes[4].lines[0].get_ydata()) == [5.5, 5.5]
    assert axes[4].lines[-1].get_ydata()[0] == 4.5
