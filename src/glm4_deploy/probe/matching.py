"""The program that applies a user's patterns and schema to an answer: `python -m glm4_deploy.probe.matching`.

    stdin:  {"text": "…", "patterns": ["…"], "schema": {…} or null}
    stdout: {"matches": [true, …], "fault": "JSON that breaks the schema: …" or null}

It is a separate process because `re` cannot be interrupted: the caller limits its time.
"""

import json
import re
import sys


def main() -> None:
    job = json.load(sys.stdin)
    fault = None
    if job["schema"] is not None:
        from glm4_deploy.probe.probe import json_fault  # imported late: patterns alone need nothing

        fault = json_fault(job["schema"], job["text"])
    matches = [re.search(pattern, job["text"]) is not None for pattern in job["patterns"]]
    json.dump({"matches": matches, "fault": fault}, sys.stdout)


if __name__ == "__main__":
    main()
