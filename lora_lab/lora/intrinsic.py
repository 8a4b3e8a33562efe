"""The intrinsic dimension of a task, d90: the smallest random subspace in which training gets most of the way.

The search needs only a function that trains in a subspace of d numbers, drawn with a seed, and gives a score. What it
finds is a bracket for each seed, a dimension that was too small beside the next one that was enough, and it says so
where there is no such bracket.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real

from lora_lab.lora.config import checked_rank


@dataclass(frozen=True)
class Bracket:
    """What was found with one seed.

    Attributes:
        seed: the seed.
        too_small: the largest dimension below ``enough`` that was tried; its score stays under the threshold. None if
            the smallest dimension of the grid was enough.
        enough: the dimension that was found: its score reaches the threshold. None if no dimension up to the largest
            of the grid reaches it.
        falls_back: dimensions larger than ``enough`` that were tried and stay under the threshold. There should be
            none: each says that the score is noisier than the grid is fine.
    """

    seed: int
    too_small: int | None
    enough: int | None
    falls_back: tuple[int, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the threshold is crossed between two dimensions that were tried, and not crossed back."""
        return self.too_small is not None and self.enough is not None and not self.falls_back

    def __str__(self) -> str:
        """Say in words what was found."""
        if self.enough is None:
            return f"seed {self.seed}: not reached, {self.too_small:,} is too small"
        if self.too_small is None:
            said = f"seed {self.seed}: {self.enough:,} or fewer, the smallest tried is enough"
        else:
            said = f"seed {self.seed}: {self.enough:,} is enough, {self.too_small:,} is too small"
        fallen = ", ".join(f"{dimension:,}" for dimension in self.falls_back)
        return said + (f"; but {fallen} is under the threshold again" if fallen else "")


@dataclass(frozen=True)
class IntrinsicDimension:
    """What the search found.

    Attributes:
        value: the median over the seeds of the dimension that was enough, or None if some seed's bracket does not hold.
            For an even number of seeds it is the lower one of the two in the middle, which was tried.
        interval: the largest dimension that was too small for every seed, and the smallest that was enough for every
            seed, both as far as the search went; None for an end that was not found.
        threshold: the score to reach.
        brackets: what was found with each seed.
        scores: the score of every training run, by dimension and seed.
    """

    value: int | None
    interval: tuple[int | None, int | None]
    threshold: float
    brackets: tuple[Bracket, ...]
    scores: Mapping[tuple[int, int], float]

    def __str__(self) -> str:
        """Say in words what was found, and what was not."""
        low, high = ("?" if end is None else f"{end:,}" for end in self.interval)
        if self.value is None:
            head = "the intrinsic dimension was not found"
            head += f": it is above {low}" if low != "?" else ""
            head += (", and" if low != "?" else ": it is") + f" at most {high}" if high != "?" else ""
        else:
            head = f"intrinsic dimension {self.value:,}, between {low} and {high}"
        runs = f"threshold {self.threshold:.4g}, {len(self.brackets)} seeds, {len(self.scores)} training runs"
        return "\n".join([f"{head} ({runs})", *map(str, self.brackets)])


def intrinsic_dimension(
    score: Callable[[int, int], float],
    full_score: float,
    *,
    largest: int | None = None,
    smallest: int = 1,
    start: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    share: float = 0.9,
    baseline: float = 0.0,
    steps_per_decade: int = 10,
    grid: Sequence[int] | None = None,
) -> IntrinsicDimension:
    """Search for the smallest d at which score(d, seed) ≥ baseline + share · (full_score − baseline).

    Li et al. take 90 % of the score of full training, which is ``baseline=0``. Where guessing scores well, that
    threshold lies low or even under a guess: with two equal classes and a full accuracy of 0.9, it is 0.81, but of
    0.55, it is 0.495. Give the score of guessing (the share of the largest class, say) as ``baseline``, and the
    threshold is 90 % of the way from there to full training. Say which of the two you took beside the number.

    For each seed, the search walks from ``start`` along a grid of dimensions with equal ratios, each step twice as long
    as the one before, until the threshold is crossed; then it halves the bracket until its ends are neighbours on the
    grid. Halving takes for granted that once enough stays enough, so the next larger dimension is tried too, and
    ``Bracket.falls_back`` says where that fails. The next seed starts where this one ended. No run is made twice.

    Args:
        score: trains in a subspace of d numbers with a seed, ``score(d, seed)``, and gives the score; higher is better.
        full_score: the score of training all parameters, by the same measure.
        largest: the largest d to try; it must be given, or ``grid`` must.
        smallest: the smallest d to try; for SAID, m + 1 at least.
        start: where to begin; None for the middle of the grid.
        seeds: one search each.
        share: how much of the way counts as solved; 0 < share ≤ 1.
        baseline: where the way begins.
        steps_per_decade: how many dimensions of the grid lie between d and 10·d: with 10 neighbours are 26 % apart.
            Whole numbers that fall together are one.
        grid: the dimensions themselves, rising, in place of largest, smallest and steps_per_decade: for scores that
            were measured at those and no others.

    Raises:
        TypeError: score is not a function, a number is not one; neither ``largest`` nor ``grid`` is given, or both, or
            ``smallest`` or ``steps_per_decade`` beside ``grid``.
        ValueError: full_score is not above the baseline, so that there is nothing to explain; share or a dimension is
            out of its range; ``grid`` has fewer than two dimensions, or they do not rise; there are no seeds, or one
            twice; a score is NaN or infinite.

    Source: Li et al. (2018), section 2; Aghajanyan, Gupta and Zettlemoyer (2021), section 3.
    """
    if not callable(score):
        raise TypeError(f"score must be a function of a dimension and a seed, got {score!r}")
    threshold = _threshold(full_score, baseline, share)
    if (grid is None) == (largest is None) or (grid is not None and (smallest, steps_per_decade) != (1, 10)):
        raise TypeError("give either largest, with smallest and steps_per_decade if you like, or grid alone")
    grid = _grid(smallest, largest, steps_per_decade) if grid is None else _given(grid)
    if isinstance(seeds, str) or not all(isinstance(seed, Integral) for seed in seeds):
        raise TypeError(f"seeds must be whole numbers, got {seeds!r}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one at least, and each once, got {seeds!r}")
    place = len(grid) // 2
    if start is not None:
        if not grid[0] <= checked_rank("start", start) <= grid[-1]:
            raise ValueError(f"start must be from smallest={grid[0]} to largest={grid[-1]}, got {start}")
        place = min(range(len(grid)), key=lambda i: abs(math.log(grid[i] / start)))

    scores: dict[tuple[int, int], float] = {}

    def reached(i: int, seed: int) -> bool:
        """Train at a place of the grid, if that was not done before, and say whether it is enough."""
        if (grid[i], seed) not in scores:
            scores[grid[i], seed] = _finite(f"score({grid[i]}, {seed})", score(grid[i], seed))
        return scores[grid[i], seed] >= threshold

    brackets = []
    for seed in seeds:
        low, high = _bracket(lambda i, seed=seed: reached(i, seed), len(grid), place)  # type: ignore[misc]
        if high + 1 < len(grid):
            reached(high + 1, seed)
        above = grid[high + 1 :] if high < len(grid) else []
        falls_back = tuple(d for d in above if scores.get((d, seed), threshold) < threshold)
        too_small, enough = grid[low] if low >= 0 else None, grid[high] if high < len(grid) else None
        brackets.append(Bracket(int(seed), too_small, enough, falls_back))
        place = min(high, len(grid) - 1)
    return _found(threshold, brackets, scores)


def _bracket(reached: Callable[[int], bool], length: int, place: int) -> tuple[int, int]:
    """Give neighbours i and i + 1 of the places 0 … length − 1, the first not reached and the second reached.

    −1 stands for not reached below the first place, ``length`` for reached beyond the last.
    """
    step = 1
    if reached(place):
        low, high = place - 1, place
        while low >= 0 and reached(low):
            step *= 2
            low, high = max(low - step, -1 if low == 0 else 0), low
    else:
        low, high = place, place + 1
        while high < length and not reached(high):
            step *= 2
            low, high = high, min(high + step, length if high == length - 1 else length - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return low, high


def _found(threshold: float, brackets: list[Bracket], scores: dict[tuple[int, int], float]) -> IntrinsicDimension:
    """Put the brackets of the seeds together."""
    below = [bracket.too_small for bracket in brackets]
    above = [bracket.enough if not bracket.falls_back else None for bracket in brackets]
    low = None if None in below else min(d for d in below if d is not None)
    high = None if None in above else max(d for d in above if d is not None)
    value = None
    if all(bracket.holds for bracket in brackets):
        value = statistics.median_low(bracket.enough for bracket in brackets if bracket.enough is not None)
    return IntrinsicDimension(value, (low, high), threshold, tuple(brackets), scores)


def _threshold(full_score: object, baseline: object, share: object) -> float:
    """Give the score to reach."""
    full, floor, part = _finite("full_score", full_score), _finite("baseline", baseline), _finite("share", share)
    if not 0 < part <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {part}")
    if full <= floor:
        raise ValueError(
            f"full_score must be above the baseline {floor:.4g}, got {full:.4g}: full training learned nothing that a "
            "subspace could reach"
        )
    return floor + part * (full - floor)


def _grid(smallest: object, largest: object, steps_per_decade: object) -> list[int]:
    """Give the whole numbers from smallest to largest at equal ratios, both ends included, each once."""
    low, high = checked_rank("smallest", smallest), checked_rank("largest", largest)
    steps = checked_rank("steps_per_decade", steps_per_decade)
    if high <= low:
        raise ValueError(f"largest must be above smallest={low}, got {high}")
    count = math.ceil(steps * math.log10(high / low))
    grid = sorted({round(low * (high / low) ** (i / count)) for i in range(count + 1)})
    assert all(one < other for one, other in pairwise(grid))
    return grid


def _given(grid: Sequence[int]) -> list[int]:
    """Give the dimensions of a grid that the caller has made."""
    dimensions = [checked_rank("grid", dimension) for dimension in grid]
    if len(dimensions) < 2 or any(one >= other for one, other in pairwise(dimensions)):
        raise ValueError(f"grid must have two dimensions at least, each larger than the one before, got {list(grid)}")
    return dimensions


def _finite(name: str, value: object) -> float:
    """Give ``value`` as a float; NaN, infinity and what is no number are refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)
