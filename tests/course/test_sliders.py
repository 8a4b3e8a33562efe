"""A slider draws the figure again when it moves, says what it shows, and leaves a sentence where it cannot move."""

import re
import subprocess
import sys

import ipywidgets
import nbformat
import pytest

from lora_lab import course
from lora_lab.course.figures import canvas, png_bytes
from lora_lab.course.notebooks import WIDGET_TYPE, execute, is_live, store_outputs
from lora_lab.course.pages import write_page
from lora_lab.course.sliders import vary
from tests.course.slider_cells import LESSONS, assigned, drawer, needed, read_when_drawing, sliders, tree


def line(rank=2, noise=0.0):
    if noise > 1:
        raise ZeroDivisionError("<noise> takes 1 at most")
    fig, ax = canvas(width=3, height=2)
    ax.plot([0, rank], [noise, 1])
    return fig, f'The line of "{rank}" ends at {noise:g}.'


@pytest.fixture
def shown(monkeypatch):
    """Give a function that calls ``vary``, and gives its sliders, its picture and what was published."""
    published = []
    monkeypatch.setattr("IPython.display.publish_display_data", published.append)

    def shown(*arguments, **values):
        vary(*arguments, **values)
        [data] = published
        box = ipywidgets.widgets.widget._instances[data[WIDGET_TYPE]["model_id"]]
        *moving, picture = box.children
        return moving, picture, data

    return shown


def test_moving_a_slider_draws_again(shown):
    (rank, noise), picture, _ = shown(line, rank=range(1, 10), noise=[0, 0.5, 1])
    assert (rank.value, noise.value) == (2, 0), "a slider starts at the default"
    assert picture.value.startswith('<img alt="The line of &quot;2&quot; ends at 0." width="288" height="192" ')
    seen = {picture.value}
    for slider, value in ((rank, 9), (noise, 0.5), (rank, 3)):
        slider.value = value
        seen.add(picture.value)
    assert len({re.search('alt="(.*?)"', html)[1] for html in seen}) == 4
    assert len({re.search('src="data:image/png;base64,(.*?)"', html)[1] for html in seen}) == 4
    assert "&quot;3&quot; ends at 0.5." in picture.value


def test_widgets_of_version_7_are_shown_too(shown, monkeypatch):
    """Colab has ipywidgets 7, whose widgets cannot be asked for their view."""
    monkeypatch.delattr("ipywidgets.Widget._repr_mimebundle_")
    [rank], picture, _ = shown(line, rank=range(1, 10))
    rank.value = 3
    assert "&quot;3&quot; ends at 0." in picture.value


def test_a_value_is_drawn_once(shown):
    drawn = []

    def draw(rank):
        drawn.append(rank)
        return line(rank)

    [rank], _, _ = shown(draw, rank=[4, 1, 2])
    for value in (1, 2, 1, 4):
        rank.value = value
    assert drawn == [4, 1, 2], "without a default it starts at the first value"


def test_sliders_are_named_and_show_their_values(shown):
    (rate, kind), _, data = shown(
        lambda learning_rate, kind: line(), learning_rate=[0.1 + 0.2, 0.00025], kind=("disc", "cross")
    )
    assert (rate.description, kind.description) == ("learning rate", "kind")
    assert (rate.options[rate.index][0], kind.options[kind.index][0]) == ("0.3", "disc")
    assert data["text/markdown"] == (
        "Run this cell in JupyterLab to move sliders: learning rate, 0.3 to 0.00025; kind, disc to cross."
    )


@pytest.mark.parametrize(("seconds", "on_the_way"), [(0, True), (0.3, False)])
def test_a_slow_figure_waits_until_the_slider_rests(shown, monkeypatch, seconds, on_the_way):
    clock = iter([10, 10 + seconds])
    monkeypatch.setattr("lora_lab.course.sliders.time.perf_counter", lambda: next(clock))
    [rank], _, _ = shown(line, rank=range(1, 4))
    assert rank.continuous_update is on_the_way


def test_an_error_is_told_and_the_next_value_replaces_it(shown):
    (_, noise), picture, _ = shown(line, rank=range(1, 4), noise=[0, 1, 2])
    noise.value = 2
    assert picture.value == (
        '<p role="alert">No picture for rank 2, noise 2. ZeroDivisionError: &lt;noise&gt; takes 1 at most</p>'
    )
    noise.value = 1
    assert picture.value.startswith("<img ")


def test_an_error_of_the_first_figure_is_raised(shown):
    with pytest.raises(ZeroDivisionError):
        shown(lambda noise: line(noise=noise), noise=[2, 1])


@pytest.mark.parametrize(
    ("draw", "values", "kind", "message"),
    [
        ("line", {"rank": [1, 2]}, TypeError, "draw takes a function that gives a figure and its sentence, got str"),
        (line, {}, ValueError, r"vary takes the values of one argument of draw or more, such as .*, got none"),
        (line, {"alpha": [1, 2]}, TypeError, "draw takes rank, noise, got values for alpha"),
        (lambda rank, alpha: line(), {"rank": [1, 2]}, TypeError, "draw needs alpha, which has neither values nor a"),
        (line, {"rank": 5}, TypeError, "rank takes a range or a list of values, got int"),
        (line, {"rank": "12"}, TypeError, "rank takes a range or a list of values, got str"),
        (line, {"rank": range(2, 3)}, ValueError, "rank takes two values or more, got 1"),
        (line, {"rank": [2, 3, 2.0]}, ValueError, "rank takes values that differ, got 2 more than once"),
        (line, {"rank": range(3, 9)}, ValueError, "rank takes values with draw's default 2 among them, got 3 to 8"),
        (
            lambda rank: line()[0],
            {"rank": [1, 2]},
            TypeError,
            "draw must give a figure and its sentence, a pair",
        ),
        (lambda rank: (line()[0], "Line."), {"rank": [1, 2]}, ValueError, "alt takes a sentence"),
        (
            lambda rank: ("line", "The line ends."),
            {"rank": [1, 2]},
            TypeError,
            "fig takes a Matplotlib figure",
        ),
    ],
)
def test_what_is_no_slider_is_told(shown, draw, values, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        shown(draw, **values)


def test_no_widget_is_stored_and_the_page_has_a_sentence(tmp_path):
    path = tmp_path / "00_try.ipynb"
    source = (
        "from lora_lab import course\nfrom lora_lab.course.figures import canvas\n"
        "course.vary(lambda rank: (canvas()[0], f'The rank is {rank}.'), rank=range(1, 4))"
    )
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# Try"), nbformat.v4.new_code_cell(source, id="try")]
    nbformat.write(notebook, path)
    executed = execute(path)
    store_outputs(executed, path)
    [output] = nbformat.read(path, as_version=4).cells[1].outputs
    said = "Run this cell in JupyterLab to move a slider: rank, 1 to 3."
    assert output.data == {"text/markdown": said}
    assert f"<p>{said}</p>" in write_page(executed, path, [path], tmp_path).read_text(encoding="utf-8")

    stored = path.read_text(encoding="utf-8")
    (tmp_path / "01_error.ipynb").write_text(stored.replace("{rank}", "{1 / (rank - 1)}"), encoding="utf-8")
    (tmp_path / "02_other.ipynb").write_text(stored.replace("1 to 3", "1 to 4"), encoding="utf-8")
    nbval = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "--tb=line"]
    found = subprocess.run(nbval, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "00_try.ipynb ." in found
    assert "01_error.ipynb F" in found
    assert "ZeroDivisionError" in found
    assert "02_other.ipynb F" in found
    assert "Cell outputs differ" in found


def test_importing_the_course_loads_no_widgets():
    code = "import sys, lora_lab.course; print(*{'ipywidgets', 'matplotlib', 'asyncio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.fixture
def own_threads():
    """Give PyTorch its threads back: some lessons take one, and with another number sums round in another order."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_each_slider_of_a_lesson_follows_its_figure_and_moves(lesson, monkeypatch):
    cells, places = sliders(lesson)
    varied = []
    monkeypatch.setattr(course, "vary", lambda draw, **values: varied.append((draw, values)))
    monkeypatch.setattr(course, "show", lambda fig, alt: None)
    monkeypatch.setattr("lora_lab.course.sliders._display", lambda *_, **__: None)
    assert 1 <= len(places) <= 2
    for place in places:
        assert any("course.show(" in cell.source for cell in cells[max(0, place - 3) : place]), "no figure above"
        assert not is_live(cells[place]), "what a slider leaves is compared"
        scope = {}
        for above in needed(cells, place):
            exec(compile(cells[above].source, cells[above].id, "exec"), scope)
        draw, values = varied.pop()
        vary(draw, **values)
        for name, options in values.items():
            (first, said), (last, also) = (draw(**{name: options[end]}) for end in (0, -1))
            assert png_bytes(first) != png_bytes(last), f"{name} changes nothing in the figure"
            assert said != also, f"{name} changes nothing in the sentence: {said}"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_no_later_cell_changes_what_a_slider_reads(lesson):
    cells, places = sliders(lesson)
    for place in places:
        name = drawer(cells[place])
        reads = read_when_drawing(cells, needed(cells, place), name)
        defined = max(n for n in range(place + 1) if name in assigned(tree(cells[n])))
        for later in cells[defined + 1 :]:
            assert not assigned(tree(later)) & (reads | {name}), f"{later.id} changes what {name} reads"
