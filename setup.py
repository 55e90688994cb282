from setuptools import setup

setup(cffi_modules=["caq/kernels/build_ffi.py:ffi"])
