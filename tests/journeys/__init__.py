"""The product's promises, end to end and in seconds: no Docker, no vLLM, no GPU.

Each journey drives the command line as a subprocess and observes what a user can: exit codes, stdout, stderr, `--json`
and files. `up --runner process` starts the stand-in for vLLM (stand_in/), which serves tests/servers/reference.py or
one of its broken twins. What needs a container or a model is tested in tests/e2e.
"""
