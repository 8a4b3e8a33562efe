"""The figures of LoRA and its rivals draw the numbers they are given, where they say."""

import statistics

import numpy as np
import pytest

from lora_lab.course import rival_figures
from lora_lab.course.experiments.rival_costs import against
from lora_lab.course.figures import png_bytes
from lora_lab.course.papers import load_paper

WAYS = ("full", "head", "bitfit", "bottleneck-4", "bottleneck-64", "lora-1", "lora-64", "lora-qv-8")
RUNS = [
    {"way": way, "seed": seed, "trainable": 10**i, "bytes": 4 * 10**i + 64, "score": 0.7 + 0.01 * i + 0.002 * seed}
    for seed in range(3)
    for i, way in enumerate(WAYS, start=1)
]


def lines(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


@pytest.mark.parametrize(
    ("way", "words"),
    [("full", "full"), ("bottleneck-16", "adapters 16"), ("lora-8", "LoRA 8"), ("lora-qv-8", "LoRA 8 on q, v")],
)
def test_a_way_is_said_in_words(way, words):
    assert rival_figures.said(way) == words


@pytest.mark.parametrize("way", ["lora-xy-8", "prefix", ""])
def test_an_unknown_way_is_refused(way):
    with pytest.raises(ValueError, match=r"way: got .*, takes one that begins with full, head, bitfit"):
        rival_figures.said(way)


def test_every_rival_has_a_block_in_which_what_trains_is_marked():
    fig = rival_figures.places_figure()
    trained = {ax.get_title(loc="left"): sum(patch.get_linewidth() > 1 for patch in ax.patches) for ax in fig.axes}
    assert trained == {"full": 3, "head only": 1, "BitFit": 3, "adapters": 3, "LoRA": 5}
    assert png_bytes(fig) == png_bytes(rival_figures.places_figure())


def test_scores_stand_over_what_trains_and_what_is_stored():
    fig = rival_figures.scores_figure(RUNS, sentences=100)
    for ax, figure in zip(fig.axes, ("trainable", "bytes"), strict=True):
        for marker, ways in (("o", ("lora-1", "lora-64")), ("s", ("lora-qv-8",)), ("X", ("full",))):
            seeds, mean = lines(ax, marker)[:-1], lines(ax, marker)[-1]
            assert len(seeds) == len(ways)
            for way, drawn, x, y in zip(ways, seeds, *mean.get_data(), strict=True):
                mine = [run for run in RUNS if run["way"] == way]
                assert list(drawn.get_ydata()) == [run["score"] for run in mine]
                assert set(drawn.get_xdata()) == {x} == {mine[0][figure]}
                assert y == pytest.approx(statistics.fmean(run["score"] for run in mine))
        assert {text.get_text() for text in ax.texts} >= {"4", "64", "1", "8"}
    (bar,) = fig.axes[1].containers
    p = np.mean([run["score"] for run in RUNS])
    low, high = bar[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(np.sqrt(p * (1 - p) / 100))


def test_the_best_rate_of_each_way_is_circled():
    runs = [
        {"way": way, "learning_rate": rate, "validation": value}
        for way, rate, value in [
            ("full", 1e-4, 0.7),
            ("full", 1e-3, 0.9),
            ("full", 1e-4, 0.9),  # a second seed: the mean is 0.8
            ("lora-8", 1e-2, 0.6),
            ("lora-8", 1e-3, 0.6),
        ]
    ]
    fig = rival_figures.rates_figure({"both": runs, "one": runs[:3]}, common=1e-3)
    first, second = fig.axes
    circled = [line.get_data() for line in first.lines if line.get_markersize() == 13]
    assert [(float(x[0]), float(y[0])) for x, y in circled] == [(1e-3, 0.9), (1e-3, 0.6)]
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["0.001 for all", "full"]
    assert rival_figures.mean_by_rate(runs, "full") == {1e-4: pytest.approx(0.8), 1e-3: 0.9}


def test_costs_are_drawn_against_full_in_the_same_round_and_beside_the_prediction():
    seconds = {"head": [1.0, 1.0, 4.0], "full": [2.0, 4.0, 6.0]}
    memory = {"head": (2e6, 1e6), "full": (9e6, 8e6)}
    left, right = rival_figures.costs_figure(seconds, memory).axes
    told = against(seconds, "head", base="full")  # in the same round: 1/2, 1/4, 2/3
    assert lines(left, "P")[0].get_xdata()[0] == told["median"] == 1 / 2
    assert list(left.lines[0].get_xdata()) == [told["lower"], told["upper"]] == pytest.approx([3 / 8, 7 / 12])
    assert list(left.lines[2].get_xdata()) == [1, 1]  # full against itself
    assert lines(left, "X")[0].get_xdata()[0] == 1
    assert [line.get_xdata()[0] for line in lines(right, "o")] == [2, 9]
    assert [line.get_xdata()[0] for line in lines(right, "|")] == [1, 8]
    assert [text.get_text() for text in right.get_yticklabels()] == ["head only", "full"]


def test_latency_is_compared_within_a_round_and_the_band_is_that_of_the_twin():
    plain = [1.0, 2.0, 4.0]
    seconds = {
        "plain": plain,
        "plain-again": [0.9, 2.0, 4.4],
        "lora-8": [1.5, 3.0, 6.0],
        "lora-8-folded": plain,
        "bottleneck-4": [1.25, 2.5, 5.0],
    }
    fig = rival_figures.latency_figure({1: seconds, 32: seconds})
    for ax, title in zip(fig.axes, ("1 sentence at once", "32 sentences at once"), strict=True):
        assert ax.get_title(loc="left") == title
        beside, merged = lines(ax, "o")
        assert beside.get_xdata()[0] == 1.5
        assert merged.get_xdata()[0] == 1
        assert merged.get_markerfacecolor() == "white" != beside.get_markerfacecolor()
        assert lines(ax, "^")[0].get_xdata()[0] == 1.25
        (band,) = ax.patches
        assert band.get_x() == pytest.approx(0.95)
        assert band.get_width() == pytest.approx(0.1)
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert labels == ["LoRA 8, beside", "LoRA 8, merged", "adapters 4"]


def test_the_tables_of_the_paper_are_drawn_with_their_error_bars():
    paper = load_paper()
    fig = rival_figures.attention_tables_figure(paper)
    for i, (task, bar) in enumerate((("wikisql", 0.5), ("multinli", 0.1))):
        left, right = fig.axes[2 * i : 2 * i + 2]
        points = [container[0].get_data() for container in left.containers]
        assert [float(y[0]) for _, y in points] == [row[task] for row in paper["table_5"]["rows"]]
        for container, weights in zip(right.containers, ("q", "qv", "qkvo"), strict=True):
            drawn = list(container[0].get_ydata())
            assert drawn == [row[task] for row in paper["table_6"]["rows"] if row["weights"] == weights]
            ends = np.array([segment[:, 1] for segment in container[2][0].get_segments()])
            assert np.allclose(ends[:, 1] - ends[:, 0], 2 * bar)
    labels = [text.get_text() for text in fig.axes[0].get_xticklabels()]
    assert labels[0] == "q\nr = 8"
    assert labels[-1] == "q, k, v, o\nr = 2"


def test_every_method_stands_at_its_distance_from_full_fine_tuning():
    paper = load_paper()
    fig = rival_figures.against_tuning_figure(paper)
    base, *rows = paper["table_4"]["rows"]
    for ax, task, bar in zip(fig.axes, ("wikisql", "multinli", "samsum"), (0.5, 0.1, 0.1), strict=True):
        for container, row in zip(ax.containers, rows, strict=True):
            gap = row[task][2] - base[task][2] if task == "samsum" else row[task] - base[task]
            assert container[0].get_xdata()[0] == pytest.approx(gap)
            low, high = container[2][0].get_segments()[0][:, 0]
            assert high - low == pytest.approx(4 * bar)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: rival_figures.scores_figure([]), "runs must hold a run"),
        (lambda: rival_figures.rates_figure({}), "panels must have one panel"),
        (lambda: rival_figures.rates_figure({"none": []}), "a run in each"),
        (lambda: rival_figures.costs_figure({}, {"full": (1, 1)}), "must hold a way"),
        (lambda: rival_figures.latency_figure({1: {"plain": [1.0]}}), "'plain' and 'plain-again', got plain"),
    ],
)
def test_nothing_to_draw_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
