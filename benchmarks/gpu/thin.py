"""Thin a CUDA library for one GPU: zero the parts of its fat binaries that this GPU never reads.

    python benchmarks/gpu/thin.py 90 LIBRARY.so [LIBRARY.so ...]

The headers stay, so the CUDA runtime still finds the entry of its own architecture at the same offset, and zeros
compress to nothing. A kernel without machine code for the GPU keeps its PTX, as vLLM's Marlin does for Hopper.
"""

from __future__ import annotations

import argparse
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
"""The first word of a fat binary; then version u16, header size u16, size u64 of the entries that follow."""
PTX, ELF = 1, 2
"""Kinds of entry: PTX, which the driver compiles, and ELF, machine code."""


def thin(data: bytearray, arch: int) -> Counter[str]:
    """Zero, in place, what sm_`arch` never reads of each fat binary. Returns the bytes kept and blanked, by kind."""
    counts: Counter[str] = Counter()
    at = data.find(FATBIN_MAGIC)
    while at >= 0:
        _, header, size = struct.unpack_from("<HHQ", data, at + 4)
        entries = list(_entries(data, at + header, at + header + size))
        needed = _needed(entries, arch)
        for entry in entries:
            kept = (entry.machine_code, entry.sm) == needed  # sm_90 and sm_90a have the same number: both stay
            counts[f"{'kept' if kept else 'blanked'} {entry.name}"] += entry.length
            if not kept:
                data[entry.start : entry.start + entry.length] = bytes(entry.length)
        at = data.find(FATBIN_MAGIC, max(at + header + size, at + 4))
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One program in a fat binary: machine code or PTX for one architecture; offsets and lengths in bytes."""

    machine_code: bool
    sm: int
    start: int
    length: int

    @property
    def name(self) -> str:
        return f"{'elf' if self.machine_code else 'ptx'} sm_{self.sm}"


def _entries(data: bytearray, at: int, end: int) -> Iterator[Entry]:
    while at < end:
        kind, _, head, length = struct.unpack_from("<HHIQ", data, at)
        if head == 0 or at + head + length > len(data) or kind not in (PTX, ELF):
            raise ValueError(f"not a fat binary entry at {at:#x}: kind {kind}, header {head}, size {length}")
        (sm,) = struct.unpack_from("<I", data, at + 28)
        yield Entry(machine_code=kind == ELF, sm=sm, start=at + head, length=length)
        at += head + length


def _needed(entries: list[Entry], arch: int) -> tuple[bool, int] | None:
    """What the driver loads on sm_`arch`: its machine code, else an earlier minor version's, else the newest PTX."""
    fitting = [
        entry for entry in entries if entry.sm <= arch and (not entry.machine_code or entry.sm // 10 == arch // 10)
    ]
    return max(((entry.machine_code, entry.sm) for entry in fitting), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", type=int, help="compute capability without the dot: 90")
    parser.add_argument("libraries", nargs="+", type=Path, help="rewritten in place")
    options = parser.parse_args()
    for path in options.libraries:
        data = bytearray(path.read_bytes())
        counts = thin(data, options.arch)
        path.write_bytes(data)
        print(path.name, dict(counts))


if __name__ == "__main__":
    main()
