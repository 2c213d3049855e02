"""The instruction sets that Kaoken can compile for: a reader of cmake/isas.json, the only table of them.

In the table an ISA lists the machines that have it (none: all), the processor features it needs, spelled as
/proc/cpuinfo spells them but without underscores (runtime/src/cpu.cpp reads them), the types whose products it is any
better for than those before it (none: all), and its compiler flags. Later entries are better.
"""

from __future__ import annotations

import difflib
import json
import platform
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import ISAError
from .layout import MATRIX_TYPES

TABLE = Path(__file__).resolve().parent.parent / "cmake" / "isas.json"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "powerpc64le": "ppc64le"}  # other names of the same machine


@dataclass(frozen=True)
class ISA:
    """One row of the table."""

    name: str
    machines: tuple[str, ...]
    cpu: tuple[str, ...]
    products: tuple[str, ...]
    flags: tuple[str, ...]

    def runs_on(self, machine: str) -> bool:
        """Whether any processor of the machine could have this ISA."""
        return not self.machines or machine in self.machines

    def helps(self, dtypes: Collection[str] | None) -> bool:
        """Whether a model of these types gains from it; None stands for any type."""
        if dtypes is None or not self.products:
            return True
        return any(MATRIX_TYPES[dtype].product in self.products for dtype in dtypes)


@cache
def table() -> dict[str, ISA]:
    """Every ISA by name, worst first."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        name: ISA(name, *(tuple(row[key]) for key in ("machines", "cpu", "products", "flags")))
        for name, row in rows.items()
    }


def canonical_machine(machine: str | None = None) -> str:
    """An architecture, by default this machine's, as the table spells it."""
    machine = (machine or platform.machine()).lower()
    return MACHINES.get(machine, machine)


def resolve(isa: str, machine: str | None = None, dtypes: Collection[str] | None = None) -> tuple[str, ...]:
    """The ISAs that `isa` stands for, worst first.

    `native` is the best one of the machine at hand, `portable` every one of its architecture, both of those that help
    a model of the `dtypes`, and a list names them ("scalar,avx2"). `machine` is the architecture to compile for, by
    default this one's.

    Raises ISAError for an unknown name, an empty list, or an ISA of another architecture.
    """
    rows = check_names(isa)
    machine = canonical_machine(machine)
    if isa == "native":
        here = canonical_machine()
        if machine != here:
            raise ISAError(f"isa=native cannot be known when compiling for {machine} on {here}; use portable")
        return (_native(machine, dtypes),)
    if isa == "portable":
        return tuple(row.name for row in table().values() if row.runs_on(machine) and row.helps(dtypes))
    for row in rows:
        if not row.runs_on(machine):
            raise ISAError(
                f"isa {row.name!r} does not exist on {machine}; use portable, or a compiler for {row.machines[0]}"
            )
    return tuple(row.name for row in table().values() if row in rows)


def check_names(isa: str) -> list[ISA]:
    """The rows that `isa` names, of whichever machine; none for `native` and `portable`.

    Raises ISAError for an unknown name and an empty list.
    """
    if isa in ("native", "portable"):
        return []
    names = [name.strip() for name in isa.replace(";", ",").split(",") if name.strip()]
    if not names:
        raise ISAError(f"isa is empty; give native, portable, or some of: {', '.join(table())}")
    return [_known(name) for name in names]


def _known(name: str) -> ISA:
    row = table().get(name)
    if row is None:
        near = difflib.get_close_matches(name, [*table(), "native", "portable"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are native, portable, {', '.join(table())}"
        raise ISAError(f"unknown isa {name!r}; {hint}")
    return row


def _native(machine: str, dtypes: Collection[str] | None) -> str:
    features = _processor_features()
    rows = (row for row in table().values() if row.runs_on(machine) and row.helps(dtypes))
    return [row.name for row in rows if set(row.cpu) <= features][-1]


def _processor_features() -> set[str]:
    """This processor's features, in the spelling of the table; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return {flag.replace("_", "") for flag in flags}
