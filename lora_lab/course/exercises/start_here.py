"""The exercises of notebook 00: three counts, to see how checks, hints and solutions work."""

from typing import Any

from lora_lab.course.exercises.framework import Exercise, Function, called
from lora_lab.lowrank import parameter_count


def numbers() -> int:
    """Give the numbers in a 9 × 5 and a 5 × 9 matrix."""
    return 9 * 5 + 5 * 9


def _check_numbers(answer: Any) -> str | None:
    """Compare with 90, and recognise the usual slips."""
    if answer == numbers():
        return None
    if isinstance(answer, str):
        return f"{answer!r} is text, and a number is asked for. Leave out the quotation marks."
    reasons = {
        45: "that is one factor; there are two, 9 × 5 and 5 × 9.",
        81: "that is the table itself; the question is about its factors.",
        18: "that is one column and one row: rank 1. At rank 5 there are five of each.",
        25: "5 · 5 is no part of it: the factors are 9 × 5 and 5 × 9.",
    }
    return f"{answer} is not the count: " + reasons.get(answer, "draw the factors, 9 × 5 and 5 × 9, and count cells.")


def trainable(in_features: int, out_features: int, rank: int) -> int:
    """Give the parameters of A, rank × in_features, and of B, out_features × rank."""
    return rank * in_features + out_features * rank


def _check_trainable(answer: Function) -> str | None:
    """Try a square layer, a wide one, a narrow one, and rank 1."""
    for in_features, out_features, rank in ((576, 576, 8), (576, 192, 8), (192, 576, 4), (12288, 12288, 1)):
        count, right = answer(in_features, out_features, rank), parameter_count(out_features, in_features, rank)
        if count == right:
            continue
        call = called(answer, in_features, out_features, rank)
        if isinstance(count, tuple | list) and len(count) == 2:
            return f"{call} gives {count}: one number is asked for. Add up what A has and what B has."
        if isinstance(count, str):
            return f"{call} gives {count!r}: that is text, and a number is asked for."
        if count == in_features * out_features:
            return f"{call} gives {count:,}: those are the frozen weights, not what trains."
        if count in (rank * in_features, rank * out_features):
            return f"{call} gives {count:,}: that is one of the two factors."
        return f"{call} gives {count:,}, but A is {rank} × {in_features} and B is {out_features} × {rank}: {right:,}."
    return None


def rank_one() -> int:
    """Give the count at rank 8, 460,800, over 8; or 30 layers · ((576 + 576) + (576 + 192))."""
    return 30 * ((576 + 576) + (576 + 192))


def _check_rank_one(answer: Any) -> str | None:
    """Compare with 57,600, and recognise counts of a part."""
    if answer == rank_one():
        return None
    if isinstance(answer, str):
        return f"{answer!r} is text, and a number is asked for. Leave out the quotation marks."
    reasons = {
        460_800: "that is rank 8, as in the table of section 4.",
        (576 + 576) + (576 + 192): "that is one layer of the 30.",
        30 * (576 + 576): "that is q_proj alone; v_proj is adapted too.",
        30 * (576 + 192): "that is v_proj alone; q_proj is adapted too.",
        30 * 2 * (576 + 576): "v_proj is not square: its output has 192 features.",
    }
    return f"{answer} is not the count: " + reasons.get(answer, "the count is in proportion to the rank.")


EXERCISES = (
    Exercise(
        name="00.numbers",
        goal="how many numbers the factors of a 9 × 9 matrix hold at rank 5",
        solution=numbers,
        check=_check_numbers,
        hints=("The factors are 9 × 5 and 5 × 9.", "At rank 1 it is 9 + 9. Each rank costs as much again."),
        mistakes=(
            (45, "one factor"),
            (81, "the table itself"),
            (18, "rank 1"),
            (25, "no part"),
            (50, "count cells"),
            ("90", "is text"),
        ),
        value=True,
    ),
    Exercise(
        name="00.trainable",
        goal="how many parameters a LoRA update of one layer trains",
        solution=trainable,
        check=_check_trainable,
        hints=("A is rank × in_features, B is out_features × rank.", "It is rank · (m + n), as for the 9 × 9 table."),
        mistakes=(
            (lambda in_features, out_features, rank: in_features * out_features, "frozen weights"),
            (lambda in_features, out_features, rank: rank * in_features, "one of the two factors"),
            (lambda in_features, out_features, rank: in_features + out_features, "A is 8 × 576 and B is 576 × 8"),
            (lambda in_features, out_features, rank: 2 * rank * in_features, "A is 8 × 576 and B is 192 × 8"),
            (lambda in_features, out_features, rank: rank * in_features * out_features, "9,216"),
            (lambda in_features, out_features, rank: (rank * in_features, out_features * rank), "Add up what A has"),
            (lambda in_features, out_features, rank: f"{rank * (in_features + out_features)}", "that is text"),
        ),
    ),
    Exercise(
        name="00.rank_one",
        goal="how many parameters of SmolLM2-135M train at rank 1",
        solution=rank_one,
        check=_check_rank_one,
        hints=(
            "The table of section 4 says what one layer costs at rank 8.",
            "At rank 1 everything costs an eighth of that.",
        ),
        mistakes=(
            (460_800, "that is rank 8"),
            (1_920, "one layer of the 30"),
            (34_560, "q_proj alone"),
            (23_040, "v_proj alone"),
            (69_120, "not square"),
            (8, "in proportion to the rank"),
            ("57,600", "is text"),
        ),
        value=True,
    ),
)
