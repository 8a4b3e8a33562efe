"""What PEFT's configuration file says, in the terms of ``LoRAConfig``, and back.

The rules by which PEFT finds layers are written out here, so that a file names exactly the layers that are adapted:
whatever PEFT would find otherwise is said by full names instead.
"""

import dataclasses
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from lora_lab.lora.config import LoRAConfig, pattern_matches
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.layers import LoRAConv1D, LoRALayer, layer_class
from lora_lab.lora.targets import find_targets, identity, matches, original_modules, plain

PREFIX = "base_model.model."  # what PEFT puts before the names of the base model

# Entries of PEFT's configuration that say where an adapter comes from, or matter only if another entry is set.
_INFORMATIVE = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",  # how A was drawn
    "fan_in_fan_out",  # PEFT sets it by the class of each layer
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
_READ = {
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
}
# Ways in which PEFT starts A and B that leave the base weights alone, so that the two factors say everything.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
# Why an adapter with another start cannot be read.
_OTHER_STARTS = {
    "pissa_niter": "PEFT takes from the base what a randomized decomposition found, which cannot be computed again",
    "corda": "PEFT takes from the base what depends on training data, which the file does not hold",
    "lora_ga": "PEFT takes from the base what depends on training data, which the file does not hold",
    "loftq": "PEFT rounds the base to a few bits, and the factors belong to that",
    "olora": "PEFT takes the factors' start from the base, and here the base stays as it is",
    "mica": "there B does not train, and here it would",
}
# The modules that PEFT adds to modules_to_save for a task, whether the model has them or not.
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
_TIED_NAMES = ("embed_tokens", "lm_head")  # the last part of a name by which PEFT knows a layer that may be tied


class Part(NamedTuple):
    """A layer that an adapter is for: its name, the LoRA layer, its own configuration, and whose adapter it shares."""

    name: str
    layer: LoRALayer
    config: LoRAConfig
    shares: str | None = None


def attached_parts(model: nn.Module, name: str) -> list[Part]:
    """Give the layers that have an adapter of this name, in model order."""
    parts: dict[LoRALayer, Part] = {}
    owners: dict[Any, str] = {}
    for place, layer in original_modules(model):
        if isinstance(layer, LoRALayer) and name in layer.adapters:
            if layer in parts:
                raise ValueError(_two_names(parts[layer].name, place))
            adapter: Any = layer.adapters[name]
            owners.setdefault(adapter, place)
            parts[layer] = Part(place, layer, adapter.config)
    sources = {part.name: getattr(part.layer.adapters[name], "source", None) for part in parts.values()}
    return [part._replace(shares=owners.get(sources[part.name])) for part in parts.values()]


def parts_to_attach(model: nn.Module, config: LoRAConfig) -> list[Part]:
    """Give the layers that ``attach(model, config)`` would adapt; the model stays as it is."""
    parts: dict[nn.Module, Part] = {}
    for target in find_targets(model, config):
        if len(target.names) > 1:
            raise ValueError(_two_names(*target.names[:2]))
        (name,), layer = target.names, target.layer
        lora_layer = layer if isinstance(layer, LoRALayer) else layer_class(layer).around(layer)
        if target.shares is None:
            parts[layer] = Part(name, lora_layer, config.for_layer(name))
        else:
            owner = parts[target.shares]
            parts[layer] = Part(name, lora_layer, owner.config, owner.name)
    return list(parts.values())


def every_module(model: nn.Module) -> dict[str, nn.Module]:
    """Give every module of the model as it was before attach, by each of its dotted names; the model itself left out.

    Unlike ``original_modules`` it looks into what has a trained copy.
    """
    found = {}
    for name, module in original_modules(model):
        inner = plain(module).named_modules(remove_duplicate=False) if isinstance(module, TrainedCopy) else ()
        found[name] = plain(module)
        found |= {f"{name}.{part}": piece for part, piece in inner if part}
    found.pop("", None)
    return found


def entries_to_peft(
    model: nn.Module, parts: list[Part], saved: Collection[str], config: LoRAConfig, base_model: str
) -> dict[str, Any]:
    """Give the entries of PEFT's configuration file for an adapter.

    A PiSSA adapter is written as plain LoRA of twice the rank, [A; A₀] and [B, −B₀], with alpha such that the scale
    stays: alpha is doubled, or times √2 for rsLoRA.

    Args:
        model: the model with the adapter.
        parts: the layers that have the adapter.
        saved: the names of the modules that have a copy of the adapter's own.
        config: the configuration of the adapter.
        base_model: the name of the model that it belongs to.

    Raises:
        ValueError: PEFT would train a copy of a module that has none here, whichever names it is given.
    """
    modules = every_module(model)
    pissa = config.init == "pissa"
    shared = [part for part in parts if part.shares is not None]
    entries = {
        "base_model_name_or_path": base_model,
        "bias": config.bias,
        "fan_in_fan_out": any(isinstance(part.layer, LoRAConv1D) for part in parts),
        "inference_mode": True,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "lora_alpha": _alpha_to_peft(config.alpha, config),
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.rank * (2 if pissa else 1),
        "target_modules": [],
        "task_type": _task_type(model, modules, saved),
        "use_rslora": config.rslora,
    }
    if config.dora:
        entries["use_dora"] = True
    if saved:
        entries["modules_to_save"] = _saved_to_peft(modules, saved, config)
    if shared:
        entries["ensure_weight_tying"] = _ties(model, modules, parts)
        if not entries["ensure_weight_tying"]:
            names = ", ".join(part.name for part in shared)
            message = f"PEFT has no tied='share' for {names}: it will read an update for each, the same to begin with"
            warnings.warn(message, UserWarning, stacklevel=3)
    entries |= _targets_to_peft(model, modules, {part.name for part in parts}, config, entries)
    for entry, field in (("rank_pattern", "rank"), ("alpha_pattern", "alpha")):
        if pattern := _pattern_to_peft(field, parts, config):
            entries[entry] = pattern
    return dict(sorted(entries.items()))


def config_from_peft(
    model: nn.Module, entries: Mapping[str, Any], keys: Collection[str], *, pissa: bool = False
) -> LoRAConfig:
    """Give the configuration that the entries of PEFT's file describe on this model.

    Targets and modules_to_save stay as the file names them where that means the same here; otherwise they become the
    full names of what PEFT would find.

    Args:
        model: the model that the adapter is for.
        entries: what the file says.
        keys: the names of the tensors that come with it.
        pissa: whether the adapter is PiSSA's written as plain LoRA of twice the rank, as ``entries_to_peft`` does.

    Raises:
        ValueError: the file asks for something that is not here, or names no layer of this model; an entry is missing
            or has a value that makes no sense.
    """
    _check_supported(entries)
    modules = every_module(model)
    config = _config_but_targets(modules, entries, pissa=pissa)
    tied = _tied_by_peft(model, modules)
    found = _found_by_peft(modules, entries)
    if not found:
        raise ValueError(f"target_modules={entries['target_modules']!r} names no layer of {type(model).__name__}")
    if entries.get("ensure_weight_tying") and tied:
        if any(_ends_in(name, _TIED_NAMES) for name in entries.get("modules_to_save") or ()):
            raise ValueError("ensure_weight_tying is not supported for modules_to_save: it ties the copies")
        if _targets_tied(entries) or any(key.startswith(f"{PREFIX}{name}.lora_") for name in tied[1:] for key in keys):
            found |= set(tied)
            config = dataclasses.replace(config, tied="share")
    if config.tied == "refuse" and config.init != "pissa" and _any_tied(modules, found):
        config = dataclasses.replace(config, tied="untie")
    if config.bias != "none" and not _any_bias(modules, found, config):
        config = dataclasses.replace(config, bias="none")
    config = _without_idle_patterns(config, modules, found)
    return _with_targets(model, config, [name for name in modules if name in found])


def listed(names: list[str]) -> str:
    """Name the first few of many, with the verb that follows."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


# ---- how PEFT finds layers -------------------------------------------------------------------------------------------


def _found_by_peft(modules: Mapping[str, nn.Module], entries: Mapping[str, Any]) -> set[str]:
    """Give the names of the modules that PEFT adapts, but for those it ties to others.

    A module with several names is known to PEFT by the first. The rules are those of PEFT 0.21,
    ``tuners_utils.check_target_module_exists``.
    """
    first: dict[nn.Module, str] = {}
    for name, module in modules.items():
        first.setdefault(module, name)
    try:
        return {name for name, module in modules.items() if first[module] == name and _is_target(name, entries)}
    except re.error as error:
        raise ValueError(f"the entries must hold regular expressions, but one is none: {error}") from error


def _is_target(name: str, entries: Mapping[str, Any]) -> bool:
    """Say whether PEFT adapts the module of this name."""
    excluded, targets = entries.get("exclude_modules"), entries["target_modules"]
    if excluded and (re.fullmatch(excluded, name) if isinstance(excluded, str) else matches(name, tuple(excluded))):
        return False
    if any(re.match(rf"(^|.*\.){saved}($|\..*)", name) for saved in entries.get("modules_to_save") or ()):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return name in targets or (matches(name, tuple(targets)) and _is_in_layers(name, entries))


def _is_in_layers(name: str, entries: Mapping[str, Any]) -> bool:
    """Say whether a name lies in one of the blocks that layers_to_transform numbers, if it does."""
    numbers, patterns = entries.get("layers_to_transform"), entries.get("layers_pattern") or r"[^.]*"
    if numbers is None or numbers == []:
        return True
    prefix = r"(?:^|.*?\.)" if entries.get("layers_pattern") else r".*?\."
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"{prefix}{pattern}\.(?P<number>\d+)\.", name):
            return int(found["number"]) in ([numbers] if isinstance(numbers, int) else numbers)
    return False


def _saved_by_peft(modules: Mapping[str, nn.Module], names: Iterable[str]) -> set[str]:
    """Give the names of the modules that PEFT trains in a copy: those that end in one of these, dot or not."""
    return {module for module in modules if module.endswith(tuple(names))}


def _tied_by_peft(model: Any, modules: Mapping[str, nn.Module]) -> list[str]:
    """Give the names of the input embedding and of the layers that PEFT can tie to it; none where there are none.

    PEFT asks a model of transformers for ``_tied_weights_keys``, and ``config.tie_word_embeddings`` must not say no.
    """
    if not hasattr(model, "get_input_embeddings") or not hasattr(getattr(model, "config", None), "tie_word_embeddings"):
        return []
    if not model.config.tie_word_embeddings:
        return []
    keys: dict[str, str] = {}
    for name, module in [("", model), *modules.items()]:
        own = getattr(module, "_tied_weights_keys", None)
        if isinstance(own, dict):
            keys |= {f"{name}.{tied}".lstrip("."): f"{name}.{source}".lstrip(".") for tied, source in own.items()}
    embedding = plain(model.get_input_embeddings())
    sources = {f"{name}.weight": name for name, module in modules.items() if module is embedding}
    tied = [key.rpartition(".")[0] for key, source in keys.items() if source in sources]
    tied = [name for name in tied if name in modules]
    return [next(iter(sources.values())), *tied] if tied else []


def _targets_tied(entries: Mapping[str, Any]) -> bool:
    """Say whether PEFT sees that a tied layer is targeted: it goes by two names alone."""
    targets = entries["target_modules"]
    if isinstance(targets, str):
        return any(re.fullmatch(targets, name) for name in _TIED_NAMES)
    return any(_ends_in(name, _TIED_NAMES) for name in targets)


def _ends_in(name: str, endings: Iterable[str]) -> bool:
    """Say whether the last part of a dotted name is one of these."""
    return name.rpartition(".")[2] in endings


# ---- writing ---------------------------------------------------------------------------------------------------------


def _targets_to_peft(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    adapted: set[str],
    config: LoRAConfig,
    entries: Mapping[str, Any],
) -> dict[str, Any]:
    """Give target_modules: as the targets are if PEFT finds exactly these layers by them, otherwise the full names.

    Where the name of one layer is the end of another's, no list will do, and an expression of all full names is given.
    """
    names = [name for name in modules if name in adapted]
    ways: list[Any] = [names, "|".join(map(re.escape, names))]
    if isinstance(config.targets, re.Pattern):
        ways.insert(0, config.targets.pattern)
    elif isinstance(config.targets, tuple):
        ways.insert(0, list(config.targets))
    tied = _tied_by_peft(model, modules) if entries.get("ensure_weight_tying") else []
    for way in ways:
        said = {**entries, "target_modules": way}
        if tied and not _targets_tied(said):
            continue
        if _found_by_peft(modules, said) | set(tied) == adapted:
            return {"target_modules": way}
    raise ValueError(f"PEFT has no way to name the layers {listed(names)} adapted beside its modules_to_save")


def _saved_to_peft(modules: Mapping[str, nn.Module], saved: Collection[str], config: LoRAConfig) -> list[str]:
    """Give modules_to_save: the names of the configuration if PEFT copies exactly these modules, else full names."""
    for names in (config.modules_to_save, tuple(saved)):
        if _saved_by_peft(modules, names) == set(saved):
            return list(names)
    others = sorted(_saved_by_peft(modules, saved) - set(saved))
    raise ValueError(
        f"modules_to_save: PEFT goes by how a name ends, and would copy {', '.join(others)} beside {', '.join(saved)}"
    )


def _pattern_to_peft(field: str, parts: list[Part], config: LoRAConfig) -> dict[str, float]:
    """Give rank_pattern or alpha_pattern, and in it every layer that the patterns of the configuration miss."""
    pairs = getattr(config, f"{field}_pattern")
    missed: dict[str, float] = {}
    for part in parts:
        said = next((n for pattern, n in pairs if pattern_matches(pattern, part.name)), getattr(config, field))
        if said != (number := getattr(part.config, field)):
            missed[f"^{re.escape(part.name)}"] = number
    found = missed
    for pattern, number in pairs:
        found.setdefault(pattern, number)
    if field == "rank":
        return {pattern: number * (2 if config.init == "pissa" else 1) for pattern, number in found.items()}
    return {pattern: _alpha_to_peft(number, config) for pattern, number in found.items()}


def _alpha_to_peft(alpha: float, config: LoRAConfig) -> float:
    """Give the alpha that has the scale of this one at the rank that is written."""
    if config.init != "pissa":
        return alpha
    return alpha * math.sqrt(2) if config.rslora else alpha * 2


def _alpha_from_peft(alpha: float, *, rslora: bool) -> float:
    """Give the alpha that ``_alpha_to_peft`` was given; of those that come to one number, the shortest to write."""
    half = alpha / math.sqrt(2) if rslora else alpha / 2
    short = float(f"{half:.12g}")
    half = short if rslora and short * math.sqrt(2) == alpha else half
    return int(half) if half == int(half) else half


def _ties(model: nn.Module, modules: Mapping[str, nn.Module], parts: list[Part]) -> bool:
    """Say whether PEFT ties exactly the layers that share one update here, and sees by a name that it should."""
    tied = _tied_by_peft(model, modules)
    together = {part.name for part in parts if part.shares} | {part.shares for part in parts if part.shares}
    owners = {part.shares for part in parts if part.shares}
    return set(tied) == together and owners == {tied[0]} and any(_ends_in(name, _TIED_NAMES) for name in tied)


def _task_type(model: nn.Module, modules: Mapping[str, nn.Module], saved: Collection[str]) -> str | None:
    """Give the task where PEFT then reads what is written and no more: it trains a copy of every classifier."""
    if type(model).__name__.endswith("ForCausalLM"):
        return "CAUSAL_LM"
    heads = _saved_by_peft(modules, _HEADS["SEQ_CLS"])
    is_classifier = type(model).__name__.endswith("ForSequenceClassification")
    return "SEQ_CLS" if is_classifier and heads and heads <= set(saved) else None


# ---- reading ---------------------------------------------------------------------------------------------------------


def _check_supported(entries: Mapping[str, Any]) -> None:
    """Raise if an entry of PEFT's configuration asks for something that changes the adapter and is not here."""
    if (start := entries.get("init_lora_weights", True)) not in (*_STARTS, "pissa"):
        reasons = [reason for name, reason in _OTHER_STARTS.items() if str(start).startswith(name)]
        reason = f": {reasons[0]}" if reasons else "; some such starts change the base weights too"
        raise ValueError(f"init_lora_weights={start!r} is not supported{reason}")
    for key, value in entries.items():
        if value and key not in _READ | _INFORMATIVE:
            raise ValueError(f"{key}={value!r} is not supported")
    if entries.get("target_modules") == "all-linear":
        raise ValueError("target_modules='all-linear' must be a list of names, as PEFT writes it for a model")
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = entries.get(key)
        names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not (names or value is None or (isinstance(value, str) and key != "modules_to_save")):
            raise ValueError(f"{key} must be a list of names, got {value!r}")
    for key in ("r", "lora_alpha", "target_modules"):
        if key not in entries:
            raise ValueError(f"the file must have an entry {key!r}")
    numbers = entries.get("layers_to_transform")
    for number in numbers if isinstance(numbers, list) else [numbers]:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise ValueError(f"layers_to_transform must be a whole number or a list of them, got {numbers!r}")


def _config_but_targets(modules: Mapping[str, nn.Module], entries: Mapping[str, Any], *, pissa: bool) -> LoRAConfig:
    """Give the configuration with the targets as the file has them."""
    start = entries.get("init_lora_weights", True)
    ranks, alphas = entries.get("rank_pattern") or {}, entries.get("alpha_pattern") or {}
    saved = _saved_from_peft(modules, entries)
    try:
        config = LoRAConfig(
            rank=entries["r"],
            alpha=entries["lora_alpha"],
            targets=_compiled(entries["target_modules"]),
            dropout=entries.get("lora_dropout", 0.0),
            rslora=entries.get("use_rslora", False),
            dora=entries.get("use_dora", False),
            init="pissa" if pissa or start == "pissa" else "gaussian" if start == "gaussian" else "kaiming",
            bias=entries.get("bias", "none"),
            rank_pattern=ranks,
            alpha_pattern=alphas,
            modules_to_save=saved,
        )
        if not pissa:
            return config
        return dataclasses.replace(
            config,
            rank=_half_rank(config.rank),
            alpha=_alpha_from_peft(config.alpha, rslora=config.rslora),
            rank_pattern={pattern: _half_rank(rank) for pattern, rank in ranks.items()},
            alpha_pattern={p: _alpha_from_peft(alpha, rslora=config.rslora) for p, alpha in alphas.items()},
        )
    except TypeError as error:
        raise ValueError(str(error)) from error


def _half_rank(rank: int) -> int:
    """Give the rank of a PiSSA adapter that is written with twice its rank."""
    if rank % 2:
        raise ValueError(f"r must be even, for a PiSSA adapter is written with twice its rank, got {rank}")
    return rank // 2


def _compiled(targets: Any) -> Any:
    """Give target_modules as targets: text is a regular expression."""
    if not isinstance(targets, str):
        return targets
    try:
        return re.compile(targets)
    except re.error as error:
        raise ValueError(f"target_modules must be a list or a regular expression, got {targets!r}: {error}") from error


def _saved_from_peft(modules: Mapping[str, nn.Module], entries: Mapping[str, Any]) -> tuple[str, ...]:
    """Give modules_to_save without what PEFT adds for a task and the model lacks, in names that mean the same here."""
    given = tuple(dict.fromkeys(entries.get("modules_to_save") or ()))
    added = _HEADS.get(str(entries.get("task_type")), ())
    names = tuple(name for name in given if name not in added or _saved_by_peft(modules, (name,)))
    found = tuple(name for name in modules if name in _saved_by_peft(modules, names)) if names else ()
    if all(matches(name, names) for name in found) and all(any(matches(f, (n,)) for f in found) for n in names):
        return names
    return found or names


def _with_targets(model: nn.Module, config: LoRAConfig, names: list[str]) -> LoRAConfig:
    """Give the configuration with targets that name exactly these layers: its own if they do, else the full names."""
    every_name = re.compile("|".join(map(re.escape, names)))
    for targets in (config.targets, tuple(names)):
        changed = dataclasses.replace(config, targets=targets)
        try:
            found = {name for target in find_targets(model, changed) for name in target.names[:1]}
        except (TypeError, ValueError):
            if targets is not config.targets:
                raise
            continue
        if found == set(names):
            return changed
    return dataclasses.replace(config, targets=every_name)


def _without_idle_patterns(config: LoRAConfig, modules: Collection[str], found: Collection[str]) -> LoRAConfig:
    """Leave out the patterns that match modules of the model, but none that is adapted: PEFT passes over them."""
    fields: dict[str, Any] = {
        field: {
            pattern: number
            for pattern, number in getattr(config, field)
            if any(pattern_matches(pattern, name) for name in found)
            or not any(pattern_matches(pattern, name) for name in modules)
        }
        for field in ("rank_pattern", "alpha_pattern")
    }
    return dataclasses.replace(config, **fields)


def _any_tied(modules: Mapping[str, nn.Module], names: Iterable[str]) -> bool:
    """Say whether the weight of one of these modules is another module's too."""
    owners = Counter(
        identity(parameter)
        for module in dict.fromkeys(modules.values())
        for parameter in dict.fromkeys(module.parameters(recurse=False))
    )
    weights = [getattr(modules[name], "weight", None) for name in names]
    return any(owners[identity(weight)] > 1 for weight in weights if isinstance(weight, nn.Parameter))


def _any_bias(modules: Mapping[str, nn.Module], names: Iterable[str], config: LoRAConfig) -> bool:
    """Say whether there is a bias that trains."""
    places = modules if config.bias == "all" else names
    return any(isinstance(getattr(modules[name], "bias", None), nn.Parameter) for name in places)


def _two_names(name: str, other: str) -> str:
    """Say that PEFT's files cannot describe a layer with two names."""
    return f"{name} and {other} are one layer; PEFT's files describe the first name alone"
