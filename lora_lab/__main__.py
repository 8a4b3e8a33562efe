"""Make ``python -m lora_lab`` the same as the command ``lora-lab``."""

from lora_lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
