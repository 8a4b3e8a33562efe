"""What all tests share: nothing is drawn on a screen, nothing is fetched, and no test is left to chance."""

import os

from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")
