"""The table that plain `nvidia-smi` prints: every driver prints it, the oldest and the one of a GB10 too. Pure."""

import re

from glm4_deploy.facts.gpu_model import GpuFacts, GpuProcess

_DRIVER = re.compile(r"(?:Driver|KMD) Version: (\d+(?:\.\d+)+)")
# |   0  NVIDIA GeForce RTX 5090        Off |   00000000:01:00.0 Off |
_NAME = re.compile(r"^\|\s+(\d+)\s+(\S.*?)\s+(?:On|Off)\s+\|\s+[0-9A-Fa-f]{8}:")
_MEMORY = re.compile(r"\|\s+(\d+)MiB /\s*(\d+)MiB\s+\|")
_MIG = re.compile(r"\|\s+(Enabled|Disabled)\*?\s+\|$")
# |    0   N/A  N/A            2901      C   python                          10725MiB |
_PROCESS = re.compile(r"^\|\s+(\d+)\s+\S+\s+\S+\s+(\d+)\s+[CGM+]+\s+(\S.*?)\s+(\d+MiB|N/A)\s+\|$")


def parse_table(text: str) -> tuple[tuple[GpuFacts, ...], tuple[GpuProcess, ...]]:
    """GPUs and processes; memory that the table does not tell (`Not Supported`) stays None."""
    match = _DRIVER.search(text)
    driver = match[1] if match else None
    gpus: list[GpuFacts] = []
    processes: list[GpuProcess] = []
    section: list[str] = []
    for line in text.splitlines():
        if name := _NAME.match(line):
            section = [line]
            gpus.append(_gpu(int(name[1]), name[2], driver, section))
        elif line.startswith("|") and section:
            section.append(line)
            gpus[-1] = _gpu(gpus[-1].index, gpus[-1].name, driver, section)
        else:
            section = []
        if process := _PROCESS.match(line):
            used = float(process[4].removesuffix("MiB")) if process[4] != "N/A" else None
            processes.append(GpuProcess(pid=int(process[2]), name=process[3], used_mib=used))
    return tuple(gpus), tuple(processes)


def _gpu(index: int, name: str, driver: str | None, section: list[str]) -> GpuFacts:
    memory = next((found for line in section if (found := _MEMORY.search(line))), None)
    mig = next((found[1] for line in section if (found := _MIG.search(line))), None)
    used, total = (float(memory[1]), float(memory[2])) if memory else (None, None)
    return GpuFacts(
        index=index,
        name=name,
        driver=driver,
        total_mib=total,
        used_mib=used,
        free_mib=total - used if total is not None and used is not None else None,
        mig=None if mig is None else mig == "Enabled",
    )
