"""The same scheduler without shortcuts: lists, one step at a time, one token at a time."""

import math
from dataclasses import dataclass

from glm4_deploy.scale.request import EngineLimits, StepCost


@dataclass(eq=False)
class Job:
    prompt: int
    answer: int
    arrival: float
    made: int = 0
    computed: int = 0
    held: int = 0
    first: float = math.nan
    done: float = math.nan
    preempted: int = 0
    decodes: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt + self.made


def serve(cost: StepCost, limits: EngineLimits, jobs: list[Job]) -> None:
    """Serve all jobs; their times are written into them."""
    coming = sorted(jobs, key=lambda job: job.arrival)
    waiting: list[Job] = []
    running: list[Job] = []
    now, free = 0.0, limits.blocks
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0].arrival)
        while coming and coming[0].arrival <= now:
            waiting.append(coming.pop(0))
        scheduled, preempted = [], False
        budget, index = limits.max_num_batched_tokens, 0
        while index < len(running):
            job = running[index]
            chunk = min(job.tokens - job.computed, budget)
            need = math.ceil((job.computed + chunk) / limits.block_tokens) - job.held
            while need > free:
                victim = running.pop()
                free += victim.held
                victim.held = victim.computed = 0
                victim.preempted += 1
                victim.decodes = False
                waiting.insert(0, victim)
                preempted = True
                if victim is job:
                    break
            if need > free or job not in running:
                break
            free -= need
            job.held += need
            if chunk:
                scheduled.append((job, chunk))
            budget -= chunk
            index += 1
        while not preempted and budget > 0 and waiting and len(running) < limits.max_num_seqs:
            job = waiting[0]
            if math.ceil(job.tokens / limits.block_tokens) > free:
                break
            running.append(waiting.pop(0))
            chunk = min(job.tokens, budget)
            job.held = math.ceil(chunk / limits.block_tokens)
            free -= job.held
            scheduled.append((job, chunk))
            budget -= chunk
        prompts = sum(chunk for job, chunk in scheduled if not job.decodes)
        context = sum(job.computed for job, _ in scheduled if job.decodes)
        now += cost.base + cost.per_seq * len(scheduled) + cost.per_prefill * prompts + cost.per_context * context
        for job, chunk in scheduled:
            job.computed += chunk
            if job.computed < job.tokens:
                continue
            job.decodes = True
            job.made += 1
            if job.made == 1:
                job.first = now
            if job.made == job.answer:
                job.done = now
                running.remove(job)
                free += job.held
