"""The kernels of mamba-ssm compiled on all cores, before they choose their form by trying.

About twenty of them each try some nine configurations on their first call, compiling one after the
other: a minute and more for each state size. `python -m ssmlib.bench.ssd.ahead SHARE OF` compiles
one share of them into Triton's cache, and launches none.
"""

import os
import subprocess
import sys
from functools import partial
from types import ModuleType

import torch
from triton.runtime.autotuner import Autotuner
from triton.testing import do_bench

from ssmlib.bench.ssd import peers
from ssmlib.bench.ssd.scans import SHAPES, ssd_cell

TRIED_MS = 25  # for each configuration, not 100: dozens of launches still


def compile_ahead(limit_s: float = 120.0) -> None:
    """Compile what the suite's shapes of whole sequences will try. A share that fails is late."""
    shares = max(1, len(os.sched_getaffinity(0)) - 1)
    command = [sys.executable, "-m", "ssmlib.bench.ssd.ahead"]
    started = [
        subprocess.Popen([*command, str(i), str(shares)], stderr=subprocess.DEVNULL)
        for i in range(shares)
    ]
    for process in started:
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
    for tuner in tuners():
        tuner.__dict__["do_bench"] = partial(do_bench, warmup=5, rep=TRIED_MS)


def tuners() -> list[Autotuner]:
    """Those of mamba-ssm's kernels for state space duality."""
    import mamba_ssm.ops.triton.ssd_combined  # noqa: F401, it imports the others

    loaded = [m for name, m in sys.modules.items() if name.startswith("mamba_ssm.ops.triton")]
    found = (v for m in loaded if isinstance(m, ModuleType) for v in vars(m).values())
    return list({id(v): v for v in found if isinstance(v, Autotuner)}.values())


def compile_share(share: int, of: int) -> None:
    """Every of-th configuration of what two passes at three shapes launch."""
    count = 0

    def run(self: Autotuner, *args, **kwargs) -> None:
        nonlocal count
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(kwargs):
            count += 1
            if count % of == share:
                chosen = kwargs | config.all_kwargs() | {"warmup": True}
                try:
                    self.fn.run(*args, **chosen)
                except Exception:  # a configuration that does not fit; its trial says so again
                    continue

    Autotuner.run = run
    device, by = torch.device("cuda"), partial(peers.scan, chunk=peers.CHUNKS[0])
    for shape in (SHAPES[0], SHAPES[-1], SHAPES[2]):  # two state sizes, and a batch of one
        cell = ssd_cell(shape, "forward+backward", device, by)
        cell.run(*cell.draw(cell.n))


if __name__ == "__main__":
    compile_share(int(sys.argv[1]), int(sys.argv[2]))
