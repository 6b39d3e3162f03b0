"""What this machine is: GPUs, Docker, memory, disk. Read-only; unknown is None. May import `catalog`, `run`."""
