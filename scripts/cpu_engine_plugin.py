"""A plugin that `scripts/engines.py` puts into each CPU engine: small cores are not kept busy with waiting.

vLLM's server starts its core and its worker with `spawn`, and looks at the model's class in a further process. Each
imports vLLM anew, 14 s of CPU time each on two small cores: most of a start of the demo model. `fork` is vLLM's other
way; it is not for a process that uses an accelerator, and a CPU engine has none.

The core and the worker wait for each other by looking at shared memory all the time, until a second after the last
message; then they wait as if idle, which they do here from the beginning. And the demo model's matrices are too small
to be shared by threads: with two, each of them waits for the other.

Even an eager engine compiles one small function of its sampler with the first log probabilities that it is asked for,
which takes some 20 s in each new container; here that function is not compiled.

Nothing else of vLLM is changed. vLLM loads `register` early in each process (entry point `vllm.general_plugins`).
"""

import importlib
import os
import sys
from typing import Any

COUNTING = ("vllm.v1.sample.ops.logprobs", "vllm.v1.sample.sampler")
THREADS = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def register() -> None:
    """Called by vLLM, once or more per process."""
    methods = importlib.import_module("vllm.envs").environment_variables
    if getattr(register, "done", False):
        return
    register.done = True
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    _threads()
    os.register_at_fork(after_in_child=_threads)
    waiting = importlib.import_module("vllm.distributed.device_communicators.shm_broadcast")
    if condition := getattr(waiting, "SpinCondition", None):
        condition.record_read = lambda self: None
        condition.notify = _notify
    for module in map(importlib.import_module, COUNTING):
        compiled = module.batched_count_greater_than
        module.batched_count_greater_than = getattr(compiled, "_torchdynamo_orig_callable", compiled)
    if "VLLM_WORKER_MULTIPROC_METHOD" in methods:
        methods["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
        importlib.import_module("vllm.model_executor.models.registry")._run_in_subprocess = lambda look: look()


def _notify(condition: Any) -> None:
    """As vLLM's, but for the first line.

    ZeroMQ takes in what a reader has acknowledged once in a millisecond, and drops a message to one that seems to be
    behind: the reader would wait for 5 s. Asking for the socket's events makes it look.
    """
    condition.local_notify_socket.getsockopt(importlib.import_module("zmq").EVENTS)
    condition.local_notify_socket.send(b"\x00")


def _threads() -> None:
    """vLLM says in OMP_NUM_THREADS how many threads a worker gets; OpenMP has been loaded by then."""
    if (number := os.environ.get("OMP_NUM_THREADS")) and (torch := sys.modules.get("torch")):
        torch.set_num_threads(int(number))
