"""What else one can train instead of LoRA: bottleneck adapters, the biases, the head, or everything.

Each is a configuration for the same ``attach``, so that ``account``, ``disabled`` and ``detach`` say of it what they
say of LoRA, and a comparison compares like with like.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from lora_lab.lora.attach import activate, adapters, add_copy, check_may_attach, open_note, register_attach
from lora_lab.lora.bottleneck import Activation, Bottleneck, BottleneckLayer, Start
from lora_lab.lora.config import LoRAConfig, Places, checked_places, checked_rank, layer_names
from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.layers import LoRALayer
from lora_lab.lora.quantized import QuantizedLinear
from lora_lab.lora.targets import find_saved, inside, matches, original_modules, plain


@dataclass(frozen=True)
class BottleneckConfig:
    """The description of bottleneck adapters: h + W_up f(W_down h + b_down) + b_up after every module in ``targets``.

    The paper puts two in each block of a transformer, each after a sublayer and before what goes around it is added:
    so name the last layer of attention and that of the MLP. In BERT, ("output.dropout",) names both where the paper
    has them, after the dropout. The paper also trains the layer norms of the block and the classifier anew: name them
    in ``modules_to_save``.

    Args:
        width: m, the size of the bottleneck; at least 1 and at most the features d of what it follows. One adapter
            has 2 · d · m + d + m parameters.
        targets: the modules to put an adapter after: a tuple of names, compared with the end of the dotted name in
            whole components, a regular expression for the whole name, or a function of the name and the module. The
            default names the last layers of the two sublayers of a Llama block.
        activation: f, one of "gelu", "relu", "silu", "tanh".
        init: "zero" starts with W_up = 0, so that the model computes what it computed before; "near" draws W_down and
            W_up small, as the paper does, and the model computes nearly that.
        features: d, for modules that do not tell how wide their output is; None asks the module, and then
            ``model.config.hidden_size``.
        modules_to_save: names of modules that are trained as a whole, in a copy that belongs to the adapter.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a number is below 1, a choice is not one of those above, ``targets`` is empty.

    Source: Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP", section 2.
    """

    width: int = 64
    targets: Places = ("o_proj", "down_proj")
    activation: Activation = "gelu"
    init: Start = "zero"
    features: int | None = None
    modules_to_save: tuple[str, ...] = ()

    cannot_merge: ClassVar[str] = (
        "a bottleneck has a nonlinearity between its two factors, so no weight computes what it computes; it stays in "
        "the model as a layer of its own"
    )

    def __post_init__(self) -> None:
        """Check every field, and keep names as tuples."""
        object.__setattr__(self, "width", checked_rank("width", self.width))
        object.__setattr__(self, "targets", checked_places(self.targets))
        if self.features is not None:
            object.__setattr__(self, "features", checked_rank("features", self.features))
        for name, choices in (("activation", Activation), ("init", Start)):
            if not isinstance(value := getattr(self, name), str) or value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        _keep_saved(self)


@dataclass(frozen=True)
class BitFitConfig:
    """The description of BitFit: the biases of the model train, all of them or some, and nothing else.

    A bias is a vector whose own name has the word in it: those of linear layers, of layer norms, ``in_proj_bias`` of
    torch's attention. They train in place and in the type that they have: in bfloat16, which has 8 significant bits, a
    step below 1/512 of a bias is lost, so BitFit wants a float32 model. ``attach`` keeps what they were; ``disabled``
    and ``detach`` put it back. Between a forward pass and its backward pass, ``disabled`` is an error of autograd's.

    Args:
        targets: "all", or the modules whose biases train, in one of the three ways of ``BottleneckConfig``. In BERT,
            ("query", "intermediate.dense") names the half that the paper finds to be nearly enough.
        modules_to_save: names of modules that are trained as a whole, in a copy that belongs to the adapter: the
            paper's new classifier.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: ``targets`` is empty, or names a module twice.

    Source: Ben Zaken, Goldberg and Ravfogel (2022), "BitFit: Simple parameter-efficient fine-tuning for
        transformer-based masked language-models", section 3.
    """

    targets: Places | Literal["all"] = "all"
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check both fields, and keep names as tuples."""
        if not (isinstance(self.targets, str) and self.targets == "all"):
            object.__setattr__(self, "targets", checked_places(self.targets))
        _keep_saved(self)


@dataclass(frozen=True)
class HeadOnlyConfig:
    """The description of training one module alone, or some: a new classifier on frozen features, say.

    The module trains in a copy that belongs to the adapter, so that the very module is back after ``detach``. The copy
    has the type of the module: in bfloat16, which has 8 significant bits, small steps of the optimiser are lost. A head
    whose weight is tied to the input embedding has a weight of its own in the copy: the embedding stays.

    Args:
        modules_to_save: names of the modules, compared with the end of the dotted name in whole components.

    Raises:
        TypeError: it is no tuple of names.
        ValueError: it is empty, or names a module twice.
    """

    modules_to_save: tuple[str, ...]

    def __post_init__(self) -> None:
        """Keep the names as a tuple."""
        object.__setattr__(self, "modules_to_save", layer_names("modules_to_save", self.modules_to_save))


@dataclass(frozen=True)
class FullConfig:
    """The description of full fine-tuning: every parameter of the model trains, in place.

    What the weights were is not kept: ``detach`` puts the ``requires_grad`` flags back and nothing more, and
    ``disabled`` is an error. Copy the model first if you want to compare. No other adapter can be attached beside it.
    """

    trains_whole: ClassVar[bool] = True


@register_attach
def _attach_bottleneck(config: BottleneckConfig, model: nn.Module, name: str, generator: torch.Generator) -> None:
    """Attach bottlenecks: find the modules, make every bottleneck, and only then change the model."""
    check_may_attach(model, name)
    saved = _saved(model, config.modules_to_save)
    modules = {place: module for place, module in original_modules(model) if place and not inside(place, saved)}
    places = _named(model, config.targets, modules, "module")
    _check_apart(places, saved)
    names: dict[nn.Module, list[str]] = {}
    for place, module in places.items():
        names.setdefault(module, []).append(place)
    made = {module: _made(model, names[module][0], module, config, generator) for module in names}

    note = open_note(model)
    for module, bottleneck in made.items():
        layer = module if isinstance(module, BottleneckLayer) else BottleneckLayer(module)
        layer.put(name, bottleneck)
        for place in names[module]:
            model.set_submodule(place, layer)
    for place, module in saved.items():
        add_copy(model, place, module, name)
    note.configs[name] = config
    activate(model, name)


@register_attach
def _attach_bitfit(config: BitFitConfig, model: nn.Module, name: str, generator: torch.Generator) -> None:
    """Attach BitFit: note what the biases are, and let them train."""
    check_may_attach(model, name, biases=True)
    saved = _saved(model, config.modules_to_save)
    biases = _biases(model, config, saved)

    note = open_note(model)
    for place, module in saved.items():
        add_copy(model, place, module, name)
    note.configs[name] = config
    note.biases = {place: bias.detach().clone() for place, bias in biases.items()}
    activate(model, name)


@register_attach
def _attach_head_only(config: HeadOnlyConfig, model: nn.Module, name: str, generator: torch.Generator) -> None:
    """Attach a copy of each module that trains."""
    check_may_attach(model, name)
    saved = _saved(model, config.modules_to_save)
    note = open_note(model)
    for place, module in saved.items():
        add_copy(model, place, module, name)
    note.configs[name] = config
    activate(model, name)


@register_attach
def _attach_full(config: FullConfig, model: nn.Module, name: str, generator: torch.Generator) -> None:
    """Let every parameter train."""
    check_may_attach(model, name)
    if there := adapters(model):
        raise ValueError(f"model must have no adapter to train as a whole, got {', '.join(there)}; detach(model) first")
    for place, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise TypeError(f"model must have floating weights to train as a whole, but {place!r} is {parameter.dtype}")
    for place, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            raise TypeError(f"model must have floating weights to train as a whole, but {place!r} has them in 4 bits")
    open_note(model).configs[name] = config
    activate(model, name)


def _made(
    model: Any, place: str, module: nn.Module, config: BottleneckConfig, generator: torch.Generator
) -> Bottleneck:
    """Draw the bottleneck for one module, on its device, in float32 or wider."""
    features = config.features or _features(model, place, plain(module))
    if config.width > features:
        raise ValueError(f"width must be at most the {features} features of {place!r}, got {config.width}")
    like = next(module.parameters(), None)
    like = next(model.parameters()) if like is None else like
    bottleneck = Bottleneck(features, config.width, config.activation, config.init, generator=generator)
    return bottleneck.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _features(model: Any, place: str, module: Any) -> int:
    """Give the size of what a module gives: what it says of itself, or else the model's hidden size."""
    for attribute in ("out_features", "nf", "embedding_dim"):  # a linear layer, that of GPT-2, an embedding
        if isinstance(size := getattr(module, attribute, None), int):
            return size
    if isinstance(shape := getattr(module, "normalized_shape", None), tuple):
        return int(shape[-1])
    if isinstance(size := getattr(getattr(model, "config", None), "hidden_size", None), int):
        return size
    raise ValueError(
        f"targets: {place!r}, a {type(module).__name__}, does not tell how wide its output is; say it with features="
    )


def _biases(model: nn.Module, config: BitFitConfig, saved: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Give the biases that train, by name."""
    every = {
        place: parameter
        for place, parameter in model.named_parameters()
        if parameter.dim() == 1 and "bias" in place.rpartition(".")[2].split("_") and not inside(place, saved)
    }
    if not every:
        raise ValueError(f"model must have biases for BitFit, got a {type(model).__name__} without; LoRA needs none")
    if isinstance(config.targets, str):
        return every
    owners = {place.rpartition(".")[0]: model.get_submodule(place.rpartition(".")[0]) for place in every}
    owners = _named(model, config.targets, owners, "module with a bias")
    return {place: parameter for place, parameter in every.items() if place.rpartition(".")[0] in owners}


def _saved(model: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Give the modules that are trained in a copy, by dotted name."""
    return find_saved(model, LoRAConfig(modules_to_save=names))  # which reads this field alone


def _named(model: nn.Module, targets: Places, modules: dict[str, nn.Module], kind: str) -> dict[str, nn.Module]:
    """Give those of the modules that the targets name, or raise with what there is."""
    if isinstance(targets, tuple):
        for target in targets:
            if not any(matches(place, (target,)) for place in modules):
                ends = dict.fromkeys(".".join(place.split(".")[-target.count(".") - 1 :]) for place in modules)
                close = difflib.get_close_matches(target, ends)
                hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"There are {', '.join(ends)}"
                raise ValueError(f"targets: {target!r} names no {kind} of {type(model).__name__}. {hint}")
        return {place: module for place, module in modules.items() if matches(place, targets)}
    if isinstance(targets, re.Pattern):
        found = {place: module for place, module in modules.items() if targets.fullmatch(place)}
        asked = f"the expression {targets.pattern!r}"
    else:
        found = {place: module for place, module in modules.items() if targets(place, plain(module))}
        asked = "the function"
    if not found:
        endings = dict.fromkeys(place.rpartition(".")[2] for place in modules)
        raise ValueError(f"targets: {asked} names no {kind} of {type(model).__name__}. There are {', '.join(endings)}")
    return found


def _check_apart(places: dict[str, nn.Module], saved: dict[str, nn.Module]) -> None:
    """Raise if one module would hold another that is adapted, or is there to be trained as a whole."""
    for place, module in places.items():
        if inner := [other for other in (*places, *saved) if other.startswith(f"{place}.")]:
            raise ValueError(f"targets: {inner[0]!r} is inside {place!r}; name one of the two")
        held = not isinstance(module, BottleneckLayer) and any(
            isinstance(part, LoRALayer | TrainedCopy) for part in module.modules()
        )
        if held:
            raise ValueError(f"targets: {place!r} is, or holds, a layer with an adapter; choose one of the two")


def _keep_saved(config: BottleneckConfig | BitFitConfig) -> None:
    """Check the names in ``modules_to_save``, which may be none, and keep them as a tuple."""
    if config.modules_to_save != ():
        names = layer_names("modules_to_save", config.modules_to_save)
        object.__setattr__(config, "modules_to_save", names)
