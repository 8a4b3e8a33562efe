"""Importing is instant: nothing heavy is loaded before it is used."""

import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "transformers", "matplotlib", "IPython", "nbformat", "safetensors"}


def loaded_by(code: str) -> set[str]:
    """Give the names of the top-level modules that are loaded once ``code`` has run in a Python of its own."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    program = f"import atexit\natexit.register(lambda: exec({report!r}))\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import lora_lab",
        "import lora_lab.assets",
        "import lora_lab.cli",
        "import lora_lab; dir(lora_lab)",
        "from lora_lab.cli import main; main(['--help'])",
        "from lora_lab.cli import main; main(['--version'])",
        "from lora_lab.cli import main; main(['fetch', '--list'])",
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert not loaded_by(code) & (HEAVY | {"numpy"})


def test_lowrank_needs_numpy_alone():
    loaded = loaded_by("import lora_lab.lowrank")
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_course_loads_no_torch_and_no_matplotlib():
    assert not loaded_by("import lora_lab.course, lora_lab.course.doctor") & {"torch", "transformers", "matplotlib"}


def test_the_check_above_can_fail():
    assert "numpy" in loaded_by("import lora_lab; lora_lab.lowrank")


def test_import_takes_less_than_a_fifth_of_a_second():
    # The best of five: other programs may hold the processor for a while, but they cannot make an import faster.
    code = "import time; start = time.perf_counter(); import lora_lab; print(time.perf_counter() - start)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    assert min(times) < 0.2


def test_help_comes_at_once():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lora_lab", "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1.0


def test_an_unknown_room_is_an_error_that_names_the_rooms():
    import lora_lab

    with pytest.raises(AttributeError, match="no attribute 'lowrnk'; it has assets, course, finetune, lora, lowrank"):
        lora_lab.lowrnk  # noqa: B018 - reading the attribute is the test
