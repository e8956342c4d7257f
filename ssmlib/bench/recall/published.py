"""What others report where a setting of theirs is near one of ours: shares of answers.

What differs. MQAR: their vocabulary is 8,192, ours 256; they train for 2^21 to 2^23 examples, we
for about 10^5, of several numbers of pairs at once; Arora et al. stack two mixers and put no
convolution before attention, whose positions are learned; their numbers and Dao and Gu's are read
from figures, to about 0.02. Joint recall: 5 to 16 contexts and keys, 400,000 steps. Passkeys:
models of 1.5 billion parameters and larger states, trained on text of 2,048 tokens and on no
passkeys; one layer in six of the hybrid is attention, which has no positions there either.
"""

from collections.abc import Mapping
from typing import Any

ZOOLOGY, MAMBA2 = "arora2023zoology", "dao2024transformers"
HAX, MAMBA3 = "zhan2025overcoming", "lahoti2026mamba3"

# by length, of which a 16th are pairs, for d = 64 and 128: Arora et al. 2023, figure 2
PAIRS_OF_16 = {
    ("attention", ""): {64: (1.0, 1.0), 128: (1.0, 1.0), 256: (1.0, 1.0)},
    ("h3", ""): {64: (0.93, 1.0), 128: (0.25, 0.74), 256: (0.09, 0.64)},
}
# 64 pairs in 256 tokens, for d = 32, 64 and 128: Dao and Gu 2024, figure 8
PAIRS_OF_4 = {
    ("attention", ""): (0.50, 0.80, 1.0),
    ("mamba", ""): (0.0, 0.0, 0.01),
    ("mamba2", "n=16"): (0.17, 0.57, 0.89),
    ("mamba2", "n=64"): (0.0, 0.93, 0.99),
    ("mamba2", "n=256"): (0.95, 0.99, 0.99),
}
JOINT = {  # Zhan et al. 2025, table 3, at d = 64
    ("mamba", "n=16", 64): 0.163,
    ("mamba2", "n=32", 64): 0.366,
    ("beside", "sparse=hax", 64): 0.743,
    ("beside", "sparse=hashed", 64): 0.135,
    ("beside", "sparse=selected", 64): 0.601,
    ("beside", "sparse=window", 64): 0.706,
    ("beside", "sparse=dilated", 64): 0.196,
    ("beside", "base=mamba", 64): 0.380,
    ("mamba", "n=16", 128): 0.345,
    ("mamba2", "n=32", 128): 0.592,
}
PASSKEY = {  # Lahoti et al. 2026, table 4: at 2 and 4 thousand tokens, trained at 2
    ("transformer", "positions=rotary"): {1: 1.0, 2: 0.0},
    ("mamba2", "n=64"): {1: 0.996, 2: 0.620},
    ("hybrid", "n=64"): {1: 1.0, 2: 0.032},
}


def published(row: Mapping[str, Any]) -> tuple[float, str] | None:
    """The published share that stands nearest to a row of `best`, and a key of the references."""
    finder = {"mqar": _mqar, "joint": _joint, "passkey": _passkey}.get(row["experiment"])
    return None if finder is None else finder(row)


def _mqar(row: Mapping[str, Any]) -> tuple[float, str] | None:
    name, length, d = (row["mixer"], row["variant"]), row["length"], row["d_model"]
    told = dict(part.split("=") for part in row["tested"].split())
    each = length // int(told["pairs"])
    if each == 16 and d in (64, 128) and length in PAIRS_OF_16.get(name, {}):
        return PAIRS_OF_16[name][length][(64, 128).index(d)], ZOOLOGY
    if each == 4 and length == 256 and d in (32, 64, 128) and name in PAIRS_OF_4:
        return PAIRS_OF_4[name][(32, 64, 128).index(d)], MAMBA2
    return None


def _joint(row: Mapping[str, Any]) -> tuple[float, str] | None:
    if row["trained"] != "contexts=(4, 8) keys=(4, 8) values=16":
        return None
    share = JOINT.get((row["mixer"], row["variant"], row["d_model"]))
    return None if share is None else (share, HAX)


def _passkey(row: Mapping[str, Any]) -> tuple[float, str] | None:
    name = (row["mixer"], row["variant"].replace(" times=2", ""))
    if row["trained"] != "length=256":
        return None
    share = PASSKEY.get(name, {}).get(row["length"] / 256)
    return None if share is None else (share, MAMBA3)
