"""A figure comes with its sentence, looks the same to every reader, and is the same file every time."""

import base64
import itertools
import struct
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pytest

from lora_lab.course import figures
from lora_lab.course.figures import canvas, png_bytes, show

SENTENCE = "Both lines meet at 4, where each is 16."


@pytest.fixture
def shown(monkeypatch):
    """Give the list of what is displayed: pairs of data and metadata."""
    displays = []
    monkeypatch.setattr(
        "IPython.display.publish_display_data", lambda data, metadata: displays.append((data, metadata))
    )
    return displays


def drawn():
    fig, ax = canvas(width=5, height=3)
    ax.plot([0, 4], [0, 16], label="line")
    ax.plot([0, 2, 4], [0, 4, 16], label="square")
    ax.legend()
    return fig


def test_show_gives_picture_and_sentence(shown):
    assert show(drawn(), f"  {SENTENCE}\n") is None
    [(data, metadata)] = shown
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == SENTENCE
    assert metadata == {"image/png": {"alt": SENTENCE, "width": 480}}
    png = base64.b64decode(data["image/png"], validate=True)
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (5 * figures.FILE_DPI, 3 * figures.FILE_DPI)


@pytest.mark.parametrize("alt", ["", " ", "figure", "The rank", "Error against rank", "Yes."])
def test_show_asks_for_a_sentence(shown, alt):
    with pytest.raises(ValueError, match="alt takes a sentence"):
        show(drawn(), alt)
    assert not shown


def test_show_names_a_wrong_kind(shown):
    with pytest.raises(TypeError, match="alt takes a sentence, got NoneType"):
        show(drawn(), None)
    with pytest.raises(TypeError, match="fig takes a Matplotlib figure, got str"):
        show("figure", SENTENCE)


def test_show_closes_a_figure_of_pyplot(shown):
    from matplotlib import pyplot as plt

    fig = plt.figure()
    show(fig, SENTENCE)
    assert fig.number not in plt.get_fignums()


def test_png_has_the_same_bytes_and_no_date():
    first = png_bytes(drawn())
    assert first == png_bytes(drawn())
    chunks = [first[at + 4 : at + 8] for at in chunk_positions(first)]
    assert chunks[0] == b"IHDR"
    assert set(chunks) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def chunk_positions(png):
    """Give where each chunk of a PNG file begins: length, type, data, checksum (PNG specification, section 5.3)."""
    at = 8
    while at < len(png):
        yield at
        at += 12 + struct.unpack(">I", png[at : at + 4])[0]


def test_lines_differ_in_colour_marker_and_dashes():
    _, ax = canvas()
    lines = [ax.plot([0, 1], [n, n])[0] for n in range(len(figures.COLOURS))]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]
    assert looks == list(zip(figures.COLOURS, figures.MARKERS, figures.LINE_STYLES, strict=True))
    assert len(set(figures.COLOURS)) == len(set(figures.MARKERS)) == len(figures.COLOURS)


# Machado, Oliveira and Fernandes (2009), severity 1.0: linear RGB as a reader without red or green cones sees it
SEEN = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("kind", SEEN)
def test_neighbouring_colours_stay_apart_for_colour_blind_readers(kind):
    linear = matplotlib.colors.to_rgba_array(figures.COLOURS)[:, :3] ** 2.2
    seen = np.clip(linear @ np.array(SEEN[kind]).T, 0, 1) ** (1 / 2.2)
    for one, other in itertools.pairwise(seen):
        assert np.linalg.norm(one - other) > 0.2


def test_lines_stand_out_from_the_page():
    weights = np.array([0.2126, 0.7152, 0.0722])  # WCAG 2.1: relative luminance, contrast (L1 + 0.05) / (L2 + 0.05)
    luminance = (matplotlib.colors.to_rgba_array(figures.COLOURS)[:, :3] ** 2.2) @ weights
    assert min(1.05 / (luminance + 0.05)) > 2


def test_canvas_gives_axes_for_a_grid():
    fig, axes = canvas(2, 3, width=8, height=4, sharex=True)
    assert isinstance(fig, matplotlib.figure.Figure)
    assert axes.shape == (2, 3)
    assert tuple(fig.get_size_inches()) == (8, 4)


def test_importing_the_course_loads_neither_matplotlib_nor_torch():
    code = "import sys, lora_lab.course; print(*{'matplotlib', 'torch', 'transformers', 'IPython'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
