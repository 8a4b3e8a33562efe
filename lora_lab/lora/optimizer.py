"""The learning rates of LoRA+: B learns faster than A."""

import math
from numbers import Real
from typing import Any

from torch import nn

from lora_lab.lora.attach import attached_layers
from lora_lab.lora.factors import Adapter, TiedAdapter
from lora_lab.lora.layers import LoRAEmbedding


def lora_plus_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    ratio: float = 16.0,
    weight_decay: float = 0.0,
    embedding_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Give the parameters that train in groups for any optimiser of torch: A at ``learning_rate``, B at ratio times it.

    ``torch.optim.AdamW(lora_plus_groups(model, 2e-4))`` is LoRA+. Why two rates: A x sums over the n features of x, B z
    over the r entries of z. A step of η in every entry moves A x by up to η · n times the size of x, and B z by up to
    η · r times that of z. One rate, small enough for A in a wide layer, leaves B almost where it was.

    In an embedding no factor sums over the features: its input is an index, which picks one column of A. The argument
    for a ratio is not there, so both factors have one rate, ``embedding_learning_rate``. Where ``tied="share"`` lets a
    head use the embedding's update, the factors change places: the embedding's A, transposed, is the B of the head, a
    linear layer, and has the rate of a B; the embedding's B is the head's A.

    Whatever else trains, a copied classifier or biases, has ``learning_rate``. Vectors (biases, the scales of layer
    norms, DoRA's magnitudes) have no weight decay, which would pull them to zero for no reason. Every group has a
    ``name``: "lora_A", "lora_B", "embedding", "other" or "vectors". The rate and the decay of a group count before
    those that the optimiser is given.

    Args:
        model: a model with LoRA layers.
        learning_rate: η of A, above 0.
        ratio: the rate of B over that of A, at least 1; at 1 this is LoRA.
        weight_decay: for all but vectors; at least 0. In AdamW a group decays by its rate times this.
        embedding_learning_rate: the rate of both factors of an embedding; None stands for ``learning_rate``.

    Returns:
        Dictionaries with "params", "lr", "weight_decay" and "name", none of them without a parameter. Each parameter
        that trains is in one group, once.

    Raises:
        TypeError: a number is none.
        ValueError: a number is out of its range; the model has no LoRA layers; no B trains.

    Source: Hayou, Ghosh and Yu (2024), "LoRA+: Efficient low rank adaptation of large models", section 4. PEFT's
        ``create_loraplus_optimizer`` makes the same groups, but it gives vectors the rate of B, decays magnitudes,
        and has 1e-6 for the factors of an embedding.
    """
    rate = _number("learning_rate", learning_rate, above=0)
    fast = rate * _number("ratio", ratio, least=1)
    decay = _number("weight_decay", weight_decay, least=0)
    slow = (
        rate
        if embedding_learning_rate is None
        else _number("embedding_learning_rate", embedding_learning_rate, above=0)
    )
    rates = {"lora_A": rate, "lora_B": fast, "embedding": slow, "other": rate, "vectors": rate}
    roles = _roles(model)
    members: dict[str, list[nn.Parameter]] = {group: [] for group in rates}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[roles.get(parameter, "vectors" if parameter.dim() == 1 else "other")].append(parameter)
    if not members["lora_B"] and not members["embedding"]:
        raise ValueError("model must have a lora_B that trains; activate(model, name) chooses the adapter that does")
    return [
        {"params": params, "lr": rates[name], "weight_decay": 0.0 if name == "vectors" else decay, "name": name}
        for name, params in members.items()
        if params
    ]


def _roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """Give the group of each factor; what it does in a layer that sums over features counts before an embedding."""
    roles: dict[nn.Parameter, str] = {}
    for layer in attached_layers(model).values():
        for adapter in layer.adapters.values():
            source = adapter.source if isinstance(adapter, TiedAdapter) else adapter
            assert isinstance(source, Adapter)
            if isinstance(layer, LoRAEmbedding):
                roles.setdefault(source.lora_A, "embedding")
                roles.setdefault(source.lora_B, "embedding")
            else:
                turned = isinstance(adapter, TiedAdapter) and adapter.transposed
                A, B = (source.lora_B, source.lora_A) if turned else (source.lora_A, source.lora_B)
                roles |= {A: "lora_A", B: "lora_B"}
    return roles


def _number(name: str, value: object, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """Give ``value`` as a finite number in its range."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not (above < number < math.inf and number >= least):
        limit = f"above {above:g}" if above > -math.inf else f"at least {least:g}"
        raise ValueError(f"{name} must be a finite number, {limit}, got {number:g}")
    return number
