"""The figures of updates draw the numbers they are given."""

import numpy as np
import pytest

from lora_lab.course import update_figures
from lora_lab.course.figures import png_bytes

PANELS = {
    "first": {"ΔW": ([0, 1, 2], [[1.0, 0.5, 0.1], [1.0, 0.7, 0.3], [1.0, 0.8, 0.2]]), "W": ([0, 1, 2], [1, 0.9, 0.8])},
    "second": {"W": ([0, 1, 4], [1, 0.8, 0.6])},
}
RANKS, NOISE = {"query": [63, 47], "MLP": [105, 1]}, {"query": 110.0, "MLP": 160.0}
SCORES = {"cut": {0: [0.2, 0.4], 8: [0.8, 0.9]}, "LoRA": {1: [0.7, 0.8], 8: [0.85, 0.87]}}
LEVELS = {"full": [0.88, 0.9], "majority": [0.1]}
GRIDS = {"two": [[0.9, 0.5], [0.25, 0.125]], "one": [[1.0, 0.0]]}
LABELS = {"two": ("i", "j"), "one": ("i of one", "j of one")}


def drawn(ax):
    """Give the lines of a panel that are in the legend, by name."""
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines if not line.get_label().startswith("_")}


def cells(ax):
    """Give the words in a map, by place."""
    return {(text.get_position()): text.get_text() for text in ax.texts}


def test_curves_are_medians_in_bands_and_begin_at_rank_1():
    first, second = update_figures.curves_figure(PANELS).axes
    assert drawn(first) == {"ΔW": [[1, 0.7], [2, 0.2]], "W": [[1, 0.9], [2, 0.8]]}
    assert drawn(second) == {"W": [[1, 0.8], [4, 0.6]]}
    edges = first.collections[0].get_paths()[0].vertices
    assert {(1.0, 0.5), (1.0, 0.8), (2.0, 0.1), (2.0, 0.3)} <= {tuple(point) for point in edges.tolist()}
    assert len(first.collections) == 1
    assert not second.collections
    assert first.get_xscale() == "log"


def test_a_name_looks_the_same_in_every_panel_and_is_told_once():
    fig = update_figures.curves_figure(PANELS)
    first, second = fig.axes
    W = next(line for line in first.lines if line.get_label() == "W")
    assert (W.get_color(), W.get_marker()) == (second.lines[0].get_color(), second.lines[0].get_marker())
    assert W.get_marker() != first.lines[0].get_marker()
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["ΔW", "W"]


def test_curves_need_an_error_for_each_rank():
    with pytest.raises(ValueError, match="W: each curve takes 3 errors, one a rank, got 2"):
        update_figures.curves_figure({"first": {"W": ([0, 1, 2], [1.0, 0.5])}})


def test_ranks_are_written_beside_those_of_noise():
    [ax] = update_figures.ranks_figure(RANKS, NOISE).axes
    assert cells(ax) == {
        (0.5, 0.5): "63", (1.5, 0.5): "47", (3.5, 0.5): "110",
        (0.5, 1.5): "105", (1.5, 1.5): "1", (3.5, 1.5): "160",
    }  # fmt: skip
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "noise"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["query", "MLP"]


def test_scores_have_a_point_a_seed_and_their_mean():
    [ax] = update_figures.scores_figure(SCORES, LEVELS).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "8"]
    cut, lora = drawn(ax)["cut"], drawn(ax)["LoRA"]
    assert np.allclose([y for _, y in cut], [0.3, 0.85])
    assert np.allclose([y for _, y in lora], [0.75, 0.86])
    assert [round(x) for x, _ in cut + lora] == [0, 2, 1, 2]
    seeds = [line.get_ydata().tolist() for line in ax.lines if line.get_linestyle() == "None"]
    assert seeds == [[0.2, 0.4], [0.8, 0.9], [0.7, 0.8], [0.85, 0.87]]


def test_levels_are_means_and_bands():
    [ax] = update_figures.scores_figure(SCORES, LEVELS).axes
    levels = {name: [y for _, y in points] for name, points in drawn(ax).items() if name in LEVELS}
    assert np.allclose(levels["full"], 0.89)
    assert np.allclose(levels["majority"], 0.1)
    assert [(patch.get_y(), round(patch.get_height(), 6)) for patch in ax.patches] == [(0.88, 0.02)]
    assert ax.lines[-1].get_linestyle() != ax.lines[-2].get_linestyle()


def test_directions_are_counted_in_powers_of_two():
    fig = update_figures.directions_figure(GRIDS, LABELS)
    two, one = fig.axes
    assert cells(two) == {(0.5, 0.5): "0.90", (1.5, 0.5): "0.50", (0.5, 1.5): "0.25", (1.5, 1.5): "0.12"}
    assert [text.get_text() for text in two.get_yticklabels()] == ["1", "2"]
    assert (one.get_ylabel(), one.get_xlabel()) == ("i of one", "j of one")
    assert one.get_title(loc="left") == "one"


def test_directions_want_labels_for_the_same_grids():
    with pytest.raises(ValueError, match="labels must have the titles of grids"):
        update_figures.directions_figure(GRIDS, {"two": ("i", "j")})


def test_a_panel_without_a_grid_is_not_seen():
    fig = update_figures.directions_figure({**GRIDS, "three": [[1.0]]}, {**LABELS, "three": ("i", "j")})
    assert [ax.get_visible() for ax in fig.axes] == [True, True, True, False]


def test_figures_can_be_drawn_without_a_warning(recwarn):
    for fig in (
        update_figures.curves_figure(PANELS),
        update_figures.ranks_figure(RANKS, NOISE),
        update_figures.scores_figure(SCORES, LEVELS),
        update_figures.scores_figure({"cut": {0: [0.5]}}, {}),
        update_figures.directions_figure(GRIDS, LABELS),
    ):
        assert png_bytes(fig).startswith(b"\x89PNG")
    assert not recwarn.list
