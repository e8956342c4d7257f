"""What a kernel becomes on a GPU that need not be there: registers, memory, instructions.

`compiled(call)` runs `call` with every Triton launch replaced by a compilation for the chosen
architecture, so it sees the kernels, types and sizes that the library would launch. It needs
kernels that are not interpreted; `report` asks for it in a process of its own, where none is.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {  # the first letters of an instruction, and what it occupies
    "special": ("MUFU",),
    "float": ("FFMA", "FMUL", "FADD"),
    "select": ("FSEL", "FSETP", "FMNMX", "SEL", "ISETP"),
    "global": ("LDG", "STG", "LDGSTS", "ATOM", "RED"),
    "shared": ("LDS", "STS", "LDSM"),
    "lanes": ("SHFL",),
    "matrix": ("HMMA", "HGMMA"),
    "barrier": ("BAR", "WARPSYNC"),
}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    registers of a thread; spills: bytes of local memory that stand in for missing ones; shared:
    bytes of a program; loop: instructions of one turn of the innermost loop with the most special
    ones (the most instructions, if it has none), by kind.
    """

    name: str
    capability: int
    registers: int
    spills: int
    shared: int
    warps: int
    loop: dict[str, int]


def compiled(call: Callable[[], object], capability: int = 90) -> list[Compiled]:
    """The kernels that `call` would launch, each once, in order; nothing is launched.

    Raises RuntimeError where kernels are interpreted, for they have no assembly.
    """
    from triton.runtime.jit import JITFunction

    from ssmlib.backends import interpreting

    if interpreting():
        raise RuntimeError("compiled: kernels are interpreted here; `report` uses a fresh process")
    made: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        binary = run(kernel, *args, grid=grid, warmup=True, **options)
        made.setdefault(binary.hash, binary)
        return binary

    with _target(capability):
        JITFunction.run = compile_only
        try:
            call()
        finally:
            JITFunction.run = run
    return [_read(binary, capability) for binary in made.values()]


def report(table: str, names: list[str], capability: int = 90) -> dict[str, list[Compiled]]:
    """`compiled` for these names in the dict `table` of calls, written "package.module:NAME"."""
    module, name = table.split(":")
    code = (
        "import json, sys\n"
        f"from {module} import {name}\n"
        "from ssmlib.bench.assembly import compiled\n"
        "names, capability = json.loads(sys.argv[1])\n"
        f"made = {{n: [vars(c) for c in compiled({name}[n], capability)] for n in names}}\n"
        "print(json.dumps(made))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([names, capability])],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "0"},
    )
    if done.returncode:
        raise RuntimeError(f"report: the compilation failed\n{done.stderr}")
    made = json.loads(done.stdout.splitlines()[-1])
    return {name: [Compiled(**c) for c in kernels] for name, kernels in made.items()}


@contextmanager
def _target(capability: int) -> Iterator[None]:
    """For Triton, a device of this architecture: enough to compile for, and nothing to run on."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target, before = GPUTarget("cuda", capability, 32), driver._active
    answers = {
        "get_current_device": lambda self: 0,
        "get_current_stream": lambda self, device: 0,
        "get_current_target": lambda self: target,
    }
    driver.set_active(type("NoDevice", (), answers)())
    try:
        yield
    finally:
        driver._active = before


def _read(binary: Any, capability: int) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        usage, sass = (_cuobjdump(flag, path) for flag in ("-res-usage", "-sass"))
    registers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    return Compiled(
        name=binary.metadata.name,
        capability=capability,
        registers=int(registers[1]),
        spills=int(registers[2]),
        shared=binary.metadata.shared,
        warps=binary.metadata.num_warps,
        loop=dict(count(busiest_loop(instructions(sass)))),
    )


def _cuobjdump(flag: str, path: Path) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin/cuobjdump"
    return subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout


def instructions(sass: str) -> list[tuple[int, str]]:
    """(address, instruction) for every line of a disassembly, predicates left out."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([^;]+);", sass)
    return [(int(address, 16), text.strip()) for address, text in found]


def busiest_loop(code: list[tuple[int, str]]) -> list[str]:
    """The body of an innermost loop: that with the most MUFU, and of these the longest."""
    loops = []
    for address, text in code:
        jump = re.match(r"BRA\S* .*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            loops.append((int(jump[1], 16), address))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[text for at, text in code if first <= at <= last] for first, last in inner]
    return max(bodies, key=lambda b: (sum("MUFU" in x for x in b), len(b)), default=[])


def count(body: list[str]) -> Counter[str]:
    """Instructions by kind; what is none of KINDS (addresses, loops, conversions) is "other"."""
    kinds = {start: kind for kind, starts in KINDS.items() for start in starts}
    counted = Counter(dict.fromkeys((*KINDS, "other"), 0))
    counted.update(kinds.get(re.split(r"[. ]", text)[0], "other") for text in body)
    return counted


def table(kernels: Iterable[Compiled]) -> str:
    """A line for each kernel: what it takes, and its loop's instructions by kind."""
    kinds = [kind for kind in (*KINDS, "other") if kind not in ("matrix", "barrier")]
    lines = [f"{'':<24}{'regs':>5}{'spills':>7}{'shared':>7}" + "".join(f"{k:>8}" for k in kinds)]
    for kernel in kernels:
        taken = f"{kernel.registers:5}{kernel.spills:7}{kernel.shared:7}"
        counted = "".join(f"{kernel.loop[kind]:8}" for kind in kinds)
        lines.append(f"{kernel.name.removesuffix('_kernel'):<24}{taken}{counted}")
    return "\n".join(lines)
