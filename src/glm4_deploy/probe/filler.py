"""Long prompts with no loop in them: a log of days, each line unlike the others, sized by the server's own counts."""

from dataclasses import dataclass

from glm4_deploy.probe.probe import Probe

_WIND = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
_SKY = ("fog until noon", "clear sky", "low cloud", "hail at dusk", "thin rain", "a red dawn", "stars all night")
_SHIP = (
    "Aurora",
    "Marlin",
    "Petrel",
    "Saturn",
    "Juniper",
    "Kestrel",
    "Cormorant",
    "Harvest",
    "Mistral",
    "Osprey",
    "Vega",
)
_LOAD = (
    "timber",
    "salt",
    "wheat",
    "iron",
    "wool",
    "letters",
    "lamp oil",
    "cider",
    "slate",
    "rope",
    "apples",
    "tin",
    "tea",
)


def line(day: int) -> str:
    """Days 0 to 8007 are all different (8, 7, 11 and 13 share no factor)."""
    return (
        f"Day {day}: wind from the {_WIND[day % 8]}, {_SKY[day % 7]}. "
        f"The {_SHIP[day % 11]} passed with {_LOAD[day % 13]}."
    )


def days(first: int, count: int) -> list[str]:
    return [line(first + number) for number in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What a line costs on this server: prompt tokens = fixed + per_line * lines, by two measurements."""

    fixed: float
    per_line: float

    def lines(self, tokens: int) -> int:
        """How many lines make a prompt of about this many tokens."""
        return max(0, int((tokens - self.fixed) / self.per_line))


async def measure(probe: Probe) -> Scale | None:
    """None where the server counts no prompt tokens."""
    counts = []
    for lines in (2, 12):
        messages = [{"role": "user", "content": "\n".join(days(100, lines))}]
        answer = await probe.ask(messages, 1, stream=False, prompt_tokens=1)
        counts.append(answer.usage.prompt if answer.usage else None)
    short, long = counts
    if short is None or long is None or long <= short:
        return None
    per_line = (long - short) / 10
    return Scale(fixed=max(0.0, short - 2 * per_line), per_line=per_line)
