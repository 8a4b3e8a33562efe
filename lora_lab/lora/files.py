"""Save and load adapters in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors`` in one folder.

A layer's factors are stored under PEFT's names, ``base_model.model.<layer>.lora_A.weight`` and ``….lora_B.weight``,
in PEFT's shapes, so saving is a renaming and nothing more. Only safetensors are read; nothing is ever unpickled.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lora_lab.lora.attach import Model, attach, attached_layers, detach, lora_layers
from lora_lab.lora.config import LoRAConfig
from lora_lab.lora.layers import LoRALayer
from lora_lab.lora.targets import matches

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Entries of PEFT's configuration that say where an adapter comes from, or matter only if another entry is set.
_INFORMATIVE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Ways in which PEFT starts A and B that leave the base weights alone, so that the two factors say everything.
_STARTS = (True, False, "gaussian", "orthogonal")
# Modules that put a prefix before every name of the model inside them.
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule"}


def save_adapter(model: nn.Module, folder: str | os.PathLike[str], *, base_model: str | None = None) -> None:
    """Write the adapter of a model into a folder, as ``peft.PeftModel.from_pretrained`` and ``load_adapter`` read it.

    Factors are written in the type they have, merged or not. The folder is made if need be, other files in it stay,
    and an adapter that is there is replaced. At every moment the folder holds the old adapter, the new one, or one
    without its configuration that nothing loads: never a mixture.

    Args:
        model: a model with LoRA layers, the one given to ``attach``; names are stored relative to it.
        folder: where to write.
        base_model: the hub name or path of the model that the adapter belongs to; None takes ``model.name_or_path``.

    Raises:
        TypeError: model is a wrapper (compiled, distributed) or a single LoRA layer; pass the model that was attached.
        ValueError: the model has no LoRA layers; base_model is not given and not known; a factor holds NaN or
            infinity or is on the meta device; layers have different configurations, or no list of targets names
            exactly them; one layer has two names (PEFT adapts it under the first alone).
        OSError: the folder cannot be written.
    """
    layers = attached_layers(model)
    if type(model).__name__ in _WRAPPERS or "" in layers:
        raise TypeError(f"model must be the one given to attach, got a {type(model).__name__}, which has other names")
    base_model = base_model or getattr(model, "name_or_path", None)
    if not base_model or not isinstance(base_model, str):
        raise ValueError(f"base_model must be the name of the model that the adapter belongs to, got {base_model!r}")
    text = json.dumps(_to_peft(model, layers, base_model), indent=2, sort_keys=True) + "\n"
    tensors = {key: factor.detach().contiguous() for key, factor in _factors(model).items()}
    for key, tensor in tensors.items():
        _check_finite(key, tensor)
    _write(Path(folder), text.encode(), safetensors.torch.save(tensors, metadata={"format": "pt"}))


def load_adapter(model: Model, folder: str | os.PathLike[str]) -> Model:
    """Read an adapter from a folder into a model, and give the model; any error leaves the model as it was.

    A model without LoRA layers is attached first, as the configuration in the folder says. One that has them must
    have the same layers, rank, alpha and rsLoRA; its own dropout stays. The factors are cast to the type that the
    layers keep: float32, or float64 beside a float64 base.

    Args:
        model: the base model, attached or not, not merged.
        folder: what ``save_adapter`` or PEFT's ``save_pretrained`` wrote.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        ValueError: a file is damaged; the configuration asks for something that is not here (DoRA, a regular
            expression, …); tensors are missing, or left over, or of a wrong shape, or hold NaN or infinity; the
            model's LoRA layers do not fit, or are merged, or are on the meta device.
        TypeError: the targets name something other than an ``nn.Linear``.
    """
    config, tensors = _read_config(Path(folder) / CONFIG_FILE), _read_tensors(Path(folder) / WEIGHTS_FILE)
    layers = lora_layers(model)
    if not layers:
        attach(model, config)
    try:
        _check_agrees(lora_layers(model), config)
        factors = _factors(model)
        tensors = _fit(tensors, factors)
    except BaseException:
        if not layers:
            detach(model)
        raise
    with torch.no_grad():
        for key, factor in factors.items():
            factor.copy_(tensors[key])
    return model


def _factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give every A and B of a model under PEFT's name."""
    names: dict[LoRALayer, str] = {}
    factors = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, LoRALayer):
            if layer in names:
                raise ValueError(f"{names[layer]} and {name} are one layer; PEFT's files describe the first name alone")
            names[layer] = name
            factors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A
            factors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B
    return factors


def _fit(tensors: dict[str, Tensor], factors: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Give the tensors of a file in the types of the factors they are for, or say which does not fit."""
    if missing := [key for key in factors if key not in tensors]:
        raise ValueError(f"{WEIGHTS_FILE} must hold every factor, but {_some(missing)} missing")
    if extra := [key for key in tensors if key not in factors]:
        raise ValueError(f"{WEIGHTS_FILE} must hold nothing else than the factors, but {_some(extra)} left over")
    fitting = {}
    for key, factor in factors.items():
        if tensors[key].shape != factor.shape:
            raise ValueError(f"{key} must have shape {tuple(factor.shape)}, got {tuple(tensors[key].shape)}")
        if not tensors[key].is_floating_point():
            raise ValueError(f"{key} must be of a floating type, got {tensors[key].dtype}")
        fitting[key] = tensors[key].to(factor.device, factor.dtype)
        _check_finite(key, fitting[key])
    return fitting


def _check_agrees(layers: dict[str, LoRALayer], config: LoRAConfig) -> None:
    """Raise unless layers that are already there are what the configuration in the folder describes."""
    for name, layer in layers.items():
        if layer.merged:
            raise ValueError(f"model must not be merged, but {name!r} is; call unmerge(model) first")
        for field in ("rank", "alpha", "rslora"):
            here, there = getattr(layer.config, field), getattr(config, field)
            if here != there:
                raise ValueError(f"{field} must agree: layer {name!r} has {here}, {CONFIG_FILE} has {there}")


def _check_finite(key: str, tensor: Tensor) -> None:
    """Raise if a factor holds NaN or infinity, or nothing at all."""
    if tensor.is_meta:
        raise ValueError(f"model must have its weights, but {key} is on the meta device")
    if not tensor.isfinite().all():
        raise ValueError(f"{key} must hold finite numbers, got NaN or infinity")


def _some(names: list[str]) -> str:
    """Name the first few of many, with the verb that follows."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _to_peft(model: nn.Module, layers: dict[str, LoRALayer], base_model: str) -> dict[str, Any]:
    """Give the entries of PEFT's configuration file."""
    configs = {layer.config for layer in layers.values()}
    if len(configs) > 1:
        raise ValueError(f"layers must have one configuration to be saved together, got {len(configs)}")
    config = configs.pop()
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": _exact_targets(model, layers, config),
        "task_type": "CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None,
        "use_rslora": config.rslora,
    }


def _exact_targets(model: nn.Module, layers: dict[str, LoRALayer], config: LoRAConfig) -> list[str]:
    """Give the targets if they name exactly these layers, else the layers' full names if those do."""
    for targets in (config.targets, tuple(layers)):
        if {name for name, _ in model.named_modules() if matches(name, targets)} == set(layers):
            return list(targets)
    raise ValueError(f"no list of targets names exactly the layers {_some(list(layers))} adapted")


def _read_config(path: Path) -> LoRAConfig:
    """Read PEFT's configuration file, and refuse whatever this library would not do as PEFT does."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path.name} must be JSON: {error}") from error
    if not isinstance(entries, dict) or entries.get("peft_type") != "LORA":
        kind = entries.get("peft_type") if isinstance(entries, dict) else entries
        raise ValueError(f"{path.name} must have peft_type 'LORA', got {kind!r}")
    _refuse_unsupported(entries)
    try:
        return LoRAConfig(
            rank=entries["r"],
            alpha=entries["lora_alpha"],
            targets=entries["target_modules"],
            dropout=entries.get("lora_dropout", 0.0),
            rslora=entries.get("use_rslora", False),
        )
    except KeyError as error:
        raise ValueError(f"{path.name} must have an entry {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _refuse_unsupported(entries: dict[str, Any]) -> None:
    """Raise if an entry of PEFT's configuration asks for something that changes the adapter and is not here."""
    if isinstance(targets := entries.get("target_modules"), str):
        raise ValueError(f"target_modules={targets!r} is a regular expression; only a list of names is supported")
    if entries.get("bias", "none") != "none":
        raise ValueError(f"bias={entries['bias']!r} is not supported; only 'none' is")
    if (start := entries.get("init_lora_weights", True)) not in _STARTS:
        raise ValueError(f"init_lora_weights={start!r} is not supported; some such starts change the base weights too")
    read = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "bias", "init_lora_weights"}
    for key, value in entries.items():
        if value and key not in read | _INFORMATIVE:
            raise ValueError(f"{key}={value!r} is not supported")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file; a pickle in its place is refused unopened."""
    pickle = path.with_name("adapter_model.bin")
    if not path.exists() and pickle.exists():
        raise ValueError(f"{pickle.name} is a pickle, which may run code when opened; save it again as {path.name}")
    try:
        return safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or not a safetensors file: {error}") from error


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
