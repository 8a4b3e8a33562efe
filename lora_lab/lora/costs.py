"""What a training step will cost: floating-point operations and bytes, from shapes alone.

Nearly all the work of a network is products of matrices, and one rule counts them. A product of (m, k) and (k, n) takes
2·m·k·n operations, m·n·k multiplications and as many additions. Its backward pass takes the same again for each of the
two factors that needs a gradient, because the gradient of a factor is the product of the output's gradient with the
other factor. All else follows:

- a frozen linear layer costs 2·in·out a token forward, and the same backward for the gradient of its input, but only
  where something that trains lies below it; a layer that trains as a whole costs 2·in·out more, for its weight;
- a LoRA path costs 2·r·(in + out) forward, the same for the gradients of A and B, and the same for its input's;
- attention's two products, Q Kᵀ and what weighs V, cost 2·tokens·width each; both factors need a gradient;
- below the first adapter nothing needs a gradient, and the backward pass ends there.

To know the shapes, and what needs a gradient, a copy of the model on the meta device runs once: it has shapes and types
but no numbers, so a model larger than the machine is counted in a moment.

Sources: Kaplan et al. (2020), "Scaling laws for neural language models", section 2.1 and table 1, count 2 operations a
parameter and token forward and 4 backward; Hu et al. (2021), section 4.2, say what a frozen weight's gradient saves.
"""

import copy
import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lora_lab.lora.copies import TrainedCopy
from lora_lab.lora.layers import LoRALayer, full_name

MOMENTS = {"adamw": 2, "adam": 2, "sgd-momentum": 1, "sgd": 0}  # numbers an optimiser keeps for each that trains

Role = Literal["layer", "adapter", "products", "rest"]

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerCost:
    """What one part of a model costs in one training step, on the whole batch.

    Attributes:
        name: the dotted name of the module.
        role: "layer" is a layer that was there before attach (or stands in an adapter), "adapter" the LoRA path of the
            layer of this name, "products" what a module multiplies itself (attention's two products), "rest" a module
            that multiplies no matrices.
        forward: floating-point operations of the forward pass.
        backward: those of the backward pass.
        activations: bytes that the forward pass keeps for the backward pass here.
    """

    name: str
    role: Role
    forward: int
    backward: int
    activations: int


@dataclass(frozen=True)
class Costs:
    """What one training step costs, in floating-point operations (FLOPs) and bytes.

    Operations are those of matrix products and convolutions, as papers and ``torch.utils.flop_counter`` count: what is
    done number by number (norms, activations, softmax, the optimiser's update) adds a few for each number and is left
    out. Bytes are what the tensors hold, which an allocator rounds up.

    Attributes:
        batch: rows of the batch.
        tokens: tokens a row; None where an example input was given, and then "a token" below is a row.
        optimizer: the optimiser's name.
        layers: one row for each part of the model that costs something, in the order in which they run.
        weights: bytes of all parameters and buffers, adapters included.
        gradients: bytes of the gradients, one number for each parameter that trains, in its type.
        optimizer_states: bytes of the optimiser's moments, two for AdamW, in the parameter's type (Loshchilov and
            Hutter, 2019, algorithm 2; ``torch.optim.AdamW`` keeps ``exp_avg`` and ``exp_avg_sq``).
        activations: bytes of what the forward pass keeps for the backward pass, each stretch of memory once: everything
            that autograd saves but the weights.
        logits: bytes for the logits and their cross entropy, logits · (size + 12): the logits in their own type, and
            in float32 the log-probabilities, their gradient, and the logits' gradient. They meet at the start of the
            backward pass. 0 where the model's output has no logits.
        not_counted: what is in the model and in none of these numbers, by name.
    """

    batch: int
    tokens: int | None
    optimizer: str
    layers: tuple[LayerCost, ...]
    weights: int
    gradients: int
    optimizer_states: int
    activations: int
    logits: int
    not_counted: tuple[str, ...] = ()

    @property
    def forward(self) -> int:
        """Floating-point operations of the forward pass on the batch."""
        return sum(layer.forward for layer in self.layers)

    @property
    def backward(self) -> int:
        """Floating-point operations of the backward pass on the batch."""
        return sum(layer.backward for layer in self.layers)

    @property
    def positions(self) -> int:
        """Tokens of the batch, or its rows where an example input was given."""
        return self.batch * (1 if self.tokens is None else self.tokens)

    @property
    def forward_per_token(self) -> float:
        """Floating-point operations of the forward pass, a token."""
        return self.forward / self.positions

    @property
    def backward_per_token(self) -> float:
        """Floating-point operations of the backward pass, a token."""
        return self.backward / self.positions

    @property
    def total(self) -> int:
        """Give the bytes of everything at once: what you need where gradients stay from one batch to the next."""
        return self.weights + self.gradients + self.optimizer_states + self.activations + self.logits

    @property
    def peak(self) -> int:
        """Give the bytes in use at the worst moment of a step, if gradients are dropped before each forward pass.

        There are two such moments. When the backward pass starts, all activations and logits are there, and no gradient
        yet. When it ends, all gradients are, and no activation. In between the one shrinks as the other grows.
        """
        return self.weights + self.optimizer_states + max(self.activations + self.logits, self.gradients)


def product_flops(left: Sequence[int], right: Sequence[int]) -> int:
    """Give the operations of a product of matrices, 2·m·k·n, for shapes (..., m, k) and (..., k, n) or (k,).

    Source: Golub and Van Loan (2013), "Matrix Computations", section 1.1.
    """
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


def convolution_flops(places: Sequence[int], weight: Sequence[int], batch: int) -> int:
    """Give the operations of a convolution, 2 · batch · places · weight entries: at each place each entry works once.

    A weight (out_channels, in_channels / groups, *kernel) has in_channels / groups · kernel entries for each output, so
    groups need no term of their own. Padding counts as if it were there.

    Args:
        places: how many places there are along each dimension: the output's size, the input's if it is transposed.
        weight: the shape of the weight.
        batch: rows of the batch.

    Source: Molchanov et al. (2017), "Pruning convolutional neural networks for resource efficient inference",
        appendix A.1, without the bias.
    """
    return 2 * batch * math.prod(places) * math.prod(weight)


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> tuple[int, int]:
    """Give the operations of a fused attention, forward 2 products and backward 5.

    Each product is 2 · batch · heads · queries · keys · head features. Forward there are Q Kᵀ and what weighs V;
    backward come the gradients of the four factors, and Q Kᵀ again, since the kernel keeps no scores. A causal mask is
    counted as if it were full.

    Args:
        query: (batch, heads, queries, features).
        key: (batch, heads, keys, features), of fewer heads where query heads share them.
        value: (batch, heads, keys, features).

    Source: Dao (2023), "FlashAttention-2", section 4.1, without its halving for a causal mask.
    """
    scores = 2 * math.prod(query) * key[-2]
    mixed = 2 * math.prod(query[:-1]) * key[-2] * value[-1]
    return scores + mixed, 3 * scores + 2 * mixed


def count_costs(model: nn.Module, *, batch: int | None, tokens: int | None, inputs: Any, optimizer: str) -> Costs:
    """Count what one training step costs; ``account`` describes the arguments and the errors."""
    if optimizer not in MOMENTS:
        raise ValueError(f"optimizer must be one of {', '.join(MOMENTS)}, got {optimizer!r}")
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        raise ValueError(f"model must have a parameter that trains, got a {type(model).__name__} with none")
    _refuse_checkpointing(model)
    twin: Any = _on_meta(model).train()
    if hasattr(getattr(twin, "config", None), "use_cache"):
        twin.config.use_cache = False  # keys and values for the next token are no part of training
    args, kwargs = _example(twin, batch, tokens) if inputs is None else _given(inputs, batch, tokens)
    rows = batch if batch is not None else _rows(args, kwargs)
    trace = _run(twin, args, kwargs)
    return Costs(
        batch=rows,
        tokens=tokens,
        optimizer=optimizer,
        layers=trace.layers(),
        weights=sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
        gradients=trained,
        optimizer_states=MOMENTS[optimizer] * trained,
        activations=sum(trace.kept().values()),
        logits=trace.logits,
        not_counted=tuple(trace.unknown),
    )


def _matrices(left: int, right: int) -> Callable[[Any, Any], tuple[int, int]]:
    """Give the rule for a product whose factors are arguments ``left`` and ``right`` of an operation."""

    def rule(args: Any, _output: Any) -> tuple[int, int]:
        factors = args[left], args[right]
        forward = product_flops(*(factor.shape for factor in factors))
        return forward, forward * sum(factor.requires_grad for factor in factors)

    return rule


def _convolution(args: Any, output: Any) -> tuple[int, int]:
    """Give the rule for a convolution, plain or transposed."""
    x, weight, transposed = args[0], args[1], args[6]
    forward = convolution_flops((x if transposed else output).shape[2:], weight.shape, x.shape[0])
    return forward, forward * (x.requires_grad + weight.requires_grad)


def _attention(args: Any, _output: Any) -> tuple[int, int]:
    """Give the rule for the fused attention, whose kernel computes every gradient if it computes one."""
    forward, backward = attention_flops(*(factor.shape for factor in args[:3]))
    return forward, backward * any(factor.requires_grad for factor in args[:3])


_PRODUCTS: dict[Any, Callable[[Any, Any], tuple[int, int]]] = {
    aten.mm: _matrices(0, 1),
    aten.bmm: _matrices(0, 1),
    aten.mv: _matrices(0, 1),
    aten.dot: _matrices(0, 1),
    aten.addmm: _matrices(1, 2),
    aten.addmv: _matrices(1, 2),
    aten.baddbmm: _matrices(1, 2),
    aten.convolution: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}

# What moves numbers, or does a little with each, beside what torch itself tags as pointwise, a reduction or a view.
_CHEAP_NAMES = """
    _unsafe_view _to_copy copy copy_ cat stack repeat roll flip embedding index index_select index_copy index_add
    index_put gather scatter scatter_add slice_scatter select_scatter tril triu empty empty_like zeros zeros_like
    ones ones_like full full_like new_empty new_zeros new_ones new_full arange linspace scalar_tensor bernoulli_
    bernoulli native_dropout rand_like randn_like lift_fresh native_layer_norm native_group_norm native_batch_norm
    _native_batch_norm_legit _softmax _log_softmax linalg_vector_norm cumsum logsumexp _fused_rms_norm
    max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d avg_pool1d constant_pad_nd upsample_nearest2d
    upsample_bilinear2d upsample_bicubic2d glu fill_ unsafe_split unsafe_chunk
"""
_CHEAP = frozenset(_CHEAP_NAMES.split())


def _known(func: Any, output: Any) -> bool:
    """Say whether an operation is one of those that cost a few operations a number, or gives no such numbers at all."""
    if func.is_view or torch.Tag.pointwise in func.tags or torch.Tag.reduction in func.tags:
        return True
    if func.namespace == "aten" and func.overloadpacket.__name__ in _CHEAP:
        return True
    return not any(tensor.is_floating_point() or tensor.is_complex() for tensor in _tensors(output))


class _Kept:
    """A stretch of memory that autograd keeps for the backward pass; this object lives as long as the graph needs it.

    It holds no tensor: an output that its own node keeps would hold the node in turn, and a dead branch would not die.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Hold the memory of a tensor."""
        self.memory = tensor.untyped_storage()


@dataclass
class _Product:
    """A product of matrices that was seen: where, its cost forward and backward, and its output until the end."""

    place: str
    forward: int
    backward: int
    output: Tensor | None


class _Trace(TorchDispatchMode):
    """Watch a forward pass on the meta device: the products, what is saved, and what is not understood."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin
        self.names = {module: name for name, module in twin.named_modules()}
        self.order: dict[str, None] = {}  # the places in the order in which they run
        self.stack: list[str] = [""]
        self.products: list[_Product] = []
        self.saved: list[tuple[str, weakref.ref[_Kept]]] = []
        self.unknown: dict[str, None] = {}
        self.answers: dict[int, tuple[Tensor, bool]] = {}
        self.own = {part.untyped_storage()._cdata for part in [*twin.parameters(), *twin.buffers()]}
        self.output: Any = None
        self.logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the cost of one operation of torch, and let it give its shapes."""
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense and args[0].is_meta:
            return self._answer(args[0])
        output = func(*args, **(kwargs or {}))
        if packet in (aten.all, aten.any):
            self.answers[id(output)] = (output, packet is aten.all)
        elif packet in _PRODUCTS:
            forward, backward = _PRODUCTS[packet](args, output)
            first = output[0] if isinstance(output, tuple) else output
            self.products.append(_Product(self._place(), forward, backward, first))
        elif not _known(func, output):
            self.unknown[f"{func.name().partition('.')[0]} in {self._shown()}"] = None
        return output

    def _answer(self, question: Tensor) -> bool:
        """Answer what a model asks of its data: all positions in order? yes; any padding? no."""
        if id(question) in self.answers:
            return self.answers[id(question)][1]
        raise _NeedsNumbers(f"it reads a number in {self._shown()}, and on the meta device there is none")

    def enter(self, module: nn.Module, _args: Any) -> None:
        """Note that a module starts."""
        self.stack.append(self.names[module])
        self.order.setdefault(self._place())

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Note that a module ends."""
        self.stack.pop()

    def pack(self, tensor: Tensor) -> Any:
        """Note what autograd saves."""
        kept = _Kept(tensor)
        self.saved.append((self._place(), weakref.ref(kept)))
        return kept

    def _place(self) -> str:
        """Give the name of the module that runs."""
        return self.stack[-1]

    def _shown(self) -> str:
        """Write the name of the module that runs, and its class."""
        name = self._place()
        return f"{name or 'the model itself'} ({type(self.twin.get_submodule(name)).__name__})"

    def end(self, output: Any) -> None:
        """See from the output what the backward pass meets: the rest of the graph costs nothing and keeps nothing."""
        self.output = output
        logits = getattr(output, "logits", None)
        if logits is None:
            self.unknown["the loss, since the model's output has no logits"] = None
        else:
            self.logits = logits.numel() * (logits.element_size() + 3 * torch.float32.itemsize)
        met = _nodes(_tensors(output if logits is None else logits))
        if not met:
            raise ValueError(f"model: nothing that trains in {type(self.twin).__name__} has a part in its output")
        for product in self.products:
            assert product.output is not None
            product.backward *= product.output.grad_fn in met
            product.output = None
        for node in met:
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                self.unknown[f"the backward pass of {type(node).__name__.removesuffix('Backward')}"] = None

    def kept(self) -> dict[str, int]:
        """Give the bytes of what is still saved, by module, each stretch of memory once and the weights not at all."""
        found: dict[str, int] = defaultdict(int)
        seen = set(self.own)
        for place, reference in self.saved:
            kept = reference()
            if kept is not None and kept.memory._cdata not in seen:
                seen.add(kept.memory._cdata)
                found[place] += kept.memory.nbytes()
        return found

    def layers(self) -> tuple[LayerCost, ...]:
        """Give one row for each module that costs something."""
        kept = self.kept()
        forward: Counter[str] = Counter()
        backward: Counter[str] = Counter()
        for product in self.products:
            forward[product.place] += product.forward
            backward[product.place] += product.backward
        rows = []
        for place in {"": None} | self.order:
            if forward[place] or kept.get(place):
                name, own = original_name(self.twin, place)
                role = _role(self.twin.get_submodule(place), own, bool(forward[place]))
                rows.append(LayerCost(name, role, forward[place], backward[place], kept.get(place, 0)))
        return tuple(rows)


class _FusedAttention(TorchFunctionMode):
    """Let ``scaled_dot_product_attention`` be the fused kernel, which on the meta device it would not be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the one function."""
        if func is F.scaled_dot_product_attention:
            return _fused(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Give the output of the fused kernel; it keeps queries, keys, values, output and one number a query and head."""
    q, k, v = (tensor.reshape(-1, *tensor.shape[-3:]) for tensor in (query, key, value))  # (batch, heads, tokens, ·)
    output: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, scale=scale)[0]
    return output.reshape(*query.shape[:-1], value.shape[-1])


class _NeedsNumbers(RuntimeError):
    """The forward pass asks for a number, and there are shapes only."""


def _run(twin: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Trace:
    """Run the forward pass on shapes, and give what was seen."""
    trace = _Trace(twin)
    for module in trace.names:
        module.register_forward_pre_hook(trace.enter, prepend=True)
        module.register_forward_hook(trace.leave)
    saving = torch.autograd.graph.saved_tensors_hooks(trace.pack, _never_unpacked)
    try:
        with torch.enable_grad(), saving, _FusedAttention(), trace:
            output = twin(*args, **kwargs)
    except _NeedsNumbers as error:
        raise ValueError(f"model: {type(twin).__name__} cannot be counted from shapes alone: {error}") from error
    except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"model: {type(twin).__name__} does not run on these shapes: {error}") from error
    trace.end(output)
    return trace


def _never_unpacked(_kept: Any) -> Tensor:
    """Say that no backward pass runs here."""
    raise _NeedsNumbers("it takes gradients in its forward pass")


def _nodes(tensors: Iterator[Tensor]) -> set[Any]:
    """Give every node of the graph that the backward pass from these tensors meets."""
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    met = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in met:
                met.add(node)
                waiting.append(node)
    return met


def _tensors(output: Any) -> Iterator[Tensor]:
    """Give every tensor in what a model gives: a tensor, or tuples, lists and mappings of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def original_name(model: nn.Module, name: str) -> tuple[str, bool]:
    """Give the name that a module or parameter had before attach, and whether it was there at all.

    What an adapter brought, in ``adapters`` of a LoRA layer or ``copies`` of a trained copy or bottleneck, gets the
    name of the layer that it belongs to.
    """
    module: Any = model
    original: list[str] = []
    own = True
    parts = iter(name.split(".") if name else [])
    for part in parts:
        if not isinstance(module, LoRALayer | TrainedCopy):
            original.append(part)
        elif part != "base":
            own = False
            module, part = getattr(module, part), next(parts)
        module = getattr(module, part)
    return ".".join(original), own


def _role(module: nn.Module, own: bool, multiplies: bool) -> Role:
    """Give the role of a module in its model."""
    if not multiplies:
        return "rest"
    if not own or isinstance(module, LoRALayer):
        return "adapter"
    return "layer" if hasattr(module, "weight") else "products"


def _on_meta(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device: its structure, shapes, types and flags, and none of its numbers."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        twin = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(twin, requires_grad=tensor.requires_grad) if is_parameter else twin
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model: {type(model).__name__} cannot be copied to the meta device: {error}") from error


def _refuse_checkpointing(model: nn.Module) -> None:
    """Refuse a model that computes parts of its forward pass again, which is not counted here."""
    for name, module in model.named_modules():
        if getattr(module, "gradient_checkpointing", False):
            raise ValueError(
                f"model: {name or type(model).__name__} has gradient checkpointing on, and what that computes again is "
                "not counted; turn it off first"
            )


def _example(twin: Any, batch: int | None, tokens: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make an input of (batch, tokens): the indices of a language model, or the features of a linear layer."""
    for name, value in (("batch", batch), ("tokens", tokens)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}; or give inputs, an example")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    assert batch is not None
    assert tokens is not None
    config = getattr(twin, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and tokens > limit:
        raise ValueError(f"tokens must be at most the model's max_position_embeddings, {limit}, got {tokens}")
    if hasattr(twin, "main_input_name"):
        if twin.main_input_name != "input_ids":
            raise ValueError(f"inputs must be an example, since {type(twin).__name__} takes {twin.main_input_name}")
        return (), {"input_ids": torch.zeros(batch, tokens, dtype=torch.long, device="meta")}
    for module in twin.modules():
        kind = full_name(module)
        if kind == "torch.nn.modules.sparse.Embedding":
            return (torch.zeros(batch, tokens, dtype=torch.long, device="meta"),), {}
        if kind in ("torch.nn.modules.linear.Linear", "transformers.pytorch_utils.Conv1D"):
            features = module.weight.shape[1 if kind.startswith("torch") else 0]
            return (torch.zeros(batch, tokens, features, dtype=module.weight.dtype, device="meta"),), {}
        if "Conv" in kind:
            break
    raise ValueError(f"inputs must be an example of what {type(twin).__name__} takes: batch and tokens do not say it")


def _given(inputs: Any, batch: int | None, tokens: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take an example input to the meta device: one tensor, a tuple of arguments, or a mapping of named ones."""
    if batch is not None or tokens is not None:
        raise ValueError("give batch and tokens, or inputs, an example; got both")
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, tuple | Mapping):
        raise TypeError(f"inputs must be a tensor, a tuple or a mapping, got {type(inputs).__name__}")

    def on_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    if isinstance(inputs, Mapping):
        return (), {name: on_meta(value) for name, value in inputs.items()}
    return tuple(map(on_meta, inputs)), {}


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Give the rows of the batch: the first dimension of the first tensor."""
    for tensor in _tensors([*args, *kwargs.values()]):
        if tensor.dim():
            return tensor.shape[0]
    raise ValueError("inputs must hold a tensor whose first dimension is the batch")
