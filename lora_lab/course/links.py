"""Where the course lies on the web: the address behind the buttons that open a lesson in Colab or on Binder.

The address stands once, in ``pyproject.toml``. The lessons and the README repeat it in their links, and ``move`` writes
them all anew: whoever publishes a copy of the course gives it the copy's address.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
HOST = "https://github.com/"
BRANCH = "main"
SETUP = "setup"  # the identifier of the cell that installs the course on Colab


def repository(root: Path = ROOT) -> str:
    """Give the address of the course on GitHub as ``OWNER/NAME``.

    Raises:
        FileNotFoundError: the package was installed without its repository.
    """
    path = root / "pyproject.toml"
    if not path.is_file():
        raise FileNotFoundError(f"no pyproject.toml in {root}: run this in a copy of the whole repository")
    address: str = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    return address.removeprefix(HOST)


def colab(lesson: Path, address: str) -> str:
    """Give the link that opens a lesson in Colab, from the repository at ``address``."""
    return f"https://colab.research.google.com/github/{address}/blob/{BRANCH}/notebooks/{lesson.name}"


def binder(lesson: Path, address: str) -> str:
    """Give the link that opens a lesson on Binder, which builds what ``environment.yml`` says."""
    return f"https://mybinder.org/v2/gh/{address}/{BRANCH}?labpath={quote(f'notebooks/{lesson.name}', safe='')}"


def buttons(lesson: Path, address: str) -> str:
    """Give the last line of a lesson's first cell: both links, in Markdown."""
    return f"[Open in Colab]({colab(lesson, address)}) · [Open on Binder]({binder(lesson, address)})"


def setup(address: str) -> str:
    """Give the first code cell of every lesson: on Colab it fetches the course and installs it, elsewhere nothing.

    Colab has PyTorch and a notebook of its own, so only what it may lack is installed beside the course.
    """
    return f"""\
import sys
from pathlib import Path

if "google.colab" in sys.modules:  # on Colab alone: fetch the course and install it
    !git clone --quiet --depth 1 {HOST}{address} lora-lab
    %pip install --quiet gguf "peft>=0.18" "transformers>=5.0"
    %pip install --quiet --no-deps --editable lora-lab
    %cd -q lora-lab/notebooks
    sys.path.insert(0, str(Path.cwd().parent))"""


def move(address: str, root: Path = ROOT) -> list[Path]:
    """Write another address into every file that has the present one; give the files that changed.

    Args:
        address: ``OWNER/NAME`` of a repository on GitHub.
        root: the folder of the course.

    Raises:
        ValueError: that is no address of this form.
        FileNotFoundError: as ``repository``.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", address):
        raise ValueError(f"address: got {address!r}, takes OWNER/NAME of a repository on GitHub")
    old = repository(root)
    places = re.compile(rf"(github\.com/|/github/|/v2/gh/){re.escape(old)}(?![\w-])")
    changed = []
    texts = [root / name for name in ("pyproject.toml", "README.md", "CITATION.cff")]
    for path in [*texts, *sorted((root / "notebooks").glob("*.ipynb"))]:
        before = path.read_text(encoding="utf-8")
        after = places.sub(rf"\g<1>{address}", before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed
