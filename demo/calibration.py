"""Print chats to calibrate a demo model with, as JSON lines: samples of its curriculum, several in a chat."""

import json
import random
import sys

import curriculum
import tool_curriculum

CHATS = 200
CHARACTERS = (1500, 8000)  # at least 256 tokens in each, and 1024 or more in some


def main(*, tools: bool) -> None:
    rng = random.Random("calibration")
    sample = tool_curriculum.mixed if tools else curriculum.sample
    for _ in range(CHATS):
        turns: curriculum.Turns = []
        wanted = rng.randrange(*CHARACTERS)
        while sum(len(content) for _, content in turns) < wanted:
            turns += [turn for turn in sample(rng) if tools or turn[0] in {"user", "assistant"}]
        print(json.dumps({"messages": [message(*turn) for turn in turns if turn[0] not in {"text", "forced"}]}))


def message(role: str, content: str) -> dict[str, object]:
    """A turn as the chat template takes it."""
    if role == "call":
        name, _, arguments = content.partition("\n")
        called = {"function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [called]}
    return {"role": "tool" if role == "observation" else role, "content": content}


if __name__ == "__main__":
    main(tools="--tools" in sys.argv[1:])
