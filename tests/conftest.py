"""Tests run small things: one thread each is fastest, and does not fight with other processes for the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
