"""What a LoRA adapter is, in five numbers and names: rank, alpha, targets, dropout, rsLoRA."""

import math
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class LoRAConfig:
    """The description of a LoRA adapter: W becomes W + scale · B A in every layer that ``targets`` names.

    Args:
        rank: r, the number of rows of A and of columns of B; at least 1.
        alpha: numerator of the scale; above 0. It is a learning-rate-like constant: doubling it doubles the update.
        targets: names of the layers to adapt, compared with the end of the dotted name in whole components:
            ``"q_proj"`` names ``model.layers.0.self_attn.q_proj``, and so does ``"self_attn.q_proj"``.
        dropout: probability that an input feature of the adapter path is dropped in training; 0 ≤ dropout < 1.
        rslora: divide alpha by sqrt(rank) instead of rank.

    Raises:
        TypeError: a field has the wrong type; a bare string as ``targets`` is one (write ``("q_proj",)``).
        ValueError: a number is out of its range, or ``targets`` is empty or names a layer twice.

    Source: Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    """

    rank: int = 8
    alpha: float = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        """Check every field, and keep numbers as plain Python numbers and targets as a tuple."""
        object.__setattr__(self, "rank", _whole_number("rank", self.rank))
        object.__setattr__(self, "alpha", _real_number("alpha", self.alpha))
        object.__setattr__(self, "targets", _names("targets", self.targets))
        object.__setattr__(self, "dropout", _real_number("dropout", self.dropout))
        if not isinstance(self.rslora, bool):
            raise TypeError(f"rslora must be True or False, got {self.rslora!r}")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be a finite number above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def scale(self) -> float:
        """The factor before B A: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

        Dividing by the rank lets you change the rank without tuning alpha again (Hu et al., 2021, section 4.1).
        Dividing by its square root keeps the size of the gradients at high ranks (Kalajdzievski, 2023, theorem 3.2).
        """
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def _whole_number(name: str, value: object) -> int:
    """Give ``value`` as an int; a bool, a float or text is refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def _real_number(name: str, value: object) -> float:
    """Give ``value`` as an int or a float; a bool or text is refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def _names(name: str, value: object) -> tuple[str, ...]:
    """Give ``value`` as a tuple of distinct layer names; a bare string is refused."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a tuple of layer names, got the string {value!r}; write ({value!r},)")
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name} must be a tuple of layer names, got {value!r}")
    for entry in value:
        if not isinstance(entry, str):
            raise TypeError(f"{name} must hold layer names, got {entry!r} among them")
        if not entry or entry.strip(".") != entry:
            raise ValueError(f"{name} must hold names without a dot at their ends, got {entry!r}")
    if not value:
        raise ValueError(f"{name} must name at least one layer, got none")
    if len(set(value)) < len(value):
        raise ValueError(f"{name} must name each layer once, got {value!r}")
    return tuple(value)
