"""The figures of learned factors draw the numbers they are given."""

import numpy as np
import pytest

from lora_lab.course import fitting_figures
from lora_lab.course.figures import png_bytes

PATHS = {"zero": [(0, 0), (0, 0)], "near": [(0, 0.5), (0.1, 0.6), (0.9, 1.1)]}
CURVES = {"one": np.array([1.0, 0.5, 0.25]), "two": np.array([1.2, 0.9, 0.3, 0.25])}
HOUSE = np.array([(-1, -1), (1, -1), (1, 0.5), (0, 1), (-1, 0.5), (-1, -1)])
LEARNED = np.linspace(0, 1, 20)[:, None] * [4.0, 2.0]
MASK = np.array([[True, False, True], [True, True, False]])
TABLE = np.array([[1, 2, 3], [2, 4, 6]])


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_landscape_draws_valleys_and_paths():
    ax = fitting_figures.landscape_figure(PATHS).axes[0]
    assert labels(ax) == ["left · right = 1", "from zero", "from near"]
    valleys = [line for line in ax.lines if len(line.get_xdata()) > 50]
    assert len(valleys) == 2
    assert all(np.allclose(line.get_xdata() * line.get_ydata(), 1) for line in valleys)
    drawn = [line.get_xydata().tolist() for line in ax.lines]
    assert [list(map(float, point)) for point in PATHS["near"]] in drawn
    points = {tuple(line.get_xydata()[0]): line.get_markersize() for line in ax.lines if len(line.get_xydata()) == 1}
    assert points[0, 0.5] > points[0.9, 1.1]  # the start is the larger marker, as the title says
    assert "from a large marker to a small one" in ax.get_title("left")
    picture = ax.images[0].get_array()
    at_one = round((1 + 2.3) / 4.6 * (picture.shape[0] - 1))
    assert picture[at_one, at_one] == pytest.approx(0, abs=0.02)  # f is 0 at (1, 1)


def test_descent_draws_each_curve_and_the_floor():
    ax = fitting_figures.descent_figure(CURVES, floor=0.25, top=1.5).axes[0]
    assert [line.get_ydata()[0] for line in ax.lines] == [1.0, 1.2, 0.25]
    assert ax.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert labels(ax) == ["one", "two", "the truncated SVD"]
    assert ax.get_ylim() == (0, 1.5)
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    logarithmic = fitting_figures.descent_figure(CURVES, logarithmic=True).axes[0]
    assert logarithmic.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert "the start counted as 1" in logarithmic.get_xlabel()
    assert labels(logarithmic) == ["one", "two"]


def test_drawings_join_the_rows_in_their_order():
    fig = fitting_figures.drawings_figure({"the drawing": HOUSE, "turned": HOUSE[:, ::-1]})
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["the drawing", "turned"]
    for ax, points in zip(fig.axes, (HOUSE, HOUSE[:, ::-1]), strict=True):
        assert any(np.array_equal(line.get_xydata(), points) for line in ax.lines)
        assert ax.get_xlim()[1] > np.abs(points).max()
        assert ax.get_aspect() == 1


def test_learning_draws_a_curve_and_a_goal_for_each_direction():
    fig = fitting_figures.learning_figure({"small": LEARNED, "large": 10 * LEARNED}, np.arange(20), [4, 2])
    assert len(fig.axes) == 2
    curves = [line for line in fig.axes[0].lines if len(line.get_xdata()) == 20]
    assert [line.get_ydata()[-1] for line in curves] == [4, 2]
    assert curves[0].get_marker() != curves[1].get_marker()
    assert {line.get_ydata()[0] for line in fig.axes[0].lines} == {0, 2, 4}
    assert labels(fig.axes[1]) == ["direction 1", "direction 2"]
    assert fig.axes[1].get_ylim()[1] < 10  # what is far above the goals leaves the figure


def test_pictures_are_black_at_0_and_white_at_1():
    fig = fitting_figures.pictures_figure({"a": np.full((6, 4), 0.5), "b": np.eye(5)})
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    assert all(ax.images[0].get_clim() == (0, 1) for ax in fig.axes)


def test_holes_are_empty_and_what_is_filled_in_is_bold():
    fig = fitting_figures.holes_figure(np.where(MASK, TABLE, np.nan), MASK, TABLE)
    before, after = fig.axes
    assert sorted(text.get_text() for text in before.texts) == ["1", "2", "3", "4", "·", "·"]
    assert [text.get_text() for text in after.texts] == ["1", "2", "3", "2", "4", "6"]
    assert [text.get_text() for text in after.texts if text.get_weight() == "bold"] == ["2", "6"]
    assert before.get_title(loc="left") == "4 of 6 entries are known"
    assert after.get_title(loc="left") == "the other 2, filled in"


def test_effort_writes_each_count():
    ax = fitting_figures.effort_figure([1, 10], {"slow": [12, 130], "fast": [1, 1]}).axes[0]
    assert [text.get_text() for text in ax.texts] == ["12", "130", "1", "1"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10"]


def test_share_draws_every_try_and_the_median():
    errors = np.array([[2.0, 3.0, 2.5], [0.1, 0.3, 0.2]])
    ax = fitting_figures.share_figure([0.1, 0.5], errors, 0.12).axes[0]
    assert ax.lines[0].get_ydata().tolist() == errors.ravel().tolist()
    assert ax.lines[1].get_ydata().tolist() == [2.5, 0.2]
    assert "fewer entries than degrees of freedom" in labels(ax)


def test_held_out_draws_both_sides():
    fig = fitting_figures.held_out_figure(range(1, 4), {"plain": [3, 2, 1]}, {"plain": [3, 2, 4]})
    assert [ax.lines[0].get_ydata().tolist() for ax in fig.axes] == [[3, 2, 1], [3, 2, 4]]
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["entries that were fitted", "entries that were kept apart"]
    assert labels(fig.axes[0]) == ["plain"]


def test_figures_can_be_drawn_without_a_warning(recwarn):
    for fig in (
        fitting_figures.landscape_figure(PATHS),
        fitting_figures.descent_figure(CURVES, floor=0.25, logarithmic=True),
        fitting_figures.drawings_figure({"one": HOUSE, "two": HOUSE, "three": HOUSE}),
        fitting_figures.learning_figure({"small": LEARNED, "large": LEARNED}, np.arange(20), [4, 2]),
        fitting_figures.pictures_figure({"a": np.eye(4), "b": np.eye(4)}),
        fitting_figures.holes_figure(np.where(MASK, TABLE, np.nan), MASK, TABLE),
        fitting_figures.effort_figure([1, 10], {"slow": [12, 130], "fast": [1, 1]}),
        fitting_figures.share_figure([0.1, 0.5], np.ones((2, 3)), 0.12),
        fitting_figures.held_out_figure([1, 2], {"plain": [2, 1]}, {"plain": [2, 3]}),
    ):
        assert png_bytes(fig).startswith(b"\x89PNG")
    assert not recwarn.list
