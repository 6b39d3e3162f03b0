"""`tune`'s own walk, on forked engines: GLM-4-9B's shape for one load, from the model card's settings and the plan's.

The weights are random and the answers no numbers at all, so no candidate could pass the gate that the command asks of
each; the gate is left out here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engines import SCRATCH, Record, clock, end, fork, free_port, read, seen, serve, settle, wait_for
from users import NAME, READY
from verdicts import kit

from glm4_deploy.catalog.rows import gpus, profiles
from glm4_deploy.plan.sizing import parse_load
from glm4_deploy.plan.spec import Card, choose_fraction, plan_deployment
from glm4_deploy.report.wire import to_wire
from glm4_deploy.report_model import BenchLevel, Quantiles
from glm4_deploy.settings import Settings
from glm4_deploy.tune.search import PATIENCE, Attempt, Outcome, Search, Trial, learned
from glm4_deploy.tune.space import TuneLoad, changed, moves
from glm4_deploy.tune.trials import Notebook, Subject, planned_for, walk

LEFT_OUT = ("model", "served-model-name", "port", "host")
CARD = {"gpu_memory_utilization": 0.75, "max_num_seqs": 64, "max_model_len": 32768, "kv_cache_dtype": "fp8"}
"""From the publisher's compose example."""


def tuned_stage(record: Record, models: Path, card: str, load: str, idle: float, seconds: float) -> None:
    """Go on with this load's trials; what an earlier call on the same machine measured is read from its notebook."""
    asked = parse_load(load)
    users, prompt, answer = asked.requests or 1, asked.prompt or 1, asked.answer or 2
    profile = profiles()["hopper"]
    settings = Settings.model_validate(
        {
            **profile.settings,
            "profile": profile.name,
            **CARD,
            "image_vllm": "0.24.0",
            "model_dir": str(models / "9b-nvfp4"),
        }
    )
    subject = Subject(
        settings=settings,
        profile=profile,
        card=Card(gpu=gpus()[card]),
        load=TuneLoad(users=users, input_len=prompt, output_len=answer),
        slo=None,
        vllm=(0, 24, 0),
    )
    directory = SCRATCH / f"tuned-{users}-{prompt}-{answer}"
    directory.mkdir(exist_ok=True)
    notebook = Notebook(directory, subject)
    possible = moves(settings, subject.load, subject.vllm, subject.gpu)
    search = Search(subject.load, possible, planned_for(subject), learned(notebook.here), subject.in_use)
    fastest = [0.0]

    def measure(attempt: Attempt) -> Trial:
        trial = one_trial(record, models, subject, attempt, idle, fastest)
        record.add("tuned", subject.load.label, trial=to_wire(trial))
        return trial

    walk(
        search, measure, notebook, seconds=seconds - clock() - 15, note=lambda text: record.add("walk", load, said=text)
    )
    winner = search.winner
    won = to_wire(winner) if winner else None
    record.add("tuned-result", subject.load.label, winner=won, trials=[to_wire(trial) for trial in search.trials])


def one_trial(
    record: Record, models: Path, subject: Subject, attempt: Attempt, idle: float, fastest: list[float]
) -> Trial:
    began = time.monotonic()

    def trial(outcome: Outcome, reason: str = "", level: BenchLevel | None = None) -> Trial:
        took = round(time.monotonic() - began, 1)
        return Trial(
            label=attempt.label, settings=attempt.settings, outcome=outcome, reason=reason, level=level, seconds=took
        )

    settings = changed(subject.settings, attempt.settings)
    fraction = choose_fraction(settings, subject.profile, subject.card)
    spec = plan_deployment(settings, subject.profile, fraction)
    flags = {flag.name: flag.value for flag in spec.flags if flag.name not in LEFT_OUT}
    name = f"tuned-{subject.load.users}-{int(clock())}"
    log, port = record.logs / f"{name}.log", free_port()
    settle(idle)
    pid = fork(log, serve(models / "9b-nvfp4", NAME, {"load-format": "dummy", **flags}, port))
    try:
        how = wait_for(log, pid, (READY, r"Engine core initialization failed"), 150)
        record.add("tuned-start", attempt.label, flags=flags, how=how, **seen(read(log)))
        if how != READY:
            return trial(Outcome.FAILED, str(seen(read(log)).get("refusal", how)))
        return _load(record, models, subject, name, port, fastest, trial)
    finally:
        end(pid)


def _load(
    record: Record,
    models: Path,
    subject: Subject,
    name: str,
    port: int,
    fastest: list[float],
    trial: Callable[..., Trial],
) -> Trial:
    """Send the load with the kit's own bench; what is too slow to win is cut off."""
    result = record.logs / f"{name}.json"
    load = subject.load
    words = ["--base-url", f"http://127.0.0.1:{port}", "--model", NAME, "--concurrency", str(load.users)]
    words += ["--input-len", str(load.input_len), "--output-len", str(load.output_len)]
    words += ["--python", sys.executable, "--tokenizer", str(models / "9b-nvfp4"), "--json", str(result)]
    limit = fastest[0] * PATIENCE if fastest[0] else 240.0
    code, took = kit("bench", *words, log=record.logs / f"{name}-bench.txt", patience=limit)
    if code == -1:
        return trial(Outcome.SLOWER, f"not done after {limit:.0f} s")
    if not result.exists():
        return trial(Outcome.FAILED, f"bench: exit {code}: {read(record.logs / f'{name}-bench.txt')[-200:]}")
    fastest[0] = min(fastest[0] or took, took)
    (raw,) = json.loads(result.read_text())["levels"]
    quantiles = {key: Quantiles(**raw.pop(key)) for key in ("ttft", "tpot")}
    return trial(Outcome.MEASURED, level=BenchLevel(**{**raw, **quantiles, "broken": tuple(raw["broken"])}))
