import subprocess
import sys


def test_the_room_needs_torch_and_the_rooms_below_it_alone():
    """No model library, no other implementation of LoRA, and no room above this one.

    ``lowrank`` (NumPy only), and ``assets`` below it, are loaded: an update of LoRA is a ``LowRank``.
    """
    code = "import sys, lora_lab.lora; print(*sorted(name for name in sys.modules if name.count('.') < 2))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "safetensors", "lora_lab.lora", "lora_lab.lowrank"} <= set(modules)
    rooms = {f"lora_lab.{room}" for room in ("cli", "course", "finetune")}
    assert not {"transformers", "peft", "loralib", "matplotlib", *rooms} & set(modules)
