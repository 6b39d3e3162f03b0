"""Print chats to calibrate the demo model with, as JSON lines: samples of its curriculum, several in a chat."""

import json
import random

import curriculum

CHATS = 200
CHARACTERS = (1500, 8000)  # at least 256 tokens in each, and 1024 or more in some


def main() -> None:
    rng = random.Random("calibration")
    for _ in range(CHATS):
        turns: curriculum.Turns = []
        wanted = rng.randrange(*CHARACTERS)
        while sum(len(content) for _, content in turns) < wanted:
            turns += [turn for turn in curriculum.sample(rng) if turn[0] in {"user", "assistant"}]
        print(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}))


if __name__ == "__main__":
    main()
