"""A training run on disk: one safetensors file, replaced whole at each save, so that there is always a good one."""

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

FILE_NAME = "checkpoint.safetensors"
PART = (".checkpoint-", ".part")  # how the name of a file that is being written begins and ends


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on: its tensors, by a dotted name, and its record, as plain JSON values."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def prepare_folder(folder: Path) -> None:
    """Make ``folder``, clear away what a killed run half wrote, and raise ``OSError`` if it takes no files."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(f"{PART[0]}*{PART[1]}"):
        part.unlink(missing_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` into ``folder``, replacing the one there in a single step.

    A process killed while it writes leaves the earlier checkpoint as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written; the earlier checkpoint is still good.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PART[0], suffix=PART[1], dir=folder)
    os.close(handle)
    part = Path(name)
    try:
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.tensors.items()}
        metadata = {"record": json.dumps(checkpoint.record), "crc32": _checksum(tensors)}
        with part.open("wb") as file:
            file.write(safetensors.torch.save(tensors, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / FILE_NAME)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Give the checkpoint in ``folder``, or ``None`` if there is none yet.

    Raises:
        ValueError: the file there is not a checkpoint of this program, or is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            record, tensors = json.loads(metadata["record"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if _checksum(tensors) != metadata["crc32"]:
                raise ValueError("its numbers are not those that were written")
            return Checkpoint(tensors, record)
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"folder: {path} cannot be read as a checkpoint ({error}); move it away to start the run again"
        ) from error


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Give the CRC-32 of names and numbers."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give the state of ``optimizer`` as tensors named ``optimizer.<parameter index>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give the parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def copy_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Copy ``tensors[prefix + name]`` into each of ``parameters``; names and shapes must agree exactly."""
    stored = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if stored.keys() != parameters.keys():
        odd = sorted(stored.keys() ^ parameters.keys())
        raise ValueError(f"checkpoint: it trains other parameters than the model, {odd[0]!r} for one")
    for name, parameter in parameters.items():
        if stored[name].shape != parameter.shape:
            raise ValueError(
                f"checkpoint: {name!r} is {tuple(stored[name].shape)} there and {tuple(parameter.shape)} in the model"
            )
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])
