import subprocess
import sys


def test_the_room_needs_torch_alone():
    """No model library, no other implementation of LoRA, and no other room of the package."""
    code = "import sys, lora_lab.lora; print(*sorted(name for name in sys.modules if name.count('.') < 2))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "safetensors", "lora_lab.lora"} <= set(modules)
    rooms = {f"lora_lab.{room}" for room in ("assets", "cli", "course", "finetune", "lowrank")}
    assert not {"transformers", "peft", "loralib", "matplotlib", *rooms} & set(modules)
