"""Environment of the tools, imported before anything that imports torch: one thread, results that repeat."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see hydrabench/process.py
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
