"""Copies the figures that the README borrows from the lessons: ``python -m lora_lab.course.readme_figures``.

They are the very pictures that the lessons store, so the README shows what a run has drawn and nothing else.
"""

import base64

import nbformat

from lora_lab.course.links import ROOT
from lora_lab.course.notebooks import find

FIGURES = {  # the file in data/figures: the lesson's number and the cell that stores the picture
    "rank-vs-error.png": ("03", "family-figure"),
    "photograph.png": ("03", "photo-figure"),
    "before-and-after.png": ("09", "bars"),
}


def stored_figure(number: str, cell: str) -> bytes:
    """Give the PNG file that a cell of a lesson stores.

    Args:
        number: the beginning of the lesson's name, such as ``"03"``.
        cell: the identifier of the cell.

    Raises:
        FileNotFoundError: there is no such lesson.
        ValueError: it has no such cell, or the cell stores no picture.
    """
    path = find(number)
    for found in nbformat.read(path, as_version=4).cells:
        for output in found.get("outputs", []) if found.id == cell else []:
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"])
    raise ValueError(f"{path.name} has no picture stored in a cell {cell!r}: store its outputs first")


if __name__ == "__main__":
    for name, place in FIGURES.items():
        (ROOT / "data" / "figures" / name).write_bytes(stored_figure(*place))
