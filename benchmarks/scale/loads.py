"""The loads that a real engine is measured under: some to fit the simulation to, the others held out."""

import json
from dataclasses import dataclass

# Small limits, so that a small machine reaches them: some prompts take two steps, and the 17th request queues.
MAX_NUM_SEQS = 16
MAX_NUM_BATCHED_TOKENS = 256
# The second engine: 24 usable blocks for 16 requests of two to three blocks each, so that it has to preempt.
TIGHT_BLOCKS = 25
BLOCK_TOKENS = 128
LETTERS = list(range(64, 90))  # a to z in the demo model's vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One call of `vllm bench serve`."""

    name: str
    part: str
    """fit, held-out, tight or warm-up."""
    input_len: int
    output_len: int
    requests: int
    concurrency: int | None = None
    """Users without think time; None: an open loop at `rate`."""
    rate: float = float("inf")
    """Requests per second (Poisson)."""
    spread: float = 0.0
    """Lengths are uniform within ± this share of input_len and output_len."""

    def words(self, base_url: str, model: str, tokenizer: str, seed: int) -> list[str]:
        # Letters only: after random words the demo model emits special tokens and partial characters, which a stream
        # withholds until they are complete, so that the first token would seem to arrive with the last.
        words = ["--backend", "openai", "--endpoint", "/v1/completions", "--base-url", base_url]
        words += ["--extra-body", json.dumps({"allowed_token_ids": LETTERS})]
        words += ["--model", model, "--tokenizer", tokenizer, "--dataset-name", "random", "--ignore-eos"]
        words += ["--random-input-len", str(self.input_len), "--random-output-len", str(self.output_len)]
        words += ["--random-range-ratio", str(self.spread), "--num-prompts", str(self.requests)]
        words += ["--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,95,99", "--disable-tqdm"]
        words += ["--save-detailed", "--seed", str(seed)]
        if self.concurrency is not None:
            return [*words, "--max-concurrency", str(self.concurrency)]
        return [*words, "--request-rate", str(self.rate)]


WARM_UP = Load(name="warm-up", part="warm-up", input_len=128, output_len=16, requests=16, concurrency=16)


def fit() -> list[Load]:
    """Two prompt lengths, five loads each."""
    return [
        Load(
            name=f"{prompt}/48 @{users}",
            part="fit",
            input_len=prompt,
            output_len=48,
            requests=max(8, 4 * users),
            concurrency=users,
        )
        for prompt in (64, 320)
        for users in (1, 2, 4, 8, 16)
    ]


def held_out() -> list[Load]:
    """Other numbers of users, other lengths, a queue; then the highest throughput, as the base of the open loops."""
    closed = [(64, 48, 3), (64, 48, 12), (64, 48, 24), (192, 96, 6), (192, 96, 12), (512, 24, 8)]
    rows = [
        Load(
            name=f"{prompt}/{answer} @{users}",
            part="held-out",
            input_len=prompt,
            output_len=answer,
            requests=max(12, 4 * users),
            concurrency=users,
        )
        for prompt, answer, users in closed
    ]
    return [
        *rows,
        Load(name="capacity", part="held-out", input_len=128, output_len=64, requests=96, spread=0.5, concurrency=24),
    ]


def open_loop(capacity: float) -> list[Load]:
    """Poisson arrivals at 30, 60 and 90 % of `capacity` (requests per second), lengths ± 50 %."""
    return [
        Load(
            name=f"open {share:.0%}",
            part="held-out",
            input_len=128,
            output_len=64,
            requests=round(max(40, 25 * share * capacity)),
            rate=share * capacity,
            spread=0.5,
        )
        for share in (0.3, 0.6, 0.9)
    ]


def tight() -> list[Load]:
    """For the engine with TIGHT_BLOCKS."""
    return [
        Load(name=f"200/96 @{n}", part="tight", input_len=200, output_len=96, requests=4 * n, concurrency=n)
        for n in (8, 16)
    ]
