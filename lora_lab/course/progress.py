"""Which exercises have passed on this machine: one small file of the user's, a name a line, which is sent nowhere."""

import contextlib
import os
from itertools import groupby
from pathlib import Path

from platformdirs import user_data_path


def progress_file() -> Path:
    """Give the file that remembers: ``LORA_LAB_PROGRESS``, else ``lora-lab/progress.txt`` in the user's data folder.

    That folder is the one that platformdirs names: ``$XDG_DATA_HOME`` or ``~/.local/share`` on Linux,
    ``~/Library/Application Support`` on macOS, ``%LOCALAPPDATA%`` on Windows.

    Raises:
        ValueError: ``LORA_LAB_PROGRESS`` is not an absolute path, so it would mean another file in every notebook.
    """
    if chosen := os.environ.get("LORA_LAB_PROGRESS"):
        file = Path(chosen).expanduser()
        if not file.is_absolute():
            raise ValueError(f"LORA_LAB_PROGRESS: got {chosen!r}, takes an absolute path")
        return file
    return user_data_path("lora-lab", appauthor=False) / "progress.txt"


def passed() -> set[str]:
    """Give the names of the exercises that have passed here; none where there is no file yet.

    Raises:
        OSError: there is a file, and it cannot be read.
        ValueError: as ``progress_file``.
    """
    try:
        return set(progress_file().read_text(encoding="utf-8", errors="replace").splitlines())
    except FileNotFoundError:
        return set()


def remember(name: str) -> None:
    """Note that an exercise has passed. Where that cannot be written nothing is said: the answer is right anyway."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        if name not in passed():
            file = progress_file()
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{name}\n")


def forget() -> None:
    """Remove the file, to begin again.

    Raises:
        OSError: it cannot be removed.
        ValueError: as ``progress_file``.
    """
    progress_file().unlink(missing_ok=True)


def report() -> str:
    """Give a line a notebook: how many of its exercises have passed here, and which is next.

    Raises:
        OSError, ValueError: as ``passed``.
    """
    from lora_lab.course.exercises import exercises

    done, lines, right = passed(), list[str](), 0
    for number, group in groupby(exercises().values(), key=lambda exercise: exercise.name.split(".")[0]):
        some = list(group)
        left = [exercise.name for exercise in some if exercise.name not in done]
        right += len(some) - len(left)
        notebook = f"{number}_{some[0].solution.__module__.rsplit('.', 1)[-1]}"
        following = f"   next: {left[0]}" if left else ""
        lines.append(f"{notebook:32}{len(some) - len(left)} of {len(some)}{following}")
    return "\n".join([*lines, f"{right} of {len(exercises())} exercises have passed on this machine"])
