"""Checkpoints that people have: from a local folder into a `LanguageModel`, and back.

    model = from_pretrained("mamba-130m-hf")        # config.json and safetensors, or torch weights
    save(model, "copy")                             # which transformers loads again

Reads what transformers writes for Mamba, Mamba2, FalconMamba, Llama, Bamba, Jamba, Zamba2 and
RecurrentGemma, and the format of state-spaces/mamba. Each is a table of renames, in
`ssmlib.checkpoints.architectures`.
"""

from ssmlib.checkpoints.architectures import ARCHITECTURES
from ssmlib.checkpoints.load import from_pretrained
from ssmlib.checkpoints.save import save

__all__ = ["ARCHITECTURES", "from_pretrained", "save"]
