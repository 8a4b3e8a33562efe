"""pyproject.toml, constraints.txt, environment.yml, the Makefile and the README say the same thing."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lora_lab

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
REQUIREMENTS = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
]
PIN_LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]
PINS = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in PIN_LINES)}
BROWSER = {"axe-playwright-python", "greenlet", "playwright"}  # only where pages are tested in a browser
OTHERS = {"appnope", "colorama", "overrides", "pexpect", "ptyprocess", "pywinpty"}  # only some machines ask for them


@pytest.mark.parametrize("line", PIN_LINES)
def test_pin_is_one_exact_public_version(line):
    assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line)


def test_pins_are_told_once_and_in_order():
    names = [canonicalize_name(line.split("==")[0]) for line in PIN_LINES]
    assert names == sorted(set(names))


# The benchmark measures ours beside these where they are installed, and asks first whether they are.
RIVALS = {"lora_lab/course/benchmarks.py": {"scipy", "sklearn"}}


@pytest.mark.parametrize(("folder", "extras"), [("lora_lab", []), ("tests", ["test"])])
def test_what_is_imported_is_required_by_name(folder, extras):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    required = {canonicalize_name(Requirement(line).name) for line in lines}
    known = {*sys.stdlib_module_names, "lora_lab", "tests", "rules"}
    imported = set()
    for path in (ROOT / folder).rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
        imported |= names - RIVALS.get(path.relative_to(ROOT).as_posix(), set())
    packages = metadata.packages_distributions()
    bringing = {name: {canonicalize_name(package) for package in packages[name]} for name in imported - known}
    assert {name for name, packages in bringing.items() if not packages & required} == set()


def test_pytest_needs_no_python_before_it():
    """``python -m pytest`` brings the folder of the course along; ``pytest`` alone must find the tests' own modules."""
    command = [sys.executable, "-I", "-m", "pytest", "--collect-only", "--quiet", "tests/course/test_experiments.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_torch_is_pinned_to_the_version_of_the_course():
    assert PINS["torch"] == Version("2.13.0")


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_requirement_is_a_range_that_holds_its_pin(requirement):
    assert requirement.specifier, "a requirement takes a lower bound"
    assert all(part.operator != "==" for part in requirement.specifier), "exact versions belong in constraints.txt"
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def is_installed(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def test_every_package_that_an_installation_brings_is_pinned():
    """Follow the requirements through the installed packages: all that pip takes must have a pin."""
    brought, waiting = set(), [*REQUIREMENTS]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in brought:
            continue
        brought.add((name, extras))
        if name in BROWSER and not is_installed(name):
            continue
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ["", *extras]):
                waiting.append(needed)
    names = {name for name, _ in brought if not name.startswith(("nvidia-", "cuda-", "triton"))}  # torch pins its own
    assert names - set(PINS) == set()
    assert set(PINS) - names <= OTHERS | BROWSER, "a pin that nothing asks for"


def test_what_transformers_needs_to_read_gguf_comes_without_an_extra():
    """Nothing of ours imports accelerate, and peft brings it into the test environment: no other test would miss it."""
    assert {"accelerate", "gguf"} <= {Requirement(line).name for line in PROJECT["dependencies"]}


def test_environment_is_of_conda_forge_and_this_folder():
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    python, pip, packages = ENVIRONMENT["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert packages == {"pip": ["-c constraints.txt", "-e .[test]"]}
    assert "- -e .[test]\n" in (ROOT / "environment.yml").read_text(encoding="utf-8"), "without quotes"


def test_python_versions_agree():
    wanted = Requirement(f"python{PROJECT['requires-python']}").specifier
    listed = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert listed == ["3.11", "3.12", "3.13"]
    assert [minor for minor in range(8, 20) if f"3.{minor}.1" in wanted] == [11, 12, 13]
    assert ENVIRONMENT["dependencies"][0].removeprefix("python=") in listed
    assert "3.11, 3.12 or 3.13" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_package_says_its_version_and_licence():
    assert metadata.version("lora-lab") == lora_lab.__version__ == PROJECT["version"]
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_files_beside_the_code_are_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packaged = set(settings["package-data"]["lora_lab"])
    beside = {p.relative_to(ROOT / "lora_lab").as_posix() for p in (ROOT / "lora_lab").rglob("*") if p.is_file()}
    assert {name for name in beside if not name.endswith((".py", ".pyc"))} == packaged


def recipes(target):
    """Give the commands of a target of the Makefile, in the words of a shell without make."""
    options = ["--dry-run", "--always-make", "--no-print-directory", "PYTHON=python3"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    dry = subprocess.run(["make", *options, target], cwd=ROOT, env=alone, capture_output=True, text=True)
    return [line for line in dry.stdout.splitlines() if not line.startswith(("touch ", "python3 -c "))]


@pytest.mark.skipif(sys.platform == "win32", reason="make is for POSIX systems; README.md has the plain commands")
@pytest.mark.parametrize("target", ["run", "test", "lab"])
def test_readme_gives_the_commands_of_the_makefile(target):
    commands = recipes(target)
    assert commands
    for command in commands:
        assert re.sub(r"^\.venv/bin/", "", command) in re.sub(r"\.venv/bin/", "", README)
