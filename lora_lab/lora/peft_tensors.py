"""What an adapter trains, under PEFT's names and in PEFT's shapes, and back.

For a linear layer that is a renaming and nothing more. The others differ: an embedding's factors have names of their
own, a convolution's magnitude has the shape of an output, and PEFT's A of a convolution with groups sees all channels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.layers import LoRAConv1d, LoRAConv2d, LoRAEmbedding, LoRALayer


def factor_names(layer: LoRALayer) -> tuple[str, str, str]:
    """Give PEFT's names for A, B and the magnitude of a layer."""
    if isinstance(layer, LoRAEmbedding):
        return "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"
    return "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def factor_shapes(layer: LoRALayer, config: LoRAConfig, *, doubled: bool = False) -> dict[str, tuple[int, ...]]:
    """Give PEFT's shapes for what an adapter of this configuration has on this layer, by PEFT's names.

    Args:
        layer: the layer; it need not have the adapter.
        config: the configuration of the adapter on this layer.
        doubled: whether PiSSA's start factors are written beside the factors, in twice the rank.
    """
    A, B, magnitude = factor_names(layer)
    rank, base = config.rank * (2 if doubled else 1), layer.base
    shapes: dict[str, tuple[int, ...]] = {A: (rank, layer.in_features), B: (layer.out_features, rank)}
    magnitudes: tuple[int, ...] = (layer.out_features,)
    if isinstance(layer, LoRAConv1d | LoRAConv2d):
        ones = (1,) * len(base.kernel_size)
        shapes = {A: (rank, base.in_channels, *base.kernel_size), B: (base.out_channels, rank // base.groups, *ones)}
        magnitudes = (1, base.out_channels, *ones)
    return shapes | ({magnitude: magnitudes} if config.dora else {})


def factors_to_peft(layer: LoRALayer, adapter: Any) -> dict[str, Tensor]:
    """Give what an adapter trains on a layer, by PEFT's names and in PEFT's shapes.

    PiSSA's update, scale · (B A − B₀ A₀), is written as the one product scale · [B, −B₀] [A; A₀].
    """
    names = factor_names(layer)
    A, B = adapter.lora_A.detach(), adapter.lora_B.detach()
    if getattr(adapter, "start_A", None) is not None:
        A, B = torch.cat([A, adapter.start_A]), torch.cat([B, -adapter.start_B], dim=1)
    factors = {names[0]: _over_all_channels(layer, A), names[1]: B}
    if adapter.magnitude is not None:
        shape = factor_shapes(layer, adapter.config)[names[2]]
        factors[names[2]] = adapter.magnitude.detach().view(shape)
    return factors


def factors_from_peft(
    layer: LoRALayer, config: LoRAConfig, tensors: Mapping[str, Tensor], name: str, *, doubled: bool = False
) -> dict[str, Tensor]:
    """Give the parameters and buffers of an adapter from what PEFT holds of it.

    Args:
        layer: the layer, which need not have the adapter.
        config: the configuration of the adapter on this layer.
        tensors: by the names and in the shapes that ``factor_shapes`` gives.
        name: the dotted name of the layer, for errors.
        doubled: whether PiSSA's start factors are there beside the factors; otherwise they stay what they are.

    Raises:
        ValueError: A of a convolution with groups is not zero outside each group's channels, so that the update has
            no place in the weight.
    """
    names = factor_names(layer)
    A, B = _of_each_group(layer, tensors[names[0]], name), tensors[names[1]]
    factors = {"lora_A": A, "lora_B": B}
    if config.dora:
        factors["magnitude"] = tensors[names[2]].flatten()
    if config.init == "pissa" and doubled:
        rank = config.rank
        factors = {"lora_A": A[:rank], "lora_B": B[:, :rank], "start_A": A[rank:], "start_B": -B[:, rank:]}
    return factors


def computed_otherwise(layer: LoRALayer, config: LoRAConfig) -> str | None:
    """Say what PEFT leaves out of a layer, so that it computes something else with the same factors; None for nothing.

    PEFT 0.21 gives A the kernel, stride and padding of a convolution, and nothing else of it.
    """
    base = layer.base
    if not isinstance(layer, LoRAConv1d | LoRAConv2d):
        return None
    if any(step != 1 for step in base.dilation):
        return f"its dilation {base.dilation}"
    if base.padding_mode != "zeros":
        return f"its padding_mode {base.padding_mode!r}"
    return f"its {base.groups} groups in the lengths that DoRA divides by" if config.dora and base.groups > 1 else None


def bias_names(modules: Mapping[str, nn.Module], adapted: set[str], saved: set[str], bias: str) -> dict[str, str]:
    """Give PEFT's key, without the prefix, for every bias that trains, and the name of the module that has it.

    Args:
        modules: every module of the model as it was before attach, by each of its names.
        adapted: the names of the adapted layers.
        saved: the names of the modules that are trained in a copy, whose biases are in the copy.
        bias: "none", "all" or "lora_only".
    """
    found = {}
    for name, module in modules.items():
        inside = any(name == other or name.startswith(f"{other}.") for other in saved)
        if bias == "none" or inside or not isinstance(module._parameters.get("bias"), nn.Parameter):
            continue
        if name in adapted:
            found[f"{name}.base_layer.bias"] = name
        elif bias == "all":
            found[f"{name}.bias"] = name
    return found


def _over_all_channels(layer: LoRALayer, A: Tensor) -> Tensor:
    """Give A of a convolution as PEFT has it, (rank, in_channels, *kernel): zero outside the channels of its group."""
    if not isinstance(layer, LoRAConv1d | LoRAConv2d) or layer.base.groups == 1:
        return A
    spread = A.new_zeros(A.shape[0], layer.base.in_channels, *A.shape[2:])
    for rows, channels in _blocks(layer, A.shape[0]):
        spread[rows, channels] = A[rows]
    return spread


def _of_each_group(layer: LoRALayer, A: Tensor, name: str) -> Tensor:
    """Give A of a convolution as it is here, (rank, in_channels / groups, *kernel), from PEFT's."""
    if not isinstance(layer, LoRAConv1d | LoRAConv2d) or layer.base.groups == 1:
        return A
    blocks = _blocks(layer, A.shape[0])
    own = torch.cat([A[rows, channels] for rows, channels in blocks])
    if not torch.equal(_over_all_channels(layer, own), A):
        raise ValueError(
            f"{name} has {layer.base.groups} groups, but its lora_A in the file reaches from one group into the "
            "channels of another: such an update has no place in the weight"
        )
    return own


def _blocks(layer: LoRALayer, rank: int) -> list[tuple[slice, slice]]:
    """Give, for each group, its rows of A and its channels."""
    groups = layer.base.groups
    rows, channels = rank // groups, layer.base.in_channels // groups
    return [(slice(g * rows, (g + 1) * rows), slice(g * channels, (g + 1) * channels)) for g in range(groups)]
