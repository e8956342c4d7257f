"""Generation: read the prompt once, then one token a step, from the state that the model keeps.

For a state space model a step's work and memory do not depend on how much was read before; for
attention both grow with it. `state_bytes` says how much is kept.

    generate   continue prompts, of one length or of several
    stream     the same, token by token as they come
    prefill    read a prompt in pieces, and keep the last logits and the state
    sample     draw from logits

On a GPU the step is captured once and replayed, see `ssmlib.generate.step`. On the command line,
`python -m ssmlib.generate FOLDER "prompt"` continues a prompt with a checkpoint's model.
"""

from ssmlib.generate.drawing import sample
from ssmlib.generate.loop import generate, prefill, state_bytes, stream

__all__ = ["generate", "prefill", "sample", "state_bytes", "stream"]
