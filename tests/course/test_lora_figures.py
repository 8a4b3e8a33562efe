"""The figures of LoRA draw the numbers they are given."""

import pytest

from lora_lab.course import lora_figures
from lora_lab.course.figures import GREY, png_bytes

CURVES = {"near": [[1.0, 0.5, 0.1], [1.0, 0.4, 0.2], [1.0, 0.6, 0.3]], "far": [[1.0, 2.0, 0.9]]}
BOUNDS = {"three": [1.0, 0.5, 0.2, 0.0, 0.0], "flat": [1.0, 0.9, 0.8, 0.7, 0.6]}
REACHED = {"three": [0.51, 0.21], "flat": [0.9, 0.8]}
LOSSES = {"full": [2.5, 2.6], "LoRA": [2.4, 2.6, 2.5]}
TRAINED = {"full": 28_747, "LoRA": 2_412}


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_layer_is_drawn_to_scale_and_counted():
    [ax] = lora_figures.layer_figure(192, 576, 8).axes
    assert [(patch.get_height(), patch.get_width()) for patch in ax.patches] == [(192, 576), (192, 8), (8, 576)]
    said = " ".join(text.get_text() for text in ax.texts)
    for words in ("192 × 576\n110,592 numbers", "192 × 8\n1,536 numbers", "8 × 576\n4,608 numbers", "scale"):
        assert words in said
    assert ax.patches[0].get_hatch()  # frozen is told apart without colour
    assert not ax.patches[1].get_hatch()
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert ends[0] < ax.patches[1].get_x()
    assert ends[1] < ax.patches[2].get_x()
    assert ends[2] <= ax.get_xlim()[1]


@pytest.mark.parametrize("rank", [0, 193])
def test_layer_takes_ranks_that_fit(rank):
    with pytest.raises(ValueError, match=f"rank must be from 1 .* got {rank}"):
        lora_figures.layer_figure(192, 576, rank)


def test_gradients_begin_at_step_0():
    [ax] = lora_figures.gradients_figure([0.0, 1.0, 2.0], [3.0, 2.0, 1.0]).axes
    drawn = dict(zip(labels(ax), (line.get_xydata().tolist() for line in ax.lines), strict=True))
    assert drawn == {"gradient of B": [[0, 3], [1, 2], [2, 1]], "gradient of A": [[0, 0], [1, 1], [2, 2]]}
    assert ax.get_ylim()[0] < 0  # a zero lies on the paper, not on its edge
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker()


def test_scaling_is_relative_to_rank_1():
    panels = {"SGD": {"1": [2.0, 8.0], "α / r": [4.0, 4.0]}, "Adam": {"1": [1.0, 3.0], "α / r": [5.0, 1.0]}}
    fig = lora_figures.scaling_figure([1, 4], panels)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["SGD", "Adam"]
    assert [line.get_ydata().tolist() for ax in fig.axes for line in ax.lines] == [[1, 4], [1, 1], [1, 3], [1, 0.2]]
    assert labels(fig.axes[0]) == ["1", "α / r"]
    assert fig.axes[0].get_yscale() == fig.axes[1].get_xscale() == "log"


def test_starts_draw_the_median_and_the_band_of_the_seeds():
    [ax] = lora_figures.starts_figure(CURVES, limit=0.9).axes
    assert ax.lines[0].get_xydata().tolist() == [[1, 1.0], [2, 0.5], [3, 0.2]]
    assert ax.lines[1].get_ydata().tolist() == [1.0, 2.0, 0.9]
    assert labels(ax) == ["near", "far", "0.900"]
    edges = ax.collections[0].get_paths()[0].vertices
    assert edges[:, 1].min() == 0.1
    assert {0.4, 0.6, 0.3} <= set(edges[:, 1])
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    assert len(lora_figures.starts_figure(CURVES).axes[0].lines) == 2
    assert lora_figures.starts_figure(CURVES, bottom=0.15).axes[0].get_ylim()[0] == 0.15


def test_a_start_that_has_arrived_does_not_come_back_into_the_figure():
    [ax] = lora_figures.starts_figure({"near": [1.0, 0.5, 0.1, 0.3]}, bottom=0.2).axes
    assert ax.lines[0].get_ydata().tolist() == [1.0, 0.5, 0.1]
    assert ax.collections[0].get_paths()[0].vertices[:, 0].max() == 3


def test_limit_draws_bounds_as_lines_and_results_as_points():
    [ax] = lora_figures.limit_figure(BOUNDS, [1, 2], REACHED).axes
    drawn = dict(zip(labels(ax), (line.get_xydata().tolist() for line in ax.lines), strict=True))
    assert drawn["three: least error"] == [[0, 1], [1, 0.5], [2, 0.2], [3, 0]]
    assert drawn["three: reached by training"] == [[1, 0.51], [2, 0.21]]
    assert drawn["flat: reached by training"] == [[1, 0.9], [2, 0.8]]
    assert [line.get_linestyle() for line in ax.lines][1::2] == ["None", "None"]


def test_limit_wants_the_same_targets_twice():
    with pytest.raises(ValueError, match="reached must have the targets of bounds"):
        lora_figures.limit_figure(BOUNDS, [1, 2], {"three": [0.5, 0.2]})


def test_comparison_draws_every_seed_the_mean_and_the_frozen_network():
    [ax] = lora_figures.comparison_figure(LOSSES, TRAINED, frozen=2.7).axes
    assert ax.lines[0].get_xydata().tolist() == [[2.5, 0], [2.6, 0]]
    assert ax.lines[1].get_xdata()[0] == pytest.approx(2.55)
    assert ax.lines[3].get_xydata()[0].tolist() == pytest.approx([2.5, 1])
    assert ax.lines[4].get_xdata()[0] == 2.7
    assert [text.get_text() for text in ax.get_yticklabels()] == ["full\n28,747 numbers", "LoRA\n2,412 numbers"]
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first method stands on top


def test_comparison_wants_a_count_for_each_method():
    with pytest.raises(ValueError, match="trained must have the methods of losses"):
        lora_figures.comparison_figure(LOSSES, {"full": 1}, frozen=2.7)


def test_figures_can_be_drawn_without_a_warning(recwarn):
    for fig in (
        lora_figures.layer_figure(192, 576, 8),
        lora_figures.layer_figure(9, 9, 1),
        lora_figures.gradients_figure([0.0, 1.0], [1.0, 1.0]),
        lora_figures.scaling_figure([1, 4], {"SGD": {"1": [2.0, 8.0]}}),
        lora_figures.starts_figure(CURVES, limit=0.99),
        lora_figures.limit_figure(BOUNDS, [1, 2], REACHED),
        lora_figures.comparison_figure(LOSSES, TRAINED, frozen=2.7),
    ):
        assert png_bytes(fig).startswith(b"\x89PNG")
    assert not recwarn.list


def test_training_figure_draws_the_first_curve_in_grey():
    [ax] = lora_figures.training_figure({"alpha 16": [1, 0.5], "alpha 64": [1, 0.2, 0.1]}).axes
    first, second = ax.lines
    assert (first.get_color(), list(first.get_ydata())) == (GREY, [1, 0.5])
    assert list(second.get_ydata()) == [1, 0.2, 0.1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["alpha 16", "alpha 64"]
