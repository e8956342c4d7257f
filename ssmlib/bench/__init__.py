"""Measured numbers: how they are taken, kept and read.

timing       the time and memory of a call, and the two rates that bound it
store        rows on disk with their provenance
ledger       finished rows on disk, so that a suite continues where it was stopped
suites       `python -m ssmlib.bench <suite>` writes ssmlib/results/<suite>.json
attention    causal attention and decoding against length (chapter 01)
"""

from ssmlib.bench.store import Record, load_record, provenance_line, record, records
from ssmlib.bench.suites import SUITES
from ssmlib.bench.timing import Ceilings, Timing, ceilings, measure, peak_memory

__all__ = [
    "SUITES",
    "Ceilings",
    "Record",
    "Timing",
    "ceilings",
    "load_record",
    "measure",
    "peak_memory",
    "provenance_line",
    "record",
    "records",
]
