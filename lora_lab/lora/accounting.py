"""Count a model: its own parameters, those of the adapter, what trains, and bytes; and what a training step costs."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lora_lab.lora.attach import lora_layers
from lora_lab.lora.costs import Costs, count_costs, original_name
from lora_lab.lora.quantized import QuantizedLinear


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
        costs: what one training step costs, where a batch was given.
    """

    base: int
    adapter: int
    trainable: int
    base_bytes: int
    adapter_bytes: int
    layers: tuple[LayerAccount, ...]
    costs: Costs | None = None

    @property
    def total(self) -> int:
        """All parameters, base and adapter."""
        return self.base + self.adapter

    @property
    def share(self) -> float:
        """Trainable parameters over base parameters, as papers count; PEFT prints trainable over total."""
        return self.trainable / self.base

    def __str__(self) -> str:
        """Draw the table: one line for each kind of adapted layer, then the sums, then the costs of a step."""
        lines = [*_table(self.layers)] if self.layers else ["no adapted layer"]
        width = len(f"{self.total:,}")
        lines.append(f"base       {self.base:>{width},} parameters, {_memory(self.base_bytes)}")
        lines.append(f"adapter    {self.adapter:>{width},} parameters, {_memory(self.adapter_bytes)}")
        lines.append(f"trainable  {self.trainable:>{width},} parameters, {100 * self.share:.3g} % of the base")
        if self.costs is not None:
            lines += ["", *_costs(self.costs)]
        return "\n".join(lines)


def account(
    model: nn.Module,
    *,
    batch: int | None = None,
    tokens: int | None = None,
    inputs: Any = None,
    optimizer: str = "adamw",
) -> Account:
    """Count the parameters of a model, attached or not, on any device; with a batch, what one training step costs too.

    Parameters are those of the model itself and those that adapters brought: factors, trained copies, bottlenecks.
    ``account(model, batch=8, tokens=128)`` says before training how many floating-point operations a token takes
    forward and backward, and how many bytes the step needs; ``Costs`` has the formulas. Nothing is trained, and the
    model itself does not run: a copy on the meta device does, which has shapes and no numbers, so the model may be on
    the meta device too. The copy is in training mode. It is taken for granted that no token is padding, that a model of
    transformers computes its loss from all its logits, and that ``scaled_dot_product_attention`` uses a fused kernel.

    On a CPU, with AdamW, in float32 or bfloat16, the peak of a step of a small Llama or GPT-2 as torch's profiler
    measures it lies between 0.98 and 1.25 times ``costs.peak``, and within 1 % of it where the logits are most of it.
    What is above is room to work in: a layer's passing results, and for AdamW twice the largest tensor that trains (on
    a GPU, where it updates all tensors together, twice all of them).

    Args:
        model: the model; any causal language model of transformers, or any module that runs on the meta device.
        batch: rows of the batch.
        tokens: tokens of a row. A model that starts with a linear layer gets (batch, tokens, in_features).
        inputs: instead of the two, an example of what the model takes, of which the shapes count: a tensor, a tuple of
            arguments, or a mapping of named ones. A convolution needs this.
        optimizer: "adamw" or "adam" (two numbers for each that trains), "sgd-momentum" (one), "sgd" (none).

    Raises:
        TypeError: model is not a module; batch or tokens is not a whole number; inputs is of no such kind.
        ValueError: model has no parameters, or none that trains; it does not run on these shapes, or reads numbers on
            its way; gradient checkpointing is on; batch, tokens or optimizer is none of those above.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = lora_layers(model)
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    own = {id(parameter) for name, parameter in named if original_name(model, name)[1]}
    base = [parameter for parameter in parameters.values() if id(parameter) in own]
    adapter = [parameter for parameter in parameters.values() if id(parameter) not in own]
    codes = list(_in_four_bits(model))
    if not base and not codes:
        raise ValueError(f"model must have parameters, got a {type(model).__name__} without")
    costs = None
    if batch is not None or tokens is not None or inputs is not None:
        costs = count_costs(model, batch=batch, tokens=tokens, inputs=inputs, optimizer=optimizer)
    elif optimizer != "adamw":
        raise ValueError(f"optimizer={optimizer!r} says something of a training step: give batch and tokens too")
    return Account(
        base=sum(parameter.numel() for parameter in base) + sum(layer.quantized.shape.numel() for layer in codes),
        adapter=sum(factor.numel() for factor in adapter),
        trainable=sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad),
        base_bytes=sum(parameter.nbytes for parameter in base) + sum(layer.quantized.nbytes for layer in codes),
        adapter_bytes=sum(factor.nbytes for factor in adapter),
        layers=tuple(
            LayerAccount(
                name=name,
                in_features=layer.in_features,
                out_features=layer.out_features,
                rank=sum(part.rank for part in layer.adapters.values()),  # type: ignore[misc]
                base=sum(parameter.numel() for parameter in layer.base.parameters())
                + sum(inner.quantized.shape.numel() for inner in _in_four_bits(layer.base)),
                adapter=sum(parameter.numel() for parameter in layer.adapters.parameters()),
            )
            for name, layer in layers.items()
        ),
        costs=costs,
    )


def _in_four_bits(model: nn.Module) -> Iterator[QuantizedLinear]:
    """Give the layers whose weight is no parameter but codes of four bits; it counts as the numbers it stands for."""
    return (module for module in model.modules() if isinstance(module, QuantizedLinear))


def _table(layers: tuple[LayerAccount, ...]) -> list[str]:
    """Draw one line for each kind of layer: layers whose names differ in a number alone are of one kind."""
    kinds: dict[tuple[str, int, int, int, int, int], int] = defaultdict(int)
    for layer in layers:
        kinds[_kind(layer.name), layer.in_features, layer.out_features, layer.rank, layer.base, layer.adapter] += 1
    rows = [("adapted layer", "count", "in → out", "rank", "base each", "adapter each")]
    for (kind, in_features, out_features, rank, base, adapter), count in kinds.items():
        rows.append((kind, f"{count}", f"{in_features} → {out_features}", f"{rank}", f"{base:,}", f"{adapter:,}"))
    return _aligned(rows)


def _costs(costs: Costs) -> list[str]:
    """Draw what a step costs: one line for each kind of part that multiplies, the sums, and the bytes."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for layer in costs.layers:
        kind = _REST if layer.role == "rest" else _kind(layer.name) + _ROLES[layer.role]
        for i, number in enumerate((1, layer.forward, layer.backward, layer.activations)):
            sums[kind][i] += number
    if _REST in sums:
        sums[_REST] = sums.pop(_REST)  # to the end
    sums["together"] = [0, costs.forward, costs.backward, costs.activations]
    unit = "row" if costs.tokens is None else "token"
    rows: list[tuple[str, ...]] = [(f"operations a {unit}", "count", "forward", "backward", "bytes kept")]
    for kind, (count, forward, backward, kept) in sums.items():
        a_token = (f"{number / costs.positions:,.0f}" for number in (forward, backward))
        rows.append((kind, f"{count}" if kind != "together" else "", *a_token, _memory(kept)))
    bytes_of = {
        "weights": costs.weights,
        "gradients": costs.gradients,
        costs.optimizer: costs.optimizer_states,
        "activations": costs.activations,
        "logits": costs.logits,
        "peak": costs.peak,
    }
    return [
        f"one step of {costs.batch} rows"
        if costs.tokens is None
        else f"one step of {costs.batch} × {costs.tokens} tokens",
        *_aligned(rows),
        *(f"{name:<13}{_memory(count):>12}" for name, count in bytes_of.items()),
        *(f"not counted: {what}" for what in costs.not_counted),
    ]


_ROLES = {"layer": "", "adapter": ", adapter", "products": ", products"}
_REST = "what multiplies no matrices"


def _kind(name: str) -> str:
    """Write a dotted name with a star for each component that is a number."""
    return re.sub(r"\b\d+\b", "*", name) or "the model itself"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Draw rows of text as columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _memory(count: float) -> str:
    """Write a number of bytes in the unit that suits it; 1 kB is 1,000 bytes."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
