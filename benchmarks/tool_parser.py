"""What the tool parser adds to each token of an answer.

    .venv/bin/python benchmarks/tool_parser.py

Feeds outputs in pieces of 4 characters, which is about a token, with 20 tools offered. The best of 5 rounds counts.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tool_calls import plugin

PIECE, ROUNDS = 4, 5
NAMES = [f"tool_number_{number}" for number in range(20)]
OUTPUTS = {
    "prose": "\n" + "The weather in Paris is mild, and the sky is clear.\n" * 200,
    "one long call": "tool_number_7\n" + json.dumps({"text": 'He said "no" {twice}.\n' * 400}),
    "many small calls": "<|assistant|>".join('tool_number_3\n{"city": "Paris", "days": 3}' for _ in range(250)),
    "prose that looks like calls": "\n" + "tool_number_3\nand tool <|user is\n" * 300,
    "nested arguments": "tool_number_1\n" + '{"a": [' * 400 + "1" + "]}" * 400,
}


def seconds(text: str) -> float:
    parser = PARSER.Glm4OutputParser(NAMES)
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    start = time.perf_counter()
    for piece in pieces:
        parser.feed(piece)
    parser.finish()
    return (time.perf_counter() - start) / len(pieces)


PARSER = plugin()
for name, text in OUTPUTS.items():
    print(f"{name:30} {min(seconds(text) for _ in range(ROUNDS)) * 1e6:6.2f} µs per token, {len(text)} characters")
