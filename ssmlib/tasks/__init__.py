"""Generated data: pure functions of a seed, vectorised, on any device. Nothing is downloaded.

    signals   `white_noise`, and two ways to ask for its past: `delay`, `reconstruct`
    glyphs    `digits`, drawn by strokes and read pixel by pixel
    lists     `listops`, nested operations on lists of digits
    text      bytes of the language reference, which every Python carries, as a Task

Each of the first three returns (inputs, targets), batch first. Targets that are numbers are to be
met in the mean square; targets that are integers are classes. Equal arguments give equal bits on
one device; a CPU and a GPU draw different numbers.
"""

from ssmlib.tasks.glyphs import digits
from ssmlib.tasks.lists import listops
from ssmlib.tasks.signals import delay, reconstruct, white_noise

__all__ = ["delay", "digits", "listops", "reconstruct", "white_noise"]
