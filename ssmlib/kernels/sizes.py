"""Whole numbers of tiles. Triton's own functions are for kernels too, and take the host ten times
as long, where a launch asks for a dozen of them.
"""


def cdiv(size: int, step: int) -> int:
    """Steps that cover the size."""
    return -(-size // step)


def power_of_2(size: int) -> int:
    """The next one that is not below size."""
    return 1 << (size - 1).bit_length()


def up_to(size: int, step: int) -> int:
    """The next multiple of step that is not below size."""
    return cdiv(size, step) * step
