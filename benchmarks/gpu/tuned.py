"""`tune`'s own walk, on forked engines, for one load.

`tuned`: GLM-4-9B's shape, from the model card's settings and the plan's. The weights are random and the answers no
numbers at all, so no candidate could pass the gate that the command asks of each; the gate is left out there.
`tuned-gated`: the demo model in NVFP4, and every candidate passes the suite `gate` with the fingerprint before its load
is sent, as in the command; at the end a damaged checkpoint takes the same way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engines import SCRATCH, Record, clock, end, ended, fork, free_port, read, seen, serve, settle, wait_for
from printed import damaged_model, damages, lab, sound_model
from users import NAME, READY
from verdicts import kit

from glm4_deploy.catalog.rows import gpus, profiles
from glm4_deploy.fingerprint.model import Arithmetic, read_fingerprint
from glm4_deploy.plan.sizing import parse_load
from glm4_deploy.plan.spec import Card, choose_fraction, plan_deployment
from glm4_deploy.probe.bench import LAUNCH, MARK, BenchLoad, read_level
from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.suite import run_suite
from glm4_deploy.report.wire import to_wire
from glm4_deploy.report_model import BenchLevel, Quantiles, Suite
from glm4_deploy.settings import Settings
from glm4_deploy.tune.search import PATIENCE, Attempt, Outcome, Search, Trial, learned
from glm4_deploy.tune.space import TuneLoad, changed, moves
from glm4_deploy.tune.trials import Notebook, Subject, planned_for, walk

LEFT_OUT = ("model", "served-model-name", "port", "host")
CARD = {"gpu_memory_utilization": 0.75, "max_num_seqs": 64, "max_model_len": 32768, "kv_cache_dtype": "fp8"}
"""From the publisher's compose example."""


DEMO_CONTEXT = 4096
DAMAGED = "mlp.gate_up_proj.weight_global_scale=1.5"


def tuned_stage(
    record: Record, models: Path, card: str, load: str, idle: float, seconds: float, *, gated: bool = False
) -> None:
    """Go on with this load's trials; what an earlier call on the same machine measured is read from its notebook."""
    asked = parse_load(load)
    model = sound_model(models) if gated else models / "9b-nvfp4"
    users, prompt, answer = asked.requests or 1, asked.prompt or 1, asked.answer or 2
    profile = profiles()["hopper"]
    settings = Settings.model_validate(
        {
            **profile.settings,
            "profile": profile.name,
            **CARD,
            **({"max_model_len": DEMO_CONTEXT} if gated else {}),
            "image_vllm": "0.24.0",
            "model_dir": str(model),
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
    directory = SCRATCH / f"tuned-{'gated-' if gated else ''}{users}-{prompt}-{answer}"
    directory.mkdir(exist_ok=True)
    notebook = Notebook(directory, subject)
    possible = moves(settings, subject.load, subject.vllm, subject.gpu)
    search = Search(subject.load, possible, planned_for(subject), learned(notebook.here), subject.in_use)
    fastest = [0.0]

    def measure(attempt: Attempt) -> Trial:
        trial = one_trial(record, model, subject, attempt, idle, fastest, gated=gated)
        record.add("tuned", subject.load.label, trial=to_wire(trial))
        return trial

    walk(
        search, measure, notebook, seconds=seconds - clock() - 15, note=lambda text: record.add("walk", load, said=text)
    )
    winner = search.winner
    won = to_wire(winner) if winner else None
    if gated and clock() < seconds - 60:
        damaged = damaged_model(models, 99, damages()[DAMAGED])
        attempt = Attempt(label=f"a damaged checkpoint: {DAMAGED}", settings={})
        one = one_trial(record, damaged, subject, attempt, idle, fastest, gated=True)
        record.add("tuned", subject.load.label, trial=to_wire(one))
    record.add("tuned-result", subject.load.label, winner=won, trials=[to_wire(trial) for trial in search.trials])


def one_trial(
    record: Record,
    model: Path,
    subject: Subject,
    attempt: Attempt,
    idle: float,
    fastest: list[float],
    *,
    gated: bool,
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
    weights = {} if gated else {"load-format": "dummy"}
    pid = fork(log, serve(model, lab.NAME if gated else NAME, {**weights, **flags}, port))
    try:
        how = wait_for(log, pid, (READY, r"Engine core initialization failed"), 150)
        record.add("tuned-start", attempt.label, flags=flags, how=how, **seen(read(log)))
        if how != READY:
            return trial(Outcome.FAILED, str(seen(read(log)).get("refusal", how)))
        if gated:
            return _gated(record, model, subject, name, port, fastest, trial)
        return _load(record, model, subject, name, port, fastest, trial)
    finally:
        end(pid)


def _gated(
    record: Record,
    model: Path,
    subject: Subject,
    name: str,
    port: int,
    fastest: list[float],
    trial: Callable[..., Trial],
) -> Trial:
    """The gate with the fingerprint, then the load, each in a fork."""
    printed = read_fingerprint(lab.NVFP4 / "fingerprint.json")
    address, report = f"http://127.0.0.1:{port}", record.logs / f"{name}-gate.json"

    def gate() -> None:
        target = ProbeTarget(base_url=address, max_model_len=DEMO_CONTEXT)
        options = Options(fingerprint=printed, arithmetic=Arithmetic.W4A16)
        done = asyncio.run(run_suite(target, suite=Suite.GATE, skip=("tools-*",), options=options))
        rows = [
            [row.check, str(row.status), row.observed or row.reason, round(row.seconds or 0, 2)] for row in done.results
        ]
        report.write_text(json.dumps({"exit": done.exit_code, "seconds": round(done.seconds, 1), "rows": rows}))

    _wait(fork(record.logs / f"{name}-gate.txt", gate), 120)
    said = json.loads(report.read_text()) if report.exists() else {"exit": -1, "seconds": 0, "rows": []}
    bad = [row for row in said["rows"] if row[1] in ("fail", "unknown")]
    prints = [row for row in said["rows"] if row[0] == "fingerprint"]
    record.add("gate", name, exit=said["exit"], seconds=said["seconds"], fingerprint=prints, bad=bad)
    if said["exit"]:
        return trial(Outcome.FAILED, "; ".join(f"{row[0]}: {row[2]}" for row in bad)[:300] or "the gate did not end")
    load = subject.load
    asked = BenchLoad(
        base_url=address,
        model=lab.NAME,
        tokenizer=str(model),
        concurrency=(load.users,),
        input_len=load.input_len,
        output_len=load.output_len,
    )

    def send() -> None:
        sys.argv = ["-c", json.dumps(asked.arguments(None))]
        exec(LAUNCH, {"__name__": "__main__"})  # noqa: S102 (the kit's own text; a new process takes 20 s to import)

    limit = fastest[0] * PATIENCE + 10 if fastest[0] else 120.0
    log, began = record.logs / f"{name}-bench.txt", clock()
    if not _wait(fork(log, send), limit):
        return trial(Outcome.SLOWER, f"not done after {limit:.0f} s")
    took = clock() - began
    results = [line.removeprefix(MARK) for line in read(log).splitlines() if line.startswith(MARK)]
    if len(results) < 2:  # the first one is the warm-up
        return trial(Outcome.FAILED, f"the load: {read(log)[-200:]}")
    fastest[0] = min(fastest[0] or took, took)
    return trial(Outcome.MEASURED, level=read_level(json.loads(results[1]), None))


def _wait(pid: int, patience: float) -> bool:
    """Whether a fork ended in time; it is ended otherwise."""
    until = clock() + patience
    while clock() < until:
        if ended(pid):
            return True
        time.sleep(0.1)
    end(pid)
    return False


def _load(
    record: Record,
    model: Path,
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
    words += ["--python", sys.executable, "--tokenizer", str(model), "--json", str(result)]
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
