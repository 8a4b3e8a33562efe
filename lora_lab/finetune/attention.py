"""Which kernel computes attention: the one that is quick for the device and for the length of the texts.

Source: T. Dao et al. (2022), "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
arXiv:2205.14135, for the fused kernels; they compute the same, to rounding.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

LONG = 256  # tokens; from here on the fused kernel is the faster one on a CPU, and it keeps no scores


@contextlib.contextmanager
def quick_attention(device: torch.device) -> Iterator[None]:
    """Leave out cuDNN's attention on a GPU, for a while: it plans every new shape, which takes longer than a step."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


@contextlib.contextmanager
def attention_for(model: PreTrainedModel, tokens: float) -> Iterator[None]:
    """Let ``model`` have the attention that is quick for texts of about ``tokens`` tokens, for a while.

    That is ``quick_attention`` on a GPU. On a CPU, texts of more than ``LONG`` tokens go through PyTorch's fused kernel
    where the model was loaded with ``"eager"``, as ``load_model`` does: if transformers has the fused one for it, and
    if it does not cap the scores, which that kernel cannot.
    """
    config = model.config
    swapped = (
        model.device.type == "cpu"
        and tokens > LONG
        and config._attn_implementation == "eager"
        and model._supports_sdpa
        and model._can_set_attn_implementation()
        and not config.sub_configs
        and not getattr(config, "attn_logit_softcapping", None)
    )
    try:
        if swapped:
            model.set_attn_implementation("sdpa")
        with quick_attention(model.device):
            yield
    finally:
        if swapped:
            model.set_attn_implementation("eager")
