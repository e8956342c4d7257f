"""The library of the book *Linear Time*: sequence models at linear cost, and what they replace.

This file imports nothing; import the module whose chapter you have read.

    chapter                  modules
    01 attention's cost      ssmlib.attention, ssmlib.costs
    02 discretization        ssmlib.discretize
    03 HiPPO                 ssmlib.hippo
    04 S4                    ssmlib.convolution, ssmlib.s4, ssmlib.mixers.s4, ssmlib.mixers.h3
    05 selection             ssmlib.selective_scan, ssmlib.mixers.mamba
    06 parallel scans        ssmlib.scan, ssmlib.kernels.scan, ssmlib.kernels.ladder
    07 duality               ssmlib.ssd, ssmlib.mixers.mamba2
    08 hybrids               ssmlib.model, ssmlib.layers, ssmlib.mixers.attention,
                             ssmlib.mixers.rglru, ssmlib.mixers.zamba, ssmlib.presets,
                             ssmlib.checkpoints, ssmlib.generate
    09 recall                ssmlib.recall, ssmlib.mixers.hax, ssmlib.mixers.linear_attention
    training                 ssmlib.train, ssmlib.tasks
    every chapter            ssmlib.shapes, ssmlib.backends, ssmlib.recurrence, ssmlib.example
    figures and records      ssmlib.bench, ssmlib.plots, ssmlib.viz
"""

__version__ = "0.1.0"
