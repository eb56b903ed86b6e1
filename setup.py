"""Builds the optional lane in C; everything else stands in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "aembus.shm._lane",
            sorted(glob("aembus/shm/_lane*.c")),
            depends=sorted(glob("aembus/shm/_lane*.h")),
            extra_compile_args=["-std=c11", "-O2", "-D_GNU_SOURCE"],
            optional=True,  # without a compiler the lane in plain Python does it all
        )
    ]
)
