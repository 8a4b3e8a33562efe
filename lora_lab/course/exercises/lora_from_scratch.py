"""The exercises of notebook 05: the update, two thin products, a budget, a start, and merging once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lora_lab.course.exercises.framework import Exercise, Function, called

if TYPE_CHECKING:
    import torch

SIZES = ((3, 5, 2), (6, 4, 3), (7, 2, 1))  # out_features, in_features, rank


def update(lora_A: torch.Tensor, lora_B: torch.Tensor, alpha: float) -> torch.Tensor:
    """Give what LoRA adds to W, alpha / rank · B A; the rank is the number of rows of A."""
    rank = lora_A.shape[0]
    return alpha / rank * lora_B @ lora_A


def _check_update(answer: Function) -> str | None:
    """Compare on three shapes; a constant too many, too few or in the wrong place is recognised."""
    import torch

    for (out_features, in_features, rank), alpha in zip(SIZES, (7.0, 5.0, 4.0), strict=True):
        A, B = _factors(out_features, in_features, rank)
        result = torch.as_tensor(answer(A.clone(), B.clone(), alpha)).float()
        what, product = called(answer, A, B, alpha), B @ A
        if result.shape != product.shape:
            return f"{what} has shape {tuple(result.shape)}: {_wrong_shape(result, out_features, in_features, rank)}"
        if torch.allclose(result, alpha / rank * product):
            continue
        for wrong, reason in (
            (product, "alpha and the rank are missing: that is B @ A alone. The scale is alpha / rank."),
            (alpha * product, "the rank is missing: that is alpha · B @ A. The scale is alpha / rank."),
            (product / rank, "alpha is missing: that is B @ A / rank. The scale is alpha / rank."),
            (alpha * rank * product, "that is alpha TIMES rank. The rank divides, to make up for the longer sum."),
            (rank / alpha * product, "that is rank / alpha. It is the other way up: alpha / rank."),
            (alpha / math.sqrt(rank) * product, "that is rsLoRA's scale, alpha / √rank. Here alpha / rank is meant."),
            (alpha / in_features * product, "you divide by the inputs. The rank is the number of ROWS of A."),
            (alpha / out_features * product, "you divide by the outputs. The rank is the number of COLUMNS of B."),
            (2 * product, "your scale is always 2. That was 16 / 8; here alpha and the rank are others."),
            (alpha / 8 * product, "you divide by 8. That was the rank in the notebook; here it is in the shapes."),
            (alpha // rank * product, "`//` drops what is behind the point. Divide with `/`."),
        ):
            if torch.allclose(result, wrong):
                return f"{what}: {reason}"
        return f"{what}: the shape is right and the numbers are not. Which matrix comes first, and what multiplies it?"
    return None


def _wrong_shape(result: torch.Tensor, out_features: int, in_features: int, rank: int) -> str:
    """Say how an update came to a shape that is not that of W."""
    if result.shape == (in_features, out_features):
        return (
            f"W is (outputs, inputs), {(out_features, in_features)}. Yours is transposed: it is B @ A, not A.T @ B.T."
        )
    if result.shape == (rank, rank):
        return "B and A are swapped. The rank must stand inside, columns of B against rows of A."
    return f"it is added to W, so it has W's shape, {(out_features, in_features)}."


def forward(
    x: torch.Tensor, weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, scale: float
) -> torch.Tensor:
    """Give x Wᵀ + scale · (x Aᵀ) Bᵀ, by two thin products."""
    h = x @ lora_A.T  # (tokens, rank)
    return x @ weight.T + scale * h @ lora_B.T


def _check_forward(answer: Function) -> str | None:
    """Compare on three shapes, and watch whether a matrix of the size of W is made on the way."""
    import torch

    for out_features, in_features, rank in SIZES:
        generator = torch.Generator().manual_seed(1)
        tokens = 11  # the tokens are not any other size here
        x = torch.randn(tokens, in_features, generator=generator)
        W = torch.randn(out_features, in_features, generator=generator)
        A, B = _factors(out_features, in_features, rank)
        what = called(answer, x, W, A, B, 0.5)
        with _watch_for(W) as made:
            result = torch.as_tensor(answer(x.clone(), W, A.clone(), B.clone(), 0.5))
        result = result.float()
        if result.shape != (tokens, out_features):
            return (
                f"{what} has shape {tuple(result.shape)}; one row of outputs for each token is "
                f"{(tokens, out_features)}. x has its tokens in rows, so x @ W.T."
            )
        right = forward(x, W, A, B, 0.5)
        for wrong, reason in (
            (forward(x, W, A, B, 1.0), "the scale is missing before the update."),
            (0.5 * forward(x, W, A, B, 1.0), "the scale multiplies the update alone, not the base."),
            (x @ (0.5 * B @ A).T, "the base is missing: x @ W.T comes first, and the update is added to it."),
            (x @ W.T, "the update is missing: that is the base alone."),
            (right - 2 * (right - x @ W.T), "the update is taken away, and it is to be added."),
            (forward(x, W, A, B, 0.5 / rank), "you divide by the rank. The scale is alpha / rank already."),
        ):
            if not torch.allclose(wrong, right) and torch.allclose(result, wrong, atol=1e-6):
                return f"{what}: {reason}"
        if not torch.allclose(result, right, atol=1e-5):
            return f"{what} is off by {(result - right).abs().max():.2g}. First x goes through A, and then through B."
        if made:
            return (
                f"{what} is right, but on the way you made a matrix of {made[0]}, as large as W: a product, or a copy. "
                "Use W as it is, and multiply x by A first: (tokens, inputs) becomes (tokens, rank)."
            )
    return None


def _watch_for(weight: torch.Tensor) -> Any:
    """Give a context manager that lists the shapes of all new tensors that are as large as the weight."""
    import contextlib

    from torch.utils._python_dispatch import TorchDispatchMode

    shapes = (tuple(weight.shape), tuple(weight.shape)[::-1])
    made: list[str] = []

    class Watch(TorchDispatchMode):
        """Look at the result of every operation; views of the weight itself are no news."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            own = getattr(result, "untyped_storage", None)
            new = own is not None and own().data_ptr() != weight.untyped_storage().data_ptr()
            if new and tuple(result.shape)[-2:] in shapes:
                made.append(" × ".join(map(str, tuple(result.shape)[-2:])))
            return result

    @contextlib.contextmanager
    def watching() -> Any:
        with Watch():
            yield made

    return watching()


def affordable_rank(shapes: list[tuple[int, int]], budget: int) -> int:
    """Give the largest rank at which LoRA on layers of these (outputs, inputs) trains ``budget`` numbers at most."""
    return budget // sum(out_features + in_features for out_features, in_features in shapes)


def _check_budget(answer: Function) -> str | None:
    """Try one layer, many, a budget that is met exactly, one that is missed by one, and one that buys nothing."""
    small = [(576, 576), (192, 576)] * 30
    for shapes, budget in (
        ([(3, 5)], 20),
        (small, 460_800),
        (small, 460_799),
        ([(4, 4), (10, 3)], 45),
        ([(9, 9)], 17),
    ):
        right, got = affordable_rank(shapes, budget), answer(list(shapes), budget)
        if got == right and float(got).is_integer():
            continue
        each = sum(out_features + in_features for out_features, in_features in shapes)
        layers = f"{len(shapes)} layer{'' if len(shapes) == 1 else 's'}"
        what = f"For {layers} and a budget of {budget:,} you give {got!r}"
        if isinstance(got, str):
            return f"{what}, which is text: a rank is a whole number."
        if got == budget / each:
            return f"{what}: a rank is a whole number. You cannot afford a part of a column, so round down."
        if got == right + 1:
            return f"{what}, and that trains {(right + 1) * each:,} numbers. Round down."
        if got == budget // sum(out_features * in_features for out_features, in_features in shapes):
            return f"{what}: you count the entries of W, outputs times inputs. The factors have outputs PLUS inputs."
        if got == budget // sum(shapes[0]):
            return f"{what}: that is what the first layer alone could have. All layers share the budget."
        if got in (budget // sum(out for out, _ in shapes), budget // sum(width for _, width in shapes)):
            return f"{what}: you count one factor of each layer. Both train: A has the inputs, B the outputs."
        return f"{what}. One rank more costs {each:,} numbers here: a row of A and a column of B in each layer."
    return None


def start(
    out_features: int, in_features: int, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give lora_A, normal of deviation 1/√inputs, and lora_B = 0: B A is zero, and B has a gradient."""
    import torch

    lora_A = torch.randn(rank, in_features, generator=generator) / math.sqrt(in_features)
    return lora_A, torch.zeros(out_features, rank)


def _check_start(answer: Function) -> str | None:
    """Look at the product, at who could learn, at the size of A x for several shapes, and at the generator."""
    import torch

    for out_features, in_features, rank in ((6, 400, 4), (30, 100, 25), (50, 1600, 2)):
        result = answer(out_features, in_features, rank, torch.Generator().manual_seed(0))
        what = f"for {out_features} outputs, {in_features} inputs and rank {rank}"
        if not isinstance(result, tuple | list) or len(result) != 2:
            return f"two factors are asked for, lora_A and lora_B; yours is {type(result).__name__}."
        A, B = (torch.as_tensor(factor).detach() for factor in result)
        wanted = (rank, in_features), (out_features, rank)
        if (A.shape, B.shape) != wanted:
            turned = " You give B first." if (B.shape, A.shape) == wanted else ""
            yours = f"{tuple(A.shape)} and {tuple(B.shape)}"
            return f"{what}, A is {wanted[0]} and B is {wanted[1]}; yours are {yours}.{turned}"
        if not A.any() and not B.any():
            return f"{what}, both factors are zero: neither gets a gradient, and the layer never learns."
        if (B @ A).any():
            return f"{what}, B @ A is not zero, so the layer changes at step 0. One of the two must start at zero."
        if not A.any():
            return f"{what}, A is zero. It would learn, but A x is to have entries of about 1: zero the other one."
        if len(torch.unique(A)) < A.numel() / 2:
            return f"{what}, many entries of A are equal. Rows that are equal get equal gradients and stay equal."
        size = A.std().item() * math.sqrt(in_features)
        if not 0.4 <= size <= 1.6:
            return f"{what}, the entries of A x are of about {size:.2g}, not 1. {_why_size(A, out_features, rank)}"
        again = answer(out_features, in_features, rank, torch.Generator().manual_seed(0))[0]
        other = answer(out_features, in_features, rank, torch.Generator().manual_seed(1))[0]
        if not torch.equal(A, torch.as_tensor(again)) or torch.equal(A, torch.as_tensor(other)):
            return "the same generator must give the same A, and another one another: draw with generator=generator."
    return None


def _why_size(A: torch.Tensor, out_features: int, rank: int) -> str:
    """Say which recipe a wrong size comes from, by the standard deviation of A."""
    deviation, in_features = A.std().item(), A.shape[1]
    for recipe, reason in (
        (1.0, "A x adds up as many products as there are inputs; of independent ones √inputs is the size."),
        (1 / rank, "You divide by the rank. The sum in A x runs over the inputs."),
        (1 / math.sqrt(rank), "You divide by √rank. The sum in A x runs over the inputs."),
        (1 / math.sqrt(out_features), "You divide by √outputs. The sum in A x runs over the inputs."),
        (
            1 / in_features,
            "You divide by the inputs, which is too much: random signs cancel, and a sum grows as √inputs.",
        ),
    ):
        if abs(deviation / recipe - 1) < 0.1:
            return reason
    return "What is the size of a sum of that many independent products?"


def merged_layer(layer: dict[str, Any]) -> dict[str, Any]:
    """Give the layer with W + scale · B A as its weight, or as it is where that has been done."""
    if layer["merged"]:
        return layer
    weight = layer["weight"] + layer["scale"] * layer["lora_B"] @ layer["lora_A"]
    return {**layer, "weight": weight, "merged": True}


def _check_merge(answer: Function) -> str | None:
    """Merge, merge the result again, and look at what became of the first tensor."""
    import torch

    for out_features, in_features, rank in SIZES:
        A, B = _factors(out_features, in_features, rank)
        W = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(2))
        held, delta = W.clone(), 0.5 * B @ A
        layer = {"weight": held, "lora_A": A, "lora_B": B, "scale": 0.5, "merged": False}
        first = answer(layer)
        what = f"for a layer of {out_features} × {in_features} at rank {rank}"
        if not isinstance(first, dict) or set(first) != set(layer):
            got = f"the keys {', '.join(map(str, first))}" if isinstance(first, dict) else type(first).__name__
            return f"{what}, a dict with the keys {', '.join(layer)} is asked for; yours is {got}."
        if not torch.equal(held, W):
            return (
                f"{what}, the tensor that was the weight has changed: you wrote into it (`+=` does). "
                "Whoever holds it has another model now. Make a new one: weight + ..."
            )
        weight = torch.as_tensor(first["weight"])
        if weight.dtype != W.dtype:
            return f"{what}, the weight is {weight.dtype} now, and it was {W.dtype}: no x of the model fits it."
        if weight.shape != W.shape or not torch.allclose(weight, W + delta, atol=1e-6):
            return f"{what}, {_wrong_weight(weight, W, delta, rank)}"
        if not first["merged"]:
            return f"{what}, `merged` still says {first['merged']}. Nobody can know that the update is in the weight."
        again = answer(first)
        if not isinstance(again, dict) or not torch.allclose(torch.as_tensor(again["weight"]), W + delta, atol=1e-6):
            return f"{what}, a second merge adds the update again: W + 2 · Δ. Look at `merged` before you add."
        if not again["merged"]:
            return f"{what}, a second merge says that the layer is not merged, and the update is still in it."
    return None


def _wrong_weight(weight: torch.Tensor, W: torch.Tensor, delta: torch.Tensor, rank: int) -> str:
    """Say what a merged weight is that is not W + Δ."""
    import torch

    if weight.shape != W.shape:
        return f"the weight has shape {tuple(weight.shape)}, and it must stay {tuple(W.shape)}: B @ A, in this order."
    for wrong, reason in (
        (W, "the weight is as before: nothing was added."),
        (W + 2 * delta, "the scale is missing: W + scale · B @ A."),
        (delta, "the weight is the update alone. It is added to W."),
        (W - delta, "the update is taken away, and it is to be added."),
        (0.5 * (W + 2 * delta), "the scale multiplies W too. It belongs to the update alone."),
        (W + delta / rank, "you divide by the rank. The scale is alpha / rank already."),
    ):
        if torch.allclose(weight, wrong, atol=1e-6):
            return reason
    return f"the weight is off by {(weight - W - delta).abs().max():.2g}. It is W + scale · B @ A."


def _factors(out_features: int, in_features: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw A (rank, in) and B (out, rank), neither of them zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    A = torch.randn(rank, in_features, generator=generator)
    return A, torch.randn(out_features, rank, generator=generator)


def _merging(layer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Merge without asking whether it has been done; or make the mistake that ``changes`` say."""
    weight = layer["weight"] + layer["scale"] * layer["lora_B"] @ layer["lora_A"]
    return {**layer, "weight": weight, "merged": True, **changes}


def _in_place(layer: dict[str, Any]) -> dict[str, Any]:
    """Make the mistake of writing into the weight."""
    if not layer["merged"]:
        layer["weight"] += layer["scale"] * layer["lora_B"] @ layer["lora_A"]
    return {**layer, "merged": True}


def _random(rows: int, columns: int, generator: Any = None) -> torch.Tensor:
    """Draw a matrix of standard normal numbers."""
    import torch

    return torch.randn(rows, columns, generator=generator)


EXERCISES = (
    Exercise(
        name="05.update",
        goal="what LoRA adds to W, from its two factors and alpha",
        solution=update,
        check=_check_update,
        hints=(
            "W is (outputs, inputs). Which of B @ A and A @ B has that shape?",
            "The scale is alpha / rank, and the rank is lora_A.shape[0].",
            "`alpha / lora_A.shape[0] * lora_B @ lora_A`",
        ),
        mistakes=(
            (lambda A, B, alpha: alpha / A.shape[0] * A @ B, "stopped with RuntimeError"),
            (lambda A, B, alpha: alpha / A.shape[0] * (B @ A).T, "Yours is transposed"),
            (lambda A, B, alpha: alpha / A.shape[0] * A.T @ B.T, "Yours is transposed"),
            (lambda A, B, alpha: A @ A.T, "B and A are swapped"),
            (lambda A, B, alpha: B @ A, "alpha and the rank are missing"),
            (lambda A, B, alpha: alpha * B @ A, "the rank is missing"),
            (lambda A, B, alpha: B @ A / A.shape[0], "alpha is missing"),
            (lambda A, B, alpha: alpha * A.shape[0] * B @ A, "alpha TIMES rank"),
            (lambda A, B, alpha: A.shape[0] / alpha * B @ A, "the other way up"),
            (lambda A, B, alpha: alpha / math.sqrt(A.shape[0]) * B @ A, "rsLoRA's scale"),
            (lambda A, B, alpha: alpha / A.shape[1] * B @ A, "number of ROWS of A"),
            (lambda A, B, alpha: alpha / B.shape[0] * B @ A, "number of COLUMNS of B"),
            (lambda A, B, alpha: 2.0 * B @ A, "your scale is always 2"),
            (lambda A, B, alpha: alpha / 8 * B @ A, "you divide by 8"),
            (lambda A, B, alpha: alpha // A.shape[0] * B @ A, "Divide with `/`"),
            (lambda A, B, alpha: float("nan") * B @ A, "the shape is right and the numbers are not"),
        ),
    ),
    Exercise(
        name="05.forward",
        points=2,
        goal="the output of a LoRA layer, by two thin products",
        solution=forward,
        check=_check_forward,
        hints=(
            "x is (tokens, inputs) and A is (rank, inputs). Which product of the two is (tokens, rank)?",
            "The base gives x @ weight.T, and the update is added to it.",
            "The update is `scale * (x @ lora_A.T) @ lora_B.T`.",
        ),
        mistakes=(
            (lambda x, W, A, B, scale: x @ (W + scale * B @ A).T, "as large as W"),
            (lambda x, W, A, B, scale: x @ W.T + scale * x @ (B @ A).T, "as large as W"),
            (lambda x, W, A, B, scale: x @ W.T + scale * x @ (A.T @ B.T), "as large as W"),
            (lambda x, W, A, B, scale: x @ W.clone().T + scale * x @ A.T @ B.T, "or a copy"),
            (lambda x, W, A, B, scale: x @ W.T + x @ A.T @ B.T, "the scale is missing"),
            (lambda x, W, A, B, scale: scale * (x @ W.T + x @ A.T @ B.T), "not the base"),
            (lambda x, W, A, B, scale: scale * x @ A.T @ B.T, "the base is missing"),
            (lambda x, W, A, B, scale: x @ W.T, "the update is missing"),
            (lambda x, W, A, B, scale: x @ W.T - scale * x @ A.T @ B.T, "is to be added"),
            (lambda x, W, A, B, scale: x @ W.T + scale / A.shape[0] * x @ A.T @ B.T, "alpha / rank already"),
            (lambda x, W, A, B, scale: (x @ W.T + scale * x @ A.T @ B.T).T, "x has its tokens in rows"),
            (lambda x, W, A, B, scale: x @ W.T + scale * x @ A @ B, "stopped with RuntimeError"),
            (lambda x, W, A, B, scale: x @ W.T + float("nan"), "First x goes through A"),
        ),
    ),
    Exercise(
        name="05.budget",
        goal="the largest rank that the budget allows",
        solution=affordable_rank,
        check=_check_budget,
        hints=(
            "One rank more is one more row of A and one more column of B, in each layer.",
            "So each rank costs the sum of outputs + inputs over all layers.",
        ),
        mistakes=(
            (lambda shapes, budget: budget / sum(map(sum, shapes)), "round down"),
            (lambda shapes, budget: math.ceil(budget / sum(map(sum, shapes))), "Round down"),
            (lambda shapes, budget: budget // sum(m * n for m, n in shapes), "outputs PLUS inputs"),
            (lambda shapes, budget: budget // sum(shapes[0]), "All layers share the budget"),
            (lambda shapes, budget: budget // sum(m for m, _ in shapes), "one factor of each layer"),
            (lambda shapes, budget: budget // sum(n for _, n in shapes), "one factor of each layer"),
            (lambda shapes, budget: 0, "One rank more costs 8 numbers"),
            (lambda shapes, budget: str(budget // sum(map(sum, shapes))), "which is text"),
        ),
    ),
    Exercise(
        name="05.start",
        points=2,
        goal="lora_A and lora_B as a new layer starts with them",
        solution=start,
        check=_check_start,
        hints=(
            "Which of the two is zero, so that the other one sees x from the first step on?",
            "An entry of A x is a sum over the inputs. A sum of n independent numbers of size 1 is of size √n.",
            "Divide the random A by the square root of in_features; lora_B is `torch.zeros(out_features, rank)`.",
        ),
        mistakes=(
            (lambda m, n, r, g: (_random(r, n, g) * 0, _random(m, r, g) * 0), "never learns"),
            (lambda m, n, r, g: (_random(r, n, g) / n**0.5, _random(m, r, g)), "changes at step 0"),
            (lambda m, n, r, g: (_random(r, n, g) * 0, _random(m, r, g)), "zero the other one"),
            (lambda m, n, r, g: (_random(m, r, g) * 0, _random(r, n, g) / n**0.5), "You give B first"),
            (lambda m, n, r, g: (_random(n, r, g) / n**0.5, _random(r, m, g) * 0), "A is (4, 400) and B is (6, 4)"),
            (lambda m, n, r, g: (_random(r, n, g), _random(m, r, g) * 0), "of independent ones √inputs"),
            (lambda m, n, r, g: (_random(r, n, g) / r, _random(m, r, g) * 0), "You divide by the rank"),
            (lambda m, n, r, g: (_random(r, n, g) / r**0.5, _random(m, r, g) * 0), "You divide by √rank"),
            (lambda m, n, r, g: (_random(r, n, g) / m**0.5, _random(m, r, g) * 0), "You divide by √outputs"),
            (lambda m, n, r, g: (_random(r, n, g) / n, _random(m, r, g) * 0), "which is too much"),
            (lambda m, n, r, g: (_random(r, n, g) * 0 + n**-0.5, _random(m, r, g) * 0), "stay equal"),
            (lambda m, n, r, g: (_random(r, n) / n**0.5, _random(m, r) * 0), "draw with generator=generator"),
            (lambda m, n, r, g: _random(r, n, g), "two factors are asked for"),
        ),
    ),
    Exercise(
        name="05.merge",
        points=2,
        goal="the layer with its update in the weight, once",
        solution=merged_layer,
        check=_check_merge,
        hints=(
            "Look at `merged` first: where it is True there is nothing to do.",
            "`{**layer, 'weight': new}` is a copy of the dict with another weight, and `+` makes a new tensor.",
            "The new weight is `layer['weight'] + layer['scale'] * layer['lora_B'] @ layer['lora_A']`.",
        ),
        mistakes=(
            (_merging, "adds the update again"),
            (lambda layer: _merging(layer, merged=False), "`merged` still says False"),
            (lambda layer: layer if layer["merged"] else _merging(layer, merged=layer["merged"]), "still says False"),
            (_in_place, "you wrote into it"),
            (lambda layer: {**_merging(layer), "weight": _merging(layer)["weight"].double()}, "no x of the model"),
            (lambda layer: layer, "nothing was added"),
            (
                lambda layer: layer if layer["merged"] else _merging({**layer, "scale": 1.0}),
                "the scale is missing",
            ),
            (
                lambda layer: (
                    layer if layer["merged"] else _merging({**layer, "scale": layer["scale"] / len(layer["lora_A"])})
                ),
                "alpha / rank already",
            ),
            (lambda layer: layer["weight"] + layer["scale"] * layer["lora_B"] @ layer["lora_A"], "yours is Tensor"),
            (lambda layer: {"weight": _merging(layer)["weight"], "merged": True}, "yours is the keys weight, merged"),
            (lambda layer: _merging(layer, weight=layer["scale"] * layer["lora_B"] @ layer["lora_A"]), "added to W"),
            (
                lambda layer: {**layer, "merged": False} if layer["merged"] else _merging(layer),
                "the update is still in it",
            ),
        ),
    ),
)
