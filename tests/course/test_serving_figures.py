"""The figures of lesson 10 draw the numbers they are given."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lora_lab.course import serving_figures
from lora_lab.course.figures import BLACK, ORANGE, SKY, png_bytes

CURVES = {"q_proj": [[1, 0.5, 0.2, 0], [1, 0.6, 0.3, 0]], "v_proj": [[1, 0.9, 0.8, 0], [1, 0.7, 0.1, 0]]}
MEMORY = {"float32": {"embedding": 4.0, "linear": 8.0}, "4 bits": {"embedding": 4.0, "linear": 1.0}}


def texts(ax):
    return [text.get_text().strip() for text in ax.texts]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_lost_figure_draws_a_line_for_each_type_in_percent():
    fig = serving_figures.lost_figure([1e-3, 1], {"bfloat16": [0.9, 0.01], "float16": [0.1, 0]}, marked={"ours": 0.1})
    [ax] = fig.axes
    assert labels(ax) == ["bfloat16", "float16"]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1e-3, 90], [1, 1]])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [10, 0])
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert texts(ax) == ["all of it", "ours"]
    assert ax.lines[3].get_xdata()[0] == 0.1
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker()


def test_rank_by_layer_figure_draws_the_ranks_between_none_and_all():
    fig = serving_figures.rank_by_layer_figure(CURVES)
    left, right = fig.axes
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["q_proj", "v_proj"]
    np.testing.assert_allclose([line.get_ydata() for line in left.lines], [[0.5, 0.6], [0.2, 0.3]])
    np.testing.assert_allclose([line.get_ydata() for line in right.lines], [[0.9, 0.7], [0.8, 0.1]])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["cut to rank 1", "cut to rank 2"]


def test_reading_figure_tells_what_was_read_from_what_was_written():
    [ax] = serving_figures.reading_figure(["How", " ", "\n", " SELECT"], [1, -2, 0, 3], written=3).axes
    assert [bar.get_height() for bar in ax.patches] == [1, -2, 0, 3]
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches] == [SKY.lower()] * 3 + [ORANGE.lower()]
    assert [bar.get_hatch() or "" for bar in ax.patches] == ["", "", "", "///"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["How", "␣", "↵", "SELECT"]


def test_reading_figure_takes_one_strength_for_each_token():
    with pytest.raises(ValueError, match="one for each of 2 tokens, got 3"):
        serving_figures.reading_figure(["a", "b"], [1, 2, 3], written=1)


def test_extraction_figure_rings_the_chosen_rank():
    [ax] = serving_figures.extraction_figure({"a": [1, 0.5, 0], "b": [1, 0.2, 0.1]}, {"a": 2, "b": 1}).axes
    assert labels(ax) == ["a: rank 2", "b: rank 1"]
    rings = [line for line in ax.lines if line.get_fillstyle() == "none"]
    np.testing.assert_allclose([ring.get_xydata()[0] for ring in rings], [[2, 0], [1, 0.2]])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 0.5, 0])
    assert {to_hex(ring.get_color()) for ring in rings} == {BLACK}


def test_extraction_figure_tells_many_layers_apart():
    curves = {str(k): [1, 0] for k in range(8)}
    [ax] = serving_figures.extraction_figure(curves, dict.fromkeys(curves, 1)).axes
    drawn = [line for line in ax.lines if line.get_fillstyle() != "none"]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn}) == 8


def test_levels_figure_draws_every_number_and_every_level():
    levels, numbers = np.array([-1, 0, 0.5, 1]), np.array([[-1, 0.1], [0.5, 1]])
    [ax] = serving_figures.levels_figure(levels, numbers).axes
    assert sum(bar.get_height() for bar in ax.patches) == 4
    np.testing.assert_allclose(ax.lines[0].get_xdata(), levels)
    assert "the 4 levels" in labels(ax)


def test_memory_figure_stacks_the_parts():
    [ax] = serving_figures.memory_figure(MEMORY).axes
    assert labels(ax) == ["embedding", "linear"]
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 4), (0, 4), (4, 8), (4, 1)]
    assert texts(ax) == ["12 MB", "5 MB"]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: serving_figures.lost_figure([1e-3, 1], {"bfloat16": [0.9, 0.01]}, marked={}),
        lambda: serving_figures.rank_by_layer_figure(CURVES),
        lambda: serving_figures.reading_figure(["a", "b"], [1, -1], written=1),
        lambda: serving_figures.extraction_figure({"a": [1, 0.5, 0]}, {"a": 1}),
        lambda: serving_figures.levels_figure([-1, 0, 1], [0.1, 0.2]),
        lambda: serving_figures.memory_figure(MEMORY),
    ],
)
def test_every_figure_can_be_saved(figure):
    assert png_bytes(figure())[:4] == b"\x89PNG"
