"""How fast and how exact ``randomized_svd`` is beside NumPy, SciPy, scikit-learn and PyTorch, on this machine.

``bench_svd`` measures and stores; ``table``, ``verdict`` and ``svd_bench_figure`` say what was measured. A cell is one
matrix in one dtype at one rank with one number of threads. The number of threads must be known before NumPy loads,
so each is measured in a process of its own: ``python -m lora_lab.course.benchmarks`` is that process.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lora_lab.course.experiments import _store, results_folder
from lora_lab.course.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, canvas, save
from lora_lab.lowrank import randomized_svd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = dict[str, Any]
Triple = tuple[Any, Any, Any]

OURS, RIVAL = "lora-lab randomized_svd", "scikit-learn randomized_svd"
OUR_PRODUCTS, RIVAL_PRODUCTS = "products of lora-lab alone", "products of scikit-learn alone"
RANKS, DTYPES = (1, 8, 32, 128), ("float32", "float64")
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
WHOLE_REPEATS = 3  # a decomposition of the whole matrix takes seconds, and its time does not depend on a seed
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}  # so much of the best error is taken for rounding


def bench_svd(
    command: str, *, threads: Sequence[int] = (1, 2), repeats: int = 7, quick: bool = False, output: str | None = None
) -> list[Run]:
    """Measure every cell, and give the runs.

    Args:
        command: the command line that asks for it, for the stored file to say.
        threads: numbers of threads, each measured in a process of its own.
        repeats: how often an iterative method runs in a cell, in turns with the others; those that decompose all of
            the matrix run so often too, but three times at most.
        quick: measure matrices ten times smaller, to see that it works; the times mean little.
        output: store the runs as ``data/results/<output>.json`` and, for each number of threads, a figure as
            ``data/figures/<output>-<threads>.png``.

    Raises:
        ValueError: repeats or a number of threads is below 1.
        ChildProcessError: a process that measures failed; what it said is on standard error.
    """
    if repeats < 1 or not threads or min(threads) < 1:
        raise ValueError(f"--repeats and --threads take whole numbers from 1, got {repeats} and {list(threads)}")
    runs = [run for number in threads for run in _measure_in_process(number, repeats, quick)]
    if output is not None:
        path = results_folder() / f"{output}.json"
        _store(path, {"provenance": _provenance(command), "runs": runs})
        for number in threads:
            save(svd_bench_figure(runs, number), path.parents[1] / "figures" / f"{output}-{number}.png")
    return runs


def example(case: str, scale: int = 1) -> NDArray[np.float64]:
    """Give a matrix of the benchmark by name, the same each time; ``scale`` divides its sides.

    "fast decay" is 1000×1000 with singular values exp(-k/10), "slow decay" 2048×2048 with 1/√k, and "spikes" is
    4096×1024 standard normal noise plus 64 singular values from 4 down to 1.2 times the largest of the noise.
    """
    rng = np.random.default_rng(0)
    if case == "fast decay":
        n = 1000 // scale
        return _orthonormal(n, n, rng) * np.exp(-np.arange(1, n + 1) / 10) @ _orthonormal(n, n, rng)
    if case == "slow decay":
        n = 2048 // scale
        return _orthonormal(n, n, rng) / np.sqrt(np.arange(1, n + 1)) @ _orthonormal(n, n, rng)
    if case == "spikes":
        m, n, spikes = 4096 // scale, 1024 // scale, 64 // scale
        sizes = np.linspace(4, 1.2, spikes) * (math.sqrt(m) + math.sqrt(n))
        noise = rng.standard_normal((m, n))
        return noise + _orthonormal(m, spikes, rng) * sizes @ _orthonormal(n, spikes, rng).T
    raise ValueError(f"case takes one of {', '.join(CASES)}, got {case!r}")


_example = functools.cache(example)

CASES = ("fast decay", "slow decay", "spikes")


def methods(A: NDArray[Any], rank: int) -> tuple[dict[str, Callable[[int], Any]], dict[str, Callable[[int], Any]]]:
    """Give what is measured on a matrix at a rank: iterative methods with bare products, and whole decompositions.

    Each takes a seed. Those that are not installed are left out. The functions of scikit-learn and SciPy run with their
    defaults, and PyTorch's with ten more columns than the rank and its two iterations.
    """
    iterative: dict[str, Callable[[int], Any]] = {
        OURS: lambda seed: randomized_svd(A, rank, rng=np.random.default_rng(seed)),
        OUR_PRODUCTS: _our_products(A, rank),
    }
    whole: dict[str, Callable[[int], Any]] = {"numpy svd": lambda seed: _leading(np.linalg.svd(A, False), rank)}
    if find_spec("sklearn"):
        from sklearn.utils.extmath import randomized_svd as sklearn_svd

        iterative[RIVAL] = lambda seed: sklearn_svd(A, rank, random_state=seed)
        iterative[RIVAL_PRODUCTS] = _rival_products(A, rank)
    if find_spec("scipy"):
        import scipy.linalg
        import scipy.sparse.linalg

        whole["scipy svd"] = lambda seed: _leading(scipy.linalg.svd(A, full_matrices=False), rank)
        if rank < min(A.shape):
            iterative["scipy svds"] = lambda seed: scipy.sparse.linalg.svds(A, rank, random_state=seed)
    if find_spec("torch"):
        import torch

        tensor = torch.from_numpy(A)

        def torch_low_rank(seed: int) -> Triple:
            torch.manual_seed(seed)
            U, s, V = torch.svd_lowrank(tensor, min(rank + 10, *A.shape))
            return _leading((U.numpy(), s.numpy(), V.numpy().T), rank)

        iterative["torch svd_lowrank"] = torch_low_rank
        whole["torch svd"] = lambda seed: _leading(
            [part.numpy() for part in torch.linalg.svd(tensor, full_matrices=False)], rank
        )
    return iterative, whole


def measure(
    case: str, *, dtype: str, ranks: Sequence[int], repeats: int, threads: int, scale: int = 1
) -> Iterator[Run]:
    """Give one run a method and rank: the seconds of each repeat, and how far its errors are above the best one.

    ``excess`` is ‖A - U s Vt‖ / ‖A - A_r‖ - 1 for each repeat, in Frobenius norms computed in float64, A_r the best
    matrix of the rank. The iterative methods run in turns, so that what disturbs one disturbs all. A decomposition of
    the whole matrix gives every rank at once: it is measured at the first one, and its seconds hold for the others.
    """
    A = _example(case, scale).astype(dtype)
    wide = A.astype(np.float64)
    exact = np.linalg.svd(wide, compute_uv=False)
    seconds_of_whole: dict[str, list[float]] = {}
    for rank in ranks:
        best = float(np.linalg.norm(exact[rank:]))
        iterative, whole = methods(A, rank)
        seconds: dict[str, list[float]] = {method: [] for method in (*iterative, *whole)}
        excess: dict[str, list[float]] = {method: [] for method in (*iterative, *whole)}
        for seed in range(-1, repeats):  # the first turn warms up, and is not counted
            for method, run in iterative.items():
                taken, answer = _timed(run, seed + 1)
                if seed >= 0:
                    seconds[method].append(taken)
                    if answer is not None:
                        excess[method].append(_error(wide, answer) / best - 1)
        if rank == ranks[0]:
            for seed in range(min(repeats, WHOLE_REPEATS)):
                for method, run in whole.items():
                    taken, answer = _timed(run, seed)
                    seconds_of_whole.setdefault(method, []).append(taken)
                    excess[method].append(_error(wide, answer) / best - 1)
        seconds.update(seconds_of_whole)
        where = {"case": case, "shape": list(A.shape), "dtype": dtype, "rank": rank, "threads": threads}
        for method in seconds:
            yield {**where, "method": method, "seconds": seconds[method], "excess": excess[method]}


def verdict(runs: Sequence[Run]) -> str:
    """Say in a few lines how ``randomized_svd`` stands beside scikit-learn's, and then beside the others.

    Raises:
        ValueError: the runs hold no cell of both.
    """
    ratios, errors = {}, {}
    for cell, times in _cells(runs).items():
        if OURS in times and RIVAL in times:
            ratios[cell] = _seconds(times[RIVAL]) / _seconds(times[OURS])
            errors[cell] = (1 + _excess(times[OURS])) / (1 + _excess(times[RIVAL])) - 1
    if not ratios:
        raise ValueError(f"there is nothing to compare: no cell has both {OURS!r} and {RIVAL!r}")
    slowest, largest = min(ratios, key=ratios.__getitem__), max(errors, key=errors.__getitem__)
    not_above = sum(error <= TOLERANCE[cell[1]] for cell, error in errors.items())
    lines = [
        f"speed against scikit-learn: {_geometric_mean(ratios.values()):.2f} times in the geometric mean of "
        f"{len(ratios)} cells, at worst {ratios[slowest]:.2f} times ({_named(slowest)})",
        f"error: not above scikit-learn's in {not_above} of {len(errors)} cells, at worst {errors[largest]:+.1e} of it "
        f"({_named(largest)})",
        "  (medians over the seeds; an error that is above by less than "
        + ", ".join(f"{share:.0e} of it in {dtype}" for dtype, share in TOLERANCE.items())
        + " is rounding)",
    ]
    for threads in sorted({cell[3] for cell in ratios}):
        some = [ratio for cell, ratio in ratios.items() if cell[3] == threads]
        lines.append(f"  with {_threads(threads)}: {_geometric_mean(some):.2f} times, at worst {min(some):.2f}")
    others = dict.fromkeys(run["method"] for run in runs)
    lines += [_beside(method, runs) for method in others if method not in (OURS, RIVAL, OUR_PRODUCTS, RIVAL_PRODUCTS)]
    for method, alone in ((OURS, OUR_PRODUCTS), (RIVAL, RIVAL_PRODUCTS)):
        shares = [_seconds(times[alone]) / _seconds(times[method]) for times in _cells(runs).values() if alone in times]
        lines.append(f"share of the time that its matrix products take, {method}: {_geometric_mean(shares):.0%}")
    return "\n".join(lines)


def _beside(method: str, runs: Sequence[Run]) -> str:
    """Say how fast ours is beside another method, and where the other is faster without a larger error."""
    cells = {cell: times for cell, times in _cells(runs).items() if method in times and OURS in times}
    ratios = {cell: _seconds(times[method]) / _seconds(times[OURS]) for cell, times in cells.items()}
    faster = [cell for cell, ratio in ratios.items() if ratio < 1]
    as_good = sum(_excess(cells[cell][method]) <= _excess(cells[cell][OURS]) + TOLERANCE[cell[1]] for cell in faster)
    return (
        f"speed against {method}: {_geometric_mean(ratios.values()):.2f} times in the geometric mean of "
        f"{len(ratios)} cells; it is faster than ours in {len(faster)}"
        + (f", at an error that is not above ours in {as_good}" if faster else "")
    )


def table(runs: Sequence[Run]) -> str:
    """Give a line a cell: milliseconds of each method, and the excess error of the two that are compared."""
    cells = _cells(runs)
    columns = list(dict.fromkeys(run["method"] for run in runs))
    short = {method: method.replace(" randomized_svd", "").replace("products of ", "only ") for method in columns}
    short = {method: text.replace(" alone", "") for method, text in short.items()}
    head = f"{'median time in ms':34}" + "".join(f"{short[method]:>19}" for method in columns)
    lines = [head + f"{'excess':>10}{'sklearn':>10}"]
    for cell, times in cells.items():
        line = f"{_named(cell):34}"
        line += "".join(f"{1e3 * _seconds(times[m]):19.1f}" if m in times else f"{'':>19}" for m in columns)
        for method in (OURS, RIVAL):
            line += f"{_excess(times[method]):10.1e}" if method in times else ""
        lines.append(line)
    return "\n".join(lines)


LOOKS: dict[str, dict[str, Any]] = {
    OURS: {"color": BLUE, "marker": "o", "linestyle": "-", "label": "lora-lab"},
    OUR_PRODUCTS: {"color": BLUE, "marker": "", "linestyle": ":", "label": "its products alone"},
    RIVAL: {"color": VERMILLION, "marker": "s", "linestyle": "--", "label": "scikit-learn"},
    RIVAL_PRODUCTS: {"color": VERMILLION, "marker": "", "linestyle": ":", "label": "its products alone"},
    "torch svd_lowrank": {"color": PURPLE, "marker": "D", "linestyle": "-.", "label": "torch svd_lowrank"},
    "scipy svds": {"color": GREEN, "marker": "^", "linestyle": "-.", "label": "SciPy svds"},
    "numpy svd": {"color": BLACK, "marker": "v", "linestyle": "--", "label": "NumPy, all of it"},
    "scipy svd": {"color": ORANGE, "marker": "P", "linestyle": "-.", "label": "SciPy, all of it"},
    "torch svd": {"color": SKY, "marker": "X", "linestyle": "--", "label": "torch, all of it"},
}


def svd_bench_figure(runs: Sequence[Run], threads: int) -> Figure:
    """Draw time against rank, one panel a matrix and dtype, for one number of threads; both axes are logarithmic.

    A dotted line is the time of a method's matrix products alone: the space above it is what the rest costs.

    Raises:
        ValueError: no run has this number of threads.
    """
    some = [run for run in runs if run["threads"] == threads]
    if not some:
        raise ValueError(f"threads: no run has {threads}; there are {sorted({run['threads'] for run in runs})}")
    cases, dtypes = ([*dict.fromkeys(run[key] for run in some)] for key in ("case", "dtype"))
    fig, axes = canvas(len(dtypes), len(cases), width=10, height=6.2, sharex=True, sharey=True, squeeze=False)
    for row, dtype in zip(axes, dtypes, strict=True):
        for ax, case in zip(row, cases, strict=True):
            here = [run for run in some if (run["case"], run["dtype"]) == (case, dtype)]
            for method in [method for method in LOOKS if any(run["method"] == method for run in here)]:
                points = [(run["rank"], 1e3 * _seconds(run)) for run in here if run["method"] == method]
                ax.plot(*zip(*points, strict=True), **LOOKS[method])
            m, n = here[0]["shape"]
            ax.set_title(f"{case}, {m} × {n}, {dtype}")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ranks = sorted({run["rank"] for run in here})
            ax.set_xticks(ranks, [str(rank) for rank in ranks])
    for ax in axes[-1]:
        ax.set_xlabel("rank")
    for ax in axes[:, 0]:
        ax.set_ylabel("time (ms)")
    fig.suptitle(f"Median time with {_threads(threads)}")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def _orthonormal(rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Give random orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def _timed(run: Callable[[int], Any], seed: int) -> tuple[float, Any]:
    """Give the seconds that a method takes with a seed, and its answer."""
    start = time.perf_counter()
    answer = run(seed)
    return time.perf_counter() - start, answer


def _our_products(A: NDArray[Any], rank: int) -> Callable[[int], None]:
    """Give a function that makes the matrix products of ``randomized_svd``, in its form, and does nothing else."""
    widths = _widths(A, rank)
    X, Y = _blocks(A, max(widths))

    def run(seed: int) -> None:
        for i, width in enumerate(widths):
            _ = Y[:, :width].T @ A if i % 2 else A @ X[:, :width]

    return run


def _rival_products(A: NDArray[Any], rank: int) -> Callable[[int], None]:
    """Give a function that makes the matrix products of scikit-learn's ``randomized_svd``, in its form, and no more.

    It takes 7 iterations, or 4 from a tenth of min(m, n) on, each ``A @ Q`` and ``A.T @ Q`` with ten more columns than
    the rank, and at the end ``A @ Q`` and ``Q.T @ A``.
    """
    X, Y = _blocks(A, min(rank + 10, *A.shape))
    iterations = 7 if rank < 0.1 * min(A.shape) else 4

    def run(seed: int) -> None:
        for _ in range(iterations):
            _ = A @ X
            _ = A.T @ Y
        _ = A @ X
        _ = Y.T @ A

    return run


def _blocks(A: NDArray[Any], width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give random blocks of a width in A's dtype: (n, width) for the right of A (m, n), and (m, width) for the left."""
    rng = np.random.default_rng(0)
    m, n = A.shape
    return rng.standard_normal((n, width)).astype(A.dtype), rng.standard_normal((m, width)).astype(A.dtype)


def _widths(A: NDArray[Any], rank: int) -> list[int]:
    """Give the widths of the blocks that ``randomized_svd`` multiplies this matrix by, in turns from both sides.

    The first product, which tells only whether A is finite, is not counted.
    """
    widths: list[int] = []

    class Watched:
        """The matrix, or its transpose, known by its products."""

        def __init__(self, part: NDArray[Any]) -> None:
            self.part, self.shape, self.dtype = part, part.shape, part.dtype

        @property
        def T(self) -> Watched:
            return Watched(self.part.T)

        def __matmul__(self, X: NDArray[Any]) -> NDArray[Any]:
            widths.append(X.shape[1])
            return self.part @ X

    randomized_svd(Watched(A), rank, rng=np.random.default_rng(0))
    return widths[1:]


def _leading(triple: Sequence[Any], rank: int) -> Triple:
    """Give the leading part of a decomposition (U, s, Vt)."""
    U, s, Vt = triple
    return U[:, :rank], s[:rank], Vt[:rank]


def _error(A: NDArray[np.float64], answer: Triple) -> float:
    """Give the Frobenius norm of what an answer lacks, computed in float64."""
    U, s, Vt = (part.astype(np.float64) for part in answer)
    return float(np.linalg.norm(A - U * s @ Vt))


def _cells(runs: Sequence[Run]) -> dict[tuple[str, str, int, int], dict[str, Run]]:
    """Give the runs by cell (case, dtype, rank, threads) and method."""
    cells: dict[tuple[str, str, int, int], dict[str, Run]] = {}
    for run in runs:
        cells.setdefault((run["case"], run["dtype"], run["rank"], run["threads"]), {})[run["method"]] = run
    return cells


def _seconds(run: Mapping[str, Any]) -> float:
    """Give the median time of a run."""
    return float(median(run["seconds"]))


def _excess(run: Mapping[str, Any]) -> float:
    """Give the median of how far the errors of a run are above the best one; 0 where an exact one was not asked."""
    return float(median(run["excess"] or [0.0]))


def _geometric_mean(values: Any) -> float:
    """Give the geometric mean of positive numbers."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _named(cell: tuple[str, str, int, int]) -> str:
    """Name a cell."""
    case, dtype, rank, threads = cell
    return f"{case}, {dtype}, r = {rank}, {_threads(threads)}"


def _threads(number: int) -> str:
    """Give "1 thread" or "2 threads"."""
    return f"{number} thread{'s' if number > 1 else ''}"


def _provenance(command: str) -> dict[str, Any]:
    """Say what a result is measured on: device, versions, command, date."""
    packages = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "torch": "torch", "lora_lab": "lora-lab"}
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "command": command,
        "device": f"CPU, {platform.machine()}, {os.cpu_count()} cores",
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "python": platform.python_version(),
        **{name: version(name) for module, name in packages.items() if find_spec(module)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _measure_in_process(threads: int, repeats: int, quick: bool) -> list[Run]:
    """Measure every cell in a new process whose number of threads is set before NumPy loads."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    arguments = json.dumps({"threads": threads, "repeats": repeats, "quick": quick})
    command = [sys.executable, "-m", "lora_lab.course.benchmarks", arguments]
    runs = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            runs.append(json.loads(line))
            _say(f"{_named(next(iter(_cells(runs[-1:]))))}: {len(runs)} measured")
    _say("")
    if process.returncode:
        raise ChildProcessError(f"the process with {_threads(threads)} ended with status {process.returncode}")
    return runs


def _say(text: str) -> None:
    """Show how far it is, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{text:<78}", end="" if text else "\r", file=sys.stderr, flush=True)


def _main(arguments: str) -> None:
    """Be the process that measures: print each run as a line of JSON."""
    options = json.loads(arguments)
    scale, ranks = (10, (1, 4)) if options["quick"] else (1, RANKS)
    for case in CASES:
        for dtype in DTYPES:
            for run in measure(
                case, dtype=dtype, ranks=ranks, repeats=options["repeats"], threads=options["threads"], scale=scale
            ):
                print(json.dumps(run), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
