"""Updates as matrices in factors: out of an adapter, into an adapter, and out of two models that differ.

What LoRA adds to a weight is a ``lora_lab.lowrank.LowRank``: ``left`` is scale · B and ``right`` is A. So whatever you
can do with a low-rank matrix you can do with an adapter: look at its singular values, add two, cut one down to a lower
rank. And a full fine-tune becomes an adapter when the difference of the weights is cut off at a rank.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_lab.lora.attach import Model, attach, attached_layers, lora_layers
from lora_lab.lora.config import LoRAConfig, Targets, Tied, checked_rank
from lora_lab.lora.factors import TiedAdapter
from lora_lab.lora.layers import DEFAULT, LoRAConv1D, LoRAEmbedding, LoRALayer, LoRALinear, full_name, layer_class
from lora_lab.lora.targets import find_targets, matches, original_modules, plain
from lora_lab.lowrank import LowRank, choose_rank, rank_errors

Floats = NDArray[np.float64]

_MATRIX_KINDS = (LoRALinear, LoRAConv1D, LoRAEmbedding)  # the layers whose weight is one matrix


def updates(model: nn.Module, name: str | None = None) -> dict[str, LowRank]:
    """Give what an adapter adds to each weight, as a matrix in factors: left = scale · B, right = A.

    Each matrix is (out_features, in_features), the orientation of B A. A linear layer's weight lies so too; the weights
    of GPT-2's Conv1D and of an embedding lie the other way round: there the weight changes by ``update.T``, and an
    embedding's update is (embedding_dim, num_embeddings).

    A PiSSA adapter changes the weight by scale · (B A − B₀ A₀), with B₀ A₀ what it started from: its LowRank has rank
    2r. A layer that shares the update of another (``tied="share"``) is not listed beside it. Biases and whole modules
    that an adapter trains are no updates of low rank, and are not here.

    Args:
        model: a model with LoRA layers, merged or not.
        name: the adapter; None stands for the only one there is.

    Returns:
        A LowRank of float64 for each layer, by dotted name, in model order. The numbers are copies.

    Raises:
        TypeError: a layer is a convolution, whose weight is no matrix.
        ValueError: the model has no LoRA layers, or none with an adapter of this name; name is None and there are
            several; the adapter is DoRA; a factor is on the meta device, or not finite.
    """
    layers = attached_layers(model)
    there = list(dict.fromkeys(adapter for layer in layers.values() for adapter in layer.adapters))
    if name is None and len(there) > 1:
        raise ValueError(f"name must say which adapter is meant, for the model has {', '.join(there)}")
    chosen = there[0] if name is None else name
    if chosen not in there:
        raise ValueError(f"name must be one of the model's adapters, {', '.join(there)}, got {name!r}")
    own = {place: layer for place, layer in layers.items() if chosen in layer.adapters}
    return {
        place: _update(place, layer, layer.adapters[chosen])
        for place, layer in own.items()
        if not isinstance(layer.adapters[chosen], TiedAdapter)
    }


def attach_updates(
    model: Model,
    updates: Mapping[str, LowRank],
    *,
    name: str = DEFAULT,
    balanced: bool = True,
    tied: Tied = "refuse",
) -> Model:
    """Attach an adapter that adds these matrices to the weights, and give the model: the reverse of ``updates``.

    Each layer gets the rank of its matrix, and alpha equal to the rank, so that the scale is 1 everywhere. It is one
    configuration: the rank that most layers have, and a pattern for each of the others. The factors are rounded to
    what an adapter holds, float32, or float64 beside a float64 base.

    Args:
        model: the base model; it may have other adapters already.
        updates: a LowRank (out_features, in_features) of rank 1 at least for each layer, by its full dotted name.
        name: the name of the new adapter.
        balanced: share the singular values evenly between A and B, so that both have the same norm; they train better
            so, and small numbers stay in range. A rank above min(out_features, in_features) becomes that, and nothing
            is lost. False keeps the factors as they are given.
        tied: what to do about a weight that is also another layer's, as in ``LoRAConfig``.

    Raises:
        TypeError: updates is not a dict of LowRanks; a name is not that of a linear layer or an embedding.
        ValueError: updates is empty; there is no layer of a name; a LowRank has the wrong shape, or rank 0; and what
            ``attach`` raises. The model is untouched then.
    """
    modules = dict(original_modules(model))
    factors = {place: _fitting(place, update, modules, balanced) for place, update in _checked(updates).items()}
    config = _config(factors, modules, tied)
    attach(model, config, name=name)
    layers = lora_layers(model)
    with torch.no_grad():
        for place, update in factors.items():
            adapter: Any = layers[place].adapters[name]
            adapter.lora_A.copy_(torch.from_numpy(update.right))
            adapter.lora_B.copy_(torch.from_numpy(update.left))
    return model


@dataclass(frozen=True, repr=False)
class Extraction:
    """What ``extract`` found: the updates, and everything about the two models that the updates do not say.

    Attributes:
        updates: for each layer the best approximation of ΔW at its rank, (out_features, in_features) as in
            ``updates(model)``; layers of rank 0 are left out.
        ranks: the rank of each layer that differs. It is 0 where the way of choosing kept nothing.
        errors: the error curve of each layer that differs, ``rank_errors(ΔW)``: entry r is what rank r leaves out.
        changes: ‖ΔW‖ / ‖W‖ of each layer that differs (Frobenius).
        unchanged: the layers whose weights are the same in both models, which are left out.
        not_carried: whatever else differs, by name, with its ‖Δ‖ / ‖before‖: biases, norms, layers that are no
            targets. The updates do NOT carry it: the base model with them is not the tuned model.
        tied: what was said about tied weights.
    """

    updates: dict[str, LowRank]
    ranks: dict[str, int]
    errors: dict[str, Floats]
    changes: dict[str, float]
    unchanged: tuple[str, ...]
    not_carried: dict[str, float]
    tied: Tied = "refuse"

    def attach(self, model: Model, *, name: str = DEFAULT) -> Model:
        """Attach the updates to a model, as ``attach_updates`` does: most often to the base they were taken from."""
        return attach_updates(model, self.updates, name=name, tied=self.tied)

    def __str__(self) -> str:
        """Draw a table, a row for each layer that differs, and name what is not in it."""
        width = max([len(place) for place in self.ranks] + [5])
        rows = [f"{'layer':{width}}  update / weight  rank    error     numbers"]
        for place, rank in self.ranks.items():
            size = self.updates[place].size if rank else 0
            error = self.errors[place][rank]
            rows.append(f"{place:{width}}  {self.changes[place]:15.2e}  {rank:4}  {error:.1e}  {size:10,}")
        stored = sum(update.size for update in self.updates.values())
        dense = sum(update.shape[0] * update.shape[1] for update in self.updates.values())
        rows.append(f"{len(self.updates)} layers: {stored:,} numbers instead of {dense:,}")
        if self.unchanged:
            rows.append(f"the same in both models, and left out: {_some(self.unchanged)}")
        if self.not_carried:
            largest = sorted(self.not_carried.items(), key=lambda item: item[1], reverse=True)
            rows.append(
                "NOT CARRIED, though they differ (by so much): "
                + _some([f"{place} ({change:.1e})" for place, change in largest])
            )
        return "\n".join(rows)

    __repr__ = __str__


def extract(
    base: nn.Module,
    tuned: nn.Module,
    rank: int | None = None,
    *,
    error: float | None = None,
    energy: float | None = None,
    budget: int | None = None,
    noise: float | Literal["unknown"] | None = None,
    targets: Targets = "all-linear",
    tied: Tied = "refuse",
) -> Extraction:
    """Turn a full fine-tune into an adapter: the best low-rank approximation of ΔW = W_tuned − W in every layer.

    The rank is the same everywhere, or each layer's is chosen by ``lora_lab.lowrank.choose_rank``: give exactly one of
    ``rank``, ``error``, ``energy``, ``budget`` and ``noise``. By Eckart and Young no adapter of that rank is closer to
    the fine-tune, in the Frobenius norm of the weights; what it does to the outputs is for you to try.

    Weights in float32 or bfloat16 were rounded as they were trained, and rounding has full rank: so do not ask for
    ``error=0``, but for an error that you can bear.

    Args:
        base: the model before.
        tuned: the model after, of the same architecture, without adapters (``fold`` puts one into the weights).
        rank: the rank of every layer.
        error: relative error to allow in each layer, from 0 to 1.
        energy: share of the squared singular values to keep in each layer.
        budget: how many numbers the factors of each layer may hold.
        noise: standard deviation of noise in the entries of ΔW, or "unknown".
        targets: the layers to compare, as in ``LoRAConfig``; what differs outside them is named in the result.
        tied: what to do about a target whose weight is also another layer's, as in ``LoRAConfig``.

    Raises:
        TypeError: base or tuned is not a module; a target is not a linear layer or an embedding.
        ValueError: not exactly one way is given, or it is out of range; the models have parameters of different names
            or shapes; one has LoRA layers; a weight is on the meta device, or not finite; the targets name no layer;
            ``tied="share"`` and the weights are not tied in tuned.

    Source: Eckart and Young (1936), for each layer.
    """
    ways = {"error": error, "energy": energy, "budget": budget, "noise": noise}
    _check_one_way(rank, ways)
    before, after = _states(base, tuned)
    chosen: dict[str, int] = {}
    kept: dict[str, LowRank] = {}
    errors: dict[str, Floats] = {}
    changes: dict[str, float] = {}
    unchanged: list[str] = []
    carried: set[str] = set()
    for target in find_targets(base, LoRAConfig(rank=1, targets=targets, tied=tied)):
        place, key = target.names[0], f"{target.names[0]}.weight"
        carried |= {f"{name}.weight" for name in target.names}
        if key not in before:
            raise TypeError(f"targets: {place!r} must hold its weight as a parameter, got a {full_name(target.layer)}")
        if target.shares is not None:
            _check_tied_in_tuned(key, target.shares, base, after)
            continue
        delta = _difference(place, target.layer, before[key], after[key])
        if not delta.any():
            unchanged.append(place)
            continue
        chosen[place] = _rank(place, delta, rank, ways)
        errors[place], changes[place] = rank_errors(delta), _change(before[key], after[key])
        if chosen[place]:
            kept[place] = LowRank.from_svd(delta, chosen[place])
    rest = {key: _change(before[key], after[key]) for key in before if key not in carried}
    not_carried = {key: change for key, change in rest.items() if change != 0}
    return Extraction(kept, chosen, errors, changes, tuple(unchanged), not_carried, tied)


def recompress(
    adapter: nn.Module | Mapping[str, LowRank],
    rank: int | None = None,
    *,
    error: float | None = None,
    energy: float | None = None,
    budget: int | None = None,
    noise: float | Literal["unknown"] | None = None,
    name: str | None = None,
) -> dict[str, LowRank]:
    """Give the best approximation of every update at a lower rank, from the factors alone.

    The rank is the same everywhere, or chosen for each layer by ``lora_lab.lowrank.choose_rank``, as in ``extract``.

    Args:
        adapter: updates by dotted name, or a model with LoRA layers, whose ``updates(model, name)`` are meant.
        rank: the new rank of every layer, at least 1 and at most the rank that each has.
        error: relative error to allow in each layer, from 0 to 1.
        energy: share of the squared singular values to keep in each layer.
        budget: how many numbers the factors of each layer may hold.
        noise: standard deviation of noise in the entries, or "unknown".
        name: the adapter of the model; None stands for the only one.

    Returns:
        A LowRank for each layer, the singular values shared evenly between its factors. An update that is zero, as
        every one is before training, has rank 0 when its rank is chosen.

    Raises:
        TypeError: adapter is neither a model nor a dict of LowRanks; an argument is of the wrong kind.
        ValueError: not exactly one way is given, or it is out of range; and what ``updates`` raises.
    """
    ways = {"error": error, "energy": energy, "budget": budget, "noise": noise}
    _check_one_way(rank, ways)
    found = updates(adapter, name) if isinstance(adapter, nn.Module) else _checked(adapter)
    smaller = {}
    for place, update in found.items():
        new_rank = _rank(place, update, rank, ways)
        try:
            smaller[place] = update.recompress(new_rank)
        except ValueError as error_of_rank:
            raise ValueError(f"{place}: {error_of_rank}") from error_of_rank
    return smaller


def _some(names: Sequence[str]) -> str:
    """Name the first six of many, and count the others."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _update(place: str, layer: LoRALayer, adapter: Any) -> LowRank:
    """Give what one adapter adds to one weight: its terms side by side."""
    if not isinstance(layer, _MATRIX_KINDS):
        raise TypeError(f"{place!r} must have a matrix as its weight, got a {full_name(layer.base)}")
    if adapter.magnitude is not None:
        raise ValueError(
            f"{place!r} has a DoRA adapter, which stretches every row of W + scale · B A to a trained length: "
            "that changes W by a matrix of full rank, and is no update of low rank"
        )
    lefts, rights = [], []
    for A, B, factor in adapter.terms():
        lefts.append(factor * _numbers(f"lora_B of {place!r}", B))  # (out_features, r)
        rights.append(_numbers(f"lora_A of {place!r}", A))  # (r, in_features)
    try:
        return LowRank(np.hstack(lefts), np.vstack(rights))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _numbers(what: str, tensor: Tensor) -> Floats:
    """Give a tensor as an array of float64."""
    if tensor.is_meta:
        raise ValueError(f"{what} is on the meta device, and has no numbers")
    return tensor.detach().to("cpu", torch.float64).numpy()


def _checked(updates: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Give ``updates`` as a dict, which must hold a LowRank for each name."""
    if not isinstance(updates, Mapping):
        raise TypeError(f"updates must be a dict from layer names to LowRanks, got a {type(updates).__name__}")
    for place, update in updates.items():
        if not isinstance(update, LowRank):
            raise TypeError(f"updates[{place!r}] must be a LowRank, got a {type(update).__name__}")
    if not updates:
        raise ValueError("updates must hold a LowRank for one layer at least, got none")
    return dict(updates)


def _fitting(place: str, update: LowRank, modules: dict[str, nn.Module], balanced: bool) -> LowRank:
    """Give an update as the factors that its layer gets, or raise where it does not fit the layer."""
    if place not in modules:
        close = difflib.get_close_matches(str(place), list(modules))
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"updates must name layers of the model in full, got {place!r}.{hint}")
    layer: Any = plain(modules[place])
    kind = layer_class(layer, place)
    if not issubclass(kind, _MATRIX_KINDS):
        raise TypeError(f"{place!r} must have a matrix as its weight, got a {full_name(layer)}")
    in_features, out_features = kind._sizes(layer)
    if update.shape != (out_features, in_features):
        raise ValueError(f"updates[{place!r}] must be {out_features}×{in_features} for its layer, got a {update!r}")
    if update.rank == 0:
        raise ValueError(f"updates[{place!r}] has rank 0 and changes nothing: leave it out")
    return update.recompress(min(update.rank, *update.shape)) if balanced else update


def _config(factors: dict[str, LowRank], modules: dict[str, nn.Module], tied: Tied) -> LoRAConfig:
    """Give one configuration that names exactly these layers, each with its own rank and the scale 1."""
    ranks = {modules[place]: update.rank for place, update in factors.items()}
    places = {place: ranks[module] for place, module in modules.items() if module in ranks}  # second names too
    rank = Counter(update.rank for update in factors.values()).most_common(1)[0][0]
    # The end of a name would match in whole components, as "q_proj" does; ^ holds the pattern to the whole name.
    pattern = {f"^{re.escape(place)}": own for place, own in places.items() if own != rank}
    names: Targets = tuple(places)
    if {place for place in modules if matches(place, tuple(places))} != set(places):
        names = re.compile("|".join(re.escape(place) for place in places))
    return LoRAConfig(
        rank=rank, alpha=rank, targets=names, rank_pattern=pattern, alpha_pattern=dict(pattern), tied=tied
    )


def _check_one_way(rank: int | None, ways: Mapping[str, Any]) -> None:
    """Raise unless exactly one way to choose the rank is given."""
    given = [name for name, value in {"rank": rank, **ways}.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of rank, error, energy, budget and noise, got {' and '.join(given) or 'none'}"
        )
    if rank is not None:
        checked_rank("rank", rank)


def _rank(place: str, matrix: Floats | LowRank, rank: int | None, ways: Mapping[str, Any]) -> int:
    """Give the rank that is asked for, which must fit the matrix, or choose one."""
    if rank is None:
        return choose_rank(matrix, **ways)
    if rank > min(matrix.shape):
        m, n = matrix.shape
        raise ValueError(f"rank must be at most {min(m, n)} for {place!r}, whose weight is {m}×{n}, got {rank}")
    return rank


def _states(base: nn.Module, tuned: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give all parameters and buffers of two models, which must have the same names and shapes."""
    states = []
    for which, model in (("base", base), ("tuned", tuned)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{which} must be a torch.nn.Module, got {type(model).__name__}")
        if layers := lora_layers(model):
            raise ValueError(
                f"{which} must be without adapters, got {len(layers)} LoRA layers: fold(model) puts them into the "
                "weights, detach(model) takes them away"
            )
        states.append({key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)})
    before, after = states
    if only := sorted(set(before) ^ set(after)):
        where = "base" if only[0] in before else "tuned"
        raise ValueError(f"base and tuned must be of one architecture, but only {where} has {only[0]!r}")
    for key, value in before.items():
        if value.shape != after[key].shape:
            shapes = f"{tuple(value.shape)} in base and {tuple(after[key].shape)} in tuned"
            raise ValueError(f"base and tuned must be of one architecture, but {key!r} is {shapes}")
    return before, after


def _difference(place: str, layer: nn.Module, before: Tensor, after: Tensor) -> Floats:
    """Give ΔW of one layer in float64, (out_features, in_features)."""
    kind = layer_class(layer, place)
    if kind not in _MATRIX_KINDS:
        raise TypeError(f"targets: {place!r} must have a matrix as its weight, got a {full_name(layer)}")
    delta = _numbers(f"{place}.weight", after) - _numbers(f"{place}.weight", before)
    if not np.isfinite(delta).all():
        raise ValueError(f"{place}.weight must be finite in both models, got NaN or infinity")
    return delta.T if kind.transposed else delta


def _change(before: Tensor, after: Tensor) -> float:
    """Give ‖after − before‖ / ‖before‖ in float64; infinity where there was nothing before, NaN where NaN is."""
    a, b = _numbers("a tensor of base", before), _numbers("a tensor of tuned", after)
    if np.array_equal(a, b):
        return 0.0
    size = np.linalg.norm(a.ravel())
    return float(np.linalg.norm((b - a).ravel()) / size) if size else float("inf")


def _check_tied_in_tuned(key: str, owner: nn.Module, base: nn.Module, after: dict[str, Tensor]) -> None:
    """Raise unless a weight that shares another's update is still the same as that one after tuning."""
    of_owner = next(f"{place}.weight" for place, module in original_modules(base) if module is owner)
    if not torch.equal(after[key], after[of_owner]):
        raise ValueError(f"tied='share': {key!r} and {of_owner!r} are one tensor in base, but differ in tuned")
