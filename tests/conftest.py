"""What all tests share: nothing is drawn on a screen, fetched or remembered, and no test is left to chance."""

import os
import signal

from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["LORA_LAB_PROGRESS"] = os.devnull  # what tests solve is no progress of the user's

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background: what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")
