r"""Several processes train one model together: each reads a share of every step's examples, and the gradients add up.

This is data-parallel training. With :math:`S_1, \dots, S_p` the shares of a step's examples, the gradient of its loss
is :math:`\sum_i \nabla L(S_i)`: each of the p processes computes one term, ``add_up`` gives all of them the sum, and
each takes the same step. So p processes end where one does on the same examples, to rounding. Only the gradient of what
is trained travels: with LoRA that is a few megabytes, so PyTorch's DistributedDataParallel, which sends the gradient of
one layer while the next one is computed, would have little to hide.

``torchrun`` starts the processes, on one machine or on several, and ends all of them when one ends. Without it there is
one process, and nothing here does anything.

Source: S. Li et al. (2020), PyTorch Distributed: Experiences on accelerating data parallel training, arXiv:2006.15704.
"""

import contextlib
import datetime
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lora_lab.finetune.memory import is_out_of_memory

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=30)  # for the others, who may be sampling or writing
SILENCE = 3.0  # seconds that the other processes leave to the first one to say what is wrong

_first_process: list[tuple[str, int]] = []  # machine and number of the process that speaks, once the group is there


class LostProcessError(RuntimeError):
    """Another process of the run has ended or does not answer, so this one cannot go on."""


def count() -> int:
    """Give the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if _in_group() else 1


def rank() -> int:
    """Give the number of this process, from 0 to ``count() - 1``."""
    return dist.get_rank() if _in_group() else 0


def is_first() -> bool:
    """Say whether this process is the one that writes files and speaks."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Make this process one of those that ``torchrun`` started, for a while; do nothing where it started none.

    The first process of each machine takes its first GPU, the second its second, and so on; without GPUs they compute
    on the CPU. An error that all of them meet is reported by the first alone: the others wait three seconds before they
    go on with it, and are ended by ``torchrun`` meanwhile. Where the first itself is lost, the second speaks.

    Raises:
        ValueError: more processes on this machine than GPUs; a PyTorch that cannot connect processes.
        LostProcessError: the others cannot be reached, now or later, or the run was told to stop.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _in_group():
        yield
        return
    if not dist.is_available():
        raise ValueError("this PyTorch was built without torch.distributed; start one process, without torchrun")
    local = _local_rank()
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"there are {torch.cuda.device_count()} GPUs for {os.environ.get('LOCAL_WORLD_SIZE', local + 1)} "
                "processes on this machine; lower --nproc_per_node of torchrun"
            )
        torch.cuda.set_device(local)
    with _stopping_in_order():
        with _reaching_others("the processes could not be connected"):
            dist.init_process_group(timeout=PATIENCE)
        _first_process[:] = [from_first((socket.gethostname(), os.getpid()))]
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if not is_first():
                try:
                    time.sleep(SILENCE)
                except LostProcessError:  # the first is gone, and says nothing any more
                    if not isinstance(error, LostProcessError):
                        raise SystemExit(1) from None
            raise
        dist.destroy_process_group()


@contextlib.contextmanager
def first_here_first() -> Iterator[None]:
    """Let the first process of each machine do something before the others do: download a file, for them to find."""
    alone = count() == 1
    if not alone and _local_rank() > 0:
        _wait_for_all()
    yield
    if not alone and _local_rank() == 0:
        _wait_for_all()


def share(items: Sequence[T]) -> Sequence[T]:
    """Give this process's share of ``items``: every p-th one of p processes, all of them if it is alone."""
    return items[rank() :: count()] if count() > 1 else items


def collected(mine: Sequence[T]) -> list[T]:
    """Give to each process what all have, in the order that ``share`` took apart."""
    if count() == 1:
        return list(mine)
    shares: list[Any] = [None] * count()
    with _reaching_others():
        dist.all_gather_object(shares, list(mine))
    return [part[place] for place in range(len(shares[0])) for part in shares if place < len(part)]


def from_first(value: T) -> T:
    """Give to each process what the first one has."""
    if count() == 1:
        return value
    values: list[Any] = [value]
    with _reaching_others():
        dist.broadcast_object_list(values)
    given: T = values[0]
    return given


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each of ``tensors`` by its sum over all processes, in one message.

    Args:
        tensors: on one device, of the same shapes and in the same order in each process. They are added up in float32,
            or in float64 if one of them is of that type.
    """
    if count() == 1 or not tensors:
        return
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    message = torch.cat([tensor.reshape(-1).to(wide) for tensor in tensors])
    with _reaching_others():
        dist.all_reduce(message)
    for tensor, total in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def check_same(facts: dict[str, Any], what: str) -> None:
    """Raise ``ValueError`` in each process unless all of them have the same ``facts``, JSON values by name."""
    if count() == 1:
        return
    everywhere = collected([facts])
    for other, theirs in enumerate(everywhere):
        for name, value in everywhere[0].items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"{what}: process {other} differs from process 0 in {name} ({theirs.get(name)}, not {value}); "
                    "each machine needs the same files, and each process the same options"
                )


def _in_group() -> bool:
    """Say whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def _local_rank() -> int:
    """Give the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _wait_for_all() -> None:
    """Wait until each process has come here."""
    with _reaching_others():
        dist.barrier()


@contextlib.contextmanager
def _reaching_others(what: str = "another process of this run has ended, or does not answer") -> Iterator[None]:
    """Say in plain words that the others cannot be reached; backends raise a RuntimeError of their own."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LostProcessError(f"process {os.environ.get('RANK', '0')}: {what} ({reason})") from error


@contextlib.contextmanager
def _stopping_in_order() -> Iterator[None]:
    """Turn the signal with which ``torchrun`` ends the other processes into an error, so that something is said."""

    def stop(*_: object) -> None:
        own = os.environ.get("RANK", "0")
        if own != "0" and not (own == "1" and _first_is_gone()):
            raise SystemExit(1)  # the first one speaks
        raise LostProcessError("told to stop by SIGTERM, as torchrun does when another process has ended")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _first_is_gone() -> bool:
    """Say whether the first process was on this machine and is there no more."""
    for host, process in _first_process:
        if host == socket.gethostname():
            try:
                os.kill(process, 0)  # it asks, and sends nothing
            except ProcessLookupError:
                return True
    return False
