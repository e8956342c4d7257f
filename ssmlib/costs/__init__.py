"""What a sequence model costs: operations, bytes moved, bytes kept, and the least time they take.

Plain numbers in, plain numbers out; nothing here imports torch. A multiply-add is 2 FLOPs, bytes
are bytes, a GB is 10^9 of them. Every docstring says what it counts and what it leaves out.

- `work`: FLOPs and bytes moved by a layer or a model.
- `cost`: the `Cost` that holds the two, and `roofline`, the seconds it takes at least.
- `memory`: bytes kept, which are weights, key-value caches and states; who fits on a device.
- `configs`: the same for any `ModelConfig`; `layers`: for each kind of layer in its legend.
- `tables`: dtypes, devices and published models, each with its source.
"""

from ssmlib.costs.configs import count_kept, count_parameters, count_work
from ssmlib.costs.cost import Cost, balance, roofline
from ssmlib.costs.memory import (
    context_bytes,
    kv_cache_bytes,
    parameter_bytes,
    parameters,
    scores_bytes,
    state_bytes,
    users_that_fit,
)
from ssmlib.costs.parts import Kept
from ssmlib.costs.tables import (
    DEVICES,
    DTYPES,
    MODELS,
    Device,
    ModelShape,
    device_named,
    dtype_bytes,
)
from ssmlib.costs.work import (
    SCAN_FLOPS,
    TRAINING,
    attention_cost,
    attention_layer_cost,
    linear_cost,
    mlp_cost,
    model_cost,
    pairs,
    ssm_cost,
    ssm_layer_cost,
)

__all__ = [
    "DEVICES",
    "DTYPES",
    "MODELS",
    "SCAN_FLOPS",
    "TRAINING",
    "Cost",
    "Device",
    "Kept",
    "ModelShape",
    "attention_cost",
    "attention_layer_cost",
    "balance",
    "context_bytes",
    "count_kept",
    "count_parameters",
    "count_work",
    "device_named",
    "dtype_bytes",
    "kv_cache_bytes",
    "linear_cost",
    "mlp_cost",
    "model_cost",
    "pairs",
    "parameter_bytes",
    "parameters",
    "roofline",
    "scores_bytes",
    "ssm_cost",
    "ssm_layer_cost",
    "state_bytes",
    "users_that_fit",
]
