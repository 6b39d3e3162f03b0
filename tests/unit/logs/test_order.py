"""Which finding is called the cause, what counts as an end of the engine, and what does not."""

import pytest

from glm4_deploy.catalog.rows import signatures
from glm4_deploy.logs.finding import LogFinding
from glm4_deploy.logs.reader import LogReader
from glm4_deploy.logs.source import scan_log
from glm4_deploy.result import Status

CORE = "(EngineCore_DP0 pid=67) ERROR 01-12 01:46:25 [core.py:708] "
TRACE = ("Traceback (most recent call last):", '  File "/opt/x/module.py", line 4, in f', "    f()")
READY = "INFO:     Application startup complete."
ANSWERED = 'INFO:     10.0.0.7:4123 - "POST /v1/completions HTTP/1.1" 200 OK'
BOOT = "INFO 01-12 01:40:00 [api_server.py:9] vLLM API server version 0.13.0"
WRAPPER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


def read(*lines: str) -> tuple[LogFinding, ...]:
    return scan_log(LogReader(), ["\n".join(lines).encode()]).findings


def ids(*lines: str) -> list[str]:
    return [row.id for row in read(*lines)]


def failures(*lines: str) -> list[str]:
    return [row.id for row in read(*lines) if row.status is Status.FAIL]


def test_the_words_of_a_tool_are_the_cause_above_or_below_the_exception() -> None:
    said = "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'"
    trace = [CORE + line for line in (*TRACE, "triton.runtime.errors.PTXASError: PTXAS error: Internal codegen error")]
    assert ids(*trace, CORE + said, WRAPPER)[0] == "ptxas-too-old"
    assert ids(said, *trace, WRAPPER)[0] == "ptxas-too-old"
    failed = "subprocess.CalledProcessError: Command '['/usr/bin/gcc', '/tmp/m.c']' returned non-zero exit status 1."
    assert ids("/usr/bin/ld: cannot find -lcuda", *TRACE, failed, WRAPPER)[0] == "link-libcuda"


@pytest.mark.parametrize(
    "lines",
    [
        ("made.Trouble: nobody knows it", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("TimeoutError: RPC call to sample_tokens timed out.", "RuntimeError: CUDA error: out of memory"),
        (WRAPPER, "torch.OutOfMemoryError: CUDA out of memory."),
        ("OSError: [Errno 28] No space left on device", "torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_what_is_known_and_fatal_comes_first(lines: tuple[str, ...]) -> None:
    assert ids(*TRACE, *lines)[0] == "cuda-out-of-memory"


def test_of_equal_findings_the_first_is_the_cause() -> None:
    full = "torch.OutOfMemoryError: CUDA out of memory."
    gone = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    assert ids(full, gone)[0] == "cuda-out-of-memory"
    assert ids(gone, full)[0] == "no-kernel-image"


def test_harmless_lines_never_stand_first() -> None:
    harmless = "WARNING 01-12 01:46:25 [envs.py:9] Unknown vLLM environment variable detected: VLLM_USE_V1"
    assert ids(harmless, WRAPPER) == ["engine-core-failed", "unknown-variable-v1"]


@pytest.mark.parametrize(
    ("exception", "family"),
    [
        ("made.OddError: layout of the KV cache is not the one of that backend", "in-kv-cache"),
        ("KeyError: 'UCX'", "in-kv-transfer"),
        ("made.OddError: the drafter and its target disagree", "in-speculative"),
        ("ValueError: this is done on Hopper alone", "gpu-architecture-unsupported"),
        ("RuntimeError: MoE layer 3 cannot continue", "in-moe"),
    ],
)
def test_the_words_of_an_unknown_exception_say_what_it_is_about(exception: str, family: str) -> None:
    found, wrapper = read(CORE + exception, WRAPPER)
    assert (found.id, wrapper.id) == (family, "engine-core-failed")
    assert exception in found.cause


def test_words_that_say_nothing_leave_an_exception_unknown_and_quoted() -> None:
    found = read(CORE + "made.OddError: nobody knows it", WRAPPER)[0]
    assert found.id == "unknown-exception"
    assert "made.OddError: nobody knows it" in found.cause


def test_words_do_not_put_a_later_exception_before_the_first() -> None:
    later = [CORE.replace("core.py", "api.py") + line for line in ("RuntimeError: the weights made no sense",)]
    assert ids(CORE + "made.OddError: nobody knows it", *later)[0] == "unknown-exception"


def test_what_refuses_without_a_row_is_quoted_and_its_words_give_advice() -> None:
    refused = "ValueError: Unsupported shape of the kv cache: (29627, 2, 16)"
    first, second = read(CORE + refused, WRAPPER)[:2]
    assert (first.id, second.id) == ("in-kv-cache", "not-supported")
    assert refused in second.cause


def test_an_exception_above_its_call_is_placed_by_the_call() -> None:
    call = '  File "vllm/v1/core/kv_cache_utils.py", line 1030, in unify_kv_cache_spec_page_size'
    assert ids("AssertionError", call)[0] == "scheduler-assertion"


def test_the_code_of_an_assertion_without_words_says_what_it_is_about() -> None:
    code = "    assert self.topk_indices_buffer is not None"
    assert "assert self.topk_indices_buffer is not None" in read(code, "AssertionError")[0].cause
    found = read(CORE + code, CORE + "AssertionError", WRAPPER)[0]
    assert found.id == "in-attention"


def test_an_exception_that_a_text_only_mentions_counts_if_nothing_else_does() -> None:
    said = "Hello, with the new image I only get `made.OddError: nobody knows it` and no more"
    (found,) = read(said)
    assert found.status is Status.FAIL
    assert "`made.OddError: nobody knows it`" in found.cause
    future = "future: <Future finished exception=OddError('the scheduler lost a request')>"
    assert ids(future) == ["scheduler-assertion"]
    assert ids(said, "torch.OutOfMemoryError: CUDA out of memory.") == ["cuda-out-of-memory"]
    assert failures(BOOT, said, READY) == []


def test_the_words_after_value_error_are_the_cause() -> None:
    said = ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",)
    found = read(*said, "  Value error, the odd one must be even [type=value_error]")[0]
    assert found.id == "value-refused"
    assert "the odd one must be even" in found.cause


def test_no_platform_is_a_failure_unless_the_engine_comes_up() -> None:
    none = "INFO 05-20 20:12:25 [__init__.py:252] No platform detected, vLLM is running on UnspecifiedPlatform"
    assert failures(none) == ["no-platform"]
    assert failures(BOOT, none, READY) == []


def test_the_place_that_raised_an_unknown_exception_says_what_to_try() -> None:
    called = '  File "/usr/lib/python3/dist-packages/flashinfer/jit/core.py", line 320, in build_and_load'
    (found, wrapper) = read(TRACE[0], called, "made.Trouble: nobody knows it", WRAPPER)
    assert found.id == "in-flashinfer-jit"
    assert "made.Trouble: nobody knows it" in found.cause
    assert "flashinfer/jit/core.py:320" in found.cause
    assert wrapper.fix == "see in-flashinfer-jit (line 3)"


def test_a_wrapper_alone_says_that_the_cause_is_elsewhere_and_where() -> None:
    (row,) = read(WRAPPER)
    assert "not in this text" in row.cause
    assert "docker logs" in row.fix
    assert "dmesg" in row.fix


@pytest.mark.parametrize(
    "line",
    [
        "docker: Error response from daemon: could not frob the device.",
        'Error: unable to start container "vllm": crun: no such frob',
        'time="2026-11-28T12:00:00Z" level=error msg="no such frob"',
        "FATAL: no such frob",
        "- `RuntimeError: no such frob`",
    ],
)
def test_what_only_another_program_says_is_a_failure_too(line: str) -> None:
    assert failures(line)
    assert failures(BOOT, line)
    assert not failures(BOOT, line, READY, ANSWERED)


def test_the_advice_below_a_cuda_error_alone_points_above() -> None:
    advice = "For debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    (found,) = read(advice)
    assert (found.id, found.wrapper) == ("cuda-error-cut", True)
    assert ids(*TRACE, "torch.AcceleratorError: CUDA error: no such frob", advice)[0] != "cuda-error-cut"


@pytest.mark.parametrize(
    "lines",
    [
        ("made.StrangeError: cut out of a log",),
        ("(EngineCore pid=7) ERROR 01-12 01:46:25 [core.py:9] made.StrangeError: cut out of a log",),
        TRACE[1:],
        ("Failed: Cuda error /workspace/csrc/some_kernel.cuh:455 'invalid argument'",),
        ("terminate called after throwing an instance of 'c10::Error'", "  what():  it broke"),
        ("!!!!!!! Segfault encountered !!!!!!!",),
        ("bash: line 1:  4711 Segmentation fault      (core dumped) vllm serve x",),
        ("./start.sh: line 3: 48211 Killed                  vllm serve x",),
        (
            BOOT,
            "ERROR 01-12 01:46:25 [multiproc_executor.py:9] Worker proc VllmWorker-0 died unexpectedly, shutting down",
        ),
        (BOOT, "resource_tracker: There appear to be 1 leaked semaphore objects to clean up at shutdown"),
        (BOOT, "vllm-1 exited with code 1"),
        ("RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -11}",),
    ],
)
def test_an_engine_that_died_is_never_called_fine(lines: tuple[str, ...]) -> None:
    assert failures(*lines)


@pytest.mark.parametrize(
    "lines",
    [
        (BOOT, READY, "resource_tracker: There appear to be 1 leaked semaphore objects to clean up at shutdown"),
        (BOOT, READY, *TRACE, "made.StrangeError: x", ANSWERED),
        (BOOT, *TRACE, "made.StrangeError: tried without success", READY),
        ("Exception ignored in: <function Connection.__del__ at 0x7>", *TRACE, "OSError: [Errno 9] odd"),
        (*(f"WARNING 01-12 01:46:25 [x.py:1] {line}" for line in (*TRACE, "made.StrangeError: x")),),
        ("INFO 01-12 01:46:25 [x.py:1] made.StrangeError: quoted",),
        (TRACE[0], '  File "/opt/vllm/entrypoints/openai/serving_chat.py", line 4, in create', "made.StrangeError: x"),
        ("WARNING 01-12 01:46:25 [x.py:1] Address already in use. Retrying with a new port.",),
        ("/usr/lib/python3/x.py:7: UserWarning: CUDA out of memory. is a text",),
        ("ERROR 01-12 01:46:25 [serving_models.py:9] ValueError: LoRA rank 64 is greater than max_lora_rank 16.",),
        ("ERROR 01-12 01:46:25 [serving_chat.py:9] made.StrangeError: x",),
        ("node:1:1 [0] NCCL INFO Call to ibv_reg_mr failed, falling back",),
    ],
)
def test_what_the_engine_survives_is_no_failure(lines: tuple[str, ...]) -> None:
    assert failures(*lines) == []


def test_an_error_after_the_last_answer_may_have_ended_the_engine() -> None:
    assert failures(BOOT, READY, ANSWERED, *TRACE, "made.StrangeError: x") == ["unknown-exception"]


def test_a_start_that_only_waits_is_a_warning_until_something_else_happens() -> None:
    waits = [
        f"DEBUG 01-12 01:4{n}:00 [utils.py:9] Waiting for 1 local, 0 remote core engine proc(s) to start."
        for n in range(4)
    ]
    (row,) = read(BOOT, *waits)
    assert (row.id, row.status) == ("waiting-for-engine", Status.WARN)
    assert all(row.status is Status.OK for row in read(BOOT, *waits, READY))


def test_advice_depends_on_the_version_and_the_gpu_that_the_log_names() -> None:
    fault = "torch.AcceleratorError: CUDA error: an illegal instruction was encountered"
    old, new = (read(BOOT.replace("0.13.0", version), fault)[0].fix for version in ("0.13.0", "0.22.1"))
    assert "newer" in old
    assert "may not help" in new
    missing = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    name = "Tesla V100-SXM2-16GB with CUDA capability sm_70 is not compatible with the current PyTorch installation."
    assert "older image" in next(row for row in read(name, missing) if row.id == "no-kernel-image").fix
    assert all(
        condition.count(".") == 2 or condition == ""
        for row in signatures()
        for one in row.advice
        for condition in (one.vllm,)
    )


def test_a_pasted_log_out_of_order_is_one_start() -> None:
    first = "INFO 01-12 01:52:30 [kv_cache_utils.py:9] GPU KV cache size: 620,944 tokens"
    reader = scan_log(LogReader(), ["\n".join((first, "", BOOT)).encode()])
    assert reader.facts.kv_cache_tokens == 620944
    assert reader.facts.version == "0.13.0"


def test_an_osc_sequence_that_is_not_closed_hides_nothing() -> None:
    lines = [
        "INFO 01-12 01:46:25 [a.py:1] client said \x1b]0;hello",
        *[BOOT] * 300,
        "torch.OutOfMemoryError: CUDA out of memory.",
    ]
    assert failures(*lines) == ["cuda-out-of-memory"]
    assert failures("\x1b]0;title torch.OutOfMemoryError: CUDA out of memory.") == ["cuda-out-of-memory"]
