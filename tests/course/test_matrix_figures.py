"""The figures draw the numbers they are given."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lora_lab.course import matrix_figures
from lora_lab.course.figures import png_bytes
from lora_lab.lowrank import LowRank, gallery, rank_errors


def texts(fig):
    return [text.get_text() for text in fig.axes[0].texts]


def addition_in_factors():
    numbers, ones = np.arange(1, 10), np.ones(9)
    return LowRank(np.column_stack([numbers, ones]), np.vstack([ones, numbers]))


def test_factorization_figure_shows_81_entries_and_18_numbers():
    drawn = texts(matrix_figures.factorization_figure())
    table = gallery.multiplication_table().ravel().tolist()
    factors = [*range(1, 10), *range(1, 10)]
    assert drawn[: 81 + 18] == [str(entry) for entry in [*table, *factors]]
    for text in ("9 × 9\n81 numbers", "9 × 1\n9 numbers", "1 × 9\n9 numbers", "1 column", "1 row", "=", "·"):
        assert text in drawn


def test_factorization_figure_of_rank_2():
    drawn = texts(matrix_figures.factorization_figure(addition_in_factors()))
    for text in ("9 × 2\n18 numbers", "2 × 9\n18 numbers", "2 columns", "2 rows"):
        assert text in drawn


def test_factorization_figure_frames_an_entry_and_what_it_is_made_of():
    ax = matrix_figures.factorization_figure(addition_in_factors(), entry=(2, 7)).axes[0]
    entry, row, column = ((frame.get_xy(), frame.get_width(), frame.get_height()) for frame in ax.patches)
    assert entry == ((7, 2), 1, 1)
    assert row == ((11, 2), 2, 1)  # the left factor begins at 9 + 2 cells
    assert column[1:] == (1, 2)


def test_layers_figure_shows_every_layer():
    drawn = texts(matrix_figures.layers_figure(addition_in_factors()))
    assert [text for text in drawn if not text.isdigit()] == ["the matrix", "layer 1", "layer 2", "=", "+"]
    assert sum(text.isdigit() for text in drawn) == 3 * 81


def contrast(ink, colour):
    """Give the contrast of two colours as WCAG 2.2 defines it, from its text."""

    def luminance(rgb):
        red, green, blue = ((c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in rgb)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted(luminance(to_rgb(c)) for c in (ink, colour))
    return (light + 0.05) / (dark + 0.05)


def test_every_entry_can_be_read_on_its_colour():
    W = gallery.multiplication_table_with_error()
    for fig in (matrix_figures.factorization_figure(), matrix_figures.damage_figure(W, LowRank.from_svd(W, 1))):
        ax = fig.axes[0]
        mesh = ax.collections[0]  # the matrix; its entries are the first texts
        for entry, text in zip(mesh.get_array().ravel(), ax.texts, strict=False):
            assert contrast(text.get_color(), mesh.cmap(mesh.norm(entry))[:3]) >= 4.5  # WCAG's level AA


def test_damage_figure_is_signed_and_symmetric_in_colour():
    W = gallery.multiplication_table_with_error()
    fig = matrix_figures.damage_figure(W, LowRank.from_svd(W, 1))
    assert "−1.29" in texts(fig)
    mesh = fig.axes[0].collections[0]
    assert mesh.norm.vmin == -mesh.norm.vmax == pytest.approx(-1.29, abs=0.005)
    assert mesh.get_array()[6, 7] == pytest.approx(-1.29, abs=0.005)
    assert not any(text.startswith("-") for text in texts(fig))


def test_storage_figure_marks_the_break_even():
    fig = matrix_figures.storage_figure(9, 9)
    assert fig.axes[0].lines[0].get_ydata().tolist() == [18 * rank for rank in range(10)]
    assert texts(fig) == ["rank 4: 72", "rank 5: 90"]


def test_error_figure_draws_each_curve_apart():
    errors = {"distance": rank_errors(gallery.distance_table()), "identity": rank_errors(gallery.identity())}
    lines = matrix_figures.error_figure(errors).axes[0].lines
    assert [line.get_label() for line in lines] == ["distance", "identity"]
    assert np.array_equal(lines[0].get_ydata(), errors["distance"])
    assert lines[0].get_marker() != lines[1].get_marker()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_figures_can_be_drawn_without_a_warning(recwarn):
    W = gallery.multiplication_table_with_error()
    for fig in (
        matrix_figures.factorization_figure(),
        matrix_figures.layers_figure(addition_in_factors()),
        matrix_figures.tables_figure(
            {"|i − j|": gallery.distance_table(), "(i − j)²": gallery.squared_distance_table()}
        ),
        matrix_figures.damage_figure(W, LowRank.from_svd(W, 1)),
        matrix_figures.storage_figure(9, 9),
        matrix_figures.error_figure({"table": rank_errors(W)}),
    ):
        assert png_bytes(fig).startswith(b"\x89PNG")
    assert not recwarn.list


def test_damage_that_is_rounding_alone_stays_white():
    [ax] = matrix_figures.damage_figure(np.ones((2, 2)), np.add(1, [[1e-14, 0], [0, -1e-14]])).axes
    colours = ax.collections[0].to_rgba(ax.collections[0].get_array())
    assert np.ptp(colours.reshape(-1, 4), axis=0).max() < 0.01
