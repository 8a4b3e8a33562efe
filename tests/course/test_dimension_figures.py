"""The figures of random subspaces draw the numbers they are given."""

import pytest

from lora_lab.course import dimension_figures
from lora_lab.course.figures import png_bytes

LOSSES = {3: [4.0, 1.0, 9.0], 4: [0.0, 1e-30, 1e-3]}
PANELS = {
    "test": {"pretrained": {100: [0.7, 0.8], 10: [0.5, 0.7]}, "untrained": {10: [0.5]}},
    "training": {"untrained": {10: [0.9, 0.7]}, "pretrained": {10: [1.0]}},
}


def means(ax):
    """Give the lines of the means, by name."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_cliff_draws_every_draw_their_median_and_the_conditions():
    [ax] = dimension_figures.cliff_figure(LOSSES, 4).axes
    points, median, upright = [*ax.lines[:2]], ax.lines[2], ax.lines[3]
    assert [line.get_xydata().tolist() for line in points] == [
        [[3, 4.0], [3, 1.0], [3, 9.0]],
        [[4, 1e-12], [4, 1e-12], [4, 1e-3]],  # a loss of zero has no place on a logarithmic axis
    ]
    assert median.get_xydata().tolist() == [[3, 4.0], [4, 1e-12]]
    assert upright.get_xdata()[0] == 4
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1e-12
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["4 conditions"]


def test_scores_draw_every_seed_and_the_mean_in_the_order_of_the_numbers():
    fig = dimension_figures.scores_figure(PANELS, xlabel="numbers that train")
    test, training = fig.axes
    assert [ax.get_title(loc="left") for ax in (test, training)] == ["test", "training"]
    assert means(test)["pretrained"].get_xydata().tolist() == [[10, 0.6], [100, 0.75]]
    assert means(training)["untrained"].get_ydata().tolist() == [0.8]
    drawn = [xy for line in test.lines if line.get_linestyle() == "None" for xy in line.get_xydata().tolist()]
    assert sorted(drawn) == [[10, 0.5], [10, 0.5], [10, 0.7], [100, 0.7], [100, 0.8]]
    assert test.get_xscale() == "log"
    assert (test.get_xlabel(), test.get_ylabel()) == ("numbers that train", "right answers")


def test_a_series_looks_the_same_in_every_panel_and_unlike_the_others():
    test, training = (means(ax) for ax in dimension_figures.scores_figure(PANELS, xlabel="d").axes)
    looks = {
        name: {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in (test[name], training[name])}
        for name in test
    }
    assert all(len(look) == 1 for look in looks.values())
    (one,), (other,) = looks.values()
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_levels_are_for_all_panels_or_one_for_each():
    fig = dimension_figures.scores_figure(PANELS, xlabel="d", levels={"guessing": 0.5, "threshold": (0.8, 0.9)})
    flat = [[line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]] for ax in fig.axes]
    assert flat == [[0.5, 0.8], [0.5, 0.9]]
    [legend] = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["pretrained", "untrained", "guessing", "threshold"]


def test_a_level_for_another_number_of_panels_is_refused():
    with pytest.raises(ValueError, match="levels must have one score or 2, got 3 for 'threshold'"):
        dimension_figures.scores_figure(PANELS, xlabel="d", levels={"threshold": (1, 2, 3)})


@pytest.mark.parametrize("panels", [{}, {"": {"one": {}}}])
def test_nothing_to_draw_is_refused(panels):
    with pytest.raises(ValueError, match="panels must have one panel at least, and a score in every series"):
        dimension_figures.scores_figure(panels, xlabel="d")


def test_figures_can_be_drawn_without_a_warning(recwarn):
    for fig in (
        dimension_figures.cliff_figure(LOSSES, 4),
        dimension_figures.scores_figure(PANELS, xlabel="d", levels={"guessing": 0.5}),
    ):
        assert png_bytes(fig).startswith(b"\x89PNG")
    assert not recwarn.list
