"""What this machine is: GPUs, Docker, memory, disk. Read-only; unknown is None. Imports `catalog` and `run`."""
