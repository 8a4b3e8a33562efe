"""The exercises of notebook 09: count an adapter, mark what the loss counts, merge by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.course.exercises.framework import Exercise, Function, called

if TYPE_CHECKING:
    import torch


def adapter_parameters(shapes: list[tuple[int, int]], rank: int) -> int:
    """Give the number of trainable parameters of LoRA on layers of the given (out_features, in_features)."""
    return sum(rank * (out_features + in_features) for out_features, in_features in shapes)


def _check_adapter_parameters(answer: Function) -> str | None:
    cases = {
        "one layer of 3 × 5 at rank 2": ([(3, 5)], 2),
        "SmolLM2's q_proj and v_proj at rank 8": ([(576, 576), (192, 576)] * 30, 8),
        "no layer at all": ([], 4),
    }
    for what, (shapes, rank) in cases.items():
        right, got = adapter_parameters(shapes, rank), answer(list(shapes), rank)
        if isinstance(got, str | list | tuple) or getattr(got, "shape", ()) != ():
            return f"For {what} one number is asked for; yours is {got!r}."
        if got == right:
            continue
        if got == sum(out * width for out, width in shapes):
            why = "That is the size of the weights themselves, which stay frozen."
        elif shapes and got == adapter_parameters(shapes[:1], rank):
            why = "That is the first layer alone: add up all of them."
        elif got == sum(out + width for out, width in shapes):
            why = "A has `rank` rows and B has `rank` columns: you count one of each."
        elif got == right + sum(out * width for out, width in shapes):
            why = "The weights themselves stay frozen: count A and B alone."
        elif got == sum(rank * out * width for out, width in shapes):
            why = "A and B are two matrices: add their sizes."
        elif got in (sum(rank * width for _, width in shapes), sum(rank * out for out, _ in shapes)):
            why = "That is one factor of each layer; LoRA trains two, A and B."
        else:
            why = "Each layer has an A of (rank, in_features) and a B of (out_features, rank)."
        return f"For {what} there are {right:,} numbers to train, and you give {got!r}. {why}"
    return None


def answer_labels(tokens: list[int], answer_start: int) -> list[int]:
    """Give the labels of one example: the answer's tokens, and −100 wherever the loss must not count."""
    return [-100] * answer_start + tokens[answer_start:]


def _check_answer_labels(answer: Function) -> str | None:
    for tokens, start in (([5, 6, 7, 8], 2), ([9, 2], 1), ([4, 4, 4, 2, 2, 2], 3)):
        given = list(tokens)
        right, got = answer_labels(tokens, start), answer(given, start)
        if given != tokens:
            return f"{called(answer, tokens, start)} changes the tokens, which the model has to read: copy first."
        if list(got) == right:
            continue
        call = f"For tokens {tokens} with answer_start={start} the labels are {right}, and you give {got}."
        if list(got) == tokens:
            return f"{call} The prompt counts too: the model would also be taught to ask the questions."
        if list(got) == tokens[start:]:
            return f"{call} There must be one label for each token, −100 for those of the prompt."
        if list(got) == [0] * start + tokens[start:]:
            return f"{call} 0 is a token like any other; the loss leaves out −100 alone."
        if list(got) == [-100] * (start + 1) + tokens[start + 1 :]:
            return f"{call} The first token of the answer is missing; the shift by one happens inside the loss."
        if list(got)[: len(right) - 1] == right[1:]:
            return f"{call} Each label stands one place too early; the shift by one happens inside the loss."
        if list(got) == tokens[:start] + [-100] * (len(tokens) - start):
            return f"{call} That is the other way round: the answer counts, and not the prompt."
        if list(got) == [100] * start + tokens[start:]:
            return f"{call} The label that the loss leaves out is −100, with its minus."
        return call
    return None


def merged(weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, alpha: float) -> torch.Tensor:
    """Give the weight with the update in it: W + (alpha / rank) · B A."""
    rank = lora_A.shape[0]
    return weight + alpha / rank * lora_B @ lora_A


def _check_merged(answer: Function) -> str | None:
    import torch

    generator = torch.Generator().manual_seed(0)
    for (out_features, in_features, rank), alpha in (((3, 5, 2), 6.0), ((4, 4, 1), 2.0), ((6, 2, 2), 5.0)):
        W = torch.randn(out_features, in_features, generator=generator)
        A = torch.randn(rank, in_features, generator=generator)
        B = torch.randn(out_features, rank, generator=generator)
        right, before = merged(W, A, B, alpha), W.clone()
        got = answer(W, A.clone(), B.clone(), alpha)
        call = f"{called(answer, before, A, B, alpha)}, with rank {rank}"
        if not torch.equal(W, before):
            return f"{call}, changes the weight it was given; return a new one, so that the old one can come back."
        if not isinstance(got, torch.Tensor) or got.shape != right.shape:
            shape = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
            return f"{call}, must give a tensor of {tuple(right.shape)}, like the weight; it gives {shape}."
        if torch.allclose(got, right, atol=1e-5):
            continue
        for wrong, why in (
            (W + B @ A, "The scale is missing: the update is alpha / rank times B A."),
            (W + alpha * B @ A, "The scale is alpha / rank, and you use alpha alone."),
            (W + rank / alpha * B @ A, "The scale is alpha / rank; yours is upside down."),
            (W + alpha / in_features * B @ A, "You divide by the number of inputs; the rank is the rows of A."),
            (W + alpha / out_features * B @ A, "You divide by the number of outputs; the rank is the rows of A."),
            (W + alpha / rank**0.5 * B @ A, "That is the scale of rsLoRA, alpha / √rank; here it is alpha / rank."),
            (W + alpha // rank * B @ A, "`//` rounds alpha / rank down; a scale may have decimals."),
            (alpha / rank * B @ A, "That is the update alone: add it to the weight."),
            (W - alpha / rank * B @ A, "The update is added, and you take it away."),
        ):
            if torch.allclose(got, wrong, atol=1e-5):
                return f"{call}, is off. {why}"
        return f"{call}, is off by up to {(got - right).abs().max().item():.3g}. It should be W + (alpha / rank) · B A."
    return None


def _overwrite(tokens: list[int], answer_start: int) -> list[int]:
    """Make the mistake of writing the labels over the tokens."""
    tokens[:answer_start] = [-100] * answer_start
    return tokens


EXERCISES = (
    Exercise(
        name="09.adapter_parameters",
        goal="the number of trainable parameters of LoRA on layers of given shapes",
        solution=adapter_parameters,
        check=_check_adapter_parameters,
        hints=(
            "How many numbers are in A, which is (rank, in_features)? And in B, which is (out_features, rank)?",
            "One layer has rank · in_features + out_features · rank. Add this up over the layers.",
        ),
        mistakes=(
            (lambda shapes, rank: sum(m * n for m, n in shapes), "weights themselves"),
            (lambda shapes, rank: sum(m + n for m, n in shapes), "you count one of each"),
            (lambda shapes, rank: sum(rank * n for m, n in shapes), "one factor of each layer"),
            (lambda shapes, rank: rank * (shapes[0][0] + shapes[0][1]), "first layer alone"),
            (lambda shapes, rank: 2 * rank, "Each layer has an A"),
            (lambda shapes, rank: sum(m * n + rank * (m + n) for m, n in shapes), "count A and B alone"),
            (lambda shapes, rank: sum(rank * m * n for m, n in shapes), "add their sizes"),
            (lambda shapes, rank: [rank * (m + n) for m, n in shapes], "one number is asked for"),
        ),
    ),
    Exercise(
        name="09.answer_labels",
        goal="the list of labels of one example, as long as its tokens",
        solution=answer_labels,
        check=_check_answer_labels,
        hints=(
            "The loss should count the answer, and nothing of the prompt. Which label does PyTorch's loss leave out?",
            "Put −100 in the first answer_start places, and the tokens themselves after them.",
        ),
        mistakes=(
            (lambda tokens, start: tokens, "also be taught to ask the questions"),
            (lambda tokens, start: tokens[start:], "one label for each token"),
            (lambda tokens, start: [0] * start + tokens[start:], "0 is a token like any other"),
            (lambda tokens, start: [-100] * (start + 1) + tokens[start + 1 :], "first token of the answer is missing"),
            (lambda tokens, start: [-100] * (start - 1) + tokens[start:] + [-100], "one place too early"),
            (lambda tokens, start: tokens[:start] + [-100] * (len(tokens) - start), "the other way round"),
            (lambda tokens, start: [100] * start + tokens[start:], "with its minus"),
            (_overwrite, "changes the tokens"),
        ),
    ),
    Exercise(
        name="09.merged",
        goal="the weight with the update in it, a new tensor of the weight's shape",
        solution=merged,
        check=_check_merged,
        hints=(
            "Which of `lora_A @ lora_B` and `lora_B @ lora_A` has the shape of the weight?",
            "The rank is the number of rows of lora_A, `lora_A.shape[0]`. The scale is alpha divided by it.",
        ),
        mistakes=(
            (lambda W, A, B, alpha: W + B @ A, "The scale is missing"),
            (lambda W, A, B, alpha: W + alpha * B @ A, "you use alpha alone"),
            (lambda W, A, B, alpha: W + alpha / A.shape[0] * A @ B, "stopped with RuntimeError"),
            (lambda W, A, B, alpha: alpha / A.shape[0] * B @ A, "the update alone"),
            (lambda W, A, B, alpha: W.add_(alpha / A.shape[0] * B @ A), "changes the weight"),
            (lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A, "the number of inputs"),
            (lambda W, A, B, alpha: W + alpha / len(B) * B @ A, "the number of outputs"),
            (lambda W, A, B, alpha: W + alpha / len(A) ** 0.5 * B @ A, "the scale of rsLoRA"),
            (lambda W, A, B, alpha: W + alpha // len(A) * B @ A, "rounds alpha / rank down"),
            (lambda W, A, B, alpha: W - alpha / A.shape[0] * B @ A, "take it away"),
        ),
    ),
)
