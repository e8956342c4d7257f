"""HAX: sparse attention whose keys are fetched by a hash, beside any other layer.

places   which keys a query sees: the last ones, those of its bucket, selected ones
attend   softmax attention over the places named
layer    HAXConfig, the layer
"""

from ssmlib.mixers.hax.attend import attend_to
from ssmlib.mixers.hax.layer import HAX, HAXConfig, HAXState
from ssmlib.mixers.hax.places import buckets, dilated, hash_codes, recent, selected, sinks

__all__ = [
    "HAX",
    "HAXConfig",
    "HAXState",
    "attend_to",
    "buckets",
    "dilated",
    "hash_codes",
    "recent",
    "selected",
    "sinks",
]
