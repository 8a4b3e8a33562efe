"""The room stands on NumPy alone."""

import subprocess
import sys


def test_lowrank_loads_neither_torch_nor_matplotlib():
    code = "import sys, lora_lab.lowrank; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    assert not {"torch", "transformers", "matplotlib", "scipy"} & set(loaded)
