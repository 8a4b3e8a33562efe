"""The figures of the SVD draw what the SVD says."""

import numpy as np
import pytest

from lora_lab.course import svd_figures
from lora_lab.course.figures import png_bytes
from lora_lab.lowrank import LowRank, gallery, rank_errors, truncated_svd

SHEAR = np.array([[1, 1], [0, 1]])


def marked(ax):
    """Give the points that carry a marker, as the columns of a matrix."""
    return np.array([line.get_xydata()[0] for line in ax.lines if line.get_marker() not in ("", "None")]).T


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_circle_figure_marks_the_longest_and_the_shortest_radius():
    before, _, after = svd_figures.circle_figure(SHEAR).axes
    assert np.allclose(SHEAR @ marked(before), marked(after))
    assert np.allclose(np.linalg.norm(marked(before), axis=0), 1)
    assert np.allclose(np.linalg.norm(marked(after), axis=0), [1.618034, 0.618034])
    assert np.isclose(marked(after)[:, 0] @ marked(after)[:, 1], 0)
    assert texts(before) == ["v₁", "v₂"]
    assert texts(after) == ["σ₁u₁", "σ₂u₂"]


def test_steps_figure_goes_around_to_the_same_ellipse():
    axes = np.array(svd_figures.steps_figure(SHEAR).axes).reshape(3, 3)
    U, s, Vt = truncated_svd(SHEAR, 2)
    for place, points in (((0, 0), Vt.T), ((2, 0), np.eye(2)), ((2, 2), np.diag(s)), ((0, 2), U * s)):
        assert np.allclose(marked(axes[place]), points)
    assert axes[2, 0].get_title(loc="left") == "after Vᵀ: turned by −58°"
    assert axes[2, 2].get_title(loc="left") == "after diag(s): × 1.62 and × 0.62"
    assert axes[0, 2].get_title(loc="left") == "after U: turned by 32°"


def test_every_panel_holds_all_that_is_drawn_in_it():
    for W in (SHEAR, SHEAR.T, [[0.2, 0], [0.1, 0.1]], [[1, 0], [3, -2]]):
        axes = np.array(svd_figures.steps_figure(W).axes).reshape(3, 3)
        for ax in (axes[0, 0], axes[0, 2], axes[2, 0], axes[2, 2]):
            drawn = np.vstack([line.get_xydata() for line in ax.lines])
            assert np.abs(drawn[:, 0]).max() < ax.get_xlim()[1]
            assert np.abs(drawn[:, 1]).max() < ax.get_ylim()[1]


def test_steps_figure_says_where_something_is_mirrored():
    axes = np.array(svd_figures.steps_figure([[0, 1], [2, 0]]).axes).reshape(3, 3)
    titles = [axes[place].get_title(loc="left") for place in ((2, 0), (0, 2))]
    assert sum("mirrored" in title for title in titles) == 1  # its determinant is negative


@pytest.mark.parametrize("W", [np.eye(3), [[1, 2, 3], [4, 5, 6]], [1, 2]])
@pytest.mark.parametrize("draw", [svd_figures.circle_figure, svd_figures.steps_figure])
def test_circles_are_drawn_in_the_plane_only(draw, W):
    with pytest.raises(ValueError, match="W must be a 2×2 matrix"):
        draw(W)


def test_shapes_figure_draws_the_three_parts_to_scale():
    [ax] = svd_figures.shapes_figure(9, 5, 2).axes
    names = {"W\n9 × 5\n", "U\n9 × 9\nkept: 9 × 2", "s\n5\nkept: 2", "Vᵀ\n5 × 5\nkept: 2 × 5"}
    assert names | {"kept at rank 2"} <= set(texts(ax))
    drawn = {(patch.get_height(), patch.get_width()) for patch in ax.patches}
    assert {(9, 5), (9, 9), (5, 5), (9, 2), (2, 2), (2, 5)} <= drawn
    assert len(ax.lines) == 5  # the singular values


@pytest.mark.parametrize("sizes", [(9, 5, 6), (9, 5, 0), (5, 9, 2)])
def test_shapes_figure_takes_tall_matrices_and_their_ranks(sizes):
    with pytest.raises(ValueError, match="1 ≤ rank ≤ n ≤ m"):
        svd_figures.shapes_figure(*sizes)


def test_layers_figure_draws_layers_and_their_sums():
    picture = gallery.flag("saltire")[:, :, 0]
    axes = np.array(svd_figures.layers_figure(picture, (1, 2, 5)).axes).reshape(2, 3)
    U, s, Vt = truncated_svd(picture, 5)
    for column, k in enumerate((1, 2, 5)):
        layer, total = (axes[row, column].images[0] for row in range(2))
        assert np.allclose(layer.get_array(), s[k - 1] * np.outer(U[:, k - 1], Vt[k - 1]))
        assert np.allclose(total.get_array(), LowRank.from_svd(picture, k).dense())
        assert layer.norm.vmin == -layer.norm.vmax
        lightness = [sum(layer.cmap(place)[:3]) for place in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert lightness == sorted(lightness)  # without colour too you see what adds and what takes away
        assert (total.norm.vmin, total.norm.vmax) == (0, 1)
    assert [ax.get_title(loc="left") for ax in axes[1]] == ["layer 1", "layers 1 and 2", "layers 1 to 5"]
    energy = 1 - rank_errors(picture)[1] ** 2
    assert axes[0, 0].get_title(loc="left") == f"layer 1: {100 * energy:.0f} %"


def test_rivals_figure_counts_every_rival_once():
    rng = np.random.default_rng(0)
    rivals = {"far": 0.6 + 0.1 * rng.random(500), "near": 0.2 + 0.3 * rng.random(300)}
    [ax] = svd_figures.rivals_figure(rivals, 0.2).axes
    heights = [sum(bar.get_height() for bar in bars) for bars in ax.containers]
    assert heights == [500, 300]
    assert ax.lines[0].get_xdata()[0] == 0.2
    assert min(bar.get_x() for bars in ax.containers for bar in bars if bar.get_height()) == pytest.approx(0.2)


def test_rivals_figure_would_show_a_winner():
    [ax] = svd_figures.rivals_figure({"better": [0.1], "worse": [0.7, 0.9]}, 0.2).axes
    bars = [bar for bar in ax.containers[0] if bar.get_height()]
    assert len(bars) == 1
    assert bars[0].get_x() + bars[0].get_width() <= 0.2 + 1e-9


def test_figures_can_be_drawn_without_a_warning(recwarn):
    for fig in (
        svd_figures.circle_figure(SHEAR),
        svd_figures.steps_figure(SHEAR),
        svd_figures.shapes_figure(9, 5, 2),
        svd_figures.layers_figure(gallery.addition_table(), (1, 2)),
        svd_figures.rivals_figure({"a": [0.5, 0.6], "b": [0.7, 0.8]}, 0.4),
    ):
        assert png_bytes(fig).startswith(b"\x89PNG")
    assert not recwarn.list


def test_sum_figure_says_what_is_kept_and_what_is_missing():
    picture = np.diag([3.0, 4.0, 0.0])
    layer, kept, missing = svd_figures.sum_figure(picture, 1).axes
    assert layer.get_title(loc="left") == "layer 1: 64 % of the energy"
    assert missing.get_title(loc="left") == "missing: an error of 60 %"
    np.testing.assert_allclose(kept.images[0].get_array(), np.diag([0, 4, 0]), atol=1e-12)
    np.testing.assert_allclose(missing.images[0].get_array(), np.diag([3, 0, 0]), atol=1e-12)
    assert missing.images[0].get_clim() == (-4, 4), "one scale at every rank"
