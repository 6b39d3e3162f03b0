"""Talk to an engine with tools through OpenAI's own Python client, as an application does.

    PYTHON tool_clients.py BASE_URL      # a Python with `openai`, as every vLLM's is

The demo model knows no tools, so each request says what the model must write (structured output): tokens, detokenizer,
tool parser, server and client are real, the choice of words is not. Output, on the last line: JSON, by scene.
"""

import json
import sys
from typing import Any

from openai import OpenAI

MODEL = "glm-4-9b-chat"
NAMES = ("get_weather", "get_time")
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in NAMES
]
WEATHER, TIME = 'get_weather\n{"city": "Paris"}', 'get_time\n{"city": "北京"}'
SCENES = {
    "call": WEATHER,
    "two": f"{WEATHER}<|assistant|>{TIME}",
    "text, call": f"\nLet me see.<|assistant|>{TIME}",
    "text": "\nHello there.",
    "word": "Yes",
    "malformed": 'get_weather\n{"city": Paris}',
}
CUT = 'get_weather\n{"city": "' + "no end " * 80 + '"}'  # 60 tokens reach the arguments, and not their end
QUESTION: Any = {"role": "user", "content": "What about Paris?"}


def shown(choice: Any) -> dict[str, Any]:
    calls = choice.message.tool_calls or []
    return {
        "content": choice.message.content,
        "calls": [[call.function.name, call.function.arguments] for call in calls],
        "ids": len({call.id for call in calls}),
        "finish": choice.finish_reason,
    }


class Chat:
    def __init__(self, base_url: str) -> None:
        self.client = OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=300)

    def fields(self, text: str, messages: list[Any], limit: int) -> dict[str, Any]:
        must = {"structured_outputs": {"choice": [text]}}
        return {
            "model": MODEL, "messages": messages, "tools": TOOLS, "max_tokens": limit, "temperature": 0,
            "extra_body": must,
        }  # fmt: skip

    def whole(self, text: str, messages: list[Any], limit: int = 300) -> Any:
        return self.client.chat.completions.create(**self.fields(text, messages, limit)).choices[0]

    def streamed(self, text: str, messages: list[Any], limit: int = 300) -> tuple[dict[str, Any], int]:
        """The stream put together by hand, and how many chunks had a piece of arguments."""
        content, calls, finish, pieces = "", {}, None, 0
        for chunk in self.client.chat.completions.create(**self.fields(text, messages, limit), stream=True):
            for choice in chunk.choices:
                content += choice.delta.content or ""
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or ():
                    row = calls.setdefault(call.index, ["", "", set()])
                    if call.id:
                        row[2].add(call.id)
                    if call.function:
                        row[0] += call.function.name or ""
                        row[1] += call.function.arguments or ""
                        pieces += bool(call.function.arguments)
        ids = set().union(*(row[2] for row in calls.values()))
        rows = [row[:2] for _, row in sorted(calls.items())]
        return {"content": content, "calls": rows, "ids": len(ids), "finish": finish}, pieces

    def loop(self) -> dict[str, Any]:
        """An agent of three steps: it calls a tool, sees the result, calls another, and answers."""
        messages, steps, prompts = [QUESTION], [], []
        for text in (WEATHER, TIME, "\nIt is 22 degrees and nine o'clock."):
            answer = self.client.chat.completions.create(**self.fields(text, messages, 300))
            message = answer.choices[0].message
            steps.append(shown(answer.choices[0]))
            prompts.append(answer.usage.prompt_tokens if answer.usage else 0)
            messages.append(message.model_dump(exclude_none=True, exclude={"reasoning", "reasoning_content"}))
            for call in message.tool_calls or ():
                city = json.loads(call.function.arguments)["city"]
                result = json.dumps({"of": city, "by": call.function.name}, ensure_ascii=False)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        body = {"model": MODEL, "messages": messages[:-1], "tools": TOOLS, "return_token_strs": True}
        tokens = self.client.post("/../tokenize", body=body, cast_to=object)["tokens"]  # type: ignore[index]
        prompt = self.client.post("/../detokenize", body={"model": MODEL, "tokens": tokens}, cast_to=object)
        return {"steps": steps, "prompts": prompts, "prompt": prompt["prompt"]}  # type: ignore[index]


def main(base_url: str) -> None:
    chat = Chat(base_url)
    found: dict[str, Any] = {"whole": {}, "streamed": {}, "pieces": {}}
    for name, text in SCENES.items():
        found["whole"][name] = shown(chat.whole(text, [QUESTION]))
        found["streamed"][name], found["pieces"][name] = chat.streamed(text, [QUESTION])
    found["cut"] = {"whole": shown(chat.whole(CUT, [QUESTION], 60)), "streamed": chat.streamed(CUT, [QUESTION], 60)[0]}
    found["loop"] = chat.loop()
    print("\n" + json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1])
