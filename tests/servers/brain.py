"""The reference endpoint's answers: enough to pass the suite without a model."""

import re
import zlib
from typing import Any

from glm4_deploy.fingerprint.model import Arithmetic, Bucket, Fingerprint, PrintedText, Tops
from glm4_deploy.probe.probe import canaries

ANSWERS = {
    "add": "42",
    "multiply": "144",
    "subtract": "663",
    "multiply-zh": "72",
    "recall-name": "Your name is Ada Lovelace, and you keep bees.",
    "recall-turns": "Bo",
    "capital-en": "Paris",
    "capital-zh": "北京",
    "person-json": '{"name": "Li Na", "age": 31}',
}
STORY_EN = """The lamp had been lit for an hour when Tom heard the first gust. He put down his book and went to the
window. Far out, beyond the reef, a single sail was fighting the tide. Nobody in the village would have left harbour on
such a night, so it had to be a stranger. He wound the clockwork twice, trimmed the wick and carried the spare oil up
the ninety stairs. By midnight rain was flying sideways and the tower hummed like a cello. Once, a wave climbed as high
as the gallery and left a silver fish flapping on the boards; he laughed and threw it back. Toward four the wind turned
west. The sail, torn but upright, slid past the rocks into calm water and someone on deck raised an arm. Tom wrote the
hour in his log, drank cold tea, and fell asleep with his boots on while grey daylight filled the room."""
STORY_ZH = """老人每天清晨都会沿着石阶走到海边。他的背有些驼，脚步却很稳。灯塔的白漆已经剥落，露出下面的红砖。
年轻的时候，他在这里守了二十年，认得每一条船的汽笛。如今灯光由电脑控制，没有人再需要他。可是他仍然带着一块抹布，
把底层的玻璃擦得干干净净。有一天，一个小女孩问他为什么。他想了想，说：船看不见我，可是我看得见船。女孩似懂非懂，
跑去捡贝壳了。傍晚起风，浪花打湿了他的裤脚，他站起来，慢慢往家走，身后亮起第一束光。"""
_BY_PROMPT = {canary.messages[-1]["content"]: canary for canary in canaries()}


def reply(messages: list[dict[str, str]]) -> str:
    """The answer to the last message of a chat."""
    prompt = messages[-1]["content"]
    needle = re.search(r"code word of the (\w+) is ([\w-]+)", prompt)
    if needle:
        return f"The code word is {needle[2]}."
    canary = _BY_PROMPT.get(prompt)
    if canary is None:
        return STORY_EN if "story" in prompt else "I have read it."
    if canary.count_to:
        return ", ".join(str(number) for number in range(1, canary.count_to + 1))
    if canary.id in ANSWERS:
        return ANSWERS[canary.id]
    return STORY_ZH if canary.id.endswith("zh") else STORY_EN


def tokens(text: str) -> list[str]:
    """Pieces of at most four characters after an optional space; their concatenation is the text."""
    return re.findall(r"\s?[^\s]{1,4}|\s", text)


def token_id(piece: str) -> int:
    return 10 + zlib.crc32(piece.encode()) % 100_000


def prompt_tokens(messages: list[dict[str, str]]) -> list[str]:
    pieces = ["[gMASK]", "<sop>"]
    for message in messages:
        pieces += [f"<|{message['role']}|>", "\n", *tokens(message["content"])]
    return [*pieces, "<|assistant|>", "\n"]


def logprob(piece: str) -> dict[str, Any]:
    value = -0.01 - (zlib.crc32(piece.encode()) % 90) / 100
    entry: dict[str, Any] = {"token": piece, "logprob": value, "bytes": list(piece.encode())}
    return entry | {"top_logprobs": [dict(entry)]}


def ranked(ids: list[int]) -> dict[int, float]:
    """The most likely tokens after these, best first, and their log probabilities."""
    last = ids[-1]
    return {(last * 7 + place) % 5000: value for place, value in enumerate((-0.4, -1.6, -2.6, -3.4, -4.2))}


def fingerprint() -> Fingerprint:
    """Of a model that answers as `ranked` says."""
    chat = ({"role": "user", "content": "What is 17 + 25? Answer with the number only."},)
    ids = tuple(token_id(piece) for piece in tokens("The lighthouse stood at the end of the long stone pier."))
    texts = [
        _printed(Bucket.ENGLISH, ids, text="The lighthouse stood at the end of the long stone pier."),
        _printed(
            Bucket.DIGITS, tuple(token_id(piece) for piece in tokens("1 2 3 4 5 6 7 8 9")), text="1 2 3 4 5 6 7 8 9"
        ),
        _printed(Bucket.CHAT, tuple(map(token_id, prompt_tokens(list(chat)))), messages=chat),
        _printed(Bucket.LONG_1K, tuple(range(1024)), points=(1000, 1010, 1020)),
    ]
    none = {Arithmetic.W4A16: {Arithmetic.W4A16: dict.fromkeys(Bucket, 0.0)}}
    return Fingerprint(kit="0", checkpoints={"nvfp4": "0" * 12}, tokenizer="0" * 64, texts=tuple(texts), expected=none)


def _printed(bucket: Bucket, ids: tuple[int, ...], **fields: Any) -> PrintedText:
    points = fields.pop("points", tuple(range(1, len(ids))))
    rows = [ranked(list(ids[:point])) for point in points]
    tops = Tops(ids=tuple(map(tuple, rows)), logprobs=tuple(tuple(row.values()) for row in rows))
    empty = {"text": "", "messages": ()}
    return PrintedText(bucket=bucket, ids=ids, points=points, tops={Arithmetic.W4A16: tops}, **(empty | fields))
