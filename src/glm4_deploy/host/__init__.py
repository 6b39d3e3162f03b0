"""Facts about this machine: GPUs, Docker, memory, disk. Read-only; unknown is None. May import `catalog`, `run`."""
