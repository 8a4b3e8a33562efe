"""Two factors learned step by step: alternating least squares, gradient descent, missing entries, ridge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_lab.lowrank._arguments import (
    Matrix,
    as_array,
    as_nonempty_matrix,
    as_number,
    as_rank,
    as_rng,
    as_whole_number,
)
from lora_lab.lowrank._decomposition import exponent_of
from lora_lab.lowrank.matrix import LowRank

Factors: TypeAlias = tuple[Matrix, Matrix]
Stop: TypeAlias = Literal["stationary", "stuck", "max_iterations"]

_LARGEST_ERROR = 1e6  # gradient descent whose error is this many times what it was at the start, or W, has diverged


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """What ``fit_factors`` found, how it got there, and why it stopped.

    Attributes:
        low: The learned matrix, in factors.
        errors: Relative error on the observed entries, ``‖mask ∘ (W - left right)‖ / ‖mask ∘ W‖`` (Frobenius), before
            the first iteration and after each one: (iterations + 1,) of float64. If every observed entry is 0, it is
            0 where the product is 0 there too, and inf elsewhere.
        stopped: What ended the fit:

            - "stationary": the gradient is small, by the rule of ``fit_factors``. If every entry is observed, that is
              the best answer, or from a special start a saddle point, for f has no other local minima (Baldi and
              Hornik, 1989). If entries are missing, it may be a local minimum.
            - "stuck": the gradient is small because the product is zero, a saddle point of f: no step leads away from
              it, although f is smaller elsewhere. So it is for two factors of zeros.
            - "max_iterations": the iterations were used up before that.
    """

    low: LowRank
    errors: NDArray[np.float64]
    stopped: Stop

    @property
    def converged(self) -> bool:
        """Whether the fit stopped because there was nothing left to improve, nearby at least."""
        return self.stopped == "stationary"

    @property
    def iterations(self) -> int:
        """How many iterations were done."""
        return len(self.errors) - 1

    def __repr__(self) -> str:
        """Say the rank, the error on the observed entries, the iterations, and what stopped them."""
        return (
            f"Fit of rank {self.low.rank}: relative error {self.errors[-1]:.3g} on the observed entries "
            f"after {self.iterations} iterations, stopped: {self.stopped}"
        )


class DivergedError(ArithmeticError):
    """Gradient descent went away from W instead of towards it: its step is too large.

    Attributes:
        errors: The relative errors up to there, as in ``Fit.errors``; the last may be inf or nan.
        step: The step that was too large.
    """

    def __init__(self, errors: NDArray[np.float64], step: float) -> None:
        """Keep the history, and say what to do."""
        self.errors, self.step = errors, step
        super().__init__(
            f"gradient descent diverged: the relative error was {errors[0]:.3g} at the start and is {errors[-1]:.3g} "
            f"after {len(errors) - 1} iterations with step {step:.3g}; lower the step, or leave it out for a safe one"
        )

    def __reduce__(self) -> tuple[type[DivergedError], tuple[NDArray[np.float64], float]]:
        """Let the error be copied and sent between processes with its history."""
        return type(self), (self.errors, self.step)


def fit_factors(
    W: ArrayLike,
    rank: int,
    *,
    rng: np.random.Generator | None = None,
    mask: ArrayLike | None = None,
    method: Literal["als", "gd"] = "als",
    ridge: float = 0.0,
    start: LowRank | tuple[ArrayLike, ArrayLike] | None = None,
    step: float | None = None,
    max_iterations: int = 1000,
    tol: float = 1e-6,
) -> Fit:
    """Learn ``left`` and ``right`` with ``left @ right`` near W: minimize f, the squared error where W is known.

    ``f(left, right) = ½ ‖mask ∘ (W - left right)‖² + ½ ridge (‖left‖² + ‖right‖²)``, all norms Frobenius.

    With E = mask ∘ (W - left right) its gradients are ``ridge left - E rightᵀ`` and ``ridge right - leftᵀ E``. Each
    has the OTHER factor in it, so two factors of zeros never move, and one factor of zeros does.

    - "als", alternating least squares: one iteration is the best ``left`` for this ``right``, then the best ``right``
      for that ``left``, each exact (of several best ones, the shortest). f never increases. A ``right`` of zeros is
      solved for first. A start whose factor has dependent columns (of ``right``: rows) stays of that lower rank.
    - "gd", gradient descent: one iteration is ``left, right = left - step · gradient, right - step · gradient``, both
      gradients taken before either moves. Without ``step``, each iteration takes the safe step
      ``1 / (2 (‖left‖₂² + ‖right‖₂² + √(2 f) + ridge))``. Then f never increases, from any start and under any mask:
      the bracket bounds the curvature of f, which grows by at most 9/4 on the way, and a step below 2 / curvature
      descends. A fixed step of your own may be faster, or diverge; about 1 / (3 × the largest singular value) is a
      good one for small factors.

    If every entry is observed, the minimum is known: the truncated SVD, with every singular value s lowered to
    max(s - ridge, 0). The product is unique if the singular values are apart; the factors never are, for any
    invertible G can stand between them (with ridge: any rotation).

    The fit stops when the gradient is small, ``‖gradient of left‖ ≤ tol · ‖mask ∘ W‖ · ‖right‖`` and the same with
    the factors exchanged, or after ``max_iterations``. A ridge settles how large the factors are, about √‖W‖, so there
    the norms of the factors count as that at least.

    Args:
        W: Matrix (m, n), real. float32 stays float32 throughout; integers are taken as float64 and float16 as
            float32. Finite where it is observed; elsewhere it may hold anything, nan too.
        rank: Columns of ``left`` and rows of ``right``, 0 ≤ rank ≤ min(m, n).
        rng: Where a random start comes from, if you want one: normal factors whose product has entries about as large
            as W's. Without ``rng`` and ``start`` the fit starts at the truncated SVD of W, with 0 for what is
            missing, over the share of entries that is observed. That is already the best answer if nothing is missing
            and there is no ridge. If much is missing, f has local minima, and a random start ends in one more often.
        mask: Booleans (m, n), True where W is observed. By default W is observed everywhere.
        method: "als" or "gd".
        ridge: Weight of the penalty, not negative, in units of W. It decides between the many answers where entries
            are missing, and makes every least-squares problem well posed.
        start: The first ``left`` (m, rank) and ``right`` (rank, n), as a LowRank or a pair; brought to W's dtype.
            The arrays are not changed.
        step: The step of gradient descent, above 0, in units of 1 / W.
        max_iterations: At most so many iterations; 0 gives the start, and its error.
        tol: How small a gradient counts as none, from 0 to below 1. 0 goes on to the last iteration or to an exact
            zero.

    Returns:
        A ``Fit``: ``low``, ``errors``, ``converged``, ``stopped``, ``iterations``.

    Raises:
        TypeError: If an argument is of the wrong kind, as a mask of numbers.
        ValueError: If an argument is out of range or of the wrong shape, if nothing is observed, or if a row or column
            has no observed entry and there is no ridge: nothing would say what it is. With a ridge it becomes 0.
        DivergedError: If ``step`` is too large: the error passes 10⁶ times its first value (or 10⁶, if that is
            more). It holds the history.

    Source:
        Koren, Bell and Volinsky (2009), "Matrix factorization techniques for recommender systems", Computer 42, for
        alternating least squares under a mask; Hastie, Mazumder, Lee and Zadeh (2015), "Matrix completion and
        low-rank SVD via fast alternating least squares", JMLR 16, for the minimum with a ridge.
    """
    W, observed = _as_observed(W, mask)
    rank = as_rank(rank, *W.shape)
    ridge, tol = as_number(ridge, "ridge", at_least=0), as_number(tol, "tol", at_least=0)
    if tol >= 1:
        raise ValueError(f"tol must be below 1, where every start would do as it is, got {tol}")
    max_iterations = as_whole_number(max_iterations, "max_iterations", at_least=0)
    if not isinstance(method, str) or method not in ("als", "gd"):
        raise ValueError(f'method must be "als" or "gd", got {method!r}')
    if step is not None and method == "als":
        raise ValueError(f'step is for method="gd": alternating least squares has none, got {step!r}')
    if step is not None and as_number(step, "step", at_least=0) == 0:
        raise ValueError(f"step must be above 0, got {step!r}")
    if observed is not None and ridge == 0:
        _refuse_unknown_lines(observed)
    exponent = _even_exponent(W)  # all below is done with W / 2^e, whose entries are at most 1, and factors / 2^(e/2)
    problem = _Problem(np.ldexp(W, -exponent), observed, _shifted(ridge, -exponent))
    if problem.ridge == math.inf:
        raise ValueError(f"ridge must be of a size that {W.dtype} holds beside W, got {ridge!r}: scale W up")
    first = _start(problem, rank, rng, start, exponent // 2)
    if method == "als":
        advance = _alternating(problem)
    else:
        advance = _descending(problem, None if step is None else _shifted(step, exponent))
    with np.errstate(over="ignore", invalid="ignore"):  # a step that is too large ends as DivergedError
        (left, right), errors, stopped = _iterate(problem, first, advance, max_iterations, tol)
    if stopped == "diverged":
        raise DivergedError(errors, float(step or 0))
    return Fit(LowRank(np.ldexp(left, exponent // 2), np.ldexp(right, exponent // 2)), errors, stopped)


class _Problem(NamedTuple):
    """The function f that is minimized."""

    W: Matrix  # (m, n), 0 where it is not observed
    mask: NDArray[np.bool_] | None  # (m, n), or None where all is observed
    ridge: float

    @property
    def observed(self) -> int:
        """The count of observed entries."""
        return self.W.size if self.mask is None else int(np.count_nonzero(self.mask))

    def residual(self, left: Matrix, right: Matrix) -> Matrix:
        """Give mask ∘ (W - left right)."""
        E = self.W - left @ right  # (m, n)
        return E if self.mask is None else np.where(self.mask, E, 0)

    def gradients(self, left: Matrix, right: Matrix, E: Matrix) -> Factors:
        """Give the derivatives of f by ``left`` (m, r) and by ``right`` (r, n); E is the residual."""
        return self.ridge * left - E @ right.T, self.ridge * right - left.T @ E


Advance: TypeAlias = Callable[[Factors, Matrix, Factors], Factors]  # from factors, residual, gradients to factors


def _iterate(
    problem: _Problem, factors: Factors, advance: Advance, max_iterations: int, tol: float
) -> tuple[Factors, NDArray[np.float64], Stop | Literal["diverged"]]:
    """Advance until the gradient is small or the iterations are used up; give factors, errors, and what stopped it."""
    size, errors = _norm(problem.W), list[float]()
    while True:
        E = problem.residual(*factors)
        errors.append(_ratio(_norm(E), size))
        gradients = problem.gradients(*factors, E)
        if not errors[-1] <= _LARGEST_ERROR * max(1.0, errors[0]) and len(errors) > 1:
            return factors, np.array(errors), "diverged"
        if _is_small(problem, factors, gradients, size, tol):
            return factors, np.array(errors), "stuck" if _is_saddle(problem, factors, E, size, tol) else "stationary"
        if len(errors) > max_iterations:
            return factors, np.array(errors), "max_iterations"
        factors = advance(factors, E, gradients)


def _is_small(problem: _Problem, factors: Factors, gradients: Factors, size: float, tol: float) -> bool:
    """Tell whether each gradient is at most tol · ‖W‖ · ‖the other factor‖, which no scale of the factors changes."""
    least = math.sqrt(size) if problem.ridge > 0 else 0.0
    others = (max(_norm(factor), least) for factor in reversed(factors))
    return all(_norm(gradient) <= tol * size * other for gradient, other in zip(gradients, others, strict=True))


def _is_saddle(problem: _Problem, factors: Factors, E: Matrix, size: float, tol: float) -> bool:
    """Tell whether the product is zero and should not be: W has a singular value above the ridge."""
    if factors[0].shape[1] == 0 or _norm(problem.W - E) > tol * size:
        return False
    return bool(np.linalg.norm(problem.W, 2) > problem.ridge * (1 + 1e-6))


def _descending(problem: _Problem, step: float | None) -> Advance:
    """Give the iteration of gradient descent: both factors move at once, by ``step`` or by the safe step."""

    def advance(factors: Factors, E: Matrix, gradients: Factors) -> Factors:
        by = _safe_step(problem, factors, E) if step is None else step
        return factors[0] - by * gradients[0], factors[1] - by * gradients[1]

    return advance


def _safe_step(problem: _Problem, factors: Factors, E: Matrix) -> float:
    """Give 1 / (2 K), where K = ‖left‖₂² + ‖right‖₂² + √(2 f) + ridge bounds the second derivatives of f.

    Along a change (dL, dR) the second derivative is ‖mask ∘ (dL right + left dR)‖² - 2 ⟨E, dL dR⟩ + ridge ‖·‖², and
    ‖E‖ ≤ √(2 f). A step of 1 / (2 K) changes neither spectral norm by more than half the other, so K grows by at most
    (3/2)² on the way, and 1 / (2 K) < 2 / (9/4 K): f falls all along.
    """
    spectral = [float(np.linalg.norm(factor, 2)) for factor in factors]
    penalty = problem.ridge * sum(_norm(factor) ** 2 for factor in factors)
    return 0.5 / (spectral[0] ** 2 + spectral[1] ** 2 + math.hypot(_norm(E), math.sqrt(penalty)) + problem.ridge)


def _alternating(problem: _Problem) -> Advance:
    """Give the iteration of alternating least squares: the best left, then the best right."""
    W, mask, ridge = problem
    rows = _groups(W, mask)
    columns = _groups(W.T, None if mask is None else mask.T)

    def advance(factors: Factors, E: Matrix, gradients: Factors) -> Factors:
        left, right = factors
        if not right.any():
            right = _solve_rows(columns, left, ridge, W.shape[1]).T
        left = _solve_rows(rows, right.T, ridge, W.shape[0])
        return left, _solve_rows(columns, left, ridge, W.shape[1]).T

    return advance


class _Group(NamedTuple):
    """k rows of W that are solved in one call, each with up to p observed entries; shorter rows are filled with 0."""

    rows: NDArray[np.intp]  # (k,)
    columns: NDArray[np.intp]  # (k, p), where the entries are
    known: Matrix  # (k, p, 1), 1 for an entry and 0 for filling
    values: Matrix  # (k, p, 1), the entries


_GROUP_SIZE = 2**20  # the most observed entries, filling included, that one group holds


def _groups(W: Matrix, mask: NDArray[np.bool_] | None) -> list[_Group] | Matrix:
    """Sort the rows of W into groups of about equally many observed entries; W itself if all are observed."""
    if mask is None:
        return W
    counts = mask.sum(axis=1)
    size_class = np.frexp(counts)[1]  # within a class, no count is twice another: at most half of a group is filling
    groups = []
    for exponent in np.unique(size_class[counts > 0]):
        members = np.flatnonzero(size_class == exponent)
        longest = int(counts[members].max())
        for rows in np.array_split(members, math.ceil(len(members) * longest / _GROUP_SIZE)):
            columns = np.argsort(~mask[rows], axis=1, kind="stable")[:, :longest]  # observed ones first
            known = np.take_along_axis(mask[rows], columns, axis=1).astype(W.dtype)
            values = np.take_along_axis(W[rows], columns, axis=1)  # W is 0 where it is not observed
            groups.append(_Group(rows, columns, known[..., None], values[..., None]))
    return groups


def _solve_rows(groups: list[_Group] | Matrix, other: Matrix, ridge: float, m: int) -> Matrix:
    """Give X (m, r) that minimizes ‖mask ∘ (W - X otherᵀ)‖² + ridge ‖X‖²: one least squares for each row.

    ``other`` is (n, r). A row without entries becomes 0.
    """
    if isinstance(groups, np.ndarray):  # the same least squares for all rows
        return _least_squares(other, groups.T, ridge).T
    X = np.zeros((m, other.shape[1]), dtype=other.dtype)
    for rows, columns, known, values in groups:
        X[rows] = _least_squares(other[columns] * known, values, ridge)[..., 0]  # (k, p, r) and (k, p, 1)
    return X


def _least_squares(A: Matrix, B: Matrix, ridge: float) -> Matrix:
    """Give X (..., r, q) that minimizes ‖B - A X‖² + ridge ‖X‖², the shortest where several do.

    A is (..., p, r), B (..., p, q). A ridge of some size makes ``AᵀA + ridge`` well conditioned, and solving with it is
    exact to rounding, and fast. Otherwise that would square the condition number, so the SVD of A does it:
    ``X = V s / (s² + ridge) Uᵀ B``, where singular values within rounding count as 0.
    """
    r, eps = A.shape[-1], float(np.finfo(A.dtype).eps)
    if r == 0:
        return np.zeros((*A.shape[:-2], 0, B.shape[-1]), dtype=A.dtype)
    if ridge > eps ** (1 / 3) * float(np.square(A).sum(axis=(-2, -1)).max()):
        return np.linalg.solve(A.mT @ A + ridge * np.eye(r, dtype=A.dtype), A.mT @ B)
    U, s, Vt = np.linalg.svd(A, full_matrices=False)  # (..., p, k), (..., k), (..., k, r) with k = min(p, r)
    kept = s > max(A.shape[-2:]) * eps * s[..., :1]
    filtered = np.divide(s, s**2 + ridge, out=np.zeros_like(s), where=kept)
    return Vt.mT @ (filtered[..., None] * (U.mT @ B))


def _as_observed(W: ArrayLike, mask: ArrayLike | None) -> tuple[Matrix, NDArray[np.bool_] | None]:
    """Give W with 0 where it is not observed, and the mask, or None if all is observed."""
    if isinstance(W, np.ma.MaskedArray):
        raise TypeError("W must be a plain array, got a masked one; pass W=W.filled(0), mask=~np.ma.getmaskarray(W)")
    if mask is None:
        return as_nonempty_matrix(W, "W"), None
    array, observed = as_array(W, "W"), as_array(mask, "mask")
    if observed.dtype != np.bool_:
        raise TypeError(f"mask must hold booleans, True where W is observed, got dtype {observed.dtype}")
    if observed.shape != array.shape:
        raise ValueError(f"mask must have the shape of W, {array.shape}, got {observed.shape}")
    if array.size and not observed.any():
        raise ValueError("mask must have a True in it, got none: no entry of W is observed")
    if array.dtype.kind == "f":
        array = np.where(observed, array, array.dtype.type(0))
    filled = as_nonempty_matrix(array, "W")
    return np.where(observed, filled, filled.dtype.type(0)), None if observed.all() else observed


def _refuse_unknown_lines(observed: NDArray[np.bool_]) -> None:
    """Refuse a row or column of which nothing is observed."""
    for axis, line in ((1, "row"), (0, "column")):
        empty = np.flatnonzero(~observed.any(axis=axis))
        if empty.size:
            more = f" and {empty.size - 1} more" if empty.size > 1 else ""
            raise ValueError(
                f"mask must have a True in each row and column, got none in {line} {empty[0]}{more}: "
                "give ridge > 0, which makes such a line 0, or leave it out"
            )


def _start(
    problem: _Problem,
    rank: int,
    rng: np.random.Generator | None,
    start: LowRank | tuple[ArrayLike, ArrayLike] | None,
    exponent: int,
) -> Factors:
    """Give the first factors in the units of the problem: of ``start`` over 2^exponent, random ones, or by SVD."""
    m, n = problem.W.shape
    if start is not None and rng is not None:
        raise ValueError("rng and start must not both be given: with a start, nothing is random")
    if rng is not None:
        return _random_start(problem, rank, as_rng(rng))
    if start is None:
        return _svd_start(problem, rank)
    if not isinstance(start, LowRank):
        if not isinstance(start, tuple | list) or len(start) != 2:
            raise TypeError(f"start must be a LowRank or a pair (left, right), got {type(start).__name__}")
        start = LowRank(*start)
    if (start.left.shape, start.right.shape) != ((m, rank), (rank, n)):
        raise ValueError(
            f"start must be left {(m, rank)} and right {(rank, n)} for rank {rank} of a {m}×{n} matrix, "
            f"got left {start.left.shape} and right {start.right.shape}"
        )
    with np.errstate(over="ignore"):
        left, right = (np.ldexp(factor, -exponent).astype(problem.W.dtype) for factor in (start.left, start.right))
    if max(np.abs(factor).max(initial=0) for factor in (left, right)) > np.finfo(problem.W.dtype).max ** 0.25:
        raise ValueError(f"start must be of a size that {problem.W.dtype} can work with beside W: scale its factors")
    return left, right


def _svd_start(problem: _Problem, rank: int) -> Factors:
    """Give the factors of the truncated SVD of W / share: with 0 for what is missing, its mean would be too small.

    Source:
        Jain, Netrapalli and Sanghavi (2013), "Low-rank matrix completion using alternating minimization", algorithm 2.
    """
    share = problem.observed / problem.W.size
    low = LowRank.from_svd(problem.W / share, rank)
    return low.left, low.right


def _random_start(problem: _Problem, rank: int, rng: np.random.Generator) -> Factors:
    """Give normal factors; an entry of their product has the root mean square of the observed entries of W."""
    m, n = problem.W.shape
    scale = math.sqrt(_norm(problem.W) / math.sqrt(problem.observed * max(rank, 1)))
    left, right = scale * rng.standard_normal((m, rank)), scale * rng.standard_normal((rank, n))
    return left.astype(problem.W.dtype), right.astype(problem.W.dtype)


def _shifted(number: float, exponent: int) -> float:
    """Give number · 2^exponent, inf where that is beyond floats."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(number, exponent))


def _even_exponent(W: Matrix) -> int:
    """Give an even number e so that W / 2^e has no entry above 1: its square root is a power of two as well."""
    exponent = exponent_of(W)
    return exponent + exponent % 2


def _norm(array: NDArray[Any]) -> float:
    """Give the Frobenius norm, added up in float64."""
    return float(np.linalg.norm(array.astype(np.float64, copy=False)))


def _ratio(error: float, size: float) -> float:
    """Give error / size: of nothing, 0 where the error is 0 too, and inf elsewhere."""
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size
