"""The doctor's rows about GPUs: what it is, its driver, who holds its memory, whether the plan fits. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from glm4_deploy.catalog.gpus import Gpu
from glm4_deploy.catalog.images import default_tag, resolve_version
from glm4_deploy.facts.gpu_model import GpuFacts
from glm4_deploy.plan.doctor import Needs, Seen, unanswered
from glm4_deploy.plan.fraction import engine_version, memory_wish
from glm4_deploy.plan.gpu_row import gpu_row
from glm4_deploy.plan.kernels import kernel_path
from glm4_deploy.plan.memory import Wish, estimate
from glm4_deploy.plan.memory_model import Weights
from glm4_deploy.plan.memory_solve import HOST_RESERVE_GIB, highest_fraction, solve
from glm4_deploy.result import Result, Status

# CUDA 13, which every image of the catalog holds. GeForce has no forward compatibility: its floor is higher.
DRIVER, DRIVER_GEFORCE = 580, 590


def gpu_rows(seen: Seen, needs: Needs) -> Iterator[Result]:
    """All of them; without a GPU one row that says so, and no rows that would only repeat it."""
    if seen.gpu is None:
        yield unanswered("gpu", "an NVIDIA GPU")
        return
    if not seen.gpu.answered:
        yield Result(
            check="gpu",
            status=Status.UNKNOWN,
            observed=seen.gpu.trouble,
            expected="an NVIDIA GPU",
            reason="the driver's tool hangs",
            remedy="run nvidia-smi by hand; where it hangs, look for `NVRM` in `sudo dmesg` and reboot",
        )
        return
    if not seen.gpu.gpus:
        yield Result(
            check="gpu",
            status=Status.FAIL,
            observed=f"none found ({seen.gpu.trouble})",
            expected="an NVIDIA GPU of compute capability 7.5 or newer",
            remedy="install the NVIDIA driver and reboot; without a GPU use --profile cpu",
        )
        return
    first = seen.gpu.gpus[0]
    row = gpu_row(seen.gpu, seen.host)
    yield _gpu(seen, needs)
    yield _kernel(first, row, needs)
    yield _driver(seen.gpu.driver or first.driver, first.name)
    yield _users(seen)
    yield _memory_plan(seen, needs, row)


def free_bytes(seen: Seen, gpu: Gpu) -> int | None:
    """What an engine could request now."""
    if gpu.unified:
        return seen.host.memory_available if seen.host else None
    facts = seen.gpu.gpus[0] if seen.gpu and seen.gpu.gpus else None
    if facts is None or facts.free_mib is None:
        return None
    return round(min(facts.free_mib, gpu.total_mib) * 2**20)


def _gpu(seen: Seen, needs: Needs) -> Result:
    assert seen.gpu is not None  # noqa: S101 (gpu_rows looked)
    gpus = seen.gpu.gpus
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    observed = f"{len(gpus)} x {names}" if len(gpus) > 1 else names
    expected = f"{needs.settings.tensor_parallel_size} GPU" + ("s" if needs.settings.tensor_parallel_size > 1 else "")
    if len(gpus) < needs.settings.tensor_parallel_size:
        remedy = f"lower tensor_parallel_size to {len(gpus)}"
        return Result(check="gpu", status=Status.FAIL, observed=observed, expected=expected, remedy=remedy)
    if any(gpu.mig for gpu in gpus):
        return Result(
            check="gpu",
            status=Status.WARN,
            observed=f"{observed}; MIG is on",
            expected=expected,
            remedy="an engine sees one MIG instance: plan with --gpu-total-mib of that instance",
        )
    if len(gpus) > needs.settings.tensor_parallel_size:
        return Result(
            check="gpu",
            status=Status.OK,
            observed=observed,
            expected=expected,
            remedy="the others stay idle: run one engine a GPU (data parallel) to use them",
        )
    return Result(check="gpu", status=Status.OK, observed=observed, expected=expected)


def _kernel(facts: GpuFacts, row: Gpu | None, needs: Needs) -> Result:
    capability = facts.compute_capability or (row.compute_capability if row else None)
    expected = "compute capability 10.0 or newer for native FP4"
    if capability is None:
        reason = "the driver does not tell the compute capability and the product is not in the table"
        return Result(check="kernel-path", status=Status.UNKNOWN, expected=expected, reason=reason)
    quantized = needs.settings.quantization != "none"
    version = engine_version(needs.settings, needs.profile) or resolve_version(default_tag())
    path = kernel_path(capability, Weights.NVFP4 if quantized else Weights.BF16, version)
    if path.name == "none":
        remedy = "use a GPU of compute capability 7.5 or newer"
        return Result(check="kernel-path", status=Status.FAIL, observed=path.why, expected=expected, remedy=remedy)
    status = Status.OK if path.native or not quantized else Status.WARN
    return Result(
        check="kernel-path", status=status, observed=f"{path.name}: {path.why}", expected=expected, remedy=path.flaw
    )


def _driver(driver: str | None, product: str) -> Result:
    floor = DRIVER_GEFORCE if "geforce" in product.lower() else DRIVER
    expected = f"{floor} or newer (CUDA 13)"
    if driver is None or not driver.split(".")[0].isdigit():
        reason = "the driver's version could not be read"
        return Result(check="driver", status=Status.UNKNOWN, expected=expected, reason=reason)
    major = int(driver.split(".")[0])
    if major >= floor:
        return Result(check="driver", status=Status.OK, observed=driver, expected=expected)
    compatible = major >= DRIVER or (major >= 535 and "geforce" not in product.lower())
    return Result(
        check="driver",
        status=Status.WARN if compatible else Status.FAIL,
        observed=driver,
        expected=expected,
        remedy=f"update the NVIDIA driver to {floor} or newer"
        + ("; until then the image relies on CUDA forward compatibility" if compatible else ""),
    )


def _users(seen: Seen) -> Result:
    """Who else holds GPU memory. Only told, since the plan row judges whether enough is left."""
    assert seen.gpu is not None  # noqa: S101
    processes = seen.gpu.processes
    if not processes:
        return Result(check="gpu-users", status=Status.OK, observed="no process holds GPU memory", expected="none")
    shown = ", ".join(
        f"{process.name.rsplit('/', 1)[-1][:40] or 'process'} (pid {process.pid},"
        f" {'unknown size' if process.used_mib is None else f'{process.used_mib:.0f} MiB'})"
        for process in processes[:4]
    )
    more = f" and {len(processes) - 4} more" if len(processes) > 4 else ""
    return Result(
        check="gpu-users",
        status=Status.WARN,
        observed=shown + more,
        expected="none",
        remedy="end them if they are not wanted: the engine needs its whole fraction free",
    )


def _memory_plan(seen: Seen, needs: Needs, gpu: Gpu | None) -> Result:
    if gpu is None:
        reason = "the GPU's memory is not known" + (
            " (MIG is on)" if seen.gpu and any(g.mig for g in seen.gpu.gpus) else ""
        )
        return Result(check="memory-plan", status=Status.UNKNOWN, reason=reason, remedy="plan with --gpu-total-mib")
    wish = wish_of(seen, needs, gpu)
    if needs.settings.gpu_memory_utilization == "auto":
        solution = solve(wish)
        fraction, plan, why = solution.fraction, solution.plan, solution.reason
    else:
        fraction, plan, why = wish.gpu_memory_utilization, estimate(wish), "as set"
    expected = f"{needs.settings.max_num_seqs} requests of {needs.settings.max_model_len} tokens"
    if not plan.fits:
        return Result(
            check="memory-plan", status=Status.FAIL, observed=plan.refusal, expected=expected, remedy=plan.remedy
        )
    observed = (
        f"fraction {fraction:g} ({why}): KV cache {plan.kv_cache_gib:.1f} ± {plan.error_range_gib:.1f} GiB,"
        f" {plan.max_concurrency:.1f} requests at once"
    )
    safe = highest_fraction(replace(wish, free_bytes=None))
    if gpu.unified and fraction > safe:
        return Result(
            check="memory-plan",
            status=Status.WARN,
            observed=observed,
            expected=f"{HOST_RESERVE_GIB:g} GiB left to the host",
            remedy=f"set gpu_memory_utilization to {safe:g} or less: memory that runs out here freezes the host",
        )
    if plan.max_concurrency < needs.settings.max_num_seqs:
        return Result(
            check="memory-plan",
            status=Status.WARN,
            observed=observed,
            expected=expected,
            remedy="requests beyond that wait; lower max_num_seqs or max_model_len",
        )
    return Result(check="memory-plan", status=Status.OK, observed=observed, expected=expected)


def wish_of(seen: Seen, needs: Needs, gpu: Gpu) -> Wish:
    """The deployment's wish on this very host."""
    return replace(memory_wish(needs.settings, needs.profile, gpu), free_bytes=free_bytes(seen, gpu))
