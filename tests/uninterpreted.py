"""A program in a process of its own: kernels are compiled there, although tests interpret them."""

import os
import subprocess
import sys


def uninterpreted(program: str, *arguments: object) -> str:
    """What the program prints; its errors, where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
