"""Add the update to the weight for serving, and take it back bit for bit.

A merged layer costs no more time than the layer it was made from: its forward pass is that of the base.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_lab.lora.attach import (
    active_adapters,
    adapters,
    attached_layers,
    check_outside_blocks,
    close_note,
    lora_layers,
    noted,
)
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.factors import TiedAdapter, wide
from lora_lab.lora.layers import LoRALayer
from lora_lab.lora.targets import identity, original_modules, plain


@dataclass(frozen=True)
class MergedLayer:
    """What merging did to one weight.

    Attributes:
        name: dotted name of the layer.
        change: size of the update against the weight, ‖ΔW‖ / ‖W‖ (Frobenius).
        lost: share of the update that rounding to the weight's type took, ‖W' − (W + ΔW)‖ / ‖ΔW‖, with W' the merged
            weight; 0 where there is no update. Near 1, the weight is as if nothing had been merged.
        unchanged: share of the weight's entries whose bits are what they were.
    """

    name: str
    change: float
    lost: float
    unchanged: float


@dataclass(frozen=True)
class MergeReport:
    """What ``merge`` did, a row for each layer."""

    layers: tuple[MergedLayer, ...]

    def __str__(self) -> str:
        """Draw a table: how large each update is, and how much of it rounding took."""
        width = max((len(row.name) for row in self.layers), default=5)
        head = f"{'layer':{width}}  update / weight  lost in rounding  entries unchanged"
        rows = [f"{r.name:{width}}  {r.change:15.2e}  {r.lost:16.2%}  {r.unchanged:17.1%}" for r in self.layers]
        return "\n".join([head, *rows])


@torch.inference_mode(False)  # weights that are made in inference mode could never be trained through
@torch.no_grad()
def merge(model: nn.Module) -> MergeReport:
    """Replace W by W + scale · B A in every LoRA layer, the sum formed in float64 and rounded to the type of W.

    What is merged are the active adapters, each times its share. All layers are merged or none. While merged, each
    layer computes base(x) alone, in training mode too: A and B get no gradient, and dropout does not apply.
    ``model.train()`` never unmerges. The original W is kept for ``unmerge``, so a merged model needs memory for the
    adapted weights twice; it is kept out of ``state_dict``, and a state_dict taken while merged holds the merged
    weights and is refused on loading. ``fold`` merges for good; only then does ``model.save_pretrained`` write the
    names that a plain model has.

    A weight that is tied to another layer's is replaced in the adapted layer alone (with ``tied="share"`` in all of
    them, by one tensor), so no other layer changes. Where that ends the tie of input embedding and head, the model's
    ``config.tie_word_embeddings`` is False while merged and after ``fold``, so that transformers saves both.

    Returns:
        How large each update is, and how much of it the rounding took.

    Raises:
        ValueError: the model has no LoRA layers, is merged already, is inside ``disabled`` or ``routed``, is on the
            meta device, has an active adapter that is no change of a weight, or a merged weight would hold NaN or
            infinity.
    """
    _check_kinds(model)
    layers = attached_layers(model)
    weights, rows = {}, []
    for name, layer in layers.items():
        if layer.merged:
            raise ValueError(f"model must not be merged yet, but {name!r} is; call unmerge(model) first")
        if not layer.enabled:
            raise ValueError(f"model must be outside disabled(model) to be merged, but {name!r} is disabled")
        if not layer.mergeable:
            raise ValueError(
                f"model must have weights that an update can be added to, but {name!r} is a "
                f"{type(layer.base).__name__}; save the adapter, load it onto the base in full precision, and merge "
                "there"
            )
        if layer.base.weight.is_meta:
            raise ValueError(f"model must have its weights, but {name!r} is on the meta device")
        weights[name] = layer.weight  # W + scale · B A
        if not weights[name].isfinite().all():
            raise ValueError(f"merged weights must be finite, but {name!r} would hold NaN or infinity")
        rows.append(_row(name, layer, weights[name]))
    owners, origins = _owners(layers), _origins(model, layers)
    merged: dict[LoRALayer, nn.Parameter] = {}
    tied_before = _ties_embeddings(model)
    for name, layer in layers.items():
        original = layer.base.weight
        layer.unmerged_weight, layer.origin = original.detach(), origins.get(identity(original), (layer.base, "weight"))
        owner = owners.get(layer, layer)
        if owner not in merged:
            weight = weights[name if owner is layer else next(n for n, other in layers.items() if other is owner)]
            merged[owner] = nn.Parameter(weight, requires_grad=original.requires_grad)
        layer.base.weight = merged[owner]
    if tied_before and not _ties_embeddings(model):
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
        next(iter(layers.values())).untied = True
    return MergeReport(tuple(rows))


@torch.inference_mode(False)
def unmerge(model: nn.Module) -> None:
    """Put the original W back into every LoRA layer: the very bits that were there before ``merge``.

    A weight that was tied is tied again, also where the model was copied, moved or cast in the meantime, unless the
    other owner's weight has been changed since.

    Raises:
        ValueError: the model has no LoRA layers, or is not merged.
    """
    layers = attached_layers(model)
    for name, layer in layers.items():
        if not layer.merged:
            raise ValueError(f"model must be merged, but {name!r} is not; call merge(model) first")
    for layer in layers.values():
        assert layer.unmerged_weight is not None
        assert layer.origin is not None
        W, tied = layer.unmerged_weight, getattr(*layer.origin)
        if layer.origin[0] is layer.base or not _same(tied, W):
            tied = nn.Parameter(W, requires_grad=layer.base.weight.requires_grad)
        layer.base.weight = tied
        layer.unmerged_weight = layer.origin = None
    for layer in layers.values():
        if layer.untied:
            layer.untied = False
            model.config.tie_word_embeddings = True  # type: ignore[union-attr]
            model.config.tie_word_embeddings = _ties_embeddings(model)  # type: ignore[union-attr]


def fold(model: nn.Module) -> MergeReport:
    """Merge for good: each LoRA layer gives way to its base layer with the merged weight, and nothing of LoRA is left.

    The result is a plain model, to be saved and served like any other. Copies that were trained take the place of what
    they were copied from, and trained biases stay. The original weights are gone.

    Returns:
        What ``merge`` returns; no rows where the model was merged already, or trained copies or biases alone.

    Raises:
        ValueError: what ``merge`` raises; attach was not called on this very model.
    """
    check_outside_blocks(noted(model))
    _check_kinds(model)
    report = merge(model) if any(not layer.merged for layer in lora_layers(model).values()) else MergeReport(())
    for place, module in list(original_modules(model)):
        if isinstance(module, LoRALayer):
            model.set_submodule(place, module.base)
        elif isinstance(module, TrainedCopy):
            model.set_submodule(place, module.in_use)
    close_note(model)
    return report


def _check_kinds(model: nn.Module) -> None:
    """Raise if an active adapter is no change of a weight."""
    for name, config in adapters(model).items():
        if (reason := getattr(config, "cannot_merge", "")) and name in active_adapters(model):
            raise ValueError(f"model has the active adapter {name!r}, which cannot be merged: {reason}")


def _row(name: str, layer: LoRALayer, merged: Tensor) -> MergedLayer:
    """Measure what merging does to one weight."""
    before = wide(layer.base.weight)
    after = layer.wide_weight()
    update = (after - before).norm().item()
    size = before.norm().item()
    return MergedLayer(
        name=name,
        change=update / size if size else float("inf") if update else 0.0,
        lost=(wide(merged) - after).norm().item() / update if update else 0.0,
        unchanged=(merged == layer.base.weight).double().mean().item(),
    )


def _owners(layers: dict[str, LoRALayer]) -> dict[LoRALayer, LoRALayer]:
    """Give, for each layer whose updates are all shared with another layer's, that layer."""
    having = {adapter: layer for layer in layers.values() for adapter in layer.adapters.values()}
    owners = {}
    for layer in layers.values():
        active = {name: layer.adapters[name] for name in layer.active}
        if active and all(isinstance(adapter, TiedAdapter) for adapter in active.values()):
            owner = having[next(iter(active.values())).source]  # type: ignore[index]
            if owner.active == layer.active and identity(owner.base.weight) == identity(layer.base.weight):
                owners[layer] = owner
    return owners


def _origins(model: nn.Module, layers: dict[str, LoRALayer]) -> dict[int, tuple[nn.Module, str]]:
    """Give, by identity, where each weight that has one more owner is found again when it is unmerged.

    That is a module without LoRA if there is one, and otherwise the first layer that has the weight.
    """
    bases = [layer.base for layer in layers.values()]
    others = [module for module in model.modules() if module not in set(bases)]
    found: dict[int, tuple[nn.Module, str]] = {}
    for module in (*others, *bases):
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(identity(parameter), (module, name))
    return found


def _same(weight: Tensor, other: Tensor) -> bool:
    """Say whether two tensors have the same numbers, of one type, in one place."""
    alike = (weight.shape, weight.dtype, weight.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(weight, other)


def _ties_embeddings(model: nn.Module) -> bool:
    """Say whether a model of transformers has one tensor for its input embedding and its head."""
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return False
    parts = [plain(part) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]  # type: ignore[operator]
    return len(parts) == 2 and identity(parts[0].weight) == identity(parts[1].weight)  # type: ignore[arg-type]
