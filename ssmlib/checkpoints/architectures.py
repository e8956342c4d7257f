"""The architectures by the model_type of their config.json, each a table of renames."""

from ssmlib.checkpoints.architecture import Architecture
from ssmlib.checkpoints.mamba import FALCON_MAMBA, MAMBA, MAMBA2, STATE_SPACES
from ssmlib.checkpoints.recurrent_gemma import RECURRENT_GEMMA
from ssmlib.checkpoints.transformer import BAMBA, JAMBA, LLAMA
from ssmlib.checkpoints.zamba2 import ZAMBA2

ARCHITECTURES: dict[str, Architecture] = {
    "mamba": MAMBA,
    "mamba2": MAMBA2,
    "falcon_mamba": FALCON_MAMBA,
    "llama": LLAMA,
    "bamba": BAMBA,
    "jamba": JAMBA,
    "zamba2": ZAMBA2,
    "recurrent_gemma": RECURRENT_GEMMA,
}
__all__ = ["ARCHITECTURES", "STATE_SPACES"]
