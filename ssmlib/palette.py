"""The book's colours, once, as (on light, on dark) pairs.

Pages (`book/_static/*.css`), plots and interactive figures all use these; a test holds
them together. A colour means the same thing everywhere. The six hues stay apart under the common
colour blindnesses, and each has a contrast of at least 4.5 with its page.
"""

PALETTE: dict[str, tuple[str, str]] = {
    "attention": ("#b8401c", "#f08a62"),  # quadratic: every pair
    "linear": ("#1d66a8", "#74b3ea"),  # state space models: one state
    "hybrid": ("#86489c", "#c99add"),  # both in one model
    "state": ("#0a7562", "#46c6ad"),  # what is remembered
    "input": ("#8a5f00", "#e2b14e"),  # what comes in
    "muted": ("#5f6875", "#9aa4b2"),  # axes, floors, references
    "ink": ("#1b1f27", "#e6e9ee"),
    "paper": ("#ffffff", "#14171c"),
    "panel": ("#f5f6f8", "#1d2128"),
    "line": ("#d5d9df", "#3a414c"),
}
