"""The exercises of notebook 08: an adapter's count, one count in other ways, a fair judge, error bars, many tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.course.exercises.framework import Exercise, Function, called

Run = Mapping[str, Any]


def adapter_parameters(blocks: int, d: int, width: int) -> int:
    """Give the parameters of bottleneck adapters, two in each block, each with two matrices and two biases."""
    one = d * width + width + width * d + d  # W_down, b_down, W_up, b_up
    return 2 * blocks * one


def _check_adapters(answer: Function) -> str | None:
    """Compare on three sizes; a missing bias, factor or adapter is recognised."""
    for blocks, d, width in ((3, 10, 4), (6, 384, 16), (96, 12288, 1)):
        result, right = answer(blocks, d, width), adapter_parameters(blocks, d, width)
        what = f"{called(answer, blocks, d, width)} gives {result!r}"
        if isinstance(result, str):
            return f"{what}, a text. A count is a number: return it without str and quotes."
        if result == right:
            continue
        for wrong, reason in (
            (right // 2, "there are two adapters in a block, one after attention and one after the MLP."),
            (4 * blocks * d * width, "both layers of an adapter have a bias: width numbers below, d above."),
            (2 * blocks * (2 * d * width + d), "the lower layer has a bias too, of `width` numbers."),
            (2 * blocks * (2 * d * width + width), "the upper layer has a bias too, of d numbers."),
            (2 * blocks * (2 * d * width + 2 * d), "the lower layer's bias has `width` numbers, not d."),
            (2 * blocks * (d * width + width + d), "there is a way down and a way up: two matrices."),
            (2 * (2 * d * width + width + d), "that is one block. All of them have adapters."),
            (2 * d * width + width + d, "that is one adapter. Each of the blocks has two."),
        ):
            if result == wrong:
                return f"{what}; {reason}"
        return f"{what}; it is {right:,}. Count one adapter first: W_down is ({width}, {d})."
    return None


def same_count(total: int, layers: int, d: int) -> list[tuple[int, int]]:
    """Give all (matrices, rank), of one to four d × d matrices in each layer, whose LoRA has exactly ``total``."""
    one = layers * 2 * d  # a matrix in each layer, rank 1
    return [(matrices, total // (matrices * one)) for matrices in (1, 2, 3, 4) if total % (matrices * one) == 0]


def _check_same_count(answer: Function) -> str | None:
    """Compare the lists, in any order; GPT-3's 4.7 and 37.7 million are among them."""
    for total, layers, d in ((4_718_592, 96, 12288), (37_748_736, 96, 12288), (2 * 3 * 8 * 6, 3, 8), (102_400, 2, 256)):
        result = answer(total, layers, d)
        what = called(answer, total, layers, d)
        if not isinstance(result, list | tuple | set) or not all(
            isinstance(one, tuple | list) and len(one) == 2 for one in result
        ):
            return f"{what} gives {result!r}; a list of pairs (matrices, rank) is asked for."
        mine, right = {(one[0], one[1]) for one in result}, set(same_count(total, layers, d))
        if mine == right:
            continue
        for matrices, rank in sorted(mine - right):
            if (rank, matrices) in right:
                return f"{what} has ({matrices}, {rank}): the number of matrices comes first, then the rank."
            made = layers * matrices * rank * 2 * d
            if not 1 <= matrices <= 4:
                return f"{what} has ({matrices}, {rank}): attention has four matrices, q, k, v and o."
            if rank != int(rank) or rank < 1:
                return f"{what} has ({matrices}, {rank}): a rank is a whole number, and at least 1."
            if 2 * made == total or made == 2 * total:
                return f"{what} has ({matrices}, {rank}): an update has TWO factors, d · rank and rank · d."
            return f"{what} has ({matrices}, {rank}), which is {made:,} parameters and not {total:,}."
        missing = sorted(right - mine)[0]
        return f"{what} lacks {missing}: rank {missing[1]} on {missing[0]} of the four has the same count."
    return None


def judged(runs: Sequence[Run]) -> dict[str, float]:
    """Give each way's test score at the learning rate with its best validation score."""
    ways = {run["way"] for run in runs}
    best = {way: max((run for run in runs if run["way"] == way), key=lambda run: run["validation"]) for way in ways}
    return {way: run["test"] for way, run in best.items()}


RUNS: tuple[dict[str, Any], ...] = (  # in which every shortcut leads to another answer
    {"way": "full", "rate": 1e-4, "validation": 0.80, "test": 0.76},
    {"way": "full", "rate": 1e-3, "validation": 0.70, "test": 0.81},
    {"way": "LoRA", "rate": 1e-4, "validation": 0.60, "test": 0.61},
    {"way": "LoRA", "rate": 1e-3, "validation": 0.79, "test": 0.77},
    {"way": "LoRA", "rate": 1e-2, "validation": 0.55, "test": 0.78},
)


def _check_judged(answer: Function) -> str | None:
    """Compare on runs in which choosing by the test, or at one rate, gives another answer."""
    for runs in (RUNS, RUNS[::-1], tuple(run for run in RUNS if run["way"] == "LoRA")):
        result = answer([dict(run) for run in runs])
        right = judged(runs)
        if not isinstance(result, Mapping) or set(result) != set(right):
            return f"A dict with the keys {', '.join(sorted(right))} is asked for, one test score each; got {result!r}."
        if dict(result) == right:
            continue
        for way in sorted(right):
            mine, own = result[way], [run for run in runs if run["way"] == way]
            if mine == right[way]:
                continue
            if mine == max(run["test"] for run in own):
                return (
                    f"{way}: {mine} is its best TEST score. Whoever chooses by the test sentences has seen them, and "
                    "the score is too good. Choose by validation."
                )
            if mine == max(run["validation"] for run in own):
                return f"{way}: {mine} is the validation score. It was chosen for being high; report the test score."
            if mine == min(own, key=lambda run: run["rate"])["test"]:
                return f"{way}: {mine} is from the lowest rate. At one rate for all you compare rates."
            if mine in (own[0]["test"], own[-1]["test"]):
                return f"{way}: {mine} is from the first or the last of its runs, whatever its validation score."
            return f"{way}: {mine!r} is not the test score of its best run by validation, which is {right[way]}."
    return None


def told_apart(a: float, b: float, fluctuation: float) -> bool:
    """Say whether two scores differ by more than their two error bars together."""
    return abs(a - b) > 2 * fluctuation


def _check_told_apart(answer: Function) -> str | None:
    """Ask for pairs of scores in both orders, far apart and near, and for one whose bars touch, exact in binary."""
    cases = (
        (73.4, 68.8, 0.5, True, "their bars are far apart"),
        (68.8, 73.4, 0.5, True, "the same two, and the lower one comes first: the sign does not matter"),
        (73.4, 73.8, 0.5, False, "each lies inside the other's bar"),
        (91.7, 91.55, 0.1, False, "they differ by more than one bar, and the other score moves too: the bars overlap"),
        (91.7, 91.3, 0.1, True, "they differ by 0.4, and the two bars are 0.2 together"),
        (91.7, 91.45, 0.1, True, "they differ by 0.25, and the two bars are 0.2 together"),
        (72.0, 71.0, 0.5, False, "the bars touch: one ends where the other begins, and no gap is left"),
        (50.0, 50.0, 0.5, False, "they are equal"),
    )
    for a, b, fluctuation, right, reason in cases:
        result = answer(a, b, fluctuation)
        if not isinstance(result, bool) and type(result).__name__ != "bool":
            return f"{called(answer, a, b, fluctuation)} gives {result!r}; True or False is asked for."
        if bool(result) != right:
            return f"{called(answer, a, b, fluctuation)} gives {result}, but {reason}."
    return None


def bytes_of_tasks(base: int, trained: int, tasks: int) -> dict[str, int]:
    """Give the bytes of all tasks in 16 bits: a whole model each, or one base and what each has trained."""
    return {"full": 2 * base * tasks, "adapters": 2 * base + 2 * trained * tasks}


def _check_tasks(answer: Function) -> str | None:
    """Compare on three sizes; one base, two bytes and every task are looked for."""
    for base, trained, tasks in ((1000, 10, 7), (1000, 10, 1), (175_000_000_000, 18_874_368, 100)):
        result, right = answer(base, trained, tasks), bytes_of_tasks(base, trained, tasks)
        what = called(answer, base, trained, tasks)
        if not isinstance(result, Mapping) or set(result) != set(right):
            return f"{what} gives {result!r}; a dict with the keys full and adapters is asked for."
        for name in ("full", "adapters"):
            mine = result[name]
            if isinstance(mine, str):
                return f"{what}, {name}: {mine!r} is a text. A number of bytes is asked for."
            if mine == right[name]:
                continue
            for factor, reason in (
                (0.5, "a number in 16 bits takes two bytes, not one."),
                (2, "a number in 16 bits takes two bytes, not four."),
                (8, "those are bits. 8 bits are a byte, so a number takes two bytes."),
                (1 / tasks if tasks > 1 else 0, "that is one task."),
            ):
                if mine == factor * right[name]:
                    return f"{what}, {name}: {mine}; {reason}"
            for wrong, reason in (
                (2 * (base + trained) * tasks, "the base is kept once, however many tasks there are."),
                (2 * trained * tasks, "the base is missing: an adapter alone answers nothing."),
                (2 * (base + trained), "that is one adapter; each task has its own."),
                (base + 2 * trained * tasks, "the base is in 16 bits too, two bytes for each of its numbers."),
                (2 * base * tasks + 2 * trained, "it is the other way round: one base, many adapters."),
            ):
                if name == "adapters" and mine == wrong:
                    return f"{what}, {name}: {mine}; {reason}"
            return f"{what}, {name}: {mine}; it is {right[name]:,}."
    return None


EXERCISES = (
    Exercise(
        name="08.adapters",
        goal="a function of blocks, d and width that returns the parameters of the adapters, two in each block",
        solution=adapter_parameters,
        check=_check_adapters,
        hints=(
            "One adapter goes down to `width` numbers and up again to d. Each way is a linear layer with a bias.",
            "Down: d · width + width. Up: width · d + d.",
            "Two adapters in each of the blocks.",
        ),
        mistakes=(
            (lambda blocks, d, width: blocks * (2 * d * width + width + d), "two adapters in a block"),
            (lambda blocks, d, width: 4 * blocks * d * width, "have a bias"),
            (lambda blocks, d, width: 2 * blocks * (2 * d * width + d), "the lower layer has a bias"),
            (lambda blocks, d, width: 2 * blocks * (2 * d * width + width), "the upper layer has a bias"),
            (lambda blocks, d, width: 4 * blocks * (d * width + d), "has `width` numbers, not d"),
            (lambda blocks, d, width: 2 * blocks * (d * width + width + d), "two matrices"),
            (lambda blocks, d, width: 2 * (2 * d * width + width + d), "that is one block"),
            (lambda blocks, d, width: 2 * d * width + width + d, "that is one adapter"),
            (lambda blocks, d, width: str(adapter_parameters(blocks, d, width)), "a text"),
            (lambda blocks, d, width: d * width, "Count one adapter first"),
        ),
    ),
    Exercise(
        name="08.same_count",
        points=2,
        goal="a function of total, layers and d that returns a list of pairs (matrices, rank), two whole numbers each",
        solution=same_count,
        check=_check_same_count,
        hints=(
            "One matrix in each layer at rank 1 costs layers · (d + d).",
            "For each number of matrices from 1 to 4: does the total divide evenly? `%` gives the remainder.",
        ),
        mistakes=(
            (lambda total, layers, d: [(2, total / (2 * layers * d))], "TWO factors"),
            (lambda total, layers, d: [(m, total // (m * layers * d)) for m in (1, 2, 4)], "TWO factors"),
            (lambda total, layers, d: [(2, total // (4 * layers * d))], "lacks (1, 2)"),
            (lambda total, layers, d: [(m, total / (m * 2 * layers * d)) for m in (1, 2, 3, 4)], "a whole number"),
            (lambda total, layers, d: [(m, total // (m * 2 * layers * d)) for m in (1, 2, 3)], "at least 1"),
            (lambda total, layers, d: [(m, 9) for m in (1, 2)], "parameters and not 4,718,592"),
            (lambda total, layers, d: [(8, 1)], "attention has four"),
            (lambda *given: [(rank, matrices) for matrices, rank in same_count(*given)], "matrices comes first"),
            (lambda *given: [pair for pair in same_count(*given) if pair[1] <= 64], "lacks (1, 100)"),
            (lambda total, layers, d: total // (2 * layers * d), "a list of pairs"),
        ),
    ),
    Exercise(
        name="08.judge",
        points=2,
        goal="a function of runs that returns for each way the test score at the rate that validation chooses",
        solution=judged,
        check=_check_judged,
        hints=(
            "Go way by way. Which of its runs has the highest validation score?",
            "Report that run's test score, whatever the other test scores are.",
            '`max(own, key=lambda run: run["validation"])["test"]`',
        ),
        mistakes=(
            (lambda runs: {run["way"]: max(r["test"] for r in runs if r["way"] == run["way"]) for run in runs}, "TEST"),
            (
                lambda runs: {r["way"]: max(o["validation"] for o in runs if o["way"] == r["way"]) for r in runs},
                "is the validation score",
            ),
            (lambda runs: {run["way"]: run["test"] for run in runs if run["rate"] == 1e-4}, "from the lowest rate"),
            (lambda runs: {run["way"]: run["test"] for run in runs}, "TEST"),
            (lambda runs: max(runs, key=lambda run: run["validation"])["test"], "A dict with the keys"),
            (lambda runs: {run["way"]: 0.5 for run in runs}, "is not the test score"),
            (
                lambda runs: {r["way"]: next(o["test"] for o in runs if o["way"] == r["way"]) for r in runs},
                "from the lowest rate",
            ),
        ),
    ),
    Exercise(
        name="08.told_apart",
        goal="a function of a, b and fluctuation that returns whether the two bars leave a gap",
        solution=told_apart,
        check=_check_told_apart,
        hints=(
            "Draw a and b with a bar of ± fluctuation each. When does a gap stay between the bars?",
            "The distance is `abs(a - b)`, and both bars reach into it.",
        ),
        mistakes=(
            (lambda a, b, fluctuation: a - b > 2 * fluctuation, "the sign does not matter"),
            (lambda a, b, fluctuation: abs(a - b) > fluctuation, "the bars overlap"),
            (lambda a, b, fluctuation: a != b, "inside the other's bar"),
            (lambda a, b, fluctuation: abs(a - b) <= 2 * fluctuation, "their bars are far apart"),
            (lambda a, b, fluctuation: abs(a - b) > 1, "the two bars are 0.2 together"),
            (lambda a, b, fluctuation: abs(a - b) > 3 * fluctuation, "they differ by 0.25"),
            (lambda a, b, fluctuation: abs(a - b) >= 2 * fluctuation, "the bars touch"),
            (lambda a, b, fluctuation: abs(a - b) - 2 * fluctuation, "True or False is asked for"),
        ),
    ),
    Exercise(
        name="08.tasks",
        goal="a function of base, trained and tasks that returns the bytes as whole models and as adapters",
        solution=bytes_of_tasks,
        check=_check_tasks,
        hints=(
            "A number in 16 bits takes 2 bytes.",
            "With adapters the base is there once, and each task adds its own numbers.",
        ),
        mistakes=(
            (lambda base, trained, tasks: {"full": base * tasks, "adapters": base + trained * tasks}, "not one"),
            (
                lambda base, trained, tasks: {"full": 4 * base * tasks, "adapters": 4 * (base + trained * tasks)},
                "not four",
            ),
            (
                lambda base, trained, tasks: {"full": 2 * base * tasks, "adapters": 2 * (base + trained) * tasks},
                "the base is kept once",
            ),
            (
                lambda base, trained, tasks: {"full": 2 * base * tasks, "adapters": 2 * trained * tasks},
                "base is missing",
            ),
            (
                lambda base, trained, tasks: {"full": 2 * base, "adapters": 2 * (base + trained * tasks)},
                "that is one task",
            ),
            (
                lambda base, trained, tasks: {"full": 2 * base * tasks, "adapters": 2 * (base + trained)},
                "each task has its own",
            ),
            (
                lambda base, trained, tasks: {"full": 2 * base * tasks, "adapters": 2 * (base * tasks + trained)},
                "the other way round",
            ),
            (
                lambda base, trained, tasks: {"full": 16 * base * tasks, "adapters": 16 * (base + trained * tasks)},
                "those are bits",
            ),
            (
                lambda base, trained, tasks: {"full": 2 * base * tasks, "adapters": base + 2 * trained * tasks},
                "the base is in 16 bits too",
            ),
            (lambda base, trained, tasks: {"full": f"{2 * base * tasks:,}", "adapters": ""}, "is a text"),
            (lambda base, trained, tasks: 2 * base * tasks, "a dict with the keys"),
        ),
    ),
)
