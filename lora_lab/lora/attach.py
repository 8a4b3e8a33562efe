"""Put LoRA layers into a model and take them out again.

``attach`` freezes the model and wraps the layers you name, in place; ``detach`` puts everything back.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.layers import LoRALinear, checked_base

Model = TypeVar("Model", bound=nn.Module)

# Where attach leaves its note on the model: the requires_grad of every parameter as it was, by name.
_NOTE = "_requires_grad_before_attach"


def attach(model: Model, config: LoRAConfig, *, generator: torch.Generator | None = None) -> Model:
    """Freeze the model, wrap every linear layer that ``config.targets`` names in a ``LoRALinear``, and give the model.

    The wrapping is in place. A is drawn and B is zero, so the model computes what it computed before. If anything is
    wrong, the error comes before the first change.

    Args:
        model: any module that holds ``nn.Linear`` layers; it may be on the meta device.
        config: rank, alpha, targets, dropout, rsLoRA.
        generator: draws every A, in the order of ``model.named_modules()``, on the generator's own device, so that a
            CPU generator gives the same numbers whatever device the model is on. None stands for a fresh CPU
            generator with seed 0.

    Raises:
        TypeError: model is not a module, or is itself a linear layer; a target names something other than
            an ``nn.Linear``.
        ValueError: the model has LoRA layers already; a target names no layer; the rank does not fit a layer; a
            target's weight is tied to another layer's; one layer has several names and only some are targets.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.Linear):
        raise TypeError("model must hold the layers to adapt, got a Linear; wrap it with LoRALinear(linear, config)")
    if not isinstance(config, LoRAConfig):
        raise TypeError(f"config must be a LoRAConfig, got {type(config).__name__}")
    if layers := lora_layers(model):
        raise ValueError(f"model must have no LoRA layers yet, got {len(layers)}; call detach(model) first")
    linears = _find_targets(model, config)
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
    wrapped = {linear: LoRALinear(linear, config, generator=generator) for linear in dict.fromkeys(linears.values())}

    setattr(model, _NOTE, {name: parameter.requires_grad for name, parameter in model.named_parameters()})
    model.requires_grad_(False)
    for name, linear in linears.items():
        model.set_submodule(name, wrapped[linear])
    return model


def detach(model: nn.Module) -> None:
    """Take the LoRA layers out: the very base layers are back, and every parameter trains again as before attach.

    The adapter is gone with its layers; save it first if you want to keep it.

    Raises:
        ValueError: attach was not called on this very model, or its layers are merged.
    """
    if not hasattr(model, _NOTE):
        raise ValueError("model must be the one that attach(model, config) was called on; this one was not")
    layers = {name: module for name, module in _named_modules(model) if isinstance(module, LoRALinear)}
    if any(layer.merged for layer in layers.values()):
        raise ValueError("model must not be merged; call unmerge(model) first")
    for name, layer in layers.items():
        model.set_submodule(name, layer.base)
    flags: dict[str, bool] = getattr(model, _NOTE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad))
    delattr(model, _NOTE)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Give the LoRA layers of a model by dotted name, in model order; a layer with two names is listed once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def attached_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Give the LoRA layers of a model by dotted name, or raise ``ValueError`` where it has none."""
    layers = lora_layers(model)
    if not layers:
        raise ValueError(f"model must have LoRA layers, got a {type(model).__name__} without; call attach first")
    return layers


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off inside the block, so that the model computes what it computed before attach.

    Blocks may be nested, and each layer comes back as it was even when the block raises.

    Raises:
        ValueError: the model has no LoRA layers, or is merged (the update is in the weights then).
    """
    layers = attached_layers(model).values()
    if any(layer.merged for layer in layers):
        raise ValueError("model must not be merged; call unmerge(model) first")
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def matches(name: str, targets: tuple[str, ...]) -> bool:
    """Say whether the dotted ``name`` is a target or ends in one, in whole components."""
    return any(name == target or name.endswith("." + target) for target in targets)


def _find_targets(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Linear]:
    """Give the layers that ``config.targets`` names, a layer with two names twice, or raise what ``attach`` raises."""
    found = {name: module for name, module in _named_modules(model) if matches(name, config.targets)}
    for target in config.targets:
        if not any(matches(name, (target,)) for name in found):
            raise ValueError(_no_match(model, target))
    linears = {name: checked_base(module, config, name) for name, module in found.items()}
    _check_not_shared(model, linears)
    return linears


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Give every dotted name with its module, a module with two names twice."""
    return model.named_modules(remove_duplicate=False)


def _no_match(model: nn.Module, target: str) -> str:
    """Say that a target names no layer, with the names it comes close to and those it could be."""
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    endings = Counter(name.rpartition(".")[2] for name in linears)
    close = difflib.get_close_matches(target, [*endings, *linears])
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    listing = ", ".join(f"{ending} ×{count}" for ending, count in endings.items()) or "none"
    return f"targets: {target!r} names no layer of {type(model).__name__}.{hint} Its linear layers: {listing}"


def _check_not_shared(model: nn.Module, found: dict[str, nn.Linear]) -> None:
    """Raise if adapting the found layers would change a layer that nobody named."""
    targets = set(found.values())
    owners: dict[int, list[str]] = defaultdict(list)  # id of a weight → names of the parameters that are this tensor
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            owners[_identity(parameter)].append(f"{module_name}.{parameter_name}".lstrip("."))
    for name, module in _named_modules(model):
        if module in targets and name not in found:
            twin = next(other for other, linear in found.items() if linear is module)
            raise ValueError(f"targets: {twin!r} and {name!r} are one layer with two names; name both or neither")
    for name, linear in found.items():
        if len(tied := owners[_identity(linear.weight)]) > 1:
            raise ValueError(
                f"targets: the weight of {name!r} is tied, one tensor is {' and '.join(tied)}; an update of one "
                "would change the other when merged. Leave it out of targets, or give it a weight of its own first"
            )


def _identity(parameter: Tensor) -> int:
    """Give a number that two parameters share if they are one tensor, or start at one place in memory."""
    return id(parameter) if parameter.is_meta or not parameter.numel() else parameter.data_ptr()
