"""Parse command lines with the argument parser of this Python's own vLLM.

Standard input: a JSON list of argument lists. Output, on the last line: for each the parser's complaint, or null; and
the names of its flags and of the environment variables that this vLLM reads. Runs in a CPU engine's Python, without
this tree.
"""

import contextlib
import importlib
import io
import json
import sys
from typing import Any


def first(*names: str) -> Any:
    """The first of these that exists: vLLM moved them (`cli_args` in 0.29, the parser in 0.13)."""
    for name in names:
        module, _, attribute = name.rpartition(".")
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), attribute)
    raise ImportError(f"none of {names}")


def main() -> None:
    parser_class = first("vllm.utils.argparse_utils.FlexibleArgumentParser", "vllm.utils.FlexibleArgumentParser")
    make = first(
        "vllm.entrypoints.launchers.cli_args.make_arg_parser", "vllm.entrypoints.openai.cli_args.make_arg_parser"
    )
    parser = make(parser_class())

    def complaint(words: list[str]) -> str | None:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parser.parse_args(words)
        except SystemExit:
            return said.getvalue().strip().splitlines()[-1]
        except Exception as error:  # noqa: BLE001 (argparse passes on what a type function raises)
            return f"{type(error).__name__}: {error}"
        return None

    complaints = [complaint(words) for words in json.load(sys.stdin)]
    variables = sorted(first("vllm.envs.environment_variables"))
    flags = sorted({word[2:] for action in parser._actions for word in action.option_strings if word.startswith("--")})
    print("\n" + json.dumps({"complaints": complaints, "variables": variables, "flags": flags}))


if __name__ == "__main__":
    main()
