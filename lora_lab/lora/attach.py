"""Put adapters into a model, choose between them, and take them out again.

``attach`` freezes the model and wraps the layers you name, in place; ``detach`` puts everything back. Between the two a
model may have several adapters: ``activate`` chooses one or mixes some, ``disabled`` switches all off for a block, and
``routed`` gives each row of a batch its own.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import singledispatch
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.factors import Adapter, TiedAdapter
from lora_lab.lora.layers import DEFAULT, KINDS, LoRALayer, checked_name, full_name, layer_class
from lora_lab.lora.targets import Target, find_saved, find_targets, original_modules, plain

Model = TypeVar("Model", bound=nn.Module)

_NOTE = "_lora_lab"  # where attach leaves its note on the model


@dataclass
class Attachment:
    """What attach notes on a model, to put everything back and to know which adapters there are.

    Attributes:
        requires_grad: the flag of every parameter as it was, by name.
        configs: the configuration of each adapter, by name.
        biases: what the biases that train were before they did, by name.
        batches: how many batches each layer with running statistics had seen, by name.
        blocks: how many blocks of ``disabled`` and ``routed`` are open.
    """

    requires_grad: dict[str, bool]
    configs: dict[str, Any] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    blocks: int = 0


def attach(model: Model, config: Any, *, name: str = DEFAULT, generator: torch.Generator | None = None) -> Model:
    """Freeze the model, wrap every layer that ``config.targets`` names in a LoRA layer, and give the model.

    The wrapping is in place. One of A and B is zero (PiSSA takes away what they are), so the model computes what it
    computed before. If anything is wrong, the error comes before the first change. Call it again with another ``name``
    to add a second adapter to the same base; the one attached last is the one that is active and trains.

    What is frozen are parameters. In training mode a batch norm goes on averaging what it sees, and no adapter holds
    these averages: call ``eval()`` on such layers before you train, or name them in ``modules_to_save``.

    Args:
        model: any module that holds layers to adapt; it may be on the meta device.
        config: a ``LoRAConfig``, or one of the alternatives: ``BottleneckConfig``, ``BitFitConfig``,
            ``HeadOnlyConfig``, ``FullConfig``, ``SubspaceConfig``.
        name: the name of the adapter.
        generator: draws what does not start at zero, in the order of ``model.named_modules()``, on the generator's own
            device, so that a CPU generator gives the same numbers whatever device the model is on. None stands for a
            fresh CPU generator with seed 0.

    Raises:
        TypeError: model is not a module, or is itself a layer to adapt; generator is none; a target names something
            other than a linear layer, an embedding, or a convolution in one or two dimensions.
        ValueError: the model has an adapter of this name, is merged, or is inside ``disabled`` or ``routed``; a target
            or a pattern names no layer; the rank does not fit a layer; a target's weight is tied to another layer's;
            one layer has several names and only some are targets; biases are to train and there is another adapter.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if generator is None:
        generator = torch.Generator("cpu").manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    with torch.inference_mode(False):  # what is made in inference mode can never train
        _attach(config, model, checked_name(name), generator)
    return model


@singledispatch
def _attach(config: object, model: nn.Module, name: str, generator: torch.Generator) -> None:
    """Attach what ``config`` describes; each kind of configuration registers how."""
    raise TypeError(f"config must be a LoRAConfig, or one of its alternatives, got {type(config).__name__}")


register_attach = _attach.register  # how a module of alternatives adds its own kind


@_attach.register
def _attach_lora(config: LoRAConfig, model: nn.Module, name: str, generator: torch.Generator) -> None:
    """Attach LoRA: find the layers, make every adapter, and only then change the model."""
    if full_name(model) in KINDS:
        kind = KINDS[full_name(model)].__name__
        raise TypeError(
            f"model must hold the layers to adapt, got a {type(model).__name__}; wrap it with {kind}(layer, config)"
        )
    if isinstance(model, LoRALayer):
        raise ValueError("model must hold the layers to adapt, got a LoRA layer itself; call its add(name, config)")
    check_may_attach(model, name, biases=config.bias != "none")
    targets = find_targets(model, config)
    saved = find_saved(model, config)
    if config.bias != "none":
        _check_biases(model, config, targets)
    made: dict[nn.Module, LoRALayer | Adapter | TiedAdapter] = {}
    for target in targets:
        try:
            made[target.layer] = _made(target, config, name, generator, made)
        except ValueError as error:
            raise ValueError(f"targets: {target.names[0]!r}: {error}") from error

    note = open_note(model)
    for target in targets:
        new = made[target.layer]
        if isinstance(target.layer, LoRALayer):
            assert isinstance(new, Adapter | TiedAdapter)
            target.layer.put(name, new)
        else:
            assert isinstance(new, LoRALayer)
            for place in target.names:
                model.set_submodule(place, new)
    for place, module in saved.items():
        add_copy(model, place, module, name)
    note.configs[name] = config
    if config.bias != "none":
        note.biases = {place: bias.detach().clone() for place, bias in _biases(model, config).items()}
    activate(model, name)


def _made(
    target: Target,
    config: LoRAConfig,
    name: str,
    generator: torch.Generator,
    made: dict[nn.Module, LoRALayer | Adapter | TiedAdapter],
) -> LoRALayer | Adapter | TiedAdapter:
    """Give the LoRA layer for a plain layer, or the adapter for one that is a LoRA layer already."""
    own = config.for_layer(target.names[0])
    if target.shares is None:
        if isinstance(target.layer, LoRALayer):
            return target.layer.new_adapter(own, generator)
        return layer_class(target.layer)(target.layer, own, name=name, generator=generator)
    owner = made[target.shares]
    source = owner.adapters[name] if isinstance(owner, LoRALayer) else owner
    assert isinstance(source, Adapter)
    kinds = [KINDS[full_name(plain(layer))] for layer in (target.layer, target.shares)]
    tied = TiedAdapter(source, transposed=kinds[0].transposed != kinds[1].transposed)
    if isinstance(target.layer, LoRALayer):
        return tied
    layer = layer_class(target.layer).around(target.layer)
    layer.put(name, tied)
    return layer


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take an adapter out, or all of them: with the last, the very base layers are back, and every flag as before.

    The adapter is gone with its layers; save it first if you want to keep it. Biases that were trained are what they
    were before.

    Raises:
        ValueError: attach was not called on this very model, there is no adapter of this name, or the model is merged
            or inside ``disabled`` or ``routed``.
    """
    note = noted(model)
    if name is not None and name not in note.configs:
        raise ValueError(f"name must be one of the model's adapters, {', '.join(note.configs)}, got {name!r}")
    _check_not_merged(model)
    check_outside_blocks(note)
    leaving = list(note.configs) if name is None else [name]
    put_biases(model, note.biases)
    for place, module in list(original_modules(model)):
        if isinstance(module, LoRALayer):
            for adapter in leaving:
                if adapter in module.adapters:
                    del module.adapters[adapter]
                module.active.pop(adapter, None)
            if not module.adapters:
                model.set_submodule(place, module.base)
        elif isinstance(module, TrainedCopy):
            for adapter in leaving:
                if adapter in module.copies:
                    del module.copies[adapter]
            module.active = None if module.active in leaving else module.active
            if not len(module.copies):
                model.set_submodule(place, module.base)
    for adapter in leaving:
        del note.configs[adapter]
    if note.configs:
        remaining = [other for other in active_adapters(model) if other not in leaving]
        activate(model, {other: active_adapters(model)[other] for other in remaining} or next(iter(note.configs)))
        return
    close_note(model)


def activate(model: nn.Module, adapters: str | Mapping[str, float]) -> None:
    """Choose the adapter that counts, or mix some: W + the sum of share · scale · B A. They are the ones that train.

    They train alone: a ``requires_grad`` that you set by hand on another parameter is taken back.

    Args:
        model: a model that attach was called on.
        adapters: the name of one adapter, or a share for each of some: ``{"sql": 0.7, "chat": 0.3}``.

    Raises:
        TypeError: adapters is neither a name nor a dict; a share is not a number.
        ValueError: attach was not called on this very model, it has no adapter of a name, it is merged, a share is
            not finite, or adapters are mixed that cannot be: those of DoRA, which stretch the whole weight, and those
            that train a copy of one module.
    """
    note = noted(model)
    if not isinstance(adapters, str | Mapping):
        raise TypeError(f"adapters must be the name of one adapter, or a dict from names to shares, got {adapters!r}")
    shares = {adapters: 1.0} if isinstance(adapters, str) else dict(adapters)
    if not shares:
        raise ValueError("adapters must name one adapter at least; with disabled(model) none counts")
    for name, share in shares.items():
        if name not in note.configs:
            raise ValueError(f"adapters must be of the model's, {', '.join(note.configs)}, got {name!r}")
        if isinstance(share, bool) or not isinstance(share, Real):
            raise TypeError(f"the share of {name!r} must be a number, got {share!r}")
        if not math.isfinite(share):
            raise ValueError(f"the share of {name!r} must be finite, got {share}")
    _check_not_merged(model)
    modules = dict(original_modules(model))
    for place, module in modules.items():
        _check_mix(place, module, shares)
    for module in modules.values():
        if isinstance(module, LoRALayer):
            module.active = {name: float(share) for name, share in shares.items() if name in module.adapters}
        elif isinstance(module, TrainedCopy):
            module.active = next((name for name in shares if name in module.copies), None)
    _set_flags(model, note, set(shares))


def active_adapters(model: nn.Module) -> dict[str, float]:
    """Give the shares of the adapters that count, by name."""
    shares: dict[str, float] = {}
    for _, module in original_modules(model):
        if isinstance(module, LoRALayer):
            shares |= module.active
        elif isinstance(module, TrainedCopy) and module.active is not None:
            shares.setdefault(module.active, 1.0)
    return shares or dict.fromkeys(noted(model).configs, 1.0)


def adapters(model: nn.Module) -> dict[str, Any]:
    """Give the configuration of every adapter that was attached to a model, by name; of an untouched model, none."""
    note: Attachment | None = getattr(model, _NOTE, None)
    return dict(note.configs) if note else {}


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """Give the LoRA layers of a model by dotted name, in model order; a layer with two names is listed once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALayer)}


def attached_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """Give the LoRA layers of a model by dotted name, or raise ``ValueError`` where it has none."""
    layers = lora_layers(model)
    if not layers:
        has = [f"{name!r}, a {type(config).__name__}, which has none" for name, config in adapters(model).items()]
        without = f"with {' and '.join(has)}" if has else "without; call attach first"
        raise ValueError(f"model must have LoRA layers, got a {type(model).__name__} {without}")
    return layers


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off inside the block, so that the model computes what it computed before attach.

    Blocks may be nested, and each layer comes back as it was even when the block raises.

    Raises:
        ValueError: the model has no adapters, or is merged (the update is in the weights then).
    """
    if _trains_whole(adapters(model)):
        raise ValueError("model trains as a whole, and what it was before attach is not kept: nothing can be disabled")
    switches = [module for module in model.modules() if isinstance(module, LoRALayer | TrainedCopy)]
    note: Attachment | None = getattr(model, _NOTE, None)
    if not switches and not (note and note.biases):
        attached_layers(model)
    _check_not_merged(model)
    before = [module.enabled for module in switches]
    trained = put_biases(model, note.biases) if note and (all(before) or not before) else {}
    for module in switches:
        module.enabled = False
    if note:
        note.blocks += 1
    try:
        yield
    finally:
        if note:
            note.blocks -= 1
        for module, enabled in zip(switches, before, strict=True):
            module.enabled = enabled
        put_biases(model, trained)


@contextmanager
def routed(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Give each row of a batch its own adapter inside the block; None stands for the base alone.

    ``with routed(model, ["sql", "chat", None]): model(three_rows)`` computes each row as if its adapter alone were
    active. The batch must be the first dimension of whatever a layer is given. What trains stays what ``activate``
    chose: rows of another adapter give it no gradient.

    Raises:
        TypeError: names is no list.
        ValueError: the model has no adapter of a name, is merged, or trains biases, which all rows share.
    """
    note = noted(model)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"names must be a list with one name, or None, for each row of the batch, got {names!r}")
    names = tuple(names)
    for name in names:
        if name is not None and name not in note.configs:
            raise ValueError(f"names must be of the model's adapters, {', '.join(note.configs)}, or None; got {name!r}")
    if note.biases:
        raise ValueError("names: this model's adapter trains biases, which all rows of a batch share")
    if _trains_whole(note.configs):
        raise ValueError("names: this model trains as a whole, and all rows of a batch share it")
    _check_not_merged(model)
    layers = [module for module in model.modules() if isinstance(module, LoRALayer | TrainedCopy)]
    before = [layer.rows for layer in layers]
    for layer in layers:
        layer.rows = names
    note.blocks += 1
    try:
        yield
    finally:
        note.blocks -= 1
        for layer, rows in zip(layers, before, strict=True):
            layer.rows = rows


def noted(model: nn.Module) -> Attachment:
    """Give the note that attach left on a model, or raise ``ValueError`` where there is none."""
    if not hasattr(model, _NOTE):
        raise ValueError("model must be the one that attach(model, config) was called on; this one was not")
    note: Attachment = getattr(model, _NOTE)
    return note


def open_note(model: nn.Module) -> Attachment:
    """Give the note on a model, and make one, and freeze the model, if there is none yet."""
    if not hasattr(model, _NOTE):
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        model.requires_grad_(False)
        setattr(model, _NOTE, Attachment(flags, batches=_batches(model)))
    return noted(model)


def moved_statistics(model: nn.Module) -> list[str]:
    """Name the layers whose running statistics are no longer what they were at ``attach``, but for trained copies."""
    before = noted(model).batches
    return [name for name, count in _batches(model).items() if count != before.get(name, count)]


def _batches(model: nn.Module) -> dict[str, int]:
    """Give the number of batches that each layer with running statistics has seen, but for trained copies."""
    counts = {name: module._buffers.get("num_batches_tracked") for name, module in original_modules(model)}
    return {name: int(count) for name, count in counts.items() if count is not None and not count.is_meta}


def close_note(model: nn.Module) -> None:
    """Put the flags of every parameter back to what the note says, and take the note away."""
    flags = noted(model).requires_grad
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad))
    delattr(model, _NOTE)


def check_may_attach(model: nn.Module, name: str, *, biases: bool = False) -> None:
    """Raise unless an adapter of this name can be added to the model."""
    there = adapters(model)
    if not there and (layers := lora_layers(model)):
        raise ValueError(f"model must have no LoRA layers of another model's yet, got {len(layers)}; attach the whole")
    if name in there:
        raise ValueError(f"name must be new, got {name!r}: the model has it; give another name, or detach(model) first")
    if _trains_whole(there):
        raise ValueError(f"model must not train as a whole, but {', '.join(there)} does that; detach(model) first")
    if there and (biases or noted(model).biases):
        raise ValueError(f"biases belong to one adapter alone, and the model has {', '.join(there)}; detach it first")
    _check_not_merged(model)
    if there:
        check_outside_blocks(noted(model))


def add_copy(model: nn.Module, place: str, module: nn.Module, name: str) -> None:
    """Put a trained copy of a module at its place, for an adapter."""
    if not isinstance(module, TrainedCopy):
        wrapper = TrainedCopy(module)
        model.set_submodule(place, wrapper)
        module = wrapper
    module.add(name)


def put_biases(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write values into biases, by the names they have in the attached model, and give what was there before."""
    before = {}
    with torch.no_grad():
        for place, value in values.items():
            parameter = model.get_parameter(place)
            before[place] = parameter.detach().clone()
            parameter.copy_(value)
    return before


def _biases(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Parameter]:
    """Give the biases that train, by name: all of the model's own, or those of the adapted layers."""
    inside = [f"{place}." for place, module in original_modules(model) if isinstance(module, TrainedCopy)]
    adapted = [f"{place}.base." for place, module in original_modules(model) if isinstance(module, LoRALayer)]
    found = {}
    for place, parameter in model.named_parameters():
        if place.rpartition(".")[2] != "bias" or any(place.startswith(prefix) for prefix in inside):
            continue
        if config.bias == "all" or any(place.startswith(prefix) for prefix in adapted):
            found[place] = parameter
    return found


def _check_biases(model: nn.Module, config: LoRAConfig, targets: list[Target]) -> None:
    """Raise if there is no bias to train."""
    every = [place for place, _ in model.named_parameters() if place.rpartition(".")[2] == "bias"]
    own = [target for target in targets if getattr(plain(target.layer), "bias", None) is not None]
    if not (every if config.bias == "all" else own):
        raise ValueError(f"bias={config.bias!r} must find a bias to train, but there is none")


def _set_flags(model: nn.Module, note: Attachment, names: set[str]) -> None:
    """Let the adapters of these names train, and nothing else."""
    model.requires_grad_(_trains_whole(note.configs))
    for module in model.modules():
        if isinstance(module, LoRALayer):
            parts: list[nn.Module] = [module.adapters[name] for name in names if name in module.adapters]
        elif isinstance(module, TrainedCopy):
            parts = [module.copies[name] for name in names if name in module.copies]
        else:
            continue
        for part in parts:
            part.requires_grad_(True)
    for place in note.biases:
        model.get_parameter(place).requires_grad_(True)


def _trains_whole(configs: Mapping[str, Any]) -> bool:
    """Say whether one of the configurations lets the model train as a whole, as ``FullConfig`` does."""
    return any(getattr(config, "trains_whole", False) for config in configs.values())


def _check_mix(place: str, module: nn.Module, shares: Mapping[str, float]) -> None:
    """Raise if a module cannot be the mix of adapters that is asked for."""
    if isinstance(module, LoRALayer):
        here = {name: share for name, share in shares.items() if name in module.adapters}
        dora = [name for name in here if module.adapters[name].magnitude is not None]
        if dora and (len(here) > 1 or here[dora[0]] != 1):
            raise ValueError(f"adapters: {dora[0]!r} is DoRA, which stretches all of {place!r}; activate it alone")
    elif isinstance(module, TrainedCopy):
        copies = [name for name in shares if name in module.copies]
        if len(copies) > 1 or (copies and shares[copies[0]] != 1):
            raise ValueError(f"adapters: {' and '.join(copies)} train a copy of {place!r}; activate one alone")


def check_outside_blocks(note: Attachment) -> None:
    """Raise inside ``disabled`` or ``routed``: at its end the block would put back what is no longer there."""
    if note.blocks:
        raise ValueError("model must be outside disabled(model) and routed(model, …); end the block first")


def _check_not_merged(model: nn.Module) -> None:
    """Raise if a layer is merged."""
    if any(layer.merged for layer in lora_layers(model).values()):
        raise ValueError("model must not be merged; call unmerge(model) first")
