"""The benchmark's own functions, on tiny matrices and made-up times: nothing here asserts how fast anything is."""

import copy
import json
import re

import numpy as np
import pytest
import sklearn.utils.extmath

from lora_lab.course import benchmarks
from lora_lab.course.benchmarks import OUR_PRODUCTS, OURS, RIVAL, RIVAL_PRODUCTS
from lora_lab.course.experiments import load_result

WHOLE = ("numpy svd", "scipy svd", "torch svd")


@pytest.fixture(scope="module")
def measured():
    return list(benchmarks.measure("spikes", dtype="float32", ranks=(1, 3), repeats=4, threads=1, scale=16))


def made_up(case, rank, seconds, excess, threads=1, dtype="float64"):
    """Give the runs of one cell: a time and an error for each of the two that are compared, and their products."""
    cell = {"case": case, "shape": [40, 30], "dtype": dtype, "rank": rank, "threads": threads}
    return [
        {**cell, "method": OURS, "seconds": [9.0, seconds[0], 0.0], "excess": [9.0, excess[0], -0.5]},
        {**cell, "method": RIVAL, "seconds": [9.0, seconds[1], 0.0], "excess": [-0.5, 9.0, excess[1]]},
        {**cell, "method": OUR_PRODUCTS, "seconds": [seconds[0] / 2], "excess": []},
        {**cell, "method": RIVAL_PRODUCTS, "seconds": [seconds[1] / 4], "excess": []},
    ]


@pytest.mark.parametrize("case", benchmarks.CASES)
def test_examples_are_the_same_each_time_and_have_the_singular_values_they_say(case):
    A = benchmarks.example(case, 8)
    np.testing.assert_array_equal(A, benchmarks.example(case, 8))
    s, k = np.linalg.svd(A, compute_uv=False), np.arange(1, min(A.shape) + 1)
    if case == "spikes":
        assert A.shape == (512, 128)
        noise = np.sqrt(512) + np.sqrt(128)
        assert np.count_nonzero(s > 1.05 * noise) == 8
    else:
        assert A.shape == {"fast decay": (125, 125), "slow decay": (256, 256)}[case]
        np.testing.assert_allclose(s, np.exp(-k / 10) if case == "fast decay" else 1 / np.sqrt(k), atol=1e-14)


def test_an_unknown_example_is_refused():
    with pytest.raises(ValueError, match="case takes one of fast decay, slow decay, spikes, got 'noise'"):
        benchmarks.example("noise")


def test_every_installed_method_is_measured_at_every_rank(measured):
    assert {(run["rank"], run["method"]) for run in measured} >= {
        (rank, method)
        for rank in (1, 3)
        for method in (OURS, OUR_PRODUCTS, RIVAL, RIVAL_PRODUCTS, "numpy svd", "scipy svd", "scipy svds", "torch svd")
    }
    for run in measured:
        assert min(run["seconds"]) > 0
        assert len(run["seconds"]) == (3 if run["method"] in WHOLE else 4)
        assert (run["case"], run["shape"], run["dtype"], run["threads"]) == ("spikes", [256, 64], "float32", 1)
    assert json.loads(json.dumps(measured)) == measured


def test_errors_are_measured_against_the_best_one(measured):
    for run in measured:
        assert all(-1e-6 < excess < 0.2 for excess in run["excess"])
        if run["method"] in (*WHOLE, "scipy svds"):
            assert all(abs(excess) < 1e-6 for excess in run["excess"])
        if "products" in run["method"]:
            assert run["excess"] == []
        elif run["method"] in WHOLE:
            assert len(run["excess"]) == (3 if run["rank"] == 1 else 0)
        else:
            assert len(run["excess"]) == 4


def test_a_worse_answer_has_a_larger_excess(monkeypatch):
    """A singular value that is left out counts as much as NumPy says."""
    A = benchmarks.example("spikes", 16)
    s = np.linalg.svd(A, compute_uv=False)
    U, _, Vt = np.linalg.svd(A, full_matrices=False)
    answer = U[:, :1] * 0.0, np.zeros(1), Vt[:1]
    seeds = []
    monkeypatch.setattr(benchmarks, "methods", lambda A, rank: ({OURS: lambda seed: seeds.append(seed) or answer}, {}))
    [run] = benchmarks.measure("spikes", dtype="float64", ranks=(1,), repeats=2, threads=1, scale=16)
    assert run["excess"] == pytest.approx([np.linalg.norm(s) / np.linalg.norm(s[1:]) - 1] * 2, rel=1e-9)
    assert len(run["seconds"]) == 2
    assert seeds == [0, 1, 2]  # the first one warms up


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    iterative, whole = benchmarks.methods(np.ones((20, 10)), 2)
    assert [*iterative, *whole] == [OURS, OUR_PRODUCTS, "numpy svd"]


class Recorded(np.ndarray):
    """An array that writes down its products: from which side, and with how many columns."""

    made: list

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(part) for part in inputs]
        if ufunc is np.matmul:
            on_the_left = isinstance(inputs[0], Recorded)
            side = "A.T @" if inputs[0 if on_the_left else 1].shape == (150, 200) else "A @" if on_the_left else "@ A"
            Recorded.made.append((side, plain[1].shape[1] if on_the_left else plain[0].shape[0]))
        return getattr(ufunc, method)(*plain, **options)


def made_by(method):
    Recorded.made = []
    method(0)
    return Recorded.made


@pytest.mark.parametrize("rank", [2, 40])
def test_the_products_of_scikit_learn_are_those_that_it_makes(rank):
    A = np.random.default_rng(0).standard_normal((200, 150)).view(Recorded)
    inside = sklearn.utils.extmath._randomized_svd  # behind the check that would make A a plain array
    whole = made_by(lambda seed: inside(A, rank, random_state=seed))
    assert whole[:2] == [("A @", rank + 10), ("A.T @", rank + 10)]
    assert made_by(benchmarks._rival_products(A, rank)) == whole


def test_our_products_are_those_that_ours_makes():
    A = np.random.default_rng(0).standard_normal((200, 150))
    assert benchmarks._widths(A, 2) == [16] * 10  # of a matrix that counts its products; the first is not counted
    assert made_by(benchmarks._our_products(A.view(Recorded), 2))[-10:] == [("A @", 16), ("@ A", 16)] * 5


def test_the_verdict_takes_the_medians_and_names_the_worst():
    runs = made_up("fast decay", 1, (1.0, 4.0), (0.0, 1e-3)) + made_up("spikes", 8, (2.0, 2.0), (1e-3, 0.0), threads=2)
    text = benchmarks.verdict(runs)
    assert (
        "2.00 times in the geometric mean of 2 cells, at worst 1.00 times (spikes, float64, r = 8, 2 threads)" in text
    )
    assert "not above scikit-learn's in 1 of 2 cells, at worst +1.0e-03 of it (spikes" in text
    assert "with 1 thread: 4.00 times, at worst 4.00" in text
    assert re.search(r"products take, lora-lab randomized_svd: 50%\n.*scikit-learn randomized_svd: 25%", text)


@pytest.mark.parametrize(
    ("dtype", "excess", "cells"), [("float32", 5e-7, 1), ("float32", 2e-6, 0), ("float64", 5e-7, 0)]
)
def test_a_difference_counts_as_equal_only_where_it_is_rounding(dtype, excess, cells):
    text = benchmarks.verdict(made_up("spikes", 1, (1.0, 1.0), (excess, 0.0), dtype=dtype))
    assert f"not above scikit-learn's in {cells} of 1 cells" in text


def test_the_verdict_names_what_is_faster():
    runs = []
    for rank, seconds, excess in [(1, 1.0, 0.0), (8, 1.0, 0.5), (32, 3.0, 0.0), (128, 16.0, 0.0)]:
        runs += made_up("spikes", rank, (2.0, 4.0), (0.0, 0.0))
        runs += [{**runs[-1], "method": "another", "seconds": [seconds, 99.0, seconds], "excess": [excess]}]
        runs += [{**runs[-1], "method": "the slow one", "seconds": [8.0], "excess": []}]
    lines = benchmarks.verdict(runs).splitlines()
    assert (  # 1/2, 1/2, 3/2, 8
        "speed against another: 1.32 times in the geometric mean of 4 cells; it is faster than ours in 2, at an error "
        "that is not above ours in 1"
    ) in lines
    assert (
        "speed against the slow one: 4.00 times in the geometric mean of 4 cells; it is faster than ours in 0" in lines
    )


def test_a_verdict_needs_both():
    with pytest.raises(ValueError, match="nothing to compare"):
        benchmarks.verdict(made_up("spikes", 1, (1.0, 1.0), (0.0, 0.0))[:1])


def test_the_table_has_a_line_a_cell_with_milliseconds():
    head, *lines = benchmarks.table(made_up("spikes", 8, (0.5, 0.25), (1e-3, 2e-3), threads=2)).splitlines()
    assert "scikit-learn" in head
    (line,) = lines
    assert line.startswith("spikes, float64, r = 8, 2 threads")
    assert line.split()[-6:] == ["500.0", "250.0", "250.0", "62.5", "1.0e-03", "2.0e-03"]


def test_the_figure_has_a_panel_a_matrix_and_dtype(measured):
    other = [{**run, "dtype": "float64"} for run in copy.deepcopy(measured)]
    fig = benchmarks.svd_bench_figure(measured + other, 1)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        f"spikes, 256 × 64, {dtype}" for dtype in ("float32", "float64")
    ]
    ours = next(line for line in fig.axes[0].lines if line.get_label() == "lora-lab")
    seconds = [np.median(run["seconds"]) for run in measured if run["method"] == OURS]
    np.testing.assert_allclose(ours.get_xydata(), np.transpose([(1, 3), 1e3 * np.array(seconds)]))
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in fig.axes[0].lines]
    assert len(set(looks)) == len(looks)
    with pytest.raises(ValueError, match=r"no run has 4; there are \[1\]"):
        benchmarks.svd_bench_figure(measured, 4)


def test_a_run_is_stored_with_its_origin_and_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "results_folder", lambda: tmp_path / "results")
    monkeypatch.setattr("lora_lab.course.experiments.results.results_folder", lambda: tmp_path / "results")
    monkeypatch.setattr(
        benchmarks, "_measure_in_process", lambda threads, *_: made_up("spikes", 1, (1, 2), (0, 0), threads)
    )
    (tmp_path / "figures").mkdir()
    runs = benchmarks.bench_svd("lora-lab bench svd", threads=(1, 2), output="mine")
    stored = load_result("mine")
    assert stored["runs"] == runs
    assert {"command", "device", "blas", "python", "numpy", "scikit-learn", "lora-lab", "date"} <= set(
        stored["provenance"]
    )
    assert stored["provenance"]["command"] == "lora-lab bench svd"
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["mine-1.png", "mine-2.png"]


def test_the_process_that_measures_has_its_number_of_threads(monkeypatch):
    """The real process, with the least to do."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    runs = benchmarks._measure_in_process(1, repeats=1, quick=True)
    assert {run["threads"] for run in runs} == {1}
    assert {(run["case"], run["dtype"]) for run in runs} == {
        (c, d) for c in benchmarks.CASES for d in benchmarks.DTYPES
    }


@pytest.mark.parametrize("options", [{"repeats": 0}, {"threads": [0, 1]}, {"threads": []}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="--repeats and --threads take whole numbers from 1"):
        benchmarks.bench_svd("command", **options)
