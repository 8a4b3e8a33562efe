"""The links and the setup cell fit the repository, follow it to another address, and do on Colab what they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from lora_lab.cli import main
from lora_lab.course import links
from lora_lab.course.notebooks import notebooks

ROOT = Path(__file__).parents[2]
FILES = ["pyproject.toml", "README.md", "CITATION.cff"]


@pytest.fixture
def copy(tmp_path):
    """Give a copy of what carries the address."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    return tmp_path


def test_each_link_names_a_file_of_the_repository():
    address = links.repository()
    assert len(notebooks()) == 11
    for lesson in notebooks():
        where = f"github/{address}/blob/main/"
        assert (ROOT / links.colab(lesson, address).partition(where)[2]).samefile(lesson)
        opened = unquote(links.binder(lesson, address)).partition(f"/v2/gh/{address}/main?labpath=")[2]
        assert (ROOT / opened).samefile(lesson)


def test_the_readme_opens_the_first_lesson():
    first, address = notebooks()[0], links.repository()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"]({links.colab(first, address)})" in readme
    assert f"]({links.binder(first, address)})" in readme


def test_moving_changes_every_link_and_nothing_else(copy):
    old, new = links.repository(copy), "ada-l/notes.on-LoRA_2"
    before = {path: path.read_text(encoding="utf-8") for path in copy.rglob("*") if path.is_file()}
    changed = links.move(new, copy)
    assert {path.relative_to(copy).as_posix() for path in changed} == {
        *FILES,
        *(f"notebooks/{path.name}" for path in notebooks()),
    }
    assert links.repository(copy) == new
    for lesson in sorted((copy / "notebooks").glob("*.ipynb")):
        first, second = json.loads(lesson.read_text(encoding="utf-8"))["cells"][:2]
        assert "".join(first["source"]).endswith(links.buttons(lesson, new))
        assert "".join(second["source"]) == links.setup(new)
    links.move(old, copy)
    assert {path: path.read_text(encoding="utf-8") for path in before} == before


@pytest.mark.parametrize("address", ["ada", "https://github.com/ada/notes", "ada/notes/more", "ada /notes", ""])
def test_what_is_no_address_changes_nothing(address, copy):
    before = (copy / "README.md").read_bytes()
    with pytest.raises(ValueError, match="takes OWNER/NAME"):
        links.move(address, copy)
    assert (copy / "README.md").read_bytes() == before


def test_without_the_repository_it_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="whole repository"):
        links.repository(tmp_path)


def test_the_command_shows_two_links_a_lesson(capsys):
    assert main(["links"]) == 0
    assert len(re.findall(r"^    https://", capsys.readouterr().out, re.M)) == 22


def test_the_citation_is_of_this_version():
    from importlib.metadata import version

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version("lora-lab")
    assert citation["repository-code"] == links.HOST + links.repository()
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


PROGRAM = """
import sys
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
if {colab}:
    import google.colab
shell.run_cell({cell!r}).raise_error()
import lora_lab, os
print(lora_lab.__file__, os.getcwd(), sep="\\n")
"""


@pytest.mark.skipif(shutil.which("git") is None, reason="git clones the course")
@pytest.mark.parametrize("colab", [True, False])
def test_the_setup_cell_fetches_and_installs_the_course_on_colab_alone(colab, tmp_path):
    """Colab is made up: its module is empty, the repository is a local one, and pip notes what it is asked for."""
    course, made_up, here = tmp_path / "course", tmp_path / "made up", tmp_path / "content"
    for file, text in {
        course / "lora_lab" / "__init__.py": "",
        course / "notebooks" / "00_start_here.ipynb": "",
        made_up / "google" / "colab" / "__init__.py": "",
        made_up / "pip" / "__init__.py": "",
        made_up / "pip" / "__main__.py": "import sys; print(*sys.argv[1:], file=open('asked', 'a'), sep=' | ')",
        here / "README": "",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", "-C", str(course)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "The course"]):
        subprocess.run([*git, *command], check=True)
    address = "someone/lora-lab"
    instead = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": f"{links.HOST}{address}"}
    instead["GIT_CONFIG_KEY_0"] = f"url.{course.as_uri()}.insteadOf"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(colab=colab, cell=links.setup(address))],
        cwd=here,
        env=os.environ | instead | {"PYTHONPATH": str(made_up), "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    package, folder = (Path(line) for line in done.stdout.splitlines()[-2:])
    if colab:
        assert package == here / "lora-lab" / "lora_lab" / "__init__.py"
        assert folder == here / "lora-lab" / "notebooks"
        assert (here / "asked").read_text(encoding="utf-8").splitlines() == [
            "install | --quiet | gguf | peft>=0.18 | transformers>=5.0",
            "install | --quiet | --no-deps | --editable | lora-lab",
        ]
    else:
        assert package == ROOT / "lora_lab" / "__init__.py"
        assert folder == here
        assert not (here / "asked").exists()
