"""A stand-in for vLLM's API server: what `python -m vllm.entrypoints.openai.api_server` starts in the journeys.

It stands for a real vLLM on the CPU, which is 3.4 GB and takes a minute to start. What it shares with the real one: the
command line and the API key variable, a child process for the engine core, the log of vLLM 0.32.0 (the lines that
phases and facts are read from, in that order and format, and the line of an NVFP4 kernel, which a CPU does not have),
uvicorn with its access log, SIGTERM, and the traceback and exit code of a failed start. The answers are those of
tests/servers/reference.py or of one of its twins; no model is loaded.

Environment:
    STAND_IN: how it behaves. The name of a twin in tests/servers/broken.py or dying.py; `dies` (a start that fails),
        `hangs` (never gets past loading its weights), `hangs-late` (nor past its KV cache); unset: healthy.
    STAND_IN_SICK_AT: with this max_num_seqs it is the twin LoopsGreedy.
    STAND_IN_VERSION: the vLLM that it says it is; unset: 0.32.0.
    STAND_IN_LEASE: a file that the test keeps locked. Once the lock is gone, so is this process: whatever becomes of
        the test, no engine outlives it.
"""

import argparse
import fcntl
import os
import signal
import sys
import threading
import time
from typing import Any

VERSION = os.environ.get("STAND_IN_VERSION", "0.32.0")


def main() -> None:
    args = parse_arguments()
    behaviour = os.environ.get("STAND_IN", "")
    if args.max_num_seqs == os.environ.get("STAND_IN_SICK_AT", "never"):
        behaviour = "LoopsGreedy"
    core = fork_engine_core()
    threading.Thread(target=end_with_the_test, daemon=True).start()
    start(args, core, behaviour)
    serve(args, behaviour)


def parse_arguments() -> argparse.Namespace:
    """The flags that matter here; every other one is accepted, as the real parser does."""
    parser = argparse.ArgumentParser(prog="api_server.py")
    parser.add_argument("--model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs")
    parser.add_argument("--enable-auto-tool-choice", action="store_true")
    return parser.parse_known_args()[0]


def fork_engine_core() -> int:
    """A second process of the same session that does nothing, as vLLM's engine core between two requests."""
    pid = os.fork()
    if pid == 0:
        end_with_the_test()
    return pid


def end_with_the_test() -> None:
    """Wait for the test to let go of its lease; the kernel does that for a test that was killed."""
    with open(os.environ["STAND_IN_LEASE"]) as lease:  # noqa: PTH123 (imports cost start-up time)
        fcntl.flock(lease, fcntl.LOCK_SH)
        os._exit(0)


def start(args: argparse.Namespace, core: int, behaviour: str) -> None:
    """Log a start; end it where it is to fail."""
    api, engine = Log("APIServer", os.getpid()), Log("EngineCore", core)
    api.info("api_utils.py:347", f"  ▄▄ ▄█ █     █     █ ▀▄▀ █  version {VERSION}")
    api.info("api_utils.py:286", f"non-default args: {{'host': {args.host!r}, 'port': {args.port}}}")
    api.info("model.py:733", "Resolved architecture: GlmForCausalLM")
    config = f"model={args.model!r}, dtype=torch.bfloat16, max_seq_len={args.max_model_len}, kv_cache_dtype=auto"
    engine.info("core.py:133", f"Initializing a V1 LLM engine (v{VERSION}) with config: {config}")
    engine.info("__init__.py:937", "Using FlashInferCutlassNvFp4LinearKernel for NVFP4 GEMM")
    engine.info("cpu_model_runner.py:68", f"Starting to load model {args.served_model_name}...")
    print("Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]", flush=True)
    if behaviour == "hangs":
        time.sleep(3600)
    print("Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 26.94it/s]", flush=True)
    engine.info("default_loader.py:501", "Loading weights took 0.04 seconds")
    if behaviour == "dies":
        fail(engine, core)
    tokens = f"CPU KV cache size: 1,048,576 tokens, Maximum concurrency for {args.max_model_len:,} tokens per request: "
    engine.info("kv_cache_utils.py:2327", f"{tokens}{1_048_576 / args.max_model_len:.2f}x")
    if behaviour == "hangs-late":
        time.sleep(3600)
    engine.info("core.py:402", "init engine (profile, create kv cache, warmup model) took 3.87 s")
    api.info("entry.py:140", f"Starting vLLM server on http://{args.host}:{args.port}")


def fail(engine: "Log", core: int) -> None:
    """The end of a start that finds no room for a KV cache."""
    engine.error("core.py:1231", "EngineCore failed to start.")
    engine.error("core.py:1231", "Traceback (most recent call last):")
    engine.error("core.py:1231", '  File "/usr/lib/python3/dist-packages/vllm/v1/engine/core.py", line 1200, in run')
    room = (
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine"
    )
    engine.error("core.py:1231", f"ValueError: {room}")
    os.kill(core, signal.SIGKILL)
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")


class Log:
    """Lines of one process of vLLM's, in its format."""

    def __init__(self, process: str, pid: int) -> None:
        self._prefix = f"({process} pid={pid})"

    def info(self, place: str, message: str) -> None:
        self._write("INFO", place, message)

    def error(self, place: str, message: str) -> None:
        self._write("ERROR", place, message)

    def _write(self, level: str, place: str, message: str) -> None:
        print(f"{self._prefix} {level} {time.strftime('%m-%d %H:%M:%S')} [{place}] {message}", flush=True)


def serve(args: argparse.Namespace, behaviour: str) -> None:
    """Answer until SIGTERM, with the same log lines as any uvicorn."""
    import uvicorn

    from servers import broken, dying
    from servers.reference import Reference

    twin = getattr(broken, behaviour, None) or getattr(dying, behaviour) if behaviour else Reference
    app = twin(
        model=args.served_model_name,
        key=os.environ.get("VLLM_API_KEY"),
        max_model_len=args.max_model_len,
        version=VERSION,
        tools=args.enable_auto_tool_choice,
    )
    uvicorn.run(
        WithLifespan(app),
        host=args.host or "0.0.0.0",
        port=args.port,
        http="h11",
        ws="none",
        timeout_graceful_shutdown=1,
    )


class WithLifespan:
    """The app, which also answers uvicorn's start and stop, so that "Application startup complete." is logged."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})


if __name__ == "__main__":
    main()
