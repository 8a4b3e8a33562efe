"""Train a model in a random subspace of d numbers: θ = θ0 + P v, with v the only thing that trains.

If a few hundred directions, drawn blindly among millions, hold a solution, then solutions are everywhere: the task has
a low intrinsic dimension. ``attach(model, SubspaceConfig(200))`` sets this up, and ``intrinsic_dimension`` in
``intrinsic.py`` searches for the smallest d that does.

How the model comes to compute with θ. Every weight depends on all of v, so a layer cannot add its own small path, as a
LoRA layer does. All weights are computed together, once for each value of v, by one autograd function whose backward
pass is Pᵀ; each layer gets its own in front of the frozen one while it runs. ``torch.nn.utils.parametrize`` would
compute P v anew at every access, change the class of every layer, and rename the weights;
``torch.func.functional_call`` wants every call of the model written in another way. Here the forward pass of the layers
is the one they have, the base weights are never written, and a transformers model generates, goes to and from training
mode, is copied and saved as it always is. Memory: the weights twice, once their gradients until Pᵀ takes them in, and
what the projection keeps.
"""

import difflib
import inspect
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lora_lab.lora.attach import activate, adapters, check_may_attach, open_note, register_attach
from lora_lab.lora.config import checked_rank, layer_names
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.projections import PROJECTIONS, Projection, ProjectionKind
from lora_lab.lora.targets import identity

Parameters: TypeAlias = tuple[str, ...] | Callable[[str, nn.Parameter], bool] | Literal["all"]


@dataclass(frozen=True)
class SubspaceConfig:
    """The description of training in a random subspace: θ = θ0 + P v, or θ_i = θ0_i + λ_i (P v)_i layer by layer.

    v starts at 0 and the λ at 1, so that the model computes what it computed before. P is fixed by the seed.

    Args:
        dimension: d, how many numbers train in all; at most D, how many numbers the parameters hold.
        projection: how P is drawn: "fastfood", "sparse" or "dense"; see ``projections.py``.
        structure_aware: False is DID, direct intrinsic dimension: all d numbers are v. True is SAID, structure-aware
            intrinsic dimension: m of the d numbers are scales λ, one for each of the m layers, and the other d − m are
            v. A layer is a module that owns parameters, its weight and its bias together; a tied weight belongs to the
            first module that has it. A function from the name of a parameter to that of its layer says otherwise:
            ``lambda name: name.split(".")[2]``, say, for one scale a block.
        parameters: which parameters of the model move: "all" of them; a tuple of names, of parameters or of modules
            that hold them, compared in whole components with the end of the dotted name, ("weight",) or ("layer.0",
            "classifier"); or a function of the dotted name and the parameter. The others are frozen. A parameter that
            has two names counts once.
        seed: seeds P.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: dimension is below 1, the projection is none of the three, or ``parameters`` is empty or names one
            twice.

    Source: Li et al. (2018), "Measuring the Intrinsic Dimension of Objective Landscapes", section 2; Aghajanyan, Gupta
        and Zettlemoyer (2021), "Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning",
        section 3.
    """

    dimension: int
    projection: ProjectionKind = "fastfood"
    structure_aware: bool | Callable[[str], str] = False
    parameters: Parameters = "all"
    seed: int = 0

    cannot_merge: ClassVar[str] = (
        "all weights are computed from v together, and no layer has an update of its own to add; the model runs at the "
        "speed of the base as it is, as long as v stays"
    )

    def __post_init__(self) -> None:
        """Check every field, and keep names as a tuple."""
        object.__setattr__(self, "dimension", checked_rank("dimension", self.dimension))
        if not isinstance(self.projection, str) or self.projection not in get_args(ProjectionKind):
            raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}, got {self.projection!r}")
        if not (isinstance(self.structure_aware, bool) or _is_function(self.structure_aware)):
            raise TypeError(f"structure_aware must be True, False or a function, got {self.structure_aware!r}")
        if not (_is_function(self.parameters) or (isinstance(self.parameters, str) and self.parameters == "all")):
            object.__setattr__(self, "parameters", layer_names("parameters", self.parameters))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be a whole number, got {self.seed!r}")


class Subspace(nn.Module):
    """The numbers that train, v and the scales λ if there are any, and the weights that follow from them.

    Attributes:
        v: (d,), or (d − m,) beside m scales; float32, or float64 if a parameter is.
        scales: λ (m,), or None.
        projection: P.
        names: the parameters that move, in the order of the rows of P.
    """

    def __init__(
        self, owners: dict[str, tuple[nn.Module, str]], projection: Projection, layers: Sequence[int] | None
    ) -> None:
        """Start at v = 0 and λ = 1.

        Args:
            owners: for the dotted name of each parameter, the module that has it and its name there.
            projection: P, with as many rows as the parameters have numbers.
            layers: the number of the layer of each parameter, from 0; None for no scales.
        """
        super().__init__()
        self.names, self.projection = tuple(owners), projection
        self._owners = list(owners.values())  # modules of the model, not registered here
        like = self._base()
        dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in like) else torch.float32
        self.v = nn.Parameter(torch.zeros(projection.dimension, dtype=dtype, device=like[0].device))
        count = max(layers) + 1 if layers is not None else 0
        ones = torch.ones(count, dtype=dtype, device=like[0].device)
        self.scales = nn.Parameter(ones) if layers is not None else None
        self._layout = _Layout(projection, [weight.numel() for weight in like], layers)
        self._made: _Made | None = None

    def weights(self, needed: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Give all weights θ; they are computed anew only if v, a scale, or a base weight has changed.

        Where gradients are on, they carry the graph that leads back to v. The graph holds no activations, so any number
        of backward passes may run through it.

        Args:
            needed: which of the base weights to look at for a change; None for all.
        """
        base, numbers = self._base(), [p for p in (self.v, self.scales) if p is not None]
        grad = torch.is_grad_enabled() and any(p.requires_grad for p in numbers)
        made = self._made
        if made is None or (grad and not made.grad) or not made.still_holds(numbers, base, needed):
            self._made = made = None  # before the new ones are there, so that memory holds one set of them
            # What is made in inference mode could not be used outside of it.
            with torch.inference_mode(False), torch.set_grad_enabled(grad):
                weights = _Weights.apply(self._layout, self.v, self.scales, *base)
            self._made = made = _Made(weights, grad, [p.detach().clone() for p in numbers], [_mark(w) for w in base])
        return made.weights

    def _base(self) -> list[Tensor]:
        """Give the parameters of the base, θ0."""
        return [module._parameters[name].detach() for module, name in self._owners]  # type: ignore[union-attr]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the computed weights out of copies and pickles."""
        return self.__dict__ | {"_made": None}

    def extra_repr(self) -> str:
        """Say how many numbers stand for how many when the model is printed."""
        scales = "" if self.scales is None else f", scales={len(self.scales)}"
        return f"v={len(self.v)}{scales}, {self.projection.kind} projection to {self.projection.rows:,} numbers"


class SubspaceLayer(TrainedCopy):
    """A module of the model that computes with the weights of a subspace.

    ``base`` is the very module, frozen. While it runs, the weights θ stand in front of its parameters and of those of
    the modules inside it. A parameter that is read from outside, ``model.lm_head.weight``, is θ too. The first of these
    layers has the subspace itself in ``copies``, where the numbers that train are counted, saved and switched.

    Args:
        base: the module.
        subspace: where its weights come from.
        places: for each parameter of the module that moves, by its dotted name inside the module, its number among the
            weights of the subspace.
    """

    def __init__(self, base: nn.Module, subspace: Subspace, places: dict[str, int]) -> None:
        """Hold the module."""
        super().__init__(base)
        self._subspace = (subspace,)  # in a tuple, so that it is no submodule here
        self._places = places

    @property
    def in_use(self) -> nn.Module:
        """The module itself: no copy stands in for it."""
        return self.base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the module computes, with the weights of the subspace."""
        return self._with_weights(self.base, *args, **kwargs) if self.enabled else self.base(*args, **kwargs)

    def _with_weights(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function while θ stands in front of the parameters."""
        with _in_front(self.base, self._weights()):
            return function(*args, **kwargs)

    def _weights(self) -> dict[str, Tensor]:
        """Give the weights of this module by their dotted names inside it."""
        if self.rows is not None:
            raise TypeError("routed(model, …): all rows of a batch share the weights of a subspace")
        weights = self._subspace[0].weights(list(self._places.values()))
        return {name: weights[number] for name, number in self._places.items()}

    def __getattr__(self, name: str) -> Any:
        """Read what this class does not have from the module, with θ in the place of its parameters."""
        found = super().__getattr__(name)
        if name in ("base", "copies") or not self.enabled:
            return found
        if name in self._places:
            return self._weights()[name]
        if isinstance(found, nn.Module):  # a part of the module, which computes with its share of the weights
            inside = {key.removeprefix(f"{name}."): n for key, n in self._places.items() if key.startswith(f"{name}.")}
            part = SubspaceLayer(found, self._subspace[0], inside)
            part.rows = self.rows
            return part if inside else found
        if inspect.ismethod(found) and found.__self__ is self.base:
            return partial(self._with_weights, found)
        return found


@register_attach
def _attach_subspace(config: SubspaceConfig, model: nn.Module, name: str, generator: torch.Generator) -> None:
    """Attach a subspace: find the parameters, make P, and only then change the model."""
    check_may_attach(model, name)
    if there := adapters(model):
        raise ValueError(f"model must have no adapter beside a subspace, got {', '.join(there)}; detach(model) first")
    chosen = _chosen(model, config)
    weights: dict[int, int] = {}  # identity of a parameter → its number
    owners: dict[str, tuple[nn.Module, str]] = {}
    for place, parameter in chosen.items():
        if identity(parameter) not in weights:
            owner, _, own = place.rpartition(".")
            owners[place] = model.get_submodule(owner), own
            weights[identity(parameter)] = len(weights)
    layers = _layers(list(owners), config)
    count = max(layers) + 1 if layers is not None else 0
    if config.dimension <= count:
        raise ValueError(
            f"dimension must be above the {count} layers, which have a scale each, got {config.dimension}; or give "
            "structure_aware a function that makes layers of more parameters"
        )
    rows = sum(parameter.numel() for parameter in (model.get_parameter(place) for place in owners))
    projection = PROJECTIONS[config.projection](rows, config.dimension - count, config.seed)
    subspace = Subspace(owners, projection, layers)
    made: dict[nn.Module, SubspaceLayer] = {}
    places = _places_to_wrap(model, chosen)
    for place in places:
        module = model.get_submodule(place)
        if module not in made:
            inside = {
                key.removeprefix(f"{place}."): weights[identity(parameter)]
                for key, parameter in chosen.items()
                if key.startswith(f"{place}.")
            }
            made[module] = SubspaceLayer(module, subspace, inside)

    note = open_note(model)
    for place, module in [(place, model.get_submodule(place)) for place in places]:
        model.set_submodule(place, made[module])
    next(iter(made.values())).copies[name] = subspace
    note.configs[name] = config
    activate(model, name)


def find_subspace(model: nn.Module) -> Subspace:
    """Give the subspace that a model is attached to: its ``v``, its ``scales``, its ``projection``.

    Raises:
        ValueError: the model has none.
    """
    found = next((module for module in model.modules() if isinstance(module, Subspace)), None)
    if found is None:
        raise ValueError(f"model must have a subspace, got a {type(model).__name__} without; attach a SubspaceConfig")
    return found


class _Layout(NamedTuple):
    """Which rows of P belong to which weight, and which scale to which weight."""

    projection: Projection
    sizes: list[int]
    layers: Sequence[int] | None

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
        """Cut the rows start to stop by weights: the weight's number, where in the weight, and where in the rows."""
        ends = list(accumulate(self.sizes))
        number = bisect_right(ends, start)
        while start < stop:
            begin, until = ends[number] - self.sizes[number], min(stop, ends[number])
            if until > start:
                yield number, slice(start - begin, until - begin), slice(start, until)
            start, number = until, number + 1


class _Weights(torch.autograd.Function):
    """θ_i = θ0_i + λ_i (P v)_i for all weights at once; its backward pass is Pᵀ.

    P is taken a few rows at a time, and so is Pᵀ, so that neither P v nor the gradient exists as one long vector beside
    the weights. For the gradient of λ_i, which is the product of the gradient of θ_i with (P v)_i, P v is computed
    again.
    """

    @staticmethod
    def forward(ctx: Any, layout: _Layout, v: Tensor, scales: Tensor | None, *base: Tensor) -> tuple[Tensor, ...]:
        """Compute the weights, each in the type of its base, from sums in the type of v."""
        # Copies, d numbers: an optimiser may have changed v by the time of the backward pass.
        ctx.layout, ctx.v = layout, v.clone()
        ctx.scales = None if scales is None else scales.clone()
        ctx.set_materialize_grads(False)
        weights = tuple(torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) for weight in base)
        if v.is_meta:
            return weights
        flat, start = [weight.view(-1) for weight in weights], [weight.reshape(-1) for weight in base]
        for part in layout.projection.parts(v.device):
            update = part.times(v)
            for number, here, there in layout.pieces(part.start, part.stop):
                step = update[there.start - part.start : there.stop - part.start]
                if scales is not None and layout.layers is not None:
                    step = step * scales[layout.layers[number]]
                torch.add(start[number][here], step, out=flat[number][here])
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Give Pᵀ (λ g) for v, and ⟨g_i, (P v)_i⟩ summed over a layer for its scale."""
        layout, v, scales = ctx.layout, ctx.v, ctx.scales
        for_v, for_scales = torch.zeros_like(v), None if scales is None else torch.zeros_like(scales)
        nothing = (None,) * len(grads)
        if v.is_meta:
            return None, for_v, for_scales, *nothing
        flat = {number: grad.reshape(-1) for number, grad in enumerate(grads) if grad is not None}
        for part in layout.projection.parts(v.device):
            pieces = [piece for piece in layout.pieces(part.start, part.stop) if piece[0] in flat]
            if not pieces:
                continue
            g = v.new_zeros(part.stop - part.start)
            update = None if scales is None else part.times(v)
            for number, here, there in pieces:
                rows = slice(there.start - part.start, there.stop - part.start)
                g[rows] = flat[number][here]
                if update is not None and for_scales is not None:
                    layer = layout.layers[number]
                    for_scales[layer] += g[rows] @ update[rows]
                    g[rows] *= scales[layer]
            for_v += part.transposed(g)
        return None, for_v, for_scales, *nothing


class _Made(NamedTuple):
    """Weights that were computed, and what they were computed from."""

    weights: tuple[Tensor, ...]
    grad: bool
    numbers: list[Tensor]  # copies of v and the scales
    base: list[tuple[Any, ...]]  # marks of the base weights

    def still_holds(self, numbers: list[nn.Parameter], base: list[Tensor], needed: Sequence[int] | None) -> bool:
        """Say whether nothing has changed since, in v, in the scales, and in the base weights that are needed."""
        same = all(now.is_meta or _equal(now, then) for now, then in zip(numbers, self.numbers, strict=True))
        looked_at = range(len(base)) if needed is None else needed
        return same and all(_mark(base[number]) == self.base[number] for number in looked_at)


def _equal(now: Tensor, then: Tensor) -> bool:
    """Say whether two vectors hold the same bits, in the same type and place; so that NaN is what it was, too."""
    if now.dtype != then.dtype or now.device != then.device:
        return False
    return torch.equal(now.detach().view(torch.uint8), then.view(torch.uint8))


def _mark(weight: Tensor) -> tuple[Any, ...]:
    """Give what changes if a base weight is written, moved or replaced."""
    place = 0 if weight.is_meta else weight.data_ptr()
    return place, 0 if weight.is_inference() else weight._version, weight.dtype, weight.device


@contextmanager
def _in_front(module: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Let tensors stand in front of the parameters of a module, by dotted name, inside the block.

    Python looks into the ``__dict__`` of an object before it asks the module for a parameter of that name.
    """
    places = [(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in weights]
    before = [owner.__dict__.get(name) for owner, name in places]
    try:
        for (owner, name), weight in zip(places, weights.values(), strict=True):
            owner.__dict__[name] = weight
        yield
    finally:
        for (owner, name), other in zip(places, before, strict=True):
            owner.__dict__.pop(name, None)
            if other is not None:
                owner.__dict__[name] = other
            if isinstance(owner, nn.RNNBase):
                owner._init_flat_weights()  # it keeps a list of its weights, and would keep these


def _chosen(model: nn.Module, config: SubspaceConfig) -> dict[str, nn.Parameter]:
    """Give the parameters that move, under all their names, or raise."""
    every = dict(model.named_parameters(remove_duplicate=False))
    asked = config.parameters
    if not every:
        raise ValueError(f"model must have parameters, got a {type(model).__name__} without")
    if isinstance(asked, tuple):
        for name in asked:
            if not any(_named(place, name) for place in every):
                close = difflib.get_close_matches(name, _endings(every, name.count(".") + 1))
                hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
                raise ValueError(f"parameters: {name!r} names no parameter of {type(model).__name__}.{hint}")
        found = {place: p for place, p in every.items() if any(_named(place, name) for name in asked)}
    elif callable(asked):
        found = {place: parameter for place, parameter in every.items() if asked(place, parameter)}
    else:
        found = every
    if not found:
        raise ValueError(f"parameters: the function names no parameter of {type(model).__name__}")
    for place, parameter in found.items():
        if not parameter.is_floating_point():
            raise TypeError(f"parameters must be floating to move, but {place!r} is {parameter.dtype}; leave it out")
        if "." not in place:
            raise TypeError(
                f"model must hold the modules whose parameters move, but {place!r} is its own; leave it out, or put "
                "the model into another: nn.Sequential(model)"
            )
    moves = {identity(parameter) for parameter in found.values()}
    return {place: parameter for place, parameter in every.items() if identity(parameter) in moves}


def _named(place: str, name: str) -> bool:
    """Say whether a name is the end, in whole components, of a parameter's name or of that of a module around it."""
    return f".{name}." in f".{place}."


def _endings(places: dict[str, nn.Parameter], components: int) -> list[str]:
    """Give every run of so many components in dotted names."""
    runs = (place.split(".")[i : i + components] for place in places for i in range(place.count(".") + 1))
    return list(dict.fromkeys(".".join(run) for run in runs))


def _layers(places: list[str], config: SubspaceConfig) -> list[int] | None:
    """Give the number of the layer of each parameter, or None where there are no scales."""
    if config.structure_aware is False:
        return None
    layer_of = config.structure_aware if callable(config.structure_aware) else _owner
    names = [layer_of(place) for place in places]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def _owner(place: str) -> str:
    """Give the name of the module that owns a parameter."""
    return place.rpartition(".")[0]


def _places_to_wrap(model: nn.Module, chosen: dict[str, nn.Parameter]) -> list[str]:
    """Give the dotted names of the modules that own parameters that move and are not inside another that does."""
    owners = dict.fromkeys(_owner(place) for place in chosen)
    return [place for place in owners if not any(place.startswith(f"{other}.") for other in owners)]


def _is_function(value: object) -> bool:
    """Say whether a value is a function, and not a class."""
    return callable(value) and not isinstance(value, type)
