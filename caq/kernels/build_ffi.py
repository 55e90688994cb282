"""Builds `caq.kernels._native` from the C files beside this one (setup.py; cffi in API mode)."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = ("prepare", "run", "threads", "isa_portable", "isa_avx2", "isa_avx512vnni", "isa_neon", "isa_neon_dot")
# No contraction: a fused multiply-add would round once where quant.fixed_point rounds twice.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")


def declarations() -> str:
    """The header without what only a compiler reads."""
    lines = (HERE / "caq.h").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "caq.kernels._native",
    '#include "caq.h"',
    # Relative, because setuptools refuses absolute paths; the build runs in the project's folder.
    sources=[os.path.relpath(HERE / f"{name}.c") for name in SOURCES],
    include_dirs=[os.path.relpath(HERE)],
    extra_compile_args=[*FLAGS, "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)
