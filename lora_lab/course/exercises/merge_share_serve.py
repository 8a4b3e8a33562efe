"""The exercises of notebook 10: merge with one rounding, mix adapters, serve rows, extract an update, count bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.course.exercises.framework import Exercise, Function, called
from lora_lab.lowrank import LowRank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Factors = tuple[Tensor, Tensor]


def merge_once(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """Give W + scale · B A in the type of W: formed in float64, and rounded a single time."""
    return (weight.double() + scale * lora_B.double() @ lora_A.double()).to(weight.dtype)


def _check_merge(answer: Function) -> str | None:
    """Merge updates as large as the weight into two types, and compare the error with that of one rounding."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for dtype, rank, scale in ((torch.bfloat16, 4, 2.0), (torch.float32, 2, 0.5)):
        W = torch.randn(24, 16, generator=generator).to(dtype)
        A, B = torch.randn(rank, 16, generator=generator), torch.randn(24, rank, generator=generator)
        before, right = W.clone(), merge_once(W, A, B, scale)
        got = answer(W, A.clone(), B.clone(), scale)
        call = f"{called(answer, before, A, B, scale)} with a weight in {_type(dtype)}"
        if not torch.equal(W, before):
            return f"{call} changes the weight that it was given. Return a new one, or nobody can unmerge."
        if not isinstance(got, torch.Tensor) or got.shape != right.shape:
            return f"{call} must give a tensor of (24, 16); yours is {_kind(got)}."
        if got.dtype != dtype:
            return f"{call} gives {_type(got.dtype)}. The model goes on in {_type(dtype)}: round the sum to that."
        if wrong := _wrong_merge(got, before, A, B, scale):
            return f"{call}: {wrong}"
    return None


def _wrong_merge(got: Tensor, W: Tensor, A: Tensor, B: Tensor, scale: float) -> str | None:
    """Say what is wrong with a merged weight, by its distance from the exact sum."""
    import torch

    exact, delta = W.double() + scale * B.double() @ A.double(), B.double() @ A.double()
    least = (merge_once(W, A, B, scale).double() - exact).norm()
    if (got.double() - exact).norm() <= 1.01 * least:
        return None
    near = 0.02 * exact.norm()
    for wrong, why in (
        (W.double() + delta, "the scale is missing."),
        (W.double() + 2 * scale * delta, "the update is in it twice. Merging an adapter that is merged is an error."),
        (W.double() + scale**2 * delta, "the scale is in it twice."),
        (W.double() + delta / scale, "you divide by the scale. The scale is alpha / rank already."),
        (W.double() - scale * delta, "the update is added, and you take it away."),
        (scale * delta, "that is the update alone."),
        (scale * (W.double() + delta), "the scale belongs to the update alone, not to W."),
        (W.double(), "nothing was added."),
    ):
        if (got.double() - wrong).norm() < near:
            return why
    if (got.double() - exact).norm() < near:
        ratio = ((got.double() - exact).norm() / least).item()
        if W.dtype == torch.float32:
            return f"its error is {ratio:.1f} times that of one rounding. Form the sum in float64."
        return (
            f"its error is {ratio:.1f} times that of one rounding. You rounded on the way: form B A and the sum in a "
            "wide type, and round the result."
        )
    return "that is far from W + scale · B A."


def mix(first: Factors, second: Factors, share: float) -> Factors:
    """Give A and B of share · B₁ A₁ + (1 − share) · B₂ A₂: the factors side by side, the shares in one of them."""
    import torch

    (A1, B1), (A2, B2) = first, second
    return torch.cat([A1, A2]), torch.cat([share * B1, (1 - share) * B2], dim=1)


def _check_mix(answer: Function) -> str | None:
    """Mix adapters of equal and of different rank."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for ranks, share in (((2, 2), 0.75), ((1, 3), 0.4)):
        pairs: list[Factors] = [
            (torch.randn(rank, 5, generator=generator), torch.randn(4, rank, generator=generator)) for rank in ranks
        ]
        copies = [(A.clone(), B.clone()) for A, B in pairs]
        got = answer(*copies, share)
        call = f"With adapters of rank {ranks[0]} and {ranks[1]} and share {share:g}"
        if not isinstance(got, tuple | list) or len(got) != 2:
            return f"{call} a pair is asked for, A and B; yours is {_kind(got)}."
        A, B = (torch.as_tensor(part, dtype=torch.float32) for part in got)
        if A.ndim != 2 or B.ndim != 2 or A.shape[1] != 5 or B.shape[0] != 4 or A.shape[0] != B.shape[1]:
            shapes = f"yours are {tuple(A.shape)} and {tuple(B.shape)}."
            swapped = " Did you swap them?" if A.shape[0] == 4 and B.shape[-1] == 5 else ""
            return f"{call} A must be (rank, 5) and B (4, rank), with the same rank; {shapes}{swapped}"
        if wrong := _wrong_mix(A, B, pairs, share):
            return f"{call}: {wrong}"
    return None


def _wrong_mix(A: Tensor, B: Tensor, pairs: list[Factors], share: float) -> str | None:
    """Say what is wrong with a mixed update."""
    import torch

    (A1, B1), (A2, B2) = pairs
    other = 1 - share
    first, second = B1 @ A1, B2 @ A2
    got = B @ A
    if torch.allclose(got, share * first + other * second, atol=1e-4):
        return None
    cases = [
        (first + second, "the shares are missing."),
        (other * first + share * second, "the shares are swapped."),
        (share**2 * first + other**2 * second, "the shares are in both factors, so they count squared."),
        (share * first + second, "the second adapter needs its share, 1 − share, too."),
        (first + other * second, "the first adapter needs its share too."),
        (share * (first + second), "the second adapter's share is 1 − share."),
    ]
    if A1.shape == A2.shape:
        crossed = "B₂ A₁ and B₁ A₂ are in it, products that belong to no adapter. Add the products, not the factors."
        for a in (1.0, share):
            for b in (1.0, share):
                c, d = (1.0 if a == 1 else other), (1.0 if b == 1 else other)
                cases.append(((b * B1 + d * B2) @ (a * A1 + c * A2), crossed))
    for wrong, why in cases:
        if torch.allclose(got, wrong, atol=1e-4):
            return why
    return "B @ A is not share · B₁ A₁ + (1 − share) · B₂ A₂."


def serve(x: Tensor, weight: Tensor, adapters: dict[str, Factors], names: list[str | None]) -> Tensor:
    """Give y for a batch in which each row has its own adapter, or None: x Wᵀ, and B A x of its own on each row."""
    y = x @ weight.T  # (batch, tokens, out_features), one product for all rows
    for row, name in enumerate(names):
        if name is not None:
            A, B = adapters[name]
            y[row] += x[row] @ A.T @ B.T
    return y


def _check_serve(answer: Function) -> str | None:
    """Serve two batches, one with a row for the base alone."""
    import torch

    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4, 6, generator=generator)
    adapters = {
        name: (torch.randn(rank, 6, generator=generator), torch.randn(4, rank, generator=generator))
        for name, rank in (("sql", 2), ("json", 3))
    }
    for names in (["sql", "json", "sql"], ["json", None, "sql"]):
        x = torch.randn(3, 5, 6, generator=generator)
        copies = {name: (A.clone(), B.clone()) for name, (A, B) in adapters.items()}
        weight = W.clone()
        got = answer(x.clone(), weight, copies, list(names))
        right = serve(x.clone(), W, adapters, list(names))
        call = f"For the rows {names}"
        if not torch.equal(weight, W):
            return f"{call} the weight was changed, which all rows and all batches share. Leave it as it is."
        if isinstance(got, list):
            return f"{call} one tensor of (3, 5, 4) is asked for; torch.stack makes one of a list of rows."
        if not isinstance(got, torch.Tensor) or got.shape != right.shape:
            return f"{call} y must be a tensor of (3, 5, 4), rows, tokens and outputs; yours is {_kind(got)}."
        close = [torch.allclose(got[row], right[row], atol=1e-4) for row in range(3)]
        if all(close):
            continue
        row = close.index(False)
        return f"{call}, row {row} is off: {_wrong_row(got[row], x[row], W, adapters, names[row])}"
    return None


def _wrong_row(got: Tensor, x: Tensor, W: Tensor, adapters: dict[str, Factors], name: str | None) -> str:
    """Say which other answer a row's answer is."""
    import torch

    base = x @ W.T
    added = {other: x @ A.T @ B.T for other, (A, B) in adapters.items()}
    if torch.allclose(got, base + sum(added.values()), atol=1e-4):
        return "it has all the adapters added up. Each row has its own alone."
    if torch.allclose(got, base + sum(added.values()) / len(added), atol=1e-4):
        return "it has the mean of the adapters. Each row has its own alone."
    for other, update in added.items():
        if torch.allclose(got, base + update, atol=1e-4) and other != name:
            return f"it has the answer of {other!r}, and it belongs to {name or 'the base alone'!r}."
        if torch.allclose(got, update, atol=1e-4):
            return "that is the update alone. The base counts for every row."
    if name is not None and torch.allclose(got, base, atol=1e-4):
        return "that is the base alone. Its adapter is missing."
    return f"it should be x Wᵀ{f' + x Aᵀ Bᵀ with the A and B of {name!r}' if name else ' and nothing else'}."


def extract_factors(before: np.ndarray, after: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Give A (rank, in_features) and B (out_features, rank), with B A as near to after − before as that rank allows."""
    U, s, Vt = np.linalg.svd(after - before, full_matrices=False)
    return Vt[:rank], U[:, :rank] * s[:rank]


def _check_extract(answer: Function) -> str | None:
    """Extract from weights whose change is small beside them, so that an SVD of the wrong matrix shows."""
    rng = np.random.default_rng(0)
    for m, n, rank in ((6, 4, 2), (4, 7, 1)):
        before = rng.standard_normal((m, n))
        after = before + 0.3 * rng.standard_normal((m, n))
        got = answer(before.copy(), after.copy(), rank)
        call = called(answer, before, after, rank)
        if not isinstance(got, tuple | list) or len(got) != 2:
            return f"{call}: a pair is asked for, A and B; yours is {_kind(got)}."
        A, B = (np.asarray(part, dtype=float) for part in got)
        if A.shape != (rank, n) or B.shape != (m, rank):
            swapped = " Did you swap them?" if B.shape == (rank, n) and A.shape == (m, rank) else ""
            return f"{call}: A must be ({rank}, {n}) and B ({m}, {rank}); yours are {A.shape} and {B.shape}.{swapped}"
        if wrong := _wrong_extraction(B @ A, before, after, rank):
            return f"{call}: {wrong}"
    return None


def _wrong_extraction(got: np.ndarray, before: np.ndarray, after: np.ndarray, rank: int) -> str | None:
    """Say what is wrong with an extracted update."""
    delta = after - before
    U, s, Vt = np.linalg.svd(delta, full_matrices=False)
    best = U[:, :rank] * s[:rank] @ Vt[:rank]
    if np.allclose(got, best, atol=1e-8):
        return None
    cut_after = LowRank.from_svd(after, rank).dense()
    for wrong, why in (
        (-best, "that is before − after. Added to `before` it leads away from `after`."),
        (cut_after, "you took `after` apart. The adapter holds the change, after − before."),
        (U[:, :rank] @ Vt[:rank], "the singular values are missing."),
        (U[:, :rank] * s[:rank] ** 2 @ Vt[:rank], "the singular values are in both factors: that squares them."),
        (U[:, :rank] * np.sqrt(s[:rank]) @ Vt[:rank], "only the roots of the singular values are in it: √s in one."),
        (U[:, -rank:] * s[-rank:] @ Vt[-rank:], "you kept the smallest singular values."),
    ):
        if np.allclose(got, wrong, atol=1e-8):
            return why
    if len(s) == Vt.shape[1]:  # Vt is square, so that its columns fit too
        for wrong, why in (
            (U[:, :rank] * s[:rank] @ Vt.T[:rank], "A is made of rows of Vt, and you took its columns."),
            (U[:, :rank] @ (Vt * s)[:rank], "each singular value goes to a row of Vt, and yours went to its columns."),
        ):
            if np.allclose(got, wrong, atol=1e-8):
                return why
    error, least = (np.linalg.norm(delta - matrix) / np.linalg.norm(delta) for matrix in (got, best))
    return f"B A misses the change by {error:.3f}, and rank {rank} can do with {least:.3f}."


def bytes_in_4_bits(numbers: int, block: int) -> int:
    """Give the bytes of a weight in 4 bits: two codes a byte, and a float32 scale for each block, begun ones too."""
    return -(-numbers // 2) + 4 * -(-numbers // block)


def _check_bytes(answer: Function) -> str | None:
    """Count whole blocks, then a rest."""
    for numbers, block in ((331_776, 64), (331_776, 256), (1_000, 64), (65, 64)):
        right, got = bytes_in_4_bits(numbers, block), answer(numbers, block)
        if not isinstance(got, int | float | np.number) or isinstance(got, bool):
            return f"{called(answer, numbers, block)} must give a number of bytes; yours is {_kind(got)}."
        if got == right:
            continue
        what = f"{called(answer, numbers, block)} gives {float(got):,.10g}, but it is {right:,}."
        return f"{what} {_wrong_bytes(float(got), numbers, block, right)}"
    return None


def _wrong_bytes(got: float, numbers: int, block: int, right: int) -> str:
    """Say what was counted instead."""
    blocks = -(-numbers // block)
    for wrong, why in (
        (4 * numbers, "4 bits are half a byte. 4 bytes a number is float32."),
        (4 * numbers + 4 * blocks, "4 bits are half a byte. 4 bytes a number is float32."),
        (2 * numbers, "2 bytes a number is bfloat16. 4 bits are half a byte."),
        (8 * right, "That is the number of bits."),
        (numbers / 2, "The scales are missing: one for each block."),
        (-(-numbers // 2), "The scales are missing: one for each block."),
        (numbers + 4 * blocks, "Two codes share a byte."),
        (numbers / 2 + 2 * blocks, "A scale is a float32: 4 bytes."),
        (numbers / 2 + blocks / 2, "The scales are not in 4 bits: each is a float32."),
        (numbers / 2 + blocks, "A scale is a float32: 4 bytes."),
        (blocks * block / 2 + 4 * blocks, "The last block is not filled up: only numbers that are there have a code."),
        (numbers / 2 + 4, "Each block has a scale of its own."),
    ):
        if got == wrong:
            return why
    if abs(got - right) < 5:
        return "A byte that is half full, and a block that is begun, count as whole ones."
    return "Half a byte for each number, and 4 bytes for each block."


def _kind(value: Any) -> str:
    """Say what a value is: its type, and its shape if it has one."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of {tuple(shape)}"


def _type(dtype: torch.dtype) -> str:
    """Give the name of a type of torch without the name of its module."""
    return str(dtype).removeprefix("torch.")


def _in_low_precision(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Make the mistake of rounding the factors, and everything after, to the type of the weight."""
    return W + scale * B.to(W.dtype) @ A.to(W.dtype)


def _by_svd(matrix: np.ndarray, rank: int, in_A: Any, in_B: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cut a matrix off, with functions of the singular values in each factor."""
    U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
    return in_A(s[:rank])[:, None] * Vt[:rank], U[:, :rank] * in_B(s[:rank])


def _by_columns(before: np.ndarray, after: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the mistake of taking Vt for V."""
    U, s, V = np.linalg.svd(after - before, full_matrices=False)
    return V[:, :rank].T, U[:, :rank] * s[:rank]


def _values_to_columns(before: np.ndarray, after: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the mistake of multiplying the columns of Vt by the singular values."""
    U, s, Vt = np.linalg.svd(after - before, full_matrices=False)
    return (s * Vt)[:rank], U[:, :rank]


def _sum_of_factors(first: Factors, second: Factors, share: float) -> Factors:
    """Make the mistake of mixing the factors one by one."""
    return tuple(share * one + (1 - share) * other for one, other in zip(first, second, strict=True))  # type: ignore[return-value]


def _serve_all(x: Tensor, weight: Tensor, adapters: dict[str, Factors], names: list[str | None]) -> Tensor:
    """Make the mistake of adding every adapter to every row."""
    return x @ weight.T + sum(x @ A.T @ B.T for A, B in adapters.values())


def _serve_by_changing(x: Tensor, weight: Tensor, adapters: dict[str, Factors], names: list[str | None]) -> Tensor:
    """Make the mistake of adding the updates to the weight that all rows share."""
    for name in names:
        if name is not None:
            A, B = adapters[name]
            weight += B @ A
    return x @ weight.T


def _serve_with(x: Tensor, weight: Tensor, factors: Factors) -> Tensor:
    """Serve every row with one adapter."""
    return x @ weight.T + x @ factors[0].T @ factors[1].T


def _beside(first: Factors, second: Factors, in_A: Any, in_B: Any) -> Factors:
    """Put two adapters side by side, with numbers before each part."""
    import torch

    (A1, B1), (A2, B2) = first, second
    return torch.cat([in_A[0] * A1, in_A[1] * A2]), torch.cat([in_B[0] * B1, in_B[1] * B2], dim=1)


EXERCISES = (
    Exercise(
        name="10.merge",
        points=2,
        goal="a function of weight, lora_A, lora_B and scale that returns the merged weight in the type of the weight",
        solution=merge_once,
        check=_check_merge,
        hints=(
            "`.double()` gives a tensor in float64, and `.to(weight.dtype)` rounds to the type of the weight.",
            "Turn all three tensors to float64 first, form W + scale · B A, and round at the very end.",
        ),
        mistakes=(
            (lambda W, A, B, scale: (W + B @ A).to(W.dtype), "the scale is missing"),
            (lambda W, A, B, scale: merge_once(merge_once(W, A, B, scale), A, B, scale), "the update is in it twice"),
            (_in_low_precision, "You rounded on the way"),
            (lambda W, A, B, scale: W.double() + scale * B.double() @ A.double(), "round the sum to that"),
            (lambda W, A, B, scale: W + scale * B @ A, "gives float32"),
            (lambda W, A, B, scale: W.add_((scale * B @ A).to(W.dtype)), "nobody can unmerge"),
            (lambda W, A, B, scale: merge_once(W, A, B, -scale), "you take it away"),
            (lambda W, A, B, scale: merge_once(W, A, B, 1 / scale), "you divide by the scale"),
            (lambda W, A, B, scale: (scale * B @ A).to(W.dtype), "the update alone"),
            (lambda W, A, B, scale: merge_once(W, A, B, 3 * scale), "far from W + scale"),
            (lambda W, A, B, scale: W + 0, "nothing was added"),
        ),
    ),
    Exercise(
        name="10.mix",
        points=2,
        goal="a pair, the A and the B of the mixture",
        solution=mix,
        check=_check_mix,
        hints=(
            "The mixture is a sum of two products. What rank can it have? Not that of one adapter, in general.",
            "[B₁ B₂] times [A₁ above A₂] is B₁ A₁ + B₂ A₂.",
            "torch.cat([A1, A2]) puts one above the other; with dim=1 it puts them side by side. Share one of the two.",
        ),
        mistakes=(
            (_sum_of_factors, "Add the products, not the factors"),
            (lambda one, two, share: (one[0] + two[0], one[1] + two[1]), "Add the products, not the factors"),
            (lambda one, two, share: _beside(one, two, (1, 1), (1, 1)), "the shares are missing"),
            (lambda one, two, share: mix(two, one, share), "the shares are swapped"),
            (
                lambda one, two, share: _beside(one, two, (share, 1 - share), (share, 1 - share)),
                "count squared",
            ),
            (lambda one, two, share: _beside(one, two, (1, 1), (share, 1)), "1 − share, too"),
            (lambda one, two, share: _beside(one, two, (share, share), (1, 1)), "the second adapter's share is 1"),
            (lambda one, two, share: mix(one, two, share)[::-1], "Did you swap them?"),
            (lambda one, two, share: share * one[1] @ one[0] + (1 - share) * two[1] @ two[0], "a pair is asked for"),
        ),
    ),
    Exercise(
        name="10.rows",
        points=3,
        goal="the outputs of a batch, each row with its own adapter",
        solution=serve,
        check=_check_serve,
        hints=(
            "The base is the same for all rows: one product, x @ weight.T. What differs is what you add to each row.",
            "Go through `enumerate(names)`. Row k gets x[k] @ A.T @ B.T with its own A and B, or nothing for None.",
        ),
        mistakes=(
            (_serve_all, "all the adapters added up"),
            (lambda x, W, adapters, names: (_serve_all(x, W, adapters, names) + x @ W.T) / 2, "the mean of the"),
            (lambda x, W, adapters, names: _serve_with(x, W, adapters[names[0]]), "has the answer of 'sql'"),
            (lambda x, W, adapters, names: _serve_with(x, W, adapters[names[-1] or names[0]]), "row 1 is off"),
            (lambda x, W, adapters, names: x @ W.T, "Its adapter is missing"),
            (lambda x, W, adapters, names: serve(x, 0 * W, adapters, names), "The base counts for every row"),
            (lambda x, W, adapters, names: serve(x, W, adapters, names)[0], "yours is Tensor of (5, 4)"),
            (lambda x, W, adapters, names: list(serve(x, W, adapters, names)), "torch.stack makes one"),
            (_serve_by_changing, "the weight was changed"),
            (
                lambda x, W, adapters, names: serve(x, W, adapters, [name or "sql" for name in names]),
                "it belongs to 'the base alone'",
            ),
        ),
    ),
    Exercise(
        name="10.extract",
        points=2,
        goal="a pair, the A and the B of the extracted adapter",
        solution=extract_factors,
        check=_check_extract,
        hints=(
            "Which matrix should the adapter add to `before`?",
            "np.linalg.svd(after - before, full_matrices=False) gives U, s and Vt. A is made of rows of Vt.",
            "Keep `rank` columns of U, values of s and rows of Vt. The values belong into one factor, or √s in both.",
        ),
        mistakes=(
            (lambda before, after, rank: extract_factors(0 * after, after, rank), "you took `after` apart"),
            (lambda before, after, rank: extract_factors(after, before, rank), "it leads away"),
            (lambda before, after, rank: _by_svd(after - before, rank, np.ones_like, np.ones_like), "are missing"),
            (lambda before, after, rank: _by_svd(after - before, rank, np.copy, np.copy), "that squares them"),
            (lambda before, after, rank: _by_svd(after - before, rank, np.ones_like, np.sqrt), "√s in one"),
            (lambda before, after, rank: extract_factors(before, after, rank)[::-1], "Did you swap them?"),
            (_by_columns, "you took its columns"),
            (_values_to_columns, "yours went to its columns"),
            (
                lambda before, after, rank: (
                    extract_factors(0 * after, after, rank)[0] - extract_factors(0 * after, before, rank)[0],
                    extract_factors(0 * after, after, rank)[1] - extract_factors(0 * after, before, rank)[1],
                ),
                "B A misses the change",
            ),
            (lambda before, after, rank: after - before, "a pair is asked for"),
        ),
    ),
    Exercise(
        name="10.bytes",
        points=2,
        goal="the number of bytes of a weight in 4 bits",
        solution=bytes_in_4_bits,
        check=_check_bytes,
        hints=(
            "A byte has 8 bits. How many codes of 4 bits are in it? And how many bytes has a float32?",
            "Half a byte for each number, and 4 bytes for each block. Then mind an odd number, and a last block that "
            "is not full.",
            "-(-n // k) divides and rounds up, and so does math.ceil(n / k).",
        ),
        mistakes=(
            (lambda numbers, block: 4 * numbers, "4 bytes a number is float32"),
            (lambda numbers, block: numbers // 2, "The scales are missing"),
            (lambda numbers, block: numbers + 4 * -(-numbers // block), "Two codes share a byte"),
            (lambda numbers, block: 8 * bytes_in_4_bits(numbers, block), "the number of bits"),
            (lambda numbers, block: numbers // 2 + 2 * (numbers // block), "A scale is a float32"),
            (lambda numbers, block: numbers // 2 + 4, "a scale of its own"),
            (lambda numbers, block: -(-numbers // block) * (block // 2 + 4), "not filled up"),
            (lambda numbers, block: numbers // 2 + 4 * (numbers // block), "count as whole ones"),
            (lambda numbers, block: 4.5 / 8 * numbers, "Half a byte for each number"),
            (lambda numbers, block: "half", "must give a number of bytes"),
        ),
    ),
)
