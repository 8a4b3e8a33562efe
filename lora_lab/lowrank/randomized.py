"""A singular value decomposition that never decomposes the matrix: it multiplies it with a few thin random blocks.

The method is block Golub–Kahan bidiagonalization from a random start, which is randomized block Krylov iteration with
both bases at hand. It reads top to bottom: ``randomized_svd``, the bidiagonalization, one orthonormal block.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from lora_lab.lowrank._arguments import (
    Matrix,
    as_nonempty_matrix,
    as_number,
    as_rank,
    as_rng,
    as_whole_number,
)
from lora_lab.lowrank._decomposition import Decomposition, decomposition_of_matrix, exponent_of, with_signs

FIRST_GUESS = 8  # the first rank that is tried when a tolerance is given; then it doubles
COLUMNS = 64  # so many columns of an error are formed at a time


def randomized_svd(
    W: Any,
    rank: int | None = None,
    *,
    rng: np.random.Generator,
    tol: float | None = None,
    block: int | None = None,
    steps: int | None = None,
) -> tuple[Matrix, Matrix, Matrix]:
    """Give nearly the leading singular vectors and values (U, s, Vt) from a few products: ``W ≈ U * s @ Vt``.

    W is multiplied with a thin random block, W.T with the orthonormal basis of the result, and so on in turns. After
    ``steps`` turns the products span a small space that holds the leading singular vectors nearly (a block Krylov
    space). W seen from within that space is a small matrix, and its exact SVD gives the answer.

    The singular values are never above the true ones but for rounding. A space of ``block * steps`` dimensions that
    would be as large as W makes no sense: W is then decomposed exactly. For a small matrix, of a hundred rows or
    columns, ``truncated_svd`` is exact and no slower.

    By default the space has at least twice as many dimensions as the answer, and for a high rank the block has about a
    third as many columns: see ``block_and_steps``.

    Args:
        W: Matrix (m, n), real and finite, with at least one entry: an array, a LowRank, a sparse matrix, or anything
            with ``shape``, ``@`` and ``.T``, of which only products with arrays (n, block) and (m, block) are used.
        rank: How many singular values to give, 0 ≤ rank ≤ min(m, n). Give either this or ``tol``.
        rng: Where the random block comes from. An equal generator gives an equal answer.
        tol: Give the smallest rank that is found to have a relative Frobenius error of at most ``tol``: the rank is
            doubled until the error of the answer, formed from W and measured, fits, and then trimmed. For W that is
            no array this takes the products of W with all n columns of the identity, a few at a time.
        block: Number of columns of the random block, at least 1.
        steps: Number of turns, each of two products: one with W, one with W.T. More of them: more accurate, slower.

    Returns:
        U (m, rank) with orthonormal columns, s (rank,) from large to small, Vt (rank, n) with orthonormal rows, in
        W's dtype (float64 where W has none), with signs fixed as in ``truncated_svd``.

    Raises:
        TypeError: If W does not hold real numbers, or another argument has the wrong type.
        ValueError: If W is not a finite matrix, an argument is out of range, both or neither of rank and tol are
            given, or the space is smaller than the rank.

    Source:
        Musco and Musco (2015), "Randomized block Krylov methods for stronger and faster approximate singular value
        decomposition", algorithm 2; Golub, Luk and Overton (1981), "A block Lanczos method for computing the singular
        values and corresponding singular vectors of a matrix", for the two bases; Meyer, Musco and Musco (2024), "On
        the unreasonable effectiveness of single vector Krylov methods for low-rank approximation", for small blocks;
        Tropp and Webber (2023), "Randomized algorithms for low-rank matrix approximation", for the whole.
    """
    rng = as_rng(rng)
    if (rank is None) == (tol is None):
        raise ValueError(f"give either rank or tol, got rank = {rank!r} and tol = {tol!r}")
    products = _as_products(W, rng)
    if rank is not None:
        rank = as_rank(rank, *products.shape)
        return _of_rank(products, rank, *_space(rank, products.shape, block, steps), rng).triple()
    if block is not None or steps is not None:
        raise ValueError("block and steps go with rank: with tol the rank, and so the space, is not known before")
    return _of_tolerance(products, _as_tolerance(tol, products), rng).triple()


def block_and_steps(rank: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Give the default width of the random block and the number of turns for a rank and a shape (m, n).

    A single vector costs least per product and wastes no dimension, so rank 1 takes one, 14 times; where the leading
    singular values are close, its error varies more from start to start than that of a block. Ranks up to 8 take 16
    columns, 5 times. Others take (rank + 16) / 3 columns, rounded up to a multiple of 8, a width at which matrix
    products are fast: 7 times, or 6 times from a tenth of min(m, n) on. No theorem gives these numbers: ``lora-lab
    bench svd`` measures what they do.
    """
    if rank <= 1:
        return 1, 14
    if rank <= 8:
        return 16, 5
    return 8 * math.ceil((rank + 16) / 24), 6 if rank >= 0.1 * min(shape) else 7


def error_bound(W: Any, low: Any, *, rng: np.random.Generator, probes: int = 10) -> float:
    """Bound the spectral norm ‖W - low‖ from products alone; the bound holds with probability 1 - 10^-probes.

    It is ``10 √(2/π) max ‖(W - low) ω‖`` over ``probes`` random vectors ω of independent standard normal entries.
    It is a bound and not an estimate: about 8 times the Frobenius norm of ``W - low`` or a little more.

    Args:
        W: Matrix (m, n), as ``randomized_svd`` takes it.
        low: Its approximation (m, n), likewise; for (U, s, Vt) give ``LowRank(U * s, Vt)``.
        rng: Where the random vectors come from; they must not be those that made ``low``.
        probes: Number of random vectors, at least 1.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shapes differ, a matrix is not finite, probes is below 1, or the bound is beyond float64.

    Source:
        Halko, Martinsson and Tropp (2011), "Finding structure with randomness", SIAM Review 53, eq. 4.3 (lemma 4.1).
    """
    rng, probes = as_rng(rng), as_whole_number(probes, "probes", at_least=1)
    first, second = _as_products(W, rng, "W"), _as_products(low, rng, "low")
    if first.shape != second.shape:
        raise ValueError(f"W and low must have one shape, got {first.shape} and {second.shape}")
    omega = rng.standard_normal((first.shape[1], probes))  # (n, probes)
    parts = [(x.times(omega).astype(np.float64), x.exponent) for x in (first, second)]  # (m, probes) each
    exponent = max((exponent_of(part) + exponent for part, exponent in parts if part.any()), default=0)
    left, right = (np.ldexp(part, own - exponent) for part, own in parts)  # no entry is above 1
    longest = np.linalg.norm(left - right, axis=0).max()
    try:
        return math.ldexp(10 * math.sqrt(2 / math.pi) * float(longest), exponent)
    except OverflowError as error:
        raise ValueError("the bound is beyond float64: divide both matrices by a constant first") from error


class _Products(NamedTuple):
    """A matrix known by its products alone, on a scale where they are near 1: ``2**-exponent * W``."""

    W: Any
    dtype: np.dtype[Any]
    exponent: int

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of W."""
        m, n = self.W.shape
        return int(m), int(n)

    def times(self, X: Matrix) -> Matrix:
        """Give ``2**-exponent * W @ X`` for X (n, k)."""
        return np.asarray(self.W @ self._scaled(X))

    def transposed_times(self, Y: Matrix) -> Matrix:
        """Give ``2**-exponent * W.T @ Y`` for Y (m, k); for an array as (Y.T W).T, which BLAS does faster."""
        if isinstance(self.W, np.ndarray):
            return (self._scaled(Y).T @ self.W).T
        return np.asarray(self.W.T @ self._scaled(Y))

    def columns(self, some: slice) -> Matrix:
        """Give some columns of ``2**-exponent * W``; those of an operator are products with columns of the identity."""
        if isinstance(self.W, np.ndarray):
            return self._scaled(self.W[:, some])
        n = self.shape[1]
        return self.times(np.eye(n, some.stop - some.start, -some.start, dtype=self.dtype))

    def _scaled(self, X: Matrix) -> Matrix:
        """Give ``2**-exponent * X``, without a copy where the exponent is 0."""
        return np.ldexp(X, -self.exponent) if self.exponent else X


def _as_products(W: Any, rng: np.random.Generator, name: str = "W") -> _Products:
    """Give W as its products; one of them, with a random vector, tells whether W is finite and how large it is."""
    plain = type(W) is np.ndarray and W.dtype in (np.float32, np.float64) and W.ndim == 2 and W.size > 0
    operator = not isinstance(W, np.ndarray) and all(hasattr(W, part) for part in ("shape", "T", "__matmul__"))
    if not (plain or operator):
        W = as_nonempty_matrix(W, name)
    if len(W.shape) != 2 or min(W.shape) < 1:
        raise ValueError(f"{name} must be a matrix with at least one row and one column, got shape {tuple(W.shape)}")
    products = _Products(W, _real_dtype(W, name), 0)
    omega = rng.standard_normal((products.shape[1], 1), products.dtype)
    furthest = np.finfo(products.dtype).maxexp - 24  # how far a power of two may move the random vectors
    for start in (0, furthest):  # the entries of W may be finite and their sums not
        with np.errstate(over="ignore", invalid="ignore"):
            product = products._replace(exponent=start).times(omega)
        if product.shape != (products.shape[0], 1) or product.dtype.kind not in "fiub":
            raise TypeError(
                f"{name} @ array {omega.shape} must be a real array {(products.shape[0], 1)}, "
                f"got {product.dtype} {product.shape}"
            )
        size = np.abs(product).max()
        if np.isfinite(size):
            exponent = start + int(np.frexp(size)[1])
            if abs(exponent) < furthest // 5:  # squares of it, and of its small parts, are within the range
                return products
            return products._replace(exponent=max(-furthest, min(exponent, furthest)))
    if not operator:
        as_nonempty_matrix(W, name)  # says where the first nan or inf is
    raise ValueError(f"{name} must be finite, got nan or inf in its product with a random vector")


def _real_dtype(W: Any, name: str) -> np.dtype[Any]:
    """Give the dtype to compute in: float32 for float32 and float16, float64 for other real numbers, or for none."""
    try:
        dtype = np.dtype(getattr(W, "dtype", None) or np.float64)
    except TypeError as error:
        raise TypeError(f"{name} must be a matrix for NumPy, got dtype {W.dtype}: give np.asarray({name})") from error
    if dtype.kind in "biu":
        return np.dtype(np.float64)
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return np.promote_types(dtype, np.float32)
    raise TypeError(f"{name} must hold real numbers (float32, float64, or integers), got dtype {dtype}")


def _space(rank: int, shape: tuple[int, int], block: int | None, steps: int | None) -> tuple[int, int]:
    """Give the width of the block and the number of turns, the default for what is None."""
    usual_block, usual_steps = block_and_steps(rank, shape)
    block = usual_block if block is None else as_whole_number(block, "block", at_least=1)
    if steps is None:
        steps = max(usual_steps, math.ceil(usual_block * usual_steps / block))
    steps = as_whole_number(steps, "steps", at_least=1)
    if block * steps < rank:
        raise ValueError(f"block * steps must be at least rank = {rank}, got {block} * {steps} = {block * steps}")
    return block, steps


def _of_rank(products: _Products, rank: int, block: int, steps: int, rng: np.random.Generator) -> Decomposition:
    """Give the ``rank`` leading singular values and vectors that a Krylov space of block * steps dimensions holds."""
    if rank == 0:
        block, steps = 1, 0  # empty, but of the right shapes
    if block * (steps + 1) > min(products.shape):
        return _exact(products).leading(rank)
    space = _bidiagonalize(products, rank, block, steps, rng)
    U, s, Vt = (part.astype(products.dtype) for part in _of_core(space.T, rank, products.dtype))
    return with_signs(space.Q @ U, s, Vt @ space.P.T, products.exponent)


def _of_core(T: Matrix, rank: int, dtype: np.dtype[Any]) -> tuple[Matrix, Matrix, Matrix]:
    """Give the ``rank`` leading singular vectors and values of the small T (k, k + b), computed in float64.

    For a float32 answer ``T Tᵀ = U Λ Uᵀ`` is enough, and takes half the time: it loses half of the 16 digits, and
    float32 has 7. With ``Tᵀ U = V R`` the triangle R is then diagonal to those 8 digits, and T is ``U R Vᵀ``.
    """
    if dtype == np.float64:
        U, s, Vt = np.linalg.svd(T, full_matrices=False)  # (k, k), (k,), (k, k + b)
        return U[:, :rank], s[:rank], Vt[:rank]
    U = np.linalg.eigh(T @ T.T)[1][:, ::-1][:, :rank]  # (k, rank)
    V, R = np.linalg.qr(T.T @ U)  # (k + b, rank), (rank, rank)
    s = np.abs(R.diagonal())
    order = np.argsort(-s, kind="stable")  # values that are rounding alone may come out of turn
    return U[:, order], s[order], (V * np.copysign(1.0, R.diagonal())).T[order]


def _exact(products: _Products) -> Decomposition:
    """Give the exact decomposition; of an operator all columns, which are fewer than the Krylov space would have."""
    if isinstance(products.W, np.ndarray):
        return decomposition_of_matrix(products.W)
    found = decomposition_of_matrix(products.times(np.eye(products.shape[1], dtype=products.dtype)))
    return found._replace(exponent=found.exponent + products.exponent)


class _Space(NamedTuple):
    """W seen from two orthonormal bases: ``Qᵀ W = T Pᵀ``, so ``Q T Pᵀ`` is the part of W within the space."""

    Q: Matrix  # (m, k)
    T: Matrix  # (k, k + b), float64, not zero only in the blocks on the diagonal and right of it
    P: Matrix  # (n, k + b)


def _bidiagonalize(products: _Products, rank: int, block: int, steps: int, rng: np.random.Generator) -> _Space:
    """Let a random block grow into a Krylov space of k = block * steps dimensions, with a basis on each side.

    ``W P_i = Q_(i-1) T_(i-1,i) + Q_i T_ii`` and ``Wᵀ Q_i = P_i T_iiᵀ + P_(i+1) T_(i,i+1)ᵀ``: each product is known
    but for its new part, which is the next block (Golub, Luk and Overton 1981, section 2). Once the space holds
    ``rank`` dimensions and a turn finds nothing but rounding, it ends early.
    """
    (m, n), b, k = products.shape, block, block * steps
    Q, T = np.zeros((m, k), products.dtype, order="F"), np.zeros((k, k + b))
    P = np.zeros((n, k + b), products.dtype, order="F")
    P[:, :b] = _orthonormal(rng.standard_normal((n, b), products.dtype), P[:, :0], rng)
    for i in range(0, k, b):
        here, there = slice(i, i + b), slice(i + b, i + 2 * b)
        Y = products.times(P[:, here])  # (m, b)
        Q[:, here] = _orthonormal(Y, Q[:, :i], rng)
        T[here, here] = Q[:, here].T @ Y
        Z = products.transposed_times(Q[:, here])  # (n, b)
        P[:, there] = _orthonormal(Z, P[:, : i + b], rng)
        T[here, there] = Z.T @ P[:, there]
        found = i + b
        if found >= rank and np.linalg.norm(T[here]) <= np.finfo(products.dtype).eps * np.linalg.norm(T):
            return _Space(Q[:, :found], T[:found, : found + b], P[:, : found + b])
    return _Space(Q, T, P)


def _orthonormal(Y: Matrix, basis: Matrix, rng: np.random.Generator) -> Matrix:
    """Give b orthonormal columns, orthogonal to ``basis``, that together with it span the columns of Y (m, b).

    With ``Yᵀ Y = V Λ Vᵀ`` the columns of ``Y V Λ^(-1/2)`` are orthonormal, to an accuracy that falls with the condition
    of Y. So Y is turned by V, and looked at again, until V finds it orthonormal nearly: then the result is so to
    rounding (Stathopoulos and Wu 2002, "A block orthogonalization procedure with constant synchronization
    requirements", algorithm SVQB, in float64 for float32 too). Likewise ``basis`` is taken away until little changes;
    in exact arithmetic Y overlaps with its last b columns alone, so these go first. A column of which nothing but
    rounding is left gives way to a random one: so the space goes on where W has no more to give.
    """
    b = Y.shape[1]
    against = basis[:, -b:] if b > 1 else basis  # a single column needs no turn, so one look may do
    before = size = np.sqrt(np.einsum("ij,ij->j", Y, Y))  # (b,)
    while True:
        Y = Y - against @ (against.T @ Y)
        wide = Y.astype(np.float64, copy=False)
        gram = wide.T @ wide  # (b, b)
        after = np.sqrt(gram.diagonal())
        rounding = after <= 10 * np.finfo(Y.dtype).eps * size
        if rounding.any():
            Y[:, rounding] = rng.standard_normal((Y.shape[0], np.count_nonzero(rounding)), Y.dtype)
            before = size = np.sqrt(np.einsum("ij,ij->j", Y, Y))
        else:
            squares, V = np.linalg.eigh(gram / after / after[:, None])  # of Y with unit columns, from small to large
            V /= after[:, None]
            if against.shape == basis.shape and squares[0] > 0.1 and (after > before / 10).all():
                return Y @ (V / np.sqrt(squares)).astype(Y.dtype)
            Y, before, size = Y @ V.astype(Y.dtype), np.sqrt(np.abs(squares)), np.ones(b)
        against = basis


def _as_tolerance(tol: Any, products: _Products) -> float:
    """Give ``tol``, which must be a number that is not below what rounding alone leaves of a matrix of this size."""
    tol = as_number(tol, "tol", at_least=0)
    floor = float(4 * np.finfo(products.dtype).eps * math.sqrt(max(products.shape)))
    if tol < floor:
        m, n = products.shape
        raise ValueError(
            f"tol must be at least {floor:.1e}, the rounding of a {m}×{n} {products.dtype} matrix, got {tol}"
        )
    return tol


def _of_tolerance(products: _Products, tol: float, rng: np.random.Generator) -> Decomposition:
    """Double the rank until the measured error is at most ``tol``, then keep the singular values that this takes.

    The answer is a projection of W, so squared errors add up: what the decomposition lacks, measured, and each
    singular value that is left out, from small to large. Nothing is subtracted, so small errors keep their digits.
    """
    enough = tol * _missing(products, None)
    full = min(products.shape)
    rank = min(FIRST_GUESS, full)
    while True:
        block, steps = block_and_steps(rank, products.shape)
        if block * (steps + 1) > full:  # it will be exact, so at once at every rank
            rank = full
        found = _of_rank(products, rank, block, steps, rng)
        values = np.ldexp(found.values.astype(np.float64), found.exponent - products.exponent)
        errors = np.hypot.accumulate(np.append(_missing(products, found), values[::-1]))[::-1]  # of rank 0, 1, ...
        if errors[-1] <= enough:
            return found.leading(int(np.argmax(errors <= enough)))
        if rank == full:
            raise ValueError(
                f"tol = {tol} is below what rounding allows here: rank {full} leaves {errors[-1] / errors[0]:.1e}"
            )
        rank = min(2 * rank, full)


def _missing(products: _Products, found: Decomposition | None) -> float:
    """Measure the Frobenius norm of what a decomposition lacks of W, on the scale of the products; None lacks all."""
    n, norms = products.shape[1], []
    for start in range(0, n, COLUMNS):
        some = slice(start, min(start + COLUMNS, n))
        part = products.columns(some)
        if found is not None:
            values = np.ldexp(found.values, found.exponent - products.exponent)
            part = part - found.U * values @ found.Vt[:, some]
        norms.append(np.linalg.norm(part.astype(np.float64)))
    return float(np.linalg.norm(norms))
