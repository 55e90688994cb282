"""caq: a context-aware adaptive quantization runtime. See README.md for the first ten minutes."""

__version__ = "0.1.0"
