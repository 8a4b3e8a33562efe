"""Which layers an adapter goes to: names, patterns, predicates, near misses, and weights that have two owners."""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from lora_lab.lora.config import LoRAConfig, pattern_matches
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.layers import KINDS, LoRALayer, full_name, layer_class

LINEAR_KINDS = ("torch.nn.modules.linear.Linear", "transformers.pytorch_utils.Conv1D")


class Target(NamedTuple):
    """A layer that gets an adapter: all its names, the layer, and the one whose adapter it shares, if any."""

    names: tuple[str, ...]
    layer: nn.Module  # the plain layer, or the LoRA layer that holds it already
    shares: nn.Module | None  # another target's layer


def find_targets(model: nn.Module, config: LoRAConfig) -> list[Target]:
    """Give the layers that ``config.targets`` names, in model order, or raise what ``attach`` raises."""
    modules = dict(original_modules(model))
    found = find_layers(model, config)
    shares = _tied(model, found, config)
    _check_patterns(config, [name for name, module in modules.items() if name in found or module in shares])
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in modules.items():
        if name in found or module in shares:
            names[module].append(name)
    # A layer that shares comes after the one that owns the adapter.
    layers = sorted(names, key=lambda module: shares.get(module) is not None)
    targets = [Target(tuple(names[module]), module, shares.get(module)) for module in layers]
    for target in targets:
        layer_class(plain(target.layer), target.names[0])
    return targets


def find_layers(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Module]:
    """Give the layers that ``config.targets`` names and an update of this rank fits, by dotted name."""
    modules = dict(original_modules(model))
    saved = find_saved(model, config)
    found = {name: module for name, module in _matching(model, config, modules).items() if not inside(name, saved)}
    if not found:
        raise ValueError(f"targets must name a layer outside modules_to_save, got {config.targets!r}")
    for name, module in found.items():
        kind = layer_class(plain(module), f"targets: {name!r}")
        kind.checked_base(plain(module), config.for_layer(name), repr(name))
    _check_whole(found, modules)
    return found


def find_saved(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Module]:
    """Give the modules that ``config.modules_to_save`` names, by dotted name."""
    modules = dict(original_modules(model))
    found = {name: module for name, module in modules.items() if matches(name, config.modules_to_save)}
    for target in config.modules_to_save:
        if not any(matches(name, (target,)) for name in found):
            hint = _close(target, list(modules)) or f" There are {_listing(name for name in modules if name)}"
            raise ValueError(f"modules_to_save: {target!r} names no module.{hint}")
    for name, module in found.items():
        # A trained copy is what an adapter beside this one trains here: it takes one more copy.
        if type(module) is not TrainedCopy and any(isinstance(p, LoRALayer | TrainedCopy) for p in module.modules()):
            raise ValueError(f"modules_to_save: {name!r} is, or holds, a layer with an adapter; choose one of the two")
        if inner := [other for other in found if other.startswith(f"{name}.")]:
            raise ValueError(f"modules_to_save: {inner[0]!r} is inside {name!r}; name one of the two")
    return found


def original_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Give every dotted name of the model as it was before attach, a module with two names twice.

    Where a LoRA layer or a trained copy stands for a module, it is given, and nothing inside it.
    """
    inside: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, LoRALayer | TrainedCopy):
            inside.append(f"{name}." if name else "")
        yield name, module


def plain(module: nn.Module) -> nn.Module:
    """Give the layer that was there before attach."""
    return module.base if isinstance(module, LoRALayer | TrainedCopy) else module


def matches(name: str, targets: tuple[str, ...]) -> bool:
    """Say whether the dotted ``name`` is a target or ends in one, in whole components."""
    return any(name == target or name.endswith("." + target) for target in targets)


def head_names(model: Any) -> set[str]:
    """Give the names of a transformers model's head: its output embedding, and all that is outside the base model."""
    if not (hasattr(model, "base_model_prefix") and hasattr(model, "get_output_embeddings")):
        return set()
    names = [name for name, _ in original_modules(model) if name]
    output = model.get_output_embeddings()
    head = {name for name, module in original_modules(model) if output is not None and module is output}
    prefix = model.base_model_prefix
    if prefix and hasattr(model, prefix):
        head |= {name for name in names if name != prefix and not name.startswith(f"{prefix}.")}
    return head


def _matching(model: nn.Module, config: LoRAConfig, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Give the modules that the targets name; those named by a pattern, a predicate or "all-linear" are all layers."""
    targets = config.targets
    if isinstance(targets, tuple):
        for target in targets:
            if not any(matches(name, (target,)) for name in modules):
                raise ValueError(_no_match(model, target))
        return {name: module for name, module in modules.items() if matches(name, targets)}
    layers = {name: module for name, module in modules.items() if full_name(plain(module)) in KINDS}
    if isinstance(targets, str):  # "all-linear"
        head = head_names(model)
        found = {n: m for n, m in layers.items() if full_name(plain(m)) in LINEAR_KINDS and n not in head}
        asked = "'all-linear'"
    elif isinstance(targets, re.Pattern):
        found = {name: module for name, module in layers.items() if targets.fullmatch(name)}
        asked = f"the expression {targets.pattern!r}"
    else:
        found = {name: module for name, module in layers.items() if targets(name, plain(module))}
        asked = "the function"
    if not found:
        raise ValueError(f"targets: {asked} names no layer of {type(model).__name__}. Its layers: {_listing(layers)}")
    return found


def _no_match(model: nn.Module, target: str) -> str:
    """Say that a target names no layer, with the names it comes close to and those it could be."""
    layers = {name: module for name, module in original_modules(model) if full_name(plain(module)) in KINDS}
    endings = [name.rpartition(".")[2] for name in layers]
    hint = _close(target, [*dict.fromkeys(endings), *layers])
    return f"targets: {target!r} names no layer of {type(model).__name__}.{hint} Its layers: {_listing(layers)}"


def _listing(layers: Iterable[str]) -> str:
    """List the last parts of names with their counts."""
    endings = Counter(name.rpartition(".")[2] for name in layers)
    return ", ".join(f"{ending} ×{count}" for ending, count in endings.items()) or "none"


def _close(target: str, names: list[str]) -> str:
    """Ask whether one of the names that come close was meant."""
    close = difflib.get_close_matches(target, names)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _check_patterns(config: LoRAConfig, layers: list[str]) -> None:
    """Refuse a pattern for ranks or alphas that the name of no layer to adapt matches."""
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern, _ in getattr(config, field):
            if not any(pattern_matches(pattern, name) for name in layers):
                endings = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
                hint = _close(pattern, [*endings, *layers])
                raise ValueError(f"{field}: {pattern!r} matches no adapted layer.{hint} There are {_listing(layers)}")


def inside(name: str, saved: dict[str, nn.Module]) -> bool:
    """Say whether a name is that of a saved module or of a part of one."""
    return any(name == other or name.startswith(f"{other}.") for other in saved)


def _check_whole(found: dict[str, nn.Module], modules: dict[str, nn.Module]) -> None:
    """Raise if one of two names of a layer is a target and the other is not."""
    targets = set(found.values())
    for name, module in modules.items():
        if module in targets and name not in found:
            twin = next(other for other, layer in found.items() if layer is module)
            raise ValueError(f"targets: {twin!r} and {name!r} are one layer with two names; name both or neither")


def _tied(model: nn.Module, found: dict[str, nn.Module], config: LoRAConfig) -> dict[nn.Module, nn.Module | None]:
    """Give, for tied weights and ``tied="share"``, each layer of a tie with the one that owns the adapter, or None.

    With "refuse" a tie raises; with "untie" each target has an adapter of its own and nothing is shared.
    """
    owners: dict[int, dict[str, nn.Module]] = defaultdict(dict)  # identity of a weight → its parameters and modules
    for module_name, module in original_modules(model):
        for parameter_name, parameter in plain(module).named_parameters(recurse=False):
            owners[identity(parameter)][f"{module_name}.{parameter_name}".lstrip(".")] = module
    shares: dict[nn.Module, nn.Module | None] = {}
    for name, layer in found.items():
        tied = owners[identity(plain(layer).weight)]  # type: ignore[arg-type]
        others = [module for module in dict.fromkeys(tied.values()) if module is not layer]
        if not others or config.tied == "untie":
            continue
        if config.tied == "refuse":
            raise ValueError(
                f"targets: the weight of {name!r} is tied, one tensor is {' and '.join(tied)}. Leave it out of "
                "targets, or say with tied='untie' that this layer alone is adapted, and gets a weight of its own when "
                "merged, or with tied='share' that all of them get one update"
            )
        every = list(dict.fromkeys(tied.values()))
        for parameter_name, module in tied.items():
            if not parameter_name.endswith("weight") or full_name(plain(module)) not in KINDS:
                raise ValueError(f"tied='share': {parameter_name!r} is tied to {name!r}, and is no weight to adapt")
        embedding = [module for module in every if full_name(plain(module)).endswith(".Embedding")]
        owner = (embedding or every)[0]
        shares |= {module: None if module is owner else owner for module in every}
    return shares


def identity(parameter: Tensor) -> int:
    """Give a number that two parameters share if they are one tensor, or start at one place in memory."""
    return id(parameter) if parameter.is_meta or not parameter.numel() else parameter.data_ptr()
