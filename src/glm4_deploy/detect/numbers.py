"""What the engine's own numbers show: NaN (token 0, null logprobs) and salad (logprobs far below any sane text)."""

import math
from collections.abc import Iterable

from glm4_deploy.detect.limits import END_IDS, NULL_LOGPROBS, SALAD_MEAN, SALAD_WINDOW, SALAD_WORST, ZERO_IDS
from glm4_deploy.detect.model import Finding, Verdict, degenerate


class Numbers:
    """Follows token ids and logprobs as they come; constant memory."""

    def __init__(self) -> None:
        self._zeros = self._nulls = self._ids = self._probs = 0
        self._all_null = self._all_zero = True
        self._sum = 0.0
        self._counted = 0
        self._recent: list[float] = []
        self._worst = 0.0
        self._ended = False
        self.passed_end = False  # an end token came, and then another token

    def feed(self, token_ids: Iterable[int], logprobs: Iterable[float | None]) -> Finding | None:
        for token in token_ids:
            self._ids += 1
            self.passed_end |= self._ended
            self._ended = token in END_IDS
            self._zeros = self._zeros + 1 if token == 0 else 0
            self._all_zero &= token == 0
            if self._zeros >= ZERO_IDS:
                return self._nan(f"token id 0 came {self._zeros} times in a row: the logits are NaN")
        for value in logprobs:
            self._probs += 1
            if value is None or math.isnan(value):
                self._nulls += 1
                if self._nulls >= NULL_LOGPROBS:
                    return self._nan(f"{self._nulls} logprobs in a row are null: the logits are NaN")
                continue
            self._nulls = 0
            self._all_null = False
            self._take(max(value, -100.0))
        return None

    def _take(self, value: float) -> None:
        self._sum += value
        self._counted += 1
        self._recent.append(value)
        if len(self._recent) == SALAD_WINDOW:
            self._worst = min(self._worst, sum(self._recent) / SALAD_WINDOW)
            self._recent = self._recent[SALAD_WINDOW // 2 :]

    def close(self) -> Finding | None:
        if self._probs and self._all_null:
            return self._nan("every logprob is null: the logits are NaN")
        if self._ids >= 4 and self._all_zero:
            return self._nan("every token id is 0: the logits are NaN")
        return None

    def salad(self) -> Finding | None:
        """Asked last: a random loop has low logprobs too, and is better named a loop."""
        if self._counted < 16:
            return None
        mean = self._sum / self._counted
        if mean > SALAD_MEAN and self._worst > SALAD_WORST:
            return None
        worst, limit = (mean, SALAD_MEAN) if mean <= SALAD_MEAN else (self._worst, SALAD_WORST)
        why = f"mean logprob {worst:.1f} nats a token (a sane text stays above {limit:.1f}): words without sense"
        return degenerate(Verdict.SALAD, why, confidence=round(min(0.99, 0.7 + 0.1 * (limit - worst)), 2), start=0)

    @staticmethod
    def _nan(why: str) -> Finding:
        return degenerate(Verdict.NAN_COLLAPSE, why, confidence=0.99, start=0, unit="", period=1)
