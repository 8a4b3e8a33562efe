"""The one place where singular values are computed: those of a matrix, and those of a product of two factors.

Before a decomposition the numbers are brought near 1 by powers of two, which changes no digit, so that matrices of
size 1e200 and of size 1e-200 are decomposed alike. Results stay on that scale, beside the exponent that undoes it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_lab.lowrank._arguments import Matrix

# Entries this close to the largest of their singular vector, as a share of it, count as tied when a sign is chosen.
SIGN_TIES = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-6}


class Spectrum(NamedTuple):
    """All min(m, n) singular values of a matrix: ``2**exponent * values``."""

    values: Matrix  # (min(m, n),), from large to small
    exponent: int
    size: float  # what rounding is relative to, on the scale of values: the largest of them, or the largest layer


class Decomposition(NamedTuple):
    """A singular value decomposition with its signs fixed: ``2**exponent * (U * values @ Vt)``."""

    U: Matrix  # (m, k), orthonormal columns
    values: Matrix  # (k,), from large to small
    Vt: Matrix  # (k, n), orthonormal rows
    exponent: int

    def leading(self, rank: int) -> "Decomposition":
        """Give the first ``rank`` singular values and their vectors."""
        return Decomposition(self.U[:, :rank], self.values[:rank], self.Vt[:rank], self.exponent)

    def triple(self) -> tuple[Matrix, Matrix, Matrix]:
        """Give (U, s, Vt), the singular values in their true size."""
        return self.U, true_size(self.values, self.exponent), self.Vt

    def factors(self) -> tuple[Matrix, Matrix]:
        """Give ``U √s`` and ``√s Vt``, two factors of equal size: in range even where s is not."""
        half, odd = divmod(self.exponent, 2)
        roots = np.ldexp(np.sqrt(np.ldexp(self.values, odd)), half)
        return self.U * roots, roots[:, None] * self.Vt


class _Layers(NamedTuple):
    """A product as a sum of layers that are all near 1: ``2**exponent * (left * 2**weights @ right)``."""

    left: Matrix  # (m, r), each column's largest entry between 1/2 and 1
    right: Matrix  # (r, n), each row's largest entry between 1/2 and 1
    weights: NDArray[np.int32]  # (r,), never above 0, and 0 for a largest layer
    exponent: int

    def core(self, R_left: Matrix, R_right: Matrix) -> Matrix:
        """Give the small matrix ``R_left R_rightᵀ`` whose singular values are those of the product."""
        return np.ldexp(R_left, self.weights) @ R_right.T


def spectrum_of_matrix(W: Matrix) -> Spectrum:
    """Give the singular values of a matrix that is not empty."""
    scaled, exponent = _near_one(W)
    values = np.linalg.svd(scaled, compute_uv=False)
    return Spectrum(values, exponent, float(values[0]))


def decomposition_of_matrix(W: Matrix) -> Decomposition:
    """Give the singular value decomposition of a matrix that is not empty, with k = min(m, n)."""
    scaled, exponent = _near_one(W)
    U, values, Vt = np.linalg.svd(scaled, full_matrices=False)
    return with_signs(U, values, Vt, exponent)


def spectrum_of_product(left: Matrix, right: Matrix) -> Spectrum:
    """Give the singular values of ``left @ right`` without forming it: those of its core, and then zeros."""
    layers = _layers_near_one(left, right)
    found = np.linalg.svd(_core(layers), compute_uv=False)  # (min(m, r, n),)
    values = np.zeros(min(left.shape[0], right.shape[1]), left.dtype)
    values[: found.size] = found
    sizes = np.linalg.norm(layers.left, axis=0) * np.linalg.norm(layers.right, axis=1)  # (r,)
    return Spectrum(values, layers.exponent, float(np.ldexp(sizes, layers.weights).max(initial=0)))


def decomposition_of_product(left: Matrix, right: Matrix) -> Decomposition:
    """Give the singular value decomposition of ``left @ right`` without forming it, with k = min(m, r, n)."""
    layers = _layers_near_one(left, right)
    Q_left, R_left = np.linalg.qr(layers.left)  # (m, min(m, r)), (min(m, r), r)
    Q_right, R_right = np.linalg.qr(layers.right.T)  # (n, min(n, r)), (min(n, r), r)
    U, values, Vt = np.linalg.svd(layers.core(R_left, R_right), full_matrices=False)
    return with_signs(Q_left @ U, values, Vt @ Q_right.T, layers.exponent)


def frobenius_of_product(left: Matrix, right: Matrix) -> tuple[float, int]:
    """Give the Frobenius norm of ``left @ right`` without forming it, and the exponent of its scale."""
    layers = _layers_near_one(left, right)
    return float(np.linalg.norm(_core(layers).astype(np.float64))), layers.exponent


def true_size(values: Matrix, exponent: int) -> Matrix:
    """Give ``2**exponent * values``, and refuse what is beyond their dtype."""
    with np.errstate(over="ignore"):
        values = np.ldexp(values, exponent)
    if not np.isfinite(values).all():
        raise ValueError(f"the singular values are beyond {values.dtype}: divide the matrix by a constant first")
    return values


def _core(layers: _Layers) -> Matrix:
    """Give a small matrix, r × r numbers at most, with the singular values of the product of the layers.

    With ``left = Q₁ R₁`` and ``right.T = Q₂ R₂`` the product is ``Q₁ (R₁ R₂ᵀ) Q₂ᵀ``, and orthonormal columns change no
    singular value.
    """
    R_left: Matrix = np.asarray(np.linalg.qr(layers.left, mode="r"))  # (min(m, r), r)
    R_right: Matrix = np.asarray(np.linalg.qr(layers.right.T, mode="r"))  # (min(n, r), r)
    return layers.core(R_left, R_right)


def _layers_near_one(left: Matrix, right: Matrix) -> _Layers:
    """Bring each column of ``left`` and each row of ``right`` near 1, so that no product of them leaves the range."""
    columns, rows = np.abs(left).max(axis=0), np.abs(right).max(axis=1)  # (r,), (r,)
    left_exponents, right_exponents = np.frexp(columns)[1], np.frexp(rows)[1]
    exponents = left_exponents + right_exponents
    present = (columns > 0) & (rows > 0)  # a layer of zeros has no size to compare with
    exponent = int(exponents[present].max(initial=np.iinfo(np.int32).min)) if present.any() else 0
    weights = np.minimum(exponents - exponent, 0)
    return _Layers(np.ldexp(left, -left_exponents), np.ldexp(right, -right_exponents[:, None]), weights, exponent)


def _near_one(W: Matrix) -> tuple[Matrix, int]:
    """Give W times a power of two that brings its largest entry to between 1/2 and 1, and the exponent to undo it."""
    exponent = exponent_of(W)
    return np.ldexp(W, -exponent), exponent


def exponent_of(W: Matrix) -> int:
    """Give the exponent e for which the largest entry of W is between 1/2 and 1 times 2^e; 0 for a matrix of zeros."""
    return int(np.frexp(np.abs(W).max())[1])


def with_signs(U: Matrix, values: Matrix, Vt: Matrix, exponent: int) -> Decomposition:
    """Flip each pair of singular vectors, if need be, so that the first of U's largest entries is positive."""
    magnitude = np.abs(U)  # (m, k)
    largest = magnitude.max(axis=0, initial=0)  # (k,)
    first = np.argmax(magnitude >= largest * (1 - SIGN_TIES[U.dtype]), axis=0)  # (k,)
    signs = np.copysign(U.dtype.type(1), U[first, np.arange(U.shape[1])])
    return Decomposition(U * signs, values, signs[:, None] * Vt, exponent)
