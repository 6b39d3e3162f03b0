"""Thin a CUDA library for one GPU: blank the code of every other architecture in its fat binaries.

The headers stay, so the CUDA runtime still finds the entry of its own architecture at the same offset; what was blanked
is never read on that GPU, and zeros compress to nothing. vLLM's kernels for Hopper shrink this way to a fifth.

    python benchmarks/gpu/thin.py 90 LIBRARY.so [LIBRARY.so ...]
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from pathlib import Path

FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
"""First word of a fat binary: then version u16, header size u16, size u64 of the entries that follow."""
ELF = 2
"""Kind of an entry that holds machine code (1 is PTX)."""


def thin(data: bytearray, arch: int) -> Counter[str]:
    """Blank in place the payload of each entry that is not machine code for sm_`arch`; bytes by what became of them."""
    seen: Counter[str] = Counter()
    at = data.find(FATBIN_MAGIC)
    while at >= 0:
        _, header, size = struct.unpack_from("<HHQ", data, at + 4)
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _, head, length = struct.unpack_from("<HHIQ", data, entry)
            (sm,) = struct.unpack_from("<I", data, entry + 28)
            if head == 0 or entry + head + length > len(data) or kind not in (1, ELF):
                raise ValueError(f"no fat binary entry at {entry:#x}: kind {kind}, header {head}, size {length}")
            seen[f"{'elf' if kind == ELF else 'ptx'} sm_{sm}"] += length
            if kind != ELF or sm != arch:
                data[entry + head : entry + head + length] = bytes(length)
            entry += head + length
        at = data.find(FATBIN_MAGIC, max(end, at + 4))
    return seen


def main() -> None:
    arch = int(sys.argv[1])
    for name in sys.argv[2:]:
        path = Path(name)
        data = bytearray(path.read_bytes())
        seen = thin(data, arch)
        path.write_bytes(data)
        print(path.name, dict(seen))


if __name__ == "__main__":
    main()
