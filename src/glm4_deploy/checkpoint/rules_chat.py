"""Rules for chatting and stopping (tokenizer, stop tokens, chat template), and for the licence (name, attribution)."""

from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from glm4_deploy.checkpoint.model import REPAIR, Rule, TargetEngine, listed, plural
from glm4_deploy.checkpoint.read import Checkpoint
from glm4_deploy.checkpoint.rules_tensors import shape_of
from glm4_deploy.result import Result, because, fail, ok, skipped, unknown, warn

# A turn ends with any of these: the end of text, the user's turn, a tool's turn (zai-org/GLM-4 #398, #127, #170).
STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
STOP_IDS_9B = (151329, 151336, 151338)
VOCAB_9B = 151552
PREFIX = "glm-4"
MAX_TEMPLATE = 200_000  # characters; GLM-4's own has 2,200
LICENCE_FILES = ("license", "licence", "notice", "model_license")


def added_tokens(checkpoint: Checkpoint) -> dict[str, int]:
    """Special tokens and their ids, from tokenizer.json and tokenizer_config.json; empty if neither has any."""
    entries: list[tuple[Any, Any]] = []
    tokens = checkpoint.documents.get("tokenizer.json", {}).get("added_tokens")
    if isinstance(tokens, list):
        entries += [(entry.get("content"), entry.get("id")) for entry in tokens if isinstance(entry, dict)]
    decoder = checkpoint.documents.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        entries += [
            (entry.get("content"), int(key))
            for key, entry in decoder.items()
            if isinstance(entry, dict) and key.isascii() and key.isdecimal() and len(key) < 10
        ]
    return {text: number for text, number in entries if isinstance(text, str) and type(number) is int}


def stop_ids(checkpoint: Checkpoint) -> dict[str, int]:
    """The ids at which a chat must stop, by token; empty if the tokenizer does not have them."""
    tokens = added_tokens(checkpoint)
    stops = {token: tokens[token] for token in STOP_TOKENS if token in tokens}
    shape = shape_of(checkpoint)
    if not stops and shape is not None and shape.vocab == VOCAB_9B:
        return dict(zip(STOP_TOKENS, STOP_IDS_9B, strict=True))
    return stops


def eos_ids(document: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    """eos_token_id as a tuple; None if it is missing or not a number."""
    value = (document or {}).get("eos_token_id")
    values: list[Any] = value if isinstance(value, list) else [value]
    return tuple(values) if all(type(item) is int for item in values) else None


def tokenizer(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    if any(fault.file == "tokenizer.json" for fault in checkpoint.faults):
        return skipped("tokenizer.json could not be read")
    if checkpoint.file("tokenizer.json") is None:
        old = checkpoint.file("tokenizer.model") is not None
        why = "it loads only with the tokenizer's own code" if old else "the engine cannot turn text into tokens"
        return (warn if old else fail)(
            "no tokenizer.json" + (", only tokenizer.model" if old else ""),
            "",
            *because(why),
            remedy="copy tokenizer.json and tokenizer_config.json from the -hf version of the base model",
        )
    if checkpoint.file("tokenizer_config.json") is None:
        return warn(
            "no tokenizer_config.json",
            "",
            *because("the engine guesses the tokenizer's class, and has no eos token"),
            remedy="copy it from the base model",
        )
    shape, tokens = shape_of(checkpoint), added_tokens(checkpoint)
    beyond = [f"{text!r} = {number}" for text, number in tokens.items() if shape and number >= shape.vocab]
    if beyond:
        return fail(
            f"beyond the vocabulary of {shape.vocab if shape else 0}: {listed(beyond)}",
            "",
            *because("the engine reads past the embedding table: a CUDA device-side assert"),
            remedy="get the tokenizer that belongs to these weights",
        )
    return ok(plural(len(tokens), "special token"))


def stops(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """The engine stops at the eos ids of generation_config.json, or of config.json if that file does not exist."""
    wanted = stop_ids(checkpoint)
    if not wanted:
        return unknown(f"the tokenizer has none of {', '.join(STOP_TOKENS)}", observed="not judged")
    if any(fault.file == "generation_config.json" for fault in checkpoint.faults):
        return skipped("generation_config.json could not be read")
    generation = checkpoint.documents.get("generation_config.json")
    source = "config.json" if generation is None else "generation_config.json"
    ids = eos_ids(checkpoint.config if generation is None else generation) or ()
    missing = [f"{token} = {number}" for token, number in wanted.items() if number not in ids]
    if missing:
        return fail(
            f"{source} has {_shown(ids)}, without {listed(missing)}",
            f"{sorted(wanted.values())}",
            *because(
                "the model ends a turn with any of these; without one it goes on as the user, up to the token limit"
            ),
            remedy=REPAIR,
        )
    if generation is None:
        return warn(
            f"no generation_config.json; config.json has {_shown(ids)}",
            "",
            *because("an engine started with another --generation-config loses the stop tokens"),
            remedy=REPAIR,
        )
    return ok(_shown(ids))


def _shown(ids: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, ids[:8]))}{', …' if len(ids) > 8 else ''}]"


def chat_template(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    template = checkpoint.chat_template
    if not template:
        return fail(
            "none",
            "",
            *because("/v1/chat/completions answers 400: the engine cannot turn messages into a prompt"),
            remedy=REPAIR,
        )
    if "<|assistant|>" not in template:
        return warn(
            "does not end a prompt with <|assistant|>",
            "",
            *because("it is not GLM-4's template: the model misses the point or never stops"),
            remedy="take the chat template of the base model",
        )
    tools = {True: "with tools", False: "without tools (`up --tools` brings a template with them)", None: ""}
    return ok(", ".join(filter(None, (plural(len(template), "character"), tools[takes_tools(template)]))))


def takes_tools(template: str) -> bool | None:
    """Whether it reads the functions that vLLM passes as `tools`; None if it cannot be read.

    The template of THUDM/glm-4-9b-chat reads them from a message instead, where vLLM never puts them.
    """
    if len(template) > MAX_TEMPLATE:
        return None
    try:
        return _reads_tools([Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(template)])
    except (TemplateError, RecursionError):
        return None


def _reads_tools(body: Iterable[nodes.Node]) -> bool:
    """Whether these nodes read `tools` before they set it themselves."""
    for node in body:
        if isinstance(node, nodes.Name) and (node.name, node.ctx) == ("tools", "load"):
            return True
        if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name) and node.target.name == "tools":
            return _reads_tools([node.node])
        for _, value in node.iter_fields():
            inner = value if isinstance(value, list) else [value]
            if _reads_tools(item for item in inner if isinstance(item, nodes.Node)):
                return True
    return False


def name(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    """The licence requires that a derived model's name starts with glm-4."""
    home = checkpoint.directory.resolve()
    own = home.parent.parent.name.split("--")[-1] if home.parent.name == "snapshots" else home.name
    if own.lower().startswith(PREFIX):
        return ok(repr(own))
    return warn(
        repr(own),
        f"a name that starts with {PREFIX}",
        *because("the glm-4-9b licence requires it of every derived model that is distributed"),
        remedy="rename the directory before you share it",
    )


def licence(checkpoint: Checkpoint, _target: TargetEngine) -> Result:
    text = any(file.name.lower().startswith(LICENCE_FILES) for file in checkpoint.files)
    built = "built with glm-4" in (checkpoint.readme or "").lower()
    if text and built:
        return ok("licence text and 'Built with glm-4' are present")
    missing = [*([] if text else ["no licence text"]), *([] if built else ["no 'Built with glm-4' in README.md"])]
    return warn(
        " and ".join(missing),
        "",
        *because("the glm-4-9b licence requires both if the model is distributed; commercial use needs a registration"),
        remedy="copy LICENSE from the base model; show 'Built with glm-4' in README.md",
    )


CHAT_RULES: dict[str, Rule] = {
    "tokenizer": tokenizer,
    "eos-ids": stops,
    "chat-template": chat_template,
    "name": name,
    "licence": licence,
}
