"""Count a model: its own parameters, those of the adapter, what trains, and bytes."""

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from lora_lab.lora.attach import lora_layers
from lora_lab.lora.copies import TrainedCopy


@dataclass(frozen=True)
class LayerAccount:
    """The count of one adapted layer: ``base`` parameters (bias included) and ``adapter`` = rank · (in + out)."""

    name: str
    in_features: int
    out_features: int
    rank: int
    base: int
    adapter: int


@dataclass(frozen=True)
class Account:
    """What a model holds. Counts are of parameters, each tensor once however many names it has.

    Attributes:
        base: parameters of the model itself, without adapters.
        adapter: parameters of the adapters, the sum of rank · (in_features + out_features).
        trainable: parameters that get a gradient.
        base_bytes: memory of the base parameters, in bytes.
        adapter_bytes: memory of the adapter parameters, in bytes.
        layers: one row for each adapted layer.
    """

    base: int
    adapter: int
    trainable: int
    base_bytes: int
    adapter_bytes: int
    layers: tuple[LayerAccount, ...]

    @property
    def total(self) -> int:
        """All parameters, base and adapter."""
        return self.base + self.adapter

    @property
    def share(self) -> float:
        """Trainable parameters over base parameters, as papers count; PEFT prints trainable over total."""
        return self.trainable / self.base

    def __str__(self) -> str:
        """Draw the table: one line for each kind of adapted layer, then the sums."""
        lines = [*_table(self.layers)] if self.layers else ["no adapted layer"]
        width = len(f"{self.total:,}")
        lines.append(f"base       {self.base:>{width},} parameters, {_memory(self.base_bytes)}")
        lines.append(f"adapter    {self.adapter:>{width},} parameters, {_memory(self.adapter_bytes)}")
        lines.append(f"trainable  {self.trainable:>{width},} parameters, {100 * self.share:.3g} % of the base")
        return "\n".join(lines)


def account(model: nn.Module) -> Account:
    """Count the parameters of a model, attached or not, on any device; the meta device serves as well.

    Raises:
        TypeError: model is not a module.
        ValueError: model has no parameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = lora_layers(model)
    parameters = list(model.parameters())
    parts = [part for layer in layers.values() for part in layer.adapters.values()]
    parts += [part for module in model.modules() if isinstance(module, TrainedCopy) for part in module.copies.values()]
    adapter = [*{id(parameter): parameter for part in parts for parameter in part.parameters()}.values()]
    own = {id(factor) for factor in adapter}
    base = [parameter for parameter in parameters if id(parameter) not in own]
    if not base:
        raise ValueError(f"model must have parameters, got a {type(model).__name__} without")
    return Account(
        base=sum(parameter.numel() for parameter in base),
        adapter=sum(factor.numel() for factor in adapter),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        base_bytes=sum(parameter.nbytes for parameter in base),
        adapter_bytes=sum(factor.nbytes for factor in adapter),
        layers=tuple(
            LayerAccount(
                name=name,
                in_features=layer.in_features,
                out_features=layer.out_features,
                rank=sum(adapter.rank for adapter in layer.adapters.values()),
                base=sum(parameter.numel() for parameter in layer.base.parameters()),
                adapter=sum(parameter.numel() for parameter in layer.adapters.parameters()),
            )
            for name, layer in layers.items()
        ),
    )


def _table(layers: tuple[LayerAccount, ...]) -> list[str]:
    """Draw one line for each kind of layer: layers whose names differ in a number alone are of one kind."""
    kinds: dict[tuple[str, int, int, int, int, int], int] = defaultdict(int)
    for layer in layers:
        kind = re.sub(r"\b\d+\b", "*", layer.name)
        kinds[kind, layer.in_features, layer.out_features, layer.rank, layer.base, layer.adapter] += 1
    rows = [("adapted layer", "count", "in → out", "rank", "base each", "adapter each")]
    for (kind, in_features, out_features, rank, base, adapter), count in kinds.items():
        rows.append((kind, f"{count}", f"{in_features} → {out_features}", f"{rank}", f"{base:,}", f"{adapter:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _memory(count: float) -> str:
    """Write a number of bytes in the unit that suits it; 1 kB is 1,000 bytes."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
