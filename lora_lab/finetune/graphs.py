r"""On a GPU: the forward and backward pass of a batch recorded once for each shape, and replayed from then on.

A step of a small model is hundreds of small kernels, and for Python to start them takes longer than for a GPU to
compute them. A CUDA graph is their record: one call starts all of them, on the tensors that were there when it was
made. So batches are padded to few shapes, and each shape has its tensors and its graph. What is computed is the same.

Source: V. Nguyen et al. (2021), "Accelerating PyTorch with CUDA graphs", PyTorch blog; PyTorch's notes on CUDA.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lab.finetune.encoding import IGNORED, Batch
from lora_lab.finetune.loss import loss_at
from lora_lab.finetune.memory import is_out_of_memory

Key = tuple[int, int, int]


@dataclass(frozen=True)
class Shaped:
    """A batch in one of few shapes, with the places that predict a token of an answer.

    Attributes:
        input_ids: (batch, tokens), token ids, padded behind.
        positions: (labelled,), place in the flattened ``input_ids`` of each token after which an answer's token comes.
        answers: (labelled,), that token; where there is only padding, ``IGNORED``.
    """

    input_ids: Tensor
    positions: Tensor
    answers: Tensor

    @property
    def key(self) -> Key:
        """Give what two batches have in common that one graph serves: rows, tokens, labelled places."""
        rows, tokens = self.input_ids.shape
        return rows, tokens, len(self.positions)

    def to(self, device: torch.device) -> "Shaped":
        """Give the same batch on ``device``, which fetches it from pinned memory while the program goes on."""
        tensors = (self.input_ids, self.positions, self.answers)
        if device.type == "cuda":
            return Shaped(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors))
        return Shaped(*(tensor.to(device) for tensor in tensors))

    def copy_(self, other: "Shaped") -> None:
        """Take over the numbers of another batch of the same shape."""
        self.input_ids.copy_(other.input_ids)
        self.positions.copy_(other.positions)
        self.answers.copy_(other.answers)

    def clone(self) -> "Shaped":
        """Give a copy."""
        return Shaped(self.input_ids.clone(), self.positions.clone(), self.answers.clone())


def rounded(number: int, steps: int = 4) -> int:
    """Give the next of a few numbers, of which ``steps`` lie from a power of two to the next: 128, 160, 192, 224, 256.

    It is less than one part in ``steps``, a power of two, larger than ``number``.
    """
    step = max(1, (1 << number.bit_length() >> 1) // steps)
    return -(-number // step) * step


def shaped(batch: Batch, limit: int | None = None) -> Shaped:
    """Pad a batch to one of few shapes: by less than an eighth of its tokens, and a quarter of its labelled places.

    Args:
        batch: on a CPU, from ``collate``.
        limit: the most tokens that the model reads.
    """
    tokens = batch.input_ids.shape[1]
    wide = rounded(tokens, steps=8)
    if limit is not None:
        wide = max(tokens, min(wide, limit))
    following = F.pad(batch.labels[:, 1:], (0, wide - tokens + 1), value=IGNORED)  # position t predicts token t + 1
    positions = (following != IGNORED).flatten().nonzero().squeeze(1)
    more = rounded(len(positions)) - len(positions)
    return Shaped(
        F.pad(batch.input_ids, (0, wide - tokens)),
        F.pad(positions, (0, more)),
        F.pad(following.flatten()[positions], (0, more), value=IGNORED),
    )


class Recorder:
    """Computes gradients batch by batch, with a CUDA graph for each shape.

    Gradients stay where they are from step to step, for a graph adds to the tensors that it was recorded on: set them
    to zero, not to ``None``.
    """

    def __init__(self, model: PreTrainedModel, parameters: Iterable[nn.Parameter]) -> None:
        """Make the gradients of the parameters that are trained."""
        self.model = model
        self.graphs: dict[Key, tuple[Shaped, Tensor, Callable[[], Tensor]]] = {}
        self.refused = False
        self.pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    def backward(self, batch: Shaped, labelled: int) -> Tensor:
        """Give a batch's summed loss over ``labelled``, and add its gradient to those of the parameters.

        Every batch is replayed, the first of its shape too: a kernel may round otherwise in a graph than outside, and
        a run that goes on where it was stopped meets its shapes anew.
        """
        if batch.key not in self.graphs and not self.refused:
            self._record(batch)
        if self.refused:
            return self._computed(batch, self._share(1 / labelled))
        inputs, share, replay = self.graphs[batch.key]
        inputs.copy_(batch)
        share.fill_(1 / labelled)
        return replay().clone()

    def _computed(self, batch: Shaped, share: Tensor) -> Tensor:
        """Compute the share of the loss, and add its gradient."""
        decoder = self.model.get_decoder()
        hidden = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
        loss = loss_at(self.model, hidden.index_select(0, batch.positions), batch.answers)
        loss.backward(share)
        return loss.detach() * share

    def _share(self, value: float) -> Tensor:
        """Give a number on the model's device, in the type of the loss."""
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        return torch.full((), value, dtype=dtype, device=self.model.device)

    def _record(self, batch: Shaped) -> None:
        """Record the passes of a shape, or give up recording: some models ask the GPU for numbers as they run."""
        inputs, share = batch.clone(), self._share(0.0)
        self._computed(inputs, share)  # no part of the loss, for what makes itself ready at the first call
        try:
            self.graphs[batch.key] = (inputs, share, self._captured(lambda: self._computed(inputs, share)))
        except RuntimeError as error:
            self.refused = True
            self.graphs.clear()
            if not is_out_of_memory(error):
                reason = str(error).splitlines()[0]
                warnings.warn(f"the steps of this model cannot be recorded as CUDA graphs: {reason}", stacklevel=2)

    def _captured(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record work, and give what does it again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def can_record(model: PreTrainedModel) -> bool:
    """Say whether a training step of ``model`` may be recorded: on a GPU, and without random numbers."""
    if model.device.type != "cuda":
        return False
    draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return not draws and not getattr(model.config.get_text_config(), "attention_dropout", 0)
