"""A bar where somebody looks, silence where nobody does, and the same last words at every run."""

import io
import time

import IPython.display
import pytest

from lora_lab.finetune import Progress, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_nothing(capsys):
    with Progress(2, "training") as bar:
        bar.advance(note="loss 1.0")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_the_note_and_is_left_clean(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(2, "training") as bar:
        time.sleep(0.15)  # a terminal's line is drawn ten times a second at most
        bar.advance(2, note="loss 1.0 · 99 tokens/s")
    shown = terminal.getvalue()
    assert "training" in shown
    assert "loss 1.0 · 99 tokens/s" in shown
    assert shown.rsplit("\r", 1)[1].strip() == ""


def test_nothing_is_shown_when_nobody_asks(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(2, "training", shown=False) as bar:
        bar.advance()
    assert terminal.getvalue() == ""


@pytest.fixture
def notebook(monkeypatch):
    """Stand in for a Jupyter kernel, and keep everything that its one display shows."""
    shown = []

    class Display:
        def update(self, content):
            shown.append(content._repr_mimebundle_())

    def display(content, *, display_id):
        assert display_id
        shown.append(content._repr_mimebundle_())
        return Display()

    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    return shown


def test_a_notebook_shows_a_bar_and_keeps_a_sentence_without_times(notebook):
    with Progress(1200, "training") as bar:
        bar.advance(600, note="loss <1>")
    assert '<progress value="600" max="1200">' in notebook[1]["text/html"]
    assert "loss &lt;1&gt;" in notebook[1]["text/html"]
    assert "s left" in notebook[1]["text/plain"]
    assert notebook[-1]["text/plain"] == "training: 600 of 1,200"


def test_a_notebook_says_how_far_an_interrupted_run_came(notebook):
    def interrupted():
        with Progress(3, "training") as bar:
            bar.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert notebook[-1]["text/plain"] == "training: 1 of 3"
