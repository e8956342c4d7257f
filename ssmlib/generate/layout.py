"""Weights laid out for one row at a time."""

from torch import nn


def arrange(model: nn.Module) -> nn.Module:
    """Lay the matrices of all linear layers out by columns, in place; returns the model.

    On a CPU a product of one row with a matrix is bound by reading the matrix, and the libraries
    read (in, out) up to three times as fast as (out, in), the order of `nn.Linear`: decoding gains,
    nothing else changes. The numbers and shapes are the same, only strides differ.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            weight.data = weight.data.t().contiguous().t()
    return model
