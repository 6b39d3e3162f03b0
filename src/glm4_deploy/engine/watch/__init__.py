"""Watch a running engine: by its progress and by what it says, not by /health.

judge: pure, samples in, a verdict out. canary: the small generation on a schedule. look: one look at the engine.
exporter: metrics and /healthz of the watch itself. restart: the only file here that touches a container.
"""
