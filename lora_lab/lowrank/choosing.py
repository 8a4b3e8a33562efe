"""Four ways to choose a rank: by the share of energy, by the error, by the numbers it may cost, by the noise."""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lora_lab.lowrank._arguments import Matrix, Norm, as_norm, as_number, as_whole_number
from lora_lab.lowrank.matrix import LowRank, as_operand, spectrum
from lora_lab.lowrank.svd import tail_norms


def choose_rank(
    W: ArrayLike | LowRank,
    *,
    energy: float | None = None,
    error: float | None = None,
    norm: Norm = "fro",
    budget: int | None = None,
    noise: float | Literal["unknown"] | None = None,
) -> int:
    """Give a rank for W, chosen by exactly one of ``energy``, ``error``, ``budget`` and ``noise``.

    - ``error=0.1`` when you know how wrong the answer may be: the smallest rank whose best approximation is within
      10 % of W. It is the plainest of the four, so take it if nothing speaks for another.
    - ``energy=0.99`` when a text or a colleague speaks of energy: the smallest rank that keeps 99 % of the sum of the
      squared singular values. It is an error in disguise, and a larger one than it sounds: what is lost is the root
      of the rest, so 0.99 is an error of 10 %, and 0.9999 one of 1 %.
    - ``budget=10_000`` when memory decides: the largest rank whose factors hold 10,000 numbers at most. It does not
      look at the entries of W at all, so look at ``rank_errors(W)`` afterwards.
    - ``noise=0.05`` or ``noise="unknown"`` when W is a low-rank matrix that was measured with errors, and the matrix
      behind the errors is what you want: the rank at which Gavish and Donoho's hard threshold cuts. A singular value
      stays if it is above ``λ(β) · √max(m, n) · noise`` for a known standard deviation, and above ``ω(β)`` times the
      median singular value for an unknown one, with β the shorter side over the longer; on a square matrix, 2.309
      and 2.858. The threshold is the best one for large matrices with white noise (independent errors of equal size)
      and few layers. Signal below it is lost in the noise, and so is not counted. "unknown" reads the noise off the
      lower half of the singular values, so it needs a rank well below min(m, n) / 2.

    What is no larger than rounding counts as 0: ``8 · √max(m, n) · eps`` with the eps of W's dtype, as a share of the
    largest singular value (√min(m, n) times that in the nuclear norm, which adds it up). So ``error=0`` and
    ``energy=1`` give the rank of a matrix that is of low rank but for rounding, and a bound that is met but for
    rounding is met.

    Args:
        W: Matrix (m, n), real and finite, with at least one entry; of a LowRank only the factors are used.
        energy: Share to keep, above 0 and at most 1.
        error: Relative error to allow, from 0 to 1.
        norm: In which norm the error is meant: "fro", "spectral" or "nuclear". It goes with ``error`` alone.
        budget: Count of numbers, at least 0; rank r stores r · (m + n).
        noise: Standard deviation of the noise in each entry, above 0, or "unknown".

    Returns:
        A rank from 0 to min(m, n). It is 0 for the zero matrix, unless chosen by budget.

    Raises:
        TypeError: If W does not hold real numbers, or an argument is not a number of its kind.
        ValueError: If not exactly one way is chosen, an argument is out of its range, or W is not a finite matrix.

    Source:
        Gavish and Donoho (2014), "The optimal hard threshold for singular values is 4/√3", IEEE Transactions on
        Information Theory 60(8).
    """
    ways = {"energy": energy, "error": error, "budget": budget, "noise": noise}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of energy, error, budget and noise, got {' and '.join(given) or 'none'}")
    if as_norm(norm, "norm") != "fro" and error is None:
        raise ValueError(f"norm goes with error alone, got norm={norm!r} with {given[0]}")
    W = as_operand(W)
    if energy is not None:
        return _rank_at_error(W, _error_of_energy(energy), "fro")
    if error is not None:
        return _rank_at_error(W, _relative_error(error), norm)
    if budget is not None:
        m, n = W.shape
        return min(as_whole_number(budget, "budget", at_least=0) // (m + n), m, n)
    return _rank_above_noise(W, _standard_deviation(noise))


def _rank_at_error(W: Matrix | LowRank, error: float, norm: Norm) -> int:
    """Give the smallest rank whose best approximation is within ``error`` of W, relative, or within rounding of it."""
    values, _, size = spectrum(W)
    tails = tail_norms(values, norm)
    spread = math.sqrt(values.size) if norm == "nuclear" else 1.0  # a sum of k values is at most √k of their norm
    return int(np.count_nonzero(tails > error * tails[0] + spread * size * _rounding(W)))


def _rank_above_noise(W: Matrix | LowRank, noise: float | Literal["unknown"]) -> int:
    """Count the singular values above Gavish and Donoho's threshold, and above rounding."""
    values, exponent, size = spectrum(W)
    short, long = sorted(W.shape)
    beta = short / long
    with np.errstate(over="ignore"):  # the values are scaled: a threshold beyond the range is above them all
        if noise == "unknown":
            threshold = float(_threshold_factor(beta) / math.sqrt(_median_of_noise(beta)) * np.median(values))
        else:
            threshold = float(_threshold_factor(beta) * math.sqrt(long) * np.ldexp(noise, -exponent))
        return int(np.count_nonzero(values > max(threshold, size * _rounding(W))))


def _threshold_factor(beta: float) -> float:
    """Give λ(β), the best hard threshold in units of √n times the standard deviation of the noise: 4/√3 at β = 1.

    Source:
        Gavish and Donoho (2014): λ(β) = √(2(β + 1) + 8β / ((β + 1) + √(β² + 14β + 1))).
    """
    return math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))


def _median_of_noise(beta: float) -> float:
    """Give μ(β), the median of the Marchenko–Pastur law: of the squared singular values of pure noise.

    The m × n noise has m = β n rows and standard deviation 1/√n. Its squared singular values x have the density
    √((b - x)(x - a)) / (2πβx) between a = (1 - √β)² and b = (1 + √β)². In the angle of x = 1 + β - 2√β cos θ the
    integral of that density is the sum of three terms below, and halving the interval finds where it reaches 1/2.

    Source:
        Marchenko and Pastur (1967), "Distribution of eigenvalues for some sets of random matrices", Mathematics of
        the USSR-Sbornik 1.
    """
    root = math.sqrt(beta)
    low, high = 0.0, math.pi
    for _ in range(60):
        angle = (low + high) / 2
        turn = math.atan2((1 + root) * math.sin(angle / 2), (1 - root) * math.cos(angle / 2))
        below = (root * math.sin(angle) + (1 + beta) * angle / 2 - (1 - beta) * turn) / (math.pi * beta)
        low, high = (angle, high) if below < 0.5 else (low, angle)
    return 1 + beta - 2 * root * math.cos(low)


def _rounding(W: Matrix | LowRank) -> float:
    """Give what the rounding of W, and of its decomposition, can add to a norm, as a share of W's size."""
    return 8 * math.sqrt(max(W.shape)) * float(np.finfo(W.dtype).eps)


def _error_of_energy(energy: float) -> float:
    """Give the relative Frobenius error that is left when this share of the energy is kept: √(1 - energy)."""
    energy = as_number(energy, "energy", at_least=0)
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be above 0 and at most 1, where 0.99 keeps 99 %, got {energy}")
    return math.sqrt(1 - energy)


def _relative_error(error: float) -> float:
    """Give ``error``, which must be a share: at rank 0 it is already 1."""
    error = as_number(error, "error", at_least=0)
    if error > 1:
        raise ValueError(f"error must be at most 1, where 0.05 allows 5 %, got {error}")
    return error


def _standard_deviation(noise: object) -> float | Literal["unknown"]:
    """Give ``noise``, which must be "unknown" or a number above 0: a matrix without noise needs no threshold."""
    if isinstance(noise, str):
        if noise != "unknown":
            raise ValueError(f'noise must be a standard deviation or "unknown", got {noise!r}')
        return "unknown"
    deviation = as_number(noise, "noise", at_least=0)
    if deviation == 0:
        raise ValueError("noise must be above 0, got 0: without noise choose by error")
    return deviation
