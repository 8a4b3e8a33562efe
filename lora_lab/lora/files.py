"""Save and load adapters in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors`` in one folder.

A layer's factors are stored under PEFT's names, ``base_model.model.<layer>.lora_A.weight`` and ``….lora_B.weight``,
in PEFT's shapes, so for a linear layer saving is a renaming and nothing more; ``peft_tensors`` says what else there is,
and ``peft_config`` what the configuration says. Only safetensors are read; nothing is ever unpickled.
"""

import dataclasses
import json
import os
import re
import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lora_lab.lora.attach import (
    Model,
    adapters,
    attach,
    attached_layers,
    check_may_attach,
    lora_layers,
    moved_statistics,
)
from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.layers import DEFAULT, LoRALayer, checked_name
from lora_lab.lora.peft_config import (
    PREFIX,
    Part,
    attached_parts,
    config_from_peft,
    entries_to_peft,
    every_module,
    listed,
    parts_to_attach,
)
from lora_lab.lora.peft_tensors import (
    bias_names,
    computed_otherwise,
    factor_shapes,
    factors_from_peft,
    factors_to_peft,
)
from lora_lab.lora.targets import find_saved, original_modules, plain

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Modules that put a prefix before every name of the model inside them.
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule"}
# What is noted in a file that PEFT's configuration has no entry for; PEFT does not read it.
_PISSA, _OTHERWISE = "pissa", "computed_otherwise_by_peft"


def save_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, base_model: str | None = None, name: str | None = None
) -> None:
    """Write an adapter of a model into a folder, as ``peft.PeftModel.from_pretrained`` and ``load_adapter`` read it.

    Factors are written in the type they have, merged or not. The folder is made if need be, other files in it stay,
    and an adapter that is there is replaced. At every moment the folder holds the old adapter, the new one, or one
    without its configuration that nothing loads: never a mixture.

    Targets are written as they are where PEFT finds exactly the adapted layers by them, and otherwise as full names. A
    PiSSA adapter is written as plain LoRA of twice the rank, which fits any copy of the base: PEFT's own way needs a
    base that it has changed. ``load_adapter`` makes PiSSA of it again.

    Args:
        model: a model with LoRA layers, the one given to ``attach``; names are stored relative to it.
        folder: where to write.
        base_model: the hub name or path of the model that the adapter belongs to; None takes ``model.name_or_path``.
        name: the name of the adapter; None stands for the only one there is. It is not written.

    Warns:
        UserWarning: PEFT will compute something else with a layer, for it ignores the dilation and the padding_mode
            of a convolution and takes DoRA's lengths across groups; or PEFT will not tie what is tied here; or the
            running statistics of a batch norm have moved since ``attach``, and no adapter holds them.

    Raises:
        TypeError: model is a wrapper (compiled, distributed) or a single LoRA layer; pass the model that was attached.
            The adapter is something other than LoRA.
        ValueError: the model has no LoRA layers; name is None and there are several adapters, or there is none of
            this name; base_model is not given and not known; a number to save is NaN or infinity or on the meta
            device; layers that were wrapped by hand have different configurations; one layer has two names (PEFT
            adapts it under the first alone); PEFT would train a copy of one more module; the adapter trains biases
            and is disabled.
        OSError: the folder cannot be written.
    """
    layers = attached_layers(model)
    if type(model).__name__ in _WRAPPERS or "" in layers:
        raise TypeError(f"model must be the one given to attach, got a {type(model).__name__}, which has other names")
    name = _chosen(model, layers, name)
    base_model = base_model or getattr(model, "name_or_path", None)
    if not base_model or not isinstance(base_model, str):
        raise ValueError(f"base_model must be the name of the model that the adapter belongs to, got {base_model!r}")
    parts = attached_parts(model, name)
    config = _config_of(model, name, parts)
    copies = _copies(model, name)
    if config.bias != "none" and not all(layer.enabled for layer in layers.values()):
        raise ValueError("model must be outside disabled(model) to be saved: its trained biases are put aside there")
    entries = entries_to_peft(model, parts, list(copies), config, base_model)
    notes = {_PISSA: "twice the rank"} if config.init == "pissa" else {}
    for part in parts:
        if left_out := computed_otherwise(part.layer, part.config):
            notes[_OTHERWISE] = "yes"
            message = f"PEFT will compute something else with {part.name}: it leaves out {left_out}"
            warnings.warn(message, UserWarning, stacklevel=2)
    if name in adapters(model) and (moved := moved_statistics(model)):
        message = (
            f"on another copy of the base the adapter will compute something else: averages of batch norms moved since "
            f"attach ({', '.join(moved[:6])}); call eval() on them before training, or name them in modules_to_save"
        )
        warnings.warn(message, UserWarning, stacklevel=2)
    tensors = {key: tensor.detach().clone() for key, tensor in _tensors(model, parts, copies, config, name).items()}
    for key, tensor in tensors.items():
        _check_finite(key, tensor)
        tensors[key] = tensor.contiguous()
    text = json.dumps(entries, indent=2) + "\n"
    _write(Path(folder), text.encode(), _with_notes(safetensors.torch.save(tensors, metadata={"format": "pt"}), notes))


def load_adapter(model: Model, folder: str | os.PathLike[str], *, name: str = DEFAULT) -> Model:
    """Read an adapter from a folder into a model, and give the model; any error leaves the model as it was.

    A model without an adapter of this name is attached first, as the configuration in the folder says, beside the
    adapters it has. Where there is one, it must have the same layers, rank, alpha, rsLoRA and variant; its own dropout
    stays. The factors are cast to the type that the layers keep: float32, or float64 beside a float64 base.

    A PiSSA adapter that PEFT wrote is read as PiSSA: what PEFT took from the base is computed from the base again, as
    PEFT does, and taken from the update instead.

    Args:
        model: the base model, attached or not, not merged.
        folder: what ``save_adapter`` or PEFT's ``save_pretrained`` wrote.
        name: the name of the adapter in the model.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: a file is damaged; the configuration asks for something that is not here (another method, a start
            that changes the base, trained tokens, …); tensors are missing, or left over, or of a wrong shape, or hold
            NaN or infinity; the file brings another base embedding than the model's; PEFT computes something else
            with a layer than its weight allows; the model's adapter does not fit, or is merged, or is on the meta
            device.
        TypeError: the targets name something other than a layer that can be adapted.
    """
    checked_name(name)
    entries = _read_entries(Path(folder) / CONFIG_FILE)
    tensors, notes = _read_tensors(Path(folder) / WEIGHTS_FILE)
    doubled = _PISSA in notes
    try:
        config = config_from_peft(model, entries, tensors, pissa=doubled)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE}: {error}") from error
    there = any(name in layer.adapters for layer in lora_layers(model).values())
    if there:
        parts = attached_parts(model, name)
        _check_agrees(model, name, parts, config)
    else:
        check_may_attach(model, name, biases=config.bias != "none")
        parts = parts_to_attach(model, config)
    if _OTHERWISE not in notes:
        _check_computed_alike(parts)
    modules = every_module(model)
    saved = _copies(model, name) if there else find_saved(model, config)
    biases = bias_names(modules, {part.name for part in parts}, set(saved), config.bias)
    read = _Reading(tensors)
    read.check_keys(_expected(parts, saved, biases, doubled), _allowed(model, modules, saved, config, tensors))
    factors = {part.name: read.factors(part, doubled) for part in parts}
    _check_shared(parts, factors)
    states = {place: read.state(place, module) for place, module in saved.items()}
    new_biases = read.biases({key: modules[place].bias for key, place in biases.items()})  # type: ignore[misc]
    if not there:
        attach(model, config, name=name)
    with torch.no_grad():
        for part in attached_parts(model, name):
            if part.shares is None:
                _put(part.layer.adapters[name], factors[part.name])
        for place, module in _copies(model, name).items():
            module.load_state_dict(states[place])
        for bias, value in new_biases.items():
            bias.copy_(value)
    return model


# ---- what there is to save -------------------------------------------------------------------------------------------


def _chosen(model: nn.Module, layers: Mapping[str, LoRALayer], name: str | None) -> str:
    """Give the name of the adapter that is meant."""
    there = list(dict.fromkeys([*adapters(model), *(other for layer in layers.values() for other in layer.adapters)]))
    if name is None and len(there) > 1:
        raise ValueError(f"name must say which adapter is meant, for the model has {', '.join(there)}")
    chosen = there[0] if name is None else name
    if chosen not in there:
        raise ValueError(f"name must be one of the model's adapters, {', '.join(there)}, got {name!r}")
    config = adapters(model).get(chosen)
    if config is not None and not isinstance(config, LoRAConfig):
        raise TypeError(f"name must be that of a LoRA adapter, but {chosen!r} is a {type(config).__name__}")
    return chosen


def _config_of(model: nn.Module, name: str, parts: list[Part]) -> LoRAConfig:
    """Give the configuration of an adapter: the one given to attach, or that of layers that were wrapped by hand."""
    if name in adapters(model):
        config: LoRAConfig = adapters(model)[name]
        return config
    configs = {part.config for part in parts}
    if len(configs) > 1:
        raise ValueError(f"layers must have one configuration to be saved together, got {len(configs)}")
    return dataclasses.replace(configs.pop(), bias="none", modules_to_save=(), rank_pattern=(), alpha_pattern=())


def _copies(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """Give the copies of whole modules that an adapter trains, by the names of the modules."""
    return {
        place: module.copies[name]
        for place, module in original_modules(model)
        if isinstance(module, TrainedCopy) and name in module.copies
    }


def _tensors(
    model: nn.Module, parts: list[Part], copies: Mapping[str, nn.Module], config: LoRAConfig, name: str
) -> dict[str, Tensor]:
    """Give everything that an adapter trains under PEFT's names."""
    modules = every_module(model)
    tensors: dict[str, Tensor] = {}
    for part in parts:
        for key, factor in factors_to_peft(part.layer, part.layer.adapters[name]).items():
            tensors[f"{PREFIX}{part.name}.{key}"] = factor
    for place, module in copies.items():
        tensors |= {f"{PREFIX}{place}.{key}": tensor for key, tensor in module.state_dict().items()}
    for key, place in bias_names(modules, {part.name for part in parts}, set(copies), config.bias).items():
        tensors[f"{PREFIX}{key}"] = modules[place].bias  # type: ignore[assignment]
    return tensors


# ---- what a file must hold -------------------------------------------------------------------------------------------


def _expected(
    parts: list[Part], saved: Mapping[str, nn.Module], biases: Mapping[str, str], doubled: bool
) -> dict[str, None]:
    """Give the keys of every tensor that a file must hold, in order."""
    keys = [f"{PREFIX}{p.name}.{key}" for p in parts for key in factor_shapes(p.layer, p.config, doubled=doubled)]
    keys += [f"{PREFIX}{place}.{key}" for place, module in saved.items() for key in plain(module).state_dict()]
    return dict.fromkeys([*keys, *(f"{PREFIX}{key}" for key in biases)])


def _allowed(
    model: Any,
    modules: Mapping[str, nn.Module],
    saved: Mapping[str, nn.Module],
    config: LoRAConfig,
    keys: Collection[str],
) -> dict[str, Tensor | str]:
    """Give the keys that a file may hold beside these, each with what it must be: a tensor, or another key.

    PEFT saves the input and output embeddings along where one is targeted, and with bias="all" also the biases of
    the modules that have a trained copy, once for the module and once more for the copy. ``keys`` are the file's own.
    """
    allowed: dict[str, Tensor | str] = {}
    if hasattr(model, "get_input_embeddings") and hasattr(model, "get_output_embeddings"):
        embeddings = [plain(e) for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None]
        for place, module in modules.items():
            if module in embeddings:
                for key, tensor in module.state_dict().items():
                    allowed |= {f"{PREFIX}{place}.{key}": tensor, f"{PREFIX}{place}.base_layer.{key}": tensor}
    for place in saved if config.bias == "all" else ():
        for key, tensor in modules[place].state_dict().items():
            if key.rpartition(".")[2] == "bias":
                allowed[f"{PREFIX}{place}.original_module.{key}"] = tensor
                copied = re.compile(rf"{re.escape(f'{PREFIX}{place}.modules_to_save')}\.([^.]+\.)?{re.escape(key)}")
                allowed |= {other: f"{PREFIX}{place}.{key}" for other in keys if copied.fullmatch(other)}
    return allowed


class _Reading:
    """The tensors of a file, checked one by one as they are taken."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold the tensors by key."""
        self.tensors = tensors

    def check_keys(self, expected: Mapping[str, None], allowed: Mapping[str, Tensor | str]) -> None:
        """Raise if a tensor is missing or left over, or is not what the model has already."""
        if missing := [key for key in expected if key not in self.tensors]:
            raise ValueError(f"{WEIGHTS_FILE} must hold all that the adapter trains, but {listed(missing)} missing")
        beside = [key for key in self.tensors if key not in expected]
        if extra := [key for key in beside if key not in allowed]:
            raise ValueError(f"{WEIGHTS_FILE} must hold nothing else than the adapter, but {listed(extra)} left over")
        for key in beside:
            own = allowed[key]
            own, whose = (self.tensors[own], own) if isinstance(own, str) else (own, "the model's own")
            found = self.tensors[key]
            if found.shape != own.shape or not torch.equal(found.to(own.device, own.dtype), own):
                raise ValueError(f"{key} must be the same as {whose}, but differs: the adapter is for another base")

    def factors(self, part: Part, doubled: bool) -> dict[str, Tensor]:
        """Give the parameters and buffers of the adapter of a layer."""
        weight = part.layer.base.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        held = {
            key: self.fitting(f"{PREFIX}{part.name}.{key}", shape, weight.device, dtype)
            for key, shape in factor_shapes(part.layer, part.config, doubled=doubled).items()
        }
        return factors_from_peft(part.layer, part.config, held, part.name, doubled=doubled)

    def state(self, place: str, module: nn.Module) -> dict[str, Tensor]:
        """Give the state of a module that is trained as a whole."""
        own = plain(module).state_dict()
        return {k: self.fitting(f"{PREFIX}{place}.{k}", own[k].shape, own[k].device, own[k].dtype) for k in own}

    def biases(self, own: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
        """Give each bias of the model with its new value; one that has two keys must have the same value twice."""
        values: dict[Tensor, Tensor] = {}
        for key, bias in own.items():
            value = self.fitting(f"{PREFIX}{key}", bias.shape, bias.device, bias.dtype)
            if not torch.equal(values.setdefault(bias, value), value):
                raise ValueError(f"{PREFIX}{key} is one bias with another of the file, but differs from it")
        return values

    def fitting(
        self, key: str, shape: tuple[int, ...] | torch.Size, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Give a tensor of the file in the type it is for, or say why it does not fit."""
        tensor = self.tensors[key]
        if tensor.shape != shape:
            raise ValueError(f"{key} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
        if tensor.is_floating_point() != dtype.is_floating_point:
            kind = "a floating type" if dtype.is_floating_point else f"type {dtype}"
            raise ValueError(f"{key} must be of {kind}, got {tensor.dtype}")
        cast = tensor.to(device, dtype)
        _check_finite(key, cast)
        return cast


def _put(adapter: Any, factors: Mapping[str, Tensor]) -> None:
    """Write factors into an adapter."""
    for name, value in factors.items():
        getattr(adapter, name).copy_(value)


def _check_shared(parts: list[Part], factors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise unless layers that share one update have one in the file."""
    kinds = {part.name: part.layer for part in parts}
    for part in parts:
        if part.shares is not None:
            A, B = factors[part.shares]["lora_A"], factors[part.shares]["lora_B"]
            if part.layer.transposed != kinds[part.shares].transposed:
                A, B = B.T, A.T
            own = factors[part.name]
            if not (torch.equal(own["lora_A"], A) and torch.equal(own["lora_B"], B)):
                raise ValueError(f"{part.name} must share the update of {part.shares}, but the file has another for it")


def _check_agrees(model: nn.Module, name: str, parts: list[Part], config: LoRAConfig) -> None:
    """Raise unless an adapter that is already there is what the configuration in the folder describes."""
    own = _config_of(model, name, parts) if name in adapters(model) else None
    for part in parts:
        if part.layer.merged:
            raise ValueError(f"model must not be merged, but {part.name!r} is; call unmerge(model) first")
        if not part.layer.enabled:
            raise ValueError(f"model must be outside disabled(model), but {part.name!r} is disabled")
        described = config.for_layer(part.shares or part.name)
        for field in ("rank", "alpha", "rslora", "dora", "init"):
            here, in_file = getattr(part.config, field), getattr(described, field)
            if here != in_file and (field != "init" or "pissa" in (here, in_file)):
                raise ValueError(f"{field} must agree: layer {part.name!r} has {here}, {CONFIG_FILE} has {in_file}")
    described_names, names = ({part.name for part in there} for there in (parts_to_attach(model, config), parts))
    if described_names != names:
        raise ValueError(
            f"the adapted layers must agree, but {listed(sorted(described_names ^ names))} only in one of the model's "
            f"adapter and {CONFIG_FILE}"
        )
    bias = own.bias if own else "none"
    if bias != config.bias:
        raise ValueError(f"bias must agree: the model's adapter has {bias!r}, {CONFIG_FILE} has {config.bias!r}")
    copied = set(_copies(model, name))
    if copied != set(find_saved(model, config)):
        raise ValueError(
            f"modules_to_save must agree: the model's adapter has {', '.join(sorted(copied)) or 'none'}, {CONFIG_FILE} "
            f"has {', '.join(config.modules_to_save) or 'none'}"
        )


def _check_computed_alike(parts: list[Part]) -> None:
    """Raise if PEFT computes something else with a layer than it would here."""
    for part in parts:
        if left_out := computed_otherwise(part.layer, part.config):
            raise ValueError(
                f"{part.name} is a convolution with which PEFT computes something else than its weight allows: PEFT "
                f"leaves out {left_out}"
            )


def _check_finite(key: str, tensor: Tensor) -> None:
    """Raise if a tensor holds NaN or infinity, or nothing at all."""
    if tensor.is_meta:
        raise ValueError(f"model must have its weights, but {key} is on the meta device")
    if not tensor.isfinite().all():
        raise ValueError(f"{key} must hold finite numbers, got NaN or infinity")


# ---- the two files ---------------------------------------------------------------------------------------------------


def _read_entries(path: Path) -> dict[str, Any]:
    """Read PEFT's configuration file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path.name} must be JSON: {error}") from error
    if not isinstance(entries, dict) or entries.get("peft_type") != "LORA":
        kind = entries.get("peft_type") if isinstance(entries, dict) else entries
        raise ValueError(f"{path.name} must have peft_type 'LORA', got {kind!r}")
    return entries


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor of a safetensors file, and its notes; a pickle in its place is refused unopened."""
    pickle = path.with_name("adapter_model.bin")
    if not path.exists() and pickle.exists():
        raise ValueError(f"{pickle.name} is a pickle, which may run code when opened; save it again as {path.name}")
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or not a safetensors file: {error}") from error
    return tensors, _header(content).get("__metadata__") or {}


def _with_notes(content: bytes, notes: Mapping[str, str]) -> bytes:
    """Add notes to the metadata of a safetensors file. (The library writes two or more in an order that varies.)"""
    if not notes:
        return content
    header, rest = _header(content), content[8 + int.from_bytes(content[:8], "little") :]
    header["__metadata__"] |= notes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + rest


def _header(content: bytes) -> dict[str, Any]:
    """Give the header of a safetensors file: after 8 bytes with its length, a JSON object."""
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def _write(folder: Path, config: bytes, weights: bytes) -> None:
    """Write both files beside their places, then move them there, the configuration last."""
    folder.mkdir(parents=True, exist_ok=True)
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as place:
        new_config, new_weights, old_config = Path(place, "config"), Path(place, "weights"), Path(place, "old_config")
        _write_through(new_config, config)
        _write_through(new_weights, weights)
        if config_path.exists() and config_path.read_bytes() != config:
            # Put aside first: a stop between the moves must not leave new factors under the old scale.
            os.replace(config_path, old_config)
        try:
            os.replace(new_weights, weights_path)
        except BaseException:
            if old_config.exists():
                os.replace(old_config, config_path)
            raise
        os.replace(new_config, config_path)


def _write_through(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
