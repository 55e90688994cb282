"""What build_ffi.py compiles: `lib` has the functions of caq.h, `ffi` its types."""

from typing import Any

ffi: Any
lib: Any
