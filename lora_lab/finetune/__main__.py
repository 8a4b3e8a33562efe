"""Make ``python -m lora_lab.finetune`` the same as ``lora-lab finetune``: what ``torchrun -m`` starts in each process.

It is the one place in this room that looks up to the command, and nothing imports it.
"""

import sys

from lora_lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["finetune", *sys.argv[1:]]))
