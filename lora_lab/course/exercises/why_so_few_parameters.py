"""The exercises of notebook 07: conditions, the best point of a subspace, a threshold, d90, and a fair verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.course.exercises.framework import Exercise, Function, called

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def smallest_dimension(C: Floats) -> int:
    """Give the smallest d at which a random subspace holds a solution of C θ = b: the rank of C."""
    return int(np.linalg.matrix_rank(C))


def _conditions(rows: int, columns: int, copies: int) -> Floats:
    """Draw conditions, some of which follow from the others."""
    C = np.random.default_rng(rows + columns).standard_normal((rows, columns))
    return np.vstack([C, C[:copies] + C[-1]]) if copies else C


def _check_conditions(answer: Function) -> str | None:
    """Try independent conditions, repeated ones, and conditions on a third of the numbers alone."""
    blank = np.hstack([_conditions(4, 6, 0), np.zeros((4, 12))])
    for C, what in (
        (_conditions(3, 12, 0), "3 independent conditions on 12 numbers"),
        (_conditions(5, 40, 3), "8 conditions on 40 numbers, 3 of which follow from the other 5"),
        (blank, "4 conditions on 18 numbers, of which only 6 count"),
    ):
        right, got = smallest_dimension(C), answer(C.copy())
        rows, columns = C.shape
        if isinstance(got, str):
            return f"For {what} you give {got!r}, a text. A dimension is a number: return it without str and quotes."
        if got == right and float(got).is_integer():
            continue
        if got == columns - right:
            return f"For {what} you give {got}: that is how many directions are free. Asked is how many must be met."
        if got == right + 1:
            return f"For {what} you give {got}. With d = {right} there are {right} unknowns for {right} conditions."
        if got == columns:
            return f"For {what} you give {got}, all of them. How many numbers does it take to meet the conditions?"
        if got == rows:
            return f"For {what} you give {got}: a condition that follows from others costs nothing. What counts?"
        return f"For {what} you give {got!r}. One number can meet one condition that does not follow from the others."
    return None


def best_in_subspace(C: Floats, b: Floats, theta0: Floats, P: Floats) -> Floats:
    """Give the θ = θ0 + P v with the least ‖C θ − b‖: least squares for v."""
    v = np.linalg.lstsq(C @ P, b - C @ theta0, rcond=None)[0]
    return theta0 + P @ v


def _check_best(answer: Function) -> str | None:
    """Look at the shape, at whether θ lies in the subspace, and at the error that is left."""
    for conditions, dimension in ((5, 3), (4, 4), (3, 6)):
        rng = np.random.default_rng(conditions)
        C, P = rng.standard_normal((conditions, 20)), rng.standard_normal((20, dimension))
        b, theta0 = rng.standard_normal(conditions), rng.standard_normal(20)
        theta = np.asarray(answer(C.copy(), b.copy(), theta0.copy(), P.copy()), dtype=float)
        what = called(answer, C, b, theta0, P)
        if theta.shape != (20,):
            hint = " That is v; θ is θ0 + P v." if theta.shape == (dimension,) else ""
            return f"{what} has shape {theta.shape}, and θ has as many numbers as θ0: (20,).{hint}"
        v = np.linalg.lstsq(P, theta - theta0, rcond=None)[0]
        if not np.allclose(P @ v, theta - theta0, atol=1e-6):
            if np.allclose(P @ np.linalg.lstsq(P, theta, rcond=None)[0], theta, atol=1e-6):
                return f"{what}: you give P v. The subspace goes through θ0, so θ = θ0 + P v."
            return f"{what}: θ − θ0 is no mixture of the columns of P. Only v may be chosen; θ = θ0 + P v."
        best = best_in_subspace(C, b, theta0, P)
        left, least = (np.linalg.norm(C @ one - b) for one in (theta, best))
        if left > least + 1e-6:
            if np.allclose(theta, theta0):
                return f"{what}: that is θ0 itself. Which v brings C (θ0 + P v) nearest to b?"
            forgot = theta0 + P @ np.linalg.lstsq(C @ P, b, rcond=None)[0]
            if np.allclose(theta, forgot):
                return f"{what}: you fit C P v to b. C θ0 is there already, so fit it to b − C θ0."
            return f"{what} leaves an error of {left:.3g}, and {least:.3g} is possible in this subspace."
    return None


def threshold(full: float, guessing: float, share: float) -> float:
    """Give the score that is ``share`` of the way from guessing to full training."""
    return guessing + share * (full - guessing)


def _check_threshold(answer: Function) -> str | None:
    """Compare for three tasks; thresholds that forget where the way begins are recognised."""
    for full, guessing, share in ((0.8, 0.5, 0.9), (0.95, 0.1, 0.9), (0.7, 0.6, 0.5)):
        right, got = threshold(full, guessing, share), answer(full, guessing, share)
        if math.isclose(got, right, abs_tol=1e-6):  # near enough for float32
            continue
        what = f"{called(answer, full, guessing, share)} gives {float(got):.4g}"
        for wrong, reason in (
            (share * full, "that is a share of the score. With guessing at 0.5, half of such a share is a gift."),
            (share * (full - guessing), "that is the length of the way. It begins at the score of guessing."),
            (full - share * (full - guessing), "you walk from the full score down. Begin at guessing, and go up."),
            (guessing + share * full, "the way is full − guessing long, not full."),
            (guessing + 0.9 * (full - guessing), "your share is always 0.9. It is the third argument."),
            (100 * right, "a score lies between 0 and 1 here, so leave out the factor of 100."),
        ):
            if math.isclose(got, wrong, abs_tol=1e-6):
                return f"{what}: {reason}"
        return f"{what}. Begin at {guessing}, and go {share:.0%} of the way to {full}."
    return None


def d90(scores: Mapping[int, Sequence[float]], threshold: float) -> float:
    """Give the smallest dimension from which on every draw reaches the threshold; infinity if there is none."""
    found = math.inf
    for dimension in sorted(scores, reverse=True):
        if min(scores[dimension]) < threshold:
            break
        found = dimension
    return found


def _check_d90(answer: Function) -> str | None:
    """Try a clean rise, a mean that hides a draw, a score that falls back, disorder, and all or none reached."""
    for scores, why in (
        ({10: [0.6, 0.62], 100: [0.8, 0.82], 1000: [0.9, 0.9]}, "100 is the first that reaches it"),
        ({10: [0.79, 0.9], 100: [0.81, 0.85]}, "at 10 the mean is above the threshold, and one of the draws is not"),
        ({10: [0.85, 0.85], 32: [0.7, 0.9], 100: [0.9, 0.9]}, "10 reaches it, 32 does not, so 10 was luck"),
        ({1000: [0.9], 10: [0.5], 100: [0.8]}, "the keys need not be in order, and reaching means ≥"),
        ({100: [0.8], 1000: [0.9], 10: [0.5]}, "the keys need not be in order, and 100 is the first that reaches it"),
        ({10: [0.8, 0.9], 100: [0.9, 0.9]}, "every dimension reaches it, so the smallest is the answer"),
        ({10: [0.5, 0.6], 100: [0.7, 0.79]}, "no dimension reaches it, so the answer is math.inf"),
    ):
        right, got = d90(scores, 0.8), answer({d: list(some) for d, some in scores.items()}, 0.8)
        if got != right:
            return f"For the scores {scores} and the threshold 0.8 you give {got!r}: {why}."
    return None


def verdict(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Say "better" or "worse" if every seed says so, else "open"; the scores of one seed belong together."""
    differences = [ours[seed] - theirs[seed] for seed in ours]
    if all(difference > 0 for difference in differences):
        return "better"
    return "worse" if all(difference < 0 for difference in differences) else "open"


def _check_verdict(answer: Function) -> str | None:
    """Try pairs that agree while the scores overlap, a mean that one seed makes, a tie, and seeds in another order."""
    for ours, theirs, why in (
        ({0: 0.71, 1: 0.75, 2: 0.79}, {0: 0.7, 1: 0.74, 2: 0.78}, "every seed says better, though the scores overlap"),
        ({0: 0.6, 1: 0.7, 2: 0.8}, {0: 0.62, 1: 0.73, 2: 0.81}, "every seed says worse"),
        ({0: 0.9, 1: 0.7, 2: 0.7}, {0: 0.6, 1: 0.71, 2: 0.71}, "the mean is better by one seed alone; two say worse"),
        ({0: 0.7, 1: 0.8}, {0: 0.7, 1: 0.7}, "one of the two seeds is a tie"),
        ({0: 0.7, 1: 0.7}, {0: 0.7, 1: 0.8}, "one of the two seeds is a tie"),
        ({0: 0.7, 1: 0.8}, {1: 0.79, 0: 0.69}, "seed 0 belongs to seed 0, in whatever order the seeds stand"),
    ):
        right, got = verdict(ours, theirs), answer(dict(ours), dict(theirs))
        if got != right:
            return f"For {ours} against {theirs} you say {got!r}, and {right!r} is right: {why}."
    return None


def _fit(C: Floats, b: Floats) -> Any:
    """Give the least-squares solution."""
    return np.linalg.lstsq(C, b, rcond=None)[0]


def _first(scores: Mapping[int, Sequence[float]], reached: Any) -> float:
    """Give the smallest dimension whose scores are enough."""
    return min((d for d in scores if reached(scores[d])), default=math.inf)


def _by_mean(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Make the mistake of comparing means."""
    one, other = np.mean(list(ours.values())), np.mean(list(theirs.values()))
    return "better" if one > other else "worse" if one < other else "open"


def _by_ranges(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Make the mistake of comparing ranges, as if the seeds were not paired."""
    if min(ours.values()) > max(theirs.values()):
        return "better"
    return "worse" if max(ours.values()) < min(theirs.values()) else "open"


def _by_order(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Make the mistake of pairing scores by their place in the dict."""
    return verdict(dict(enumerate(ours.values())), dict(enumerate(theirs.values())))


def _by_ties(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Make the mistake of counting a tie as a win."""
    return "better" if all(ours[seed] >= theirs[seed] for seed in ours) else verdict(ours, theirs)


def _by_wins(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Make the mistake of saying "worse" wherever no seed is better."""
    won = [ours[seed] > theirs[seed] for seed in ours]
    return "better" if all(won) else "open" if any(won) else "worse"


def _from_the_last(scores: Mapping[int, Sequence[float]], threshold: float) -> float:
    """Make the mistake of going through the dict from its end, as if it were in order."""
    found = math.inf
    for dimension in reversed(list(scores)):
        if min(scores[dimension]) < threshold:
            break
        found = dimension
    return found


def _or_nothing(scores: Mapping[int, Sequence[float]], threshold: float) -> float | None:
    """Make the mistake of returning None where there is no such dimension."""
    found = d90(scores, threshold)
    return None if found == math.inf else found


def _above_the_last_failure(scores: Mapping[int, Sequence[float]], threshold: float) -> float:
    """Make the mistake of taking for granted that some dimension fails."""
    last = max((d for d in scores if min(scores[d]) < threshold), default=math.inf)
    return min((d for d in scores if d > last), default=math.inf)


EXERCISES = (
    Exercise(
        name="07.conditions",
        goal="a function of C that returns the smallest dimension at which a random subspace holds a solution",
        solution=smallest_dimension,
        check=_check_conditions,
        hints=(
            "In a subspace of d numbers there are d unknowns. How many of them does one condition use up?",
            "A row of C that is a mixture of the others is no condition of its own. Which number counts the others?",
            "`np.linalg.matrix_rank(C)`",
        ),
        mistakes=(
            (lambda C: len(C), "follows from others costs nothing"),
            (lambda C: C.shape[1], "all of them"),
            (lambda C: C.shape[1] - np.linalg.matrix_rank(C), "how many directions are free"),
            (lambda C: np.linalg.matrix_rank(C) + 1, "3 unknowns for 3 conditions"),
            (lambda C: 1, "One number can meet one condition"),
            (lambda C: str(np.linalg.matrix_rank(C)), "a text"),
        ),
    ),
    Exercise(
        name="07.best_point",
        points=2,
        goal="a function of C, b, theta0 and P that returns the point of the subspace nearest to a solution",
        solution=best_in_subspace,
        check=_check_best,
        hints=(
            "Put θ = θ0 + P v into C θ = b. Which matrix multiplies v, and what is left on the right?",
            "(C P) v = b − C θ0. `np.linalg.lstsq(A, y, rcond=None)[0]` gives the v with the least ‖A v − y‖.",
            "Give back θ0 + P v, not v.",
        ),
        mistakes=(
            (lambda C, b, theta0, P: _fit(C @ P, b - C @ theta0), "That is v"),
            (lambda C, b, theta0, P: P @ _fit(C @ P, b), "you give P v"),
            (lambda C, b, theta0, P: P @ _fit(C @ P, b - C @ theta0), "you give P v"),
            (lambda C, b, theta0, P: theta0 + P @ _fit(C @ P, b), "fit it to b − C θ0"),
            (lambda C, b, theta0, P: theta0 + _fit(C, b - C @ theta0), "no mixture of the columns of P"),
            (lambda C, b, theta0, P: theta0, "that is θ0 itself"),
            (lambda C, b, theta0, P: theta0 + P @ (P.T @ C.T @ (b - C @ theta0)), "is possible in this subspace"),
        ),
    ),
    Exercise(
        name="07.threshold",
        goal="a function of full, guessing and share that returns the score that counts as solved",
        solution=threshold,
        check=_check_threshold,
        hints=(
            "The way from guessing to full training is full − guessing long.",
            "You start at guessing, and go a share of that way.",
        ),
        mistakes=(
            (lambda full, guessing, share: share * full, "that is a share of the score"),
            (lambda full, guessing, share: share * (full - guessing), "the length of the way"),
            (lambda full, guessing, share: full - share * (full - guessing), "from the full score down"),
            (lambda full, guessing, share: guessing + share * full, "not full"),
            (lambda full, guessing, share: guessing + 0.9 * (full - guessing), "your share is always 0.9"),
            (lambda full, guessing, share: 100 * threshold(full, guessing, share), "between 0 and 1"),
            (lambda full, guessing, share: guessing, "go 90% of the way"),
        ),
    ),
    Exercise(
        name="07.d90",
        points=2,
        goal="a function of scores and threshold that returns a dimension, from which on every draw reaches it",
        solution=d90,
        check=_check_d90,
        hints=(
            "A dimension counts only if its lowest score reaches the threshold, and all larger dimensions do too.",
            "Go through the dimensions from the largest down, and stop at the first that fails.",
            "Begin with `found = math.inf`, and set it to the dimension as long as `min(scores[d]) >= threshold`.",
        ),
        mistakes=(
            (lambda scores, t: _first(scores, lambda some: np.mean(some) >= t), "one of the draws is not"),
            (lambda scores, t: _first(scores, lambda some: max(some) >= t), "one of the draws is not"),
            (lambda scores, t: _first(scores, lambda some: min(some) >= t), "so 10 was luck"),
            (lambda scores, t: max((d for d in scores if min(scores[d]) < t), default=0), "100 is the first"),
            (lambda scores, t: max(scores), "100 is the first that reaches it"),
            (_from_the_last, "need not be in order"),
            (_above_the_last_failure, "every dimension reaches it"),
            (_or_nothing, "for other arguments it did not"),
        ),
    ),
    Exercise(
        name="07.verdict",
        points=2,
        goal='a function of ours and theirs that returns "better", "worse" or "open"',
        solution=verdict,
        check=_check_verdict,
        hints=(
            "Take the difference seed by seed: both methods had the same sentences there.",
            '"better" if all differences are above 0, "worse" if all are below, and else "open".',
        ),
        mistakes=(
            (_by_mean, "by one seed alone"),
            (_by_ranges, "though the scores overlap"),
            (_by_order, "seed 0 belongs to seed 0"),
            (_by_ties, "is a tie"),
            (_by_wins, "is a tie"),
            (lambda ours, theirs: "better" if all(ours[s] > theirs[s] for s in ours) else "worse", "two say worse"),
            (lambda ours, theirs: "open", "every seed says better"),
        ),
    ),
)
