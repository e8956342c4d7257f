"""The kernels of mamba-ssm compiled on many cores, before they choose their form by trying.

About twenty of them each try some nine configurations on their first call, compiling one after the
other: a minute and more for each state size. `python -m ssmlib.bench.ssd.ahead SHARE OF` compiles
one share of them into Triton's cache, and launches none.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from triton.runtime.autotuner import Autotuner
from triton.testing import do_bench

from ssmlib.bench.ssd import peers
from ssmlib.bench.ssd.scans import SHAPES, ssd_cell

TRIED_MS = 25  # for each configuration, not 100: dozens of launches still
MOST = 8  # processes: each holds a pass's tensors on the GPU, about 7 GB


def compile_ahead(limit_s: float = 90.0) -> None:
    """Compile what the suite's whole sequences will try, and have it tried for TRIED_MS each.

    A share that takes longer is stopped; what it left undone is compiled when it is tried.
    """
    shares, until = min(max(1, os.cpu_count() - 1), MOST), time.monotonic() + limit_s
    started = [
        subprocess.Popen([sys.executable, "-m", "ssmlib.bench.ssd.ahead", str(i), str(shares)])
        for i in range(shares)
    ]
    for process in started:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for tuner in tuners():
        tuner.do_bench = partial(do_bench, warmup=5, rep=TRIED_MS)


def tuners() -> list[Autotuner]:
    """Those of mamba-ssm's kernels for state space duality."""
    import mamba_ssm.ops.triton.ssd_combined  # noqa: F401, it imports the others

    loaded = [m for name, m in sys.modules.items() if name.startswith("mamba_ssm.ops.triton")]
    found = [v for m in loaded for v in vars(m).values() if isinstance(v, Autotuner)]
    return list({id(tuner): tuner for tuner in found}.values())


def compile_share(share: int, of: int) -> None:
    """Every of-th configuration of what both passes launch at three shapes."""
    Autotuner.run = only_compile(share, of)
    device, by = torch.device("cuda"), partial(peers.scan, chunk=peers.CHUNKS[0])
    for shape in (SHAPES[0], SHAPES[-1], SHAPES[2]):  # two state sizes, and a batch of one
        cell = ssd_cell(shape, "forward+backward", device, by)
        cell.run(*cell.draw(cell.n))


def only_compile(share: int, of: int) -> Callable[..., None]:
    """In place of `Autotuner.run`: it tries nothing, and compiles its share of what there is."""
    count = 0

    def run(self: Autotuner, *args, **kwargs) -> None:
        nonlocal count
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        configs = self.prune_configs(kwargs)
        self.best_config = configs[0]  # one of its callers asks which has won
        for config in configs:
            count += 1
            if count % of != share:
                continue
            try:
                self.fn.run(*args, **kwargs | config.all_kwargs() | {"warmup": True})
            except Exception as error:  # one that does not fit this GPU; its trial will say so
                print(f"not compiled ahead: {type(error).__name__}", file=sys.stderr)

    return run


if __name__ == "__main__":
    compile_share(int(sys.argv[1]), int(sys.argv[2]))
