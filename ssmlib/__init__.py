"""The library of the book *Linear Time*: sequence models at linear cost, and what they replace.

This file imports nothing; import the module whose chapter you have read.

    chapter                  modules
    01 attention's cost      ssmlib.attention, ssmlib.costs
    02 discretization        ssmlib.discretize
    every chapter            ssmlib.shapes, ssmlib.backends, ssmlib.example
    figures and records      ssmlib.bench, ssmlib.plots, ssmlib.viz
"""

__version__ = "0.1.0"
