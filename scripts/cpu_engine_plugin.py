"""A plugin that `scripts/engines.py` puts into each CPU engine: a start imports vLLM once, not three or four times.

vLLM's server starts its core and its worker with `spawn`, and looks at the model's class in a further process. Each
imports vLLM anew, 14 s of CPU time each on two small cores: most of a start of the demo model. `fork` is vLLM's other
way; it is not for a process that uses an accelerator, and a CPU engine has none. Nothing else of vLLM is changed.
vLLM loads `register` early in each process (entry point `vllm.general_plugins`).
"""

import importlib
import os


def register() -> None:
    """Called by vLLM, once or more per process."""
    methods = importlib.import_module("vllm.envs").environment_variables
    if "VLLM_WORKER_MULTIPROC_METHOD" not in methods or getattr(register, "done", False):
        return
    register.done = True
    methods["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
    importlib.import_module("vllm.model_executor.models.registry")._run_in_subprocess = lambda look: look()
    os.register_at_fork(after_in_child=_threads)


def _threads() -> None:
    """vLLM says in OMP_NUM_THREADS how many threads a worker gets; OpenMP has been loaded by then."""
    if number := os.environ.get("OMP_NUM_THREADS"):
        importlib.import_module("torch").set_num_threads(int(number))
