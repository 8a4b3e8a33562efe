"""What a LoRA adapter is: its rank and scale, the layers it adapts, and the variants of the idea."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypeAlias, get_args

from torch import nn

Places: TypeAlias = tuple[str, ...] | re.Pattern[str] | Callable[[str, nn.Module], bool]
Targets: TypeAlias = Places | Literal["all-linear"]
Init: TypeAlias = Literal["kaiming", "gaussian", "pissa"]
Bias: TypeAlias = Literal["none", "all", "lora_only"]
Tied: TypeAlias = Literal["refuse", "untie", "share"]


@dataclass(frozen=True, repr=False)
class LoRAConfig:
    """The description of a LoRA adapter: W becomes W + scale · B A in every layer that ``targets`` names.

    Args:
        rank: r, the number of rows of A and of columns of B; at least 1.
        alpha: numerator of the scale; above 0. It is a learning-rate-like constant: doubling it doubles the update.
        targets: which layers to adapt, in one of four ways:

            - a tuple of names, compared with the end of the dotted name in whole components: ``"q_proj"`` names
              ``model.layers.0.self_attn.q_proj``, and so does ``"self_attn.q_proj"``;
            - a regular expression, ``re.compile(r".*\\.[0-3]\\..*q_proj")``, that matches the whole dotted name;
            - a function of the dotted name and the module that says True for the layers you want;
            - ``"all-linear"``: every linear layer but the head. In a model of transformers the head is the output
              embedding and whatever stands outside the base model; a plain module says nothing of a head, so there
              every linear layer is meant.
        dropout: probability that an input feature of the adapter path is dropped in training; 0 ≤ dropout < 1. An
            embedding's input is an index, so dropout leaves it alone.
        rslora: divide alpha by sqrt(rank) instead of rank.
        dora: keep the length of each row of W apart from its direction, train the length, and let B A change the
            direction (Liu et al., 2024).
        init: how A and B start. "kaiming" draws A as ``nn.Linear`` draws its weight, "gaussian" from a normal law of
            standard deviation 1 / rank, both with B = 0. "pissa" starts from the leading singular vectors of W (Meng
            et al., 2024); what B A is at the start is subtracted, so that the base stays as it is.
        bias: which biases of the model train beside the factors: "none", "all", or those of the adapted layers
            ("lora_only").
        rank_pattern: other ranks for some layers, by a regular expression that the end of the dotted name matches in
            whole components; the first one that matches counts. Each must match a layer that is adapted.
        alpha_pattern: other values of alpha, likewise.
        modules_to_save: names of modules, as in ``targets``, that are trained as a whole in a copy that belongs to
            the adapter: a new classifier, say.
        tied: what to do about a target whose weight is also that of another layer: "refuse" it; "untie", adapt the
            one layer alone, and give it a weight of its own when merged; or "share", one update for all of them.

    Raises:
        TypeError: a field has the wrong type; a bare string as ``targets`` is one (write ``("q_proj",)``).
        ValueError: a number is out of its range, a choice is not one of those above, or ``targets`` is empty or names
            a layer twice.

    Source: Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    """

    rank: int = 8
    alpha: float = 16
    targets: Targets = ("q_proj", "v_proj")
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    init: Init = "kaiming"
    bias: Bias = "none"
    rank_pattern: Mapping[str, int] | tuple[tuple[str, int], ...] = ()
    alpha_pattern: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    modules_to_save: tuple[str, ...] = ()
    tied: Tied = "refuse"

    def __post_init__(self) -> None:
        """Check every field, and keep numbers as plain Python numbers, names and patterns as tuples."""
        put = object.__setattr__
        put(self, "rank", checked_rank("rank", self.rank))
        put(self, "alpha", checked_alpha("alpha", self.alpha))
        put(self, "targets", _targets(self.targets))
        put(self, "dropout", _real_number("dropout", self.dropout))
        put(self, "rank_pattern", _pattern("rank_pattern", self.rank_pattern, checked_rank))
        put(self, "alpha_pattern", _pattern("alpha_pattern", self.alpha_pattern, checked_alpha))
        if self.modules_to_save != ():
            put(self, "modules_to_save", layer_names("modules_to_save", self.modules_to_save))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name in ("rslora", "dora"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, choices in (("init", Init), ("bias", Bias), ("tied", Tied)):
            if not isinstance(value := getattr(self, name), str) or value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if self.dora and self.init == "pissa":
            raise ValueError("init='pissa' does not go with dora=True: choose one of the two")
        if self.tied == "share" and (self.dora or self.init == "pissa"):
            raise ValueError("tied='share' goes with plain LoRA alone, got dora=True or init='pissa' beside it")

    def __repr__(self) -> str:
        """Say rank, alpha and targets, and whatever else is not as it is by default."""
        said = [f"{name}={getattr(self, name)!r}" for name in ("rank", "alpha", "targets")]
        rest = [field for field in dataclasses.fields(self) if field.name not in ("rank", "alpha", "targets")]
        said += [f"{f.name}={getattr(self, f.name)!r}" for f in rest if getattr(self, f.name) != f.default]
        return f"LoRAConfig({', '.join(said)})"

    @property
    def scale(self) -> float:
        """The factor before B A: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

        Dividing by the rank lets you change the rank without tuning alpha again (Hu et al., 2021, section 4.1).
        Dividing by its square root keeps the size of the gradients at high ranks (Kalajdzievski, 2023, theorem 3.2).
        """
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def for_layer(self, name: str) -> "LoRAConfig":
        """Give the configuration of one layer: the rank and alpha that the patterns give this name, and no patterns."""
        rank = int(_first_match(self.rank_pattern, name, self.rank))
        alpha = _first_match(self.alpha_pattern, name, self.alpha)
        return dataclasses.replace(self, rank=rank, alpha=alpha, rank_pattern=(), alpha_pattern=())


def pattern_matches(pattern: str, name: str) -> bool:
    """Say whether the end of a dotted name matches a regular expression, in whole components, as in PEFT."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def checked_rank(name: str, value: object) -> int:
    """Give ``value`` as a rank, which is a whole number from 1."""
    rank = _whole_number(name, value)
    if rank < 1:
        raise ValueError(f"{name} must be at least 1, got {rank}")
    return rank


def checked_alpha(name: str, value: object) -> float:
    """Give ``value`` as an alpha, which is a finite number above 0."""
    alpha = _real_number(name, value)
    if not 0 < alpha < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {alpha}")
    return alpha


def layer_names(name: str, value: object) -> tuple[str, ...]:
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


def checked_places(value: object) -> Places:
    """Give ``value`` as one of the three ways to name modules: names, an expression, a function."""
    if isinstance(value, re.Pattern):
        if not isinstance(value.pattern, str):
            raise TypeError(f"targets must be a regular expression of text, got {value!r}")
        return value
    if callable(value) and not isinstance(value, type):
        return value
    return layer_names("targets", value)


def _targets(value: object) -> Targets:
    """Give ``value`` as one of the four ways to name layers."""
    if value == "all-linear":
        return "all-linear"
    if isinstance(value, str):
        raise TypeError(
            f"targets must be a tuple of layer names, re.compile(…), a function or 'all-linear', got the string "
            f"{value!r}; write ({value!r},)"
        )
    return checked_places(value)


def _pattern(name: str, value: object, checked: Callable[[str, object], float]) -> tuple[tuple[str, float], ...]:
    """Give a mapping from regular expressions to numbers as a tuple of pairs."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"{name} must be a dict from patterns to numbers, got {value!r}")
    for pattern, _ in pairs:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise ValueError(f"{name} must have regular expressions as keys, got {pattern!r}: {error}") from error
    return tuple((pattern, checked(f"{name}[{pattern!r}]", number)) for pattern, number in pairs)


def _first_match(pattern: Mapping[str, float] | tuple[tuple[str, float], ...], name: str, default: float) -> float:
    """Give the number of the first pattern that the name matches."""
    assert isinstance(pattern, tuple)
    return next((number for expression, number in pattern if pattern_matches(expression, name)), default)


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
