"""The figures of errors against rank draw the numbers they are given."""

import numpy as np
import pytest

from lora_lab.course import spectrum_figures
from lora_lab.course.figures import png_bytes
from lora_lab.lowrank import gallery, rank_errors

RANDOM = np.random.default_rng(0).standard_normal


def texts(ax):
    return [text.get_text() for text in ax.texts]


def labels(ax):
    return [text.get_text() for text in ax.get_xticklabels()], [text.get_text() for text in ax.get_yticklabels()]


@pytest.fixture
def tables():
    return {"distance": gallery.distance_table(), "wide": RANDOM((4, 12))}


def curves(tables):
    errors = {name: rank_errors(W) for name, W in tables.items()}
    return spectrum_figures.curves_figure(errors, {name: W.shape for name, W in tables.items()})


def test_curves_are_drawn_against_the_numbers_stored(tables):
    plain, log = curves(tables).axes
    assert (plain.get_yscale(), log.get_yscale()) == ("linear", "log")
    for ax in (plain, log):
        distance, wide = ax.lines
        np.testing.assert_allclose(distance.get_xdata(), np.arange(10) * 18 / 81)
        np.testing.assert_allclose(wide.get_xdata(), np.arange(5) * 16 / 48)
        assert np.array_equal(distance.get_ydata(), rank_errors(tables["distance"]))
        assert distance.get_marker() != wide.get_marker()
        assert distance.get_linestyle() != wide.get_linestyle()
        assert ax.get_xlim() == (0, 2)  # 9 · 18 of 81: the full rank of the square one is drawn, and the shade up to it
        shade = ax.patches[0].get_extents().transformed(ax.transData.inverted())
        np.testing.assert_allclose([shade.x0, shade.x1], [1, 2])


def test_pictures_stand_in_a_grid_with_names_and_titles():
    picture = gallery.flag("cross")
    rows = {"cross": [picture, picture / 2], "disc": [gallery.flag("disc")[:, :, 0]] * 2}
    fig = spectrum_figures.pictures_figure(rows, ["original", "darker"])
    assert len(fig.axes) == 4
    assert [ax.get_title("center") for ax in fig.axes] == ["original", "darker", "", ""]
    assert [ax.get_ylabel() for ax in fig.axes] == ["cross", "", "disc", ""]
    assert np.array_equal(fig.axes[1].images[0].get_array(), picture / 2)
    assert fig.axes[2].images[0].norm.vmin == 0
    assert fig.axes[2].images[0].norm.vmax == 1


def test_pictures_beyond_black_and_white_are_black_and_white(recwarn):
    fig = spectrum_figures.pictures_figure({"": [np.array([[-0.5, 0.25], [0.75, 1.5]])]}, ["grey"])
    assert fig.axes[0].images[0].get_array().tolist() == [[0, 0.25], [0.75, 1]]
    png_bytes(spectrum_figures.pictures_figure({"": [np.full((2, 2, 3), 1.2)]}, ["coloured"]))
    assert not recwarn.list


def test_only_a_minimum_inside_gets_a_ring():
    fig = spectrum_figures.minima_figure({"falls": [3, 2, 1], "turns": [3, 1, 2]})
    (ax,) = fig.axes
    assert texts(ax) == ["rank 1"]
    falls, turns, ring = ax.lines
    assert (falls.get_label(), turns.get_label()) == ("falls", "turns")
    assert [value[0] for value in ring.get_data()] == [1, 1]
    assert ring.get_fillstyle() == "none"


@pytest.mark.parametrize(("errors", "from_zero"), [([1, 0.15, 0.4], True), ([0.95, 0.9, 0.92], False)])
def test_errors_that_fall_far_are_drawn_from_zero(errors, from_zero):
    bottom, top = spectrum_figures.minima_figure({"error": errors}).axes[0].get_ylim()
    assert (bottom == 0) == from_zero
    assert bottom < min(errors)
    assert max(errors) < top


def test_minima_at_ranks_with_gaps_levels_and_choices():
    fig = spectrum_figures.minima_figure(
        {"held out": [4, 2, 3]}, ranks=(0, 5, 20), levels={"averages": 2.5}, choices={"by noise": 7}, ylabel="stars"
    )
    (ax,) = fig.axes
    assert texts(ax) == ["rank 5", "by noise"]
    assert ax.lines[0].get_xdata().tolist() == [0, 5, 20]
    assert ax.lines[0].get_markevery() == [0, 1, 2]
    assert ax.get_ylabel() == "stars"
    level = next(line for line in ax.lines if line.get_label() == "averages")
    assert set(level.get_ydata()) == {2.5}
    assert any(list(line.get_xdata()) == [7, 7] for line in ax.lines)


def test_bands_hold_all_layers_and_their_middle():
    layers = np.sort(RANDOM((5, 7)) ** 2, axis=1)[:, ::-1]
    fig = spectrum_figures.bands_figure(
        {"q": layers, "k": layers}, {"q": np.ones(7), "k": np.ones(7)}, {"q": 3, "k": 3}
    )
    assert [ax.get_title("left") for ax in fig.axes] == ["q", "k"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "trained, 5 layers",
        "trained, their median",
        "noise",
    ]
    middle, noise = fig.axes[0].lines
    np.testing.assert_allclose(middle.get_ydata(), np.median(layers, axis=0))
    assert noise.get_ydata().tolist() == [1] * 7
    corners = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == layers.min()
    assert corners.max() == layers.max()


def test_layers_are_cells_in_percent_with_the_noise_apart():
    errors = {"q_proj": [0.07, 0.234], "v_proj": [0.25, 0.31]}
    (ax,) = spectrum_figures.layers_figure(errors, range(0, 6, 3), {"q_proj": 0.33, "v_proj": 0.3}).axes
    assert texts(ax) == ["7", "23", "33", "25", "31", "30"]
    assert labels(ax) == (["0", "3", "noise"], ["q_proj", "v_proj"])
    assert ax.get_title("left") == "relative error, in percent"


def test_ink_is_readable_on_every_cell():
    errors = {"q_proj": np.linspace(0, 1, 6)}
    (ax,) = spectrum_figures.layers_figure(errors, range(6), {"q_proj": 0.5}).axes
    assert [text.get_color() for text in ax.texts] == ["white", "white", "white", "black", "black", "black", "white"]


def test_figures_can_be_drawn_without_a_warning(tables, recwarn):
    layers = {"q_proj": [[1, 0.5, 0], [1, 0.4, 0]]}
    for fig in (
        curves(tables),
        spectrum_figures.pictures_figure({"": [RANDOM((6, 5))] * 3}, ["a\nb\nc", "d", "e"]),
        spectrum_figures.minima_figure({"error": [1, 0.5, 0.7]}, levels={"a": 0.6, "b": 0.7}, choices={"noise": 1}),
        spectrum_figures.bands_figure(layers, {"q_proj": [1, 0.6, 0]}, {"q_proj": 1}),
        spectrum_figures.layers_figure({"q_proj": [0.5, 0.4]}, [0, 1], {"q_proj": 0.6}),
    ):
        assert png_bytes(fig).startswith(b"\x89PNG")
    assert not recwarn.list


def test_place_figure_marks_the_rank_on_the_curve():
    errors = np.linspace(1, 0, 11)
    picture, curve = spectrum_figures.place_figure(np.full((10, 40), 2.0), errors, 3).axes
    assert picture.images[0].get_array().max() == 1, "above 1 is drawn as 1"
    [x], [y] = curve.lines[1].get_data()
    assert (x, y) == (3, errors[3])
    assert curve.get_title(loc="left") == "38% of the numbers, 70.0% lost"
    assert [line.get_xdata()[0] for line in curve.lines[2:]] == [3, 7], "the rank and the break-even rank"
