"""Add the update to the weight for serving, and take it back bit for bit.

A merged layer costs no more time than the layer it was made from: its forward pass is that of the base.
"""

import torch
from torch import nn

from lora_lab.lora.attach import attached_layers


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Replace W by W + scale · B A in every LoRA layer, the sum formed in float64 and rounded to the type of W.

    All layers are merged or none. While merged, each layer computes base(x) alone, in training mode too: A and B get
    no gradient, and dropout does not apply. ``model.train()`` never unmerges. The original W is kept for ``unmerge``,
    so a merged model needs memory for the adapted weights twice; it is kept out of ``state_dict``, and a state_dict
    taken while merged holds the merged weights and is refused on loading.

    Raises:
        ValueError: the model has no LoRA layers, is merged already, is inside ``disabled``, is on the meta device,
            or a merged weight would hold NaN or infinity.
    """
    layers = attached_layers(model)
    weights = {}
    for name, layer in layers.items():
        if layer.merged:
            raise ValueError(f"model must not be merged yet, but {name!r} is; call unmerge(model) first")
        if not layer.enabled:
            raise ValueError(f"model must be outside disabled(model) to be merged, but {name!r} is disabled")
        if layer.base.weight.is_meta:
            raise ValueError(f"model must have its weights, but {name!r} is on the meta device")
        weights[name] = layer.weight  # W + scale · B A
        if not weights[name].isfinite().all():
            raise ValueError(f"merged weights must be finite, but {name!r} would hold NaN or infinity")
    for name, layer in layers.items():
        original = layer.base.weight
        layer.unmerged_weight = original.detach()
        layer.base.weight = nn.Parameter(weights[name], requires_grad=original.requires_grad)


def unmerge(model: nn.Module) -> None:
    """Put the original W back into every LoRA layer: the very bits that were there before ``merge``.

    Raises:
        ValueError: the model has no LoRA layers, or is not merged.
    """
    layers = attached_layers(model)
    for name, layer in layers.items():
        if not layer.merged:
            raise ValueError(f"model must be merged, but {name!r} is not; call merge(model) first")
    for layer in layers.values():
        assert layer.unmerged_weight is not None
        requires_grad = layer.base.weight.requires_grad
        layer.base.weight = nn.Parameter(layer.unmerged_weight, requires_grad=requires_grad)
        layer.unmerged_weight = None
