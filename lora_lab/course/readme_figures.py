"""Copies the figures that the README borrows from the lessons: ``python -m lora_lab.course.readme_figures``.

They are the very pictures that the lessons store, so the README shows what a run has drawn and nothing else.
"""

import base64
from pathlib import Path

import nbformat

FIGURES = {  # the file in data/figures: the lesson's number and the cell that stores the picture
    "rank-vs-error.png": ("03", "family-figure"),
    "photograph.png": ("03", "photo-figure"),
    "before-and-after.png": ("09", "bars"),
}
ROOT = Path(__file__).resolve().parents[2]


def stored_figure(number: str, cell: str) -> bytes:
    """Give the PNG file that a cell of a lesson stores.

    Args:
        number: the beginning of the lesson's name, such as ``"03"``.
        cell: the identifier of the cell.

    Raises:
        ValueError: there is no such lesson, or it has no such cell, or the cell stores no picture.
    """
    for path in (ROOT / "notebooks").glob(f"{number}*.ipynb"):
        for found in nbformat.read(path, as_version=4).cells:
            for output in found.get("outputs", []) if found.id == cell else []:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    raise ValueError(f"no lesson {number} has a picture stored in its cell {cell!r}: store its outputs first")


if __name__ == "__main__":
    for name, place in FIGURES.items():
        (ROOT / "data" / "figures" / name).write_bytes(stored_figure(*place))
