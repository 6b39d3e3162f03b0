"""Good texts made by rule: forms that are repetitive by nature, filled with varying content."""

import base64
import json
import random
import string
import textwrap
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from benchmarks.detector.documents import Text, legitimate
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NAMES, NOUNS, SAINTS, VERBS

EACH = 100
WRITTEN = "made by rule"


@legitimate("json-records", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        rows = [
            {
                "id": number,
                "name": f"{rng.choice(NAMES)} {rng.choice(NAMES)}son",
                "age": rng.randint(18, 90),
                "city": rng.choice(CITIES),
                "active": rng.random() < 0.7,
                "tags": rng.sample(NOUNS, rng.randint(0, 3)),
            }
            for number in range(1, rng.randint(6, 60))
        ]
        yield Text(text=json.dumps(rows, indent=rng.choice([None, 2, 4])))


@legitimate("json-plain-arrays", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        size = rng.randint(20, 300)
        rows: list[object] = rng.choice(
            [
                list(range(1, size)),
                [rng.randint(0, 9) for _ in range(size)],
                [rng.random() < 0.5 for _ in range(size)],
                [round(rng.gauss(0, 1), 3) for _ in range(size)],
                [[rng.randint(0, 1) for _ in range(10)] for _ in range(size // 10)],
                [f"item_{number}" for number in range(1, size // 4)],
                [[int(row == column) for column in range(12)] for row in range(12)],
                [{"id": number, "email": f"user{number}@example.com"} for number in range(1, size // 6)],
                [0] * rng.randint(8, 64),
                [None] * rng.randint(4, 30),
            ]
        )
        yield Text(text=json.dumps(rows), whole=True)


@legitimate("csv", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        lines = ["id,date,name,city,amount,status"]
        for number in range(1, rng.randint(10, 120)):
            date = f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
            status = rng.choice(["paid", "open", "late"])
            lines.append(f"{number},{date},{rng.choice(NAMES)},{rng.choice(CITIES)},{rng.uniform(5, 900):.2f},{status}")
        yield Text(text="\n".join(lines))


@legitimate("csv-sensor", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        value = 20.0
        lines = ["timestamp,sensor,value,unit"]
        for number in range(rng.randint(20, 150)):
            value += rng.gauss(0, 0.2)
            lines.append(f"2024-05-01T{number // 60:02d}:{number % 60:02d}:00Z,s1,{value:.1f},C")
        yield Text(text="\n".join(lines))


@legitimate("svg-made", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        size, step = rng.randint(6, 40), rng.randint(8, 30)
        shape = rng.choice(
            [
                lambda i, step=step: (
                    f'  <rect x="{i * step}" y="{rng.randint(0, 90)}" width="{step - 2}" height="20"/>'
                ),
                lambda i, step=step: f'  <circle cx="{i * step}" cy="50" r="4" fill="black"/>',
                lambda i, step=step: f'  <line x1="{i * step}" y1="0" x2="{i * step}" y2="400" stroke="#ccc"/>',
            ]
        )
        body = "\n".join(shape(number) for number in range(size))
        yield Text(text=f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 400">\n{body}\n</svg>', whole=True)


@legitimate("access-logs", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        lines, second = [], rng.randint(0, 3000)
        for _ in range(rng.randint(12, 100)):
            second += rng.randint(0, 30)
            clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
            lines.append(
                rng.choice(
                    [
                        f"10.0.{rng.randint(0, 9)}.{rng.randint(1, 254)} - - [12/May/2024:{clock} +0000] "
                        f'"GET /{rng.choice(NOUNS)} HTTP/1.1" {rng.choice([200, 200, 200, 304, 404])} {rng.randint(90, 9999)}',
                    ]
                )
            )
        yield Text(text="\n".join(lines))


@legitimate("heartbeat-logs", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        every, message = rng.choice([1, 5, 10, 30]), rng.choice(["heartbeat ok", "health check passed", "sync: 0 new"])
        lines = [
            f"2024-05-01 {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d} INFO [{rng.choice(NOUNS)}] {message}"
            if rng.random() < 0.2
            else f"2024-05-01 {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d} INFO [main] {message}"
            for second in range(0, every * rng.randint(10, 60), every)
        ]
        yield Text(text="\n".join(lines), whole=True)


@legitimate("multiplication-tables", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        low, high, top = rng.randint(1, 8), rng.randint(9, 15), rng.choice([10, 10, 12, 12, 15, 20])
        sign = rng.choice(["x", "×", "*", "times"])
        rows = [
            "\n".join(f"{number} {sign} {times} = {number * times}" for times in range(1, top + 1))
            for number in (range(low, high) if rng.random() < 0.5 else [low])
        ]
        prompt = rng.choice([None, f"Write the multiplication table of {low}.", f"请写出{low}的乘法表"])
        yield Text(text="\n\n".join(rows), prompt=prompt, whole=True)


@legitimate("counting-asked-for", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        top = rng.choice([20, 30, 50, 100, 100, 160, 200, 256, 300, 500, 1000])
        numbers = list(range(1, top + 1))
        if rng.random() < 0.2:
            numbers.reverse()
        between = rng.choice([", ", "\n", " ", ",", "、"])
        asked = [f"Count from {numbers[0]} to {numbers[-1]}.", f"从{numbers[0]}数到{numbers[-1]}", None]
        prompt = rng.choice(asked)
        made = rng.choice(["{}", "{}", "{}.", "Line {}", "{} sheep"]) if prompt else "{}"
        if made not in ("{}", "{}."):
            prompt = f"Write '{made.format('N')}' for every N from {numbers[0]} to {numbers[-1]}."
        yield Text(text=between.join(made.format(number) for number in numbers), prompt=prompt, whole=True)


@legitimate("repeating-asked-for", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        times = rng.choice([10, 20, 30, 50, 100, 200])
        unit = rng.choice([rng.choice(NOUNS), f"I will not {rng.choice(VERBS)} in class.", "好", "ha", "Hello, world!"])
        prompt = rng.choice(
            [f'Repeat "{unit}" {times} times.', f'Write "{unit}" {times} times.', f"请把“{unit}”重复{times}遍。"]
        )
        yield Text(text=rng.choice([" ", "\n", ", "]).join([unit] * times), prompt=prompt, whole=True)


@legitimate("litanies", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    answers = ["pray for us.", "have mercy on us.", "deliver us, O Lord.", "we thank you, Lord.", "为我们祈祷。"]
    for _ in range(EACH):
        answer = rng.choice(answers)
        saints = rng.sample(SAINTS, rng.randint(10, len(SAINTS)))
        head = rng.choice(["Saint {}, ", "St. {},\n", "Holy {}, ", "{}, "])
        yield Text(text="\n".join(head.format(saint) + answer for saint in saints), whole=rng.random() < 0.7)


@legitimate("form-letters", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    body = (
        "Dear {name},\n\nThank you for your order of {count} {noun}s. We have shipped it to {city} on {day} May. "
        "Please keep this letter; you will need the number {number} if you write to us.\n\nYours sincerely,\nThe {adjective} shop\n"
    )
    for _ in range(EACH):
        yield Text(
            text="\n".join(
                body.format(
                    name=rng.choice(NAMES),
                    count=rng.randint(2, 40),
                    noun=rng.choice(NOUNS),
                    city=rng.choice(CITIES),
                    day=rng.randint(1, 30),
                    number=rng.randint(10000, 99999),
                    adjective=rng.choice(ADJECTIVES),
                )
                for _ in range(rng.randint(2, 5))
            )
        )


@legitimate("base64", "binaries of this machine, encoded")
def _(rng: random.Random) -> Iterator[Text]:
    for raw in binaries(rng, EACH):
        width = rng.choice([76, 64, 0])
        text = base64.b64encode(raw).decode()
        yield Text(text="\n".join(textwrap.wrap(text, width)) if width else text)


@legitimate("hex-dumps", "binaries of this machine, as xxd and hexdump -C show them")
def _(rng: random.Random) -> Iterator[Text]:
    for raw in binaries(rng, EACH):
        wide = rng.random() < 0.5
        lines = []
        for offset in range(0, len(raw), 16):
            row = raw[offset : offset + 16]
            shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            if wide:
                lines.append(f"{offset:08x}: {row.hex(' ', 2):<39}  {shown}")
            else:
                lines.append(f"{offset:08x}  {row[:8].hex(' ')}  {row[8:].hex(' ')}  |{shown}|")
        yield Text(text="\n".join(lines))


def binaries(rng: random.Random, count: int) -> Iterator[bytes]:
    paths = [path for path in sorted(glob("/usr/bin/*")) if Path(path).stat().st_size > 20000]
    for _ in range(count):
        raw = Path(rng.choice(paths)).read_bytes()
        start = rng.randrange(0, len(raw) - 4000) if rng.random() < 0.7 else 0
        yield raw[start : start + rng.randint(300, 2400)]


@legitimate("random-strings", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        letters = rng.choice(
            [string.hexdigits[:16], string.ascii_letters + string.digits, "01", "ACGT", "HT", "🙂🎉🚀"]
        )
        lines = ["".join(rng.choices(letters, k=rng.choice([16, 32, 64]))) for _ in range(rng.randint(3, 40))]
        yield Text(text="\n".join(lines))


@legitimate("boards-and-grids", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        rows, columns = rng.randint(3, 12), rng.randint(3, 12)
        edge = "+---" * columns + "+"
        kind = rng.randrange(4)
        if kind == 0:
            text = "\n".join([edge, *(f"{'|   ' * columns}|\n{edge}" for _ in range(rows))])
        elif kind == 1:
            text = "\n".join("".join(rng.choice("# .") for _ in range(columns * 3)) for _ in range(rows))
        elif kind == 2:
            text = "\n".join(" ".join("." * columns) for _ in range(rows))
        else:
            text = "| Name | Date | Signature |\n|---|---|---|\n" + "|  |  |  |\n" * rows
        yield Text(text=f"Here it is:\n\n```\n{text}\n```\n\nFill it in as you like.", whole=True)


@legitimate("sql-and-markup", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        size = rng.randint(8, 60)
        if rng.random() < 0.5:
            rows = [
                f"INSERT INTO users (id, name, city) VALUES ({number}, '{rng.choice(NAMES)}', '{rng.choice(CITIES)}');"
                for number in range(1, size)
            ]
        else:
            rows = [
                f'  <tr><td class="n">{number}</td><td>{rng.choice(NOUNS)}</td><td>{rng.randint(1, 99)}</td></tr>'
                for number in range(1, size)
            ]
        yield Text(text="\n".join(rows))


@legitimate("enumerations-with-content", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        head = rng.choice(["Step {}: ", "{}. ", "Day {}: ", "第{}步：", "Chapter {}. "])
        lines = []
        for number in range(1, rng.randint(8, 40)):
            words = f"{rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} near {rng.choice(CITIES)}"
            lines.append(head.format(number) + rng.choice(["First ", "Then ", "Now "]) + words + ".")
        yield Text(text="\n".join(lines))


@legitimate("sequences", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    for _ in range(EACH):
        size = rng.randint(20, 120)
        kind = rng.randrange(5)
        if kind == 0:
            values = [number * number for number in range(size)]
        elif kind == 1:
            values = [number for number in range(2, 600) if all(number % part for part in range(2, number))][:size]
        elif kind == 2:
            values = [round(number * 9 / 5 + 32, 1) for number in range(size)]  # type: ignore[misc]
            yield Text(text="\n".join(f"{number} °C = {value} °F" for number, value in enumerate(values)), whole=True)
            continue
        elif kind == 3:
            values = [rng.randint(1, 6) for _ in range(size)]
        else:
            values = [2**number for number in range(size // 3)]
        yield Text(text=", ".join(map(str, values)))


@legitimate("calendars-and-timetables", WRITTEN)
def _(rng: random.Random) -> Iterator[Text]:
    import calendar

    for _ in range(EACH):
        if rng.random() < 0.5:
            text = calendar.TextCalendar().formatyear(rng.randint(1950, 2050))
        else:
            step = rng.choice([10, 15, 20, 30])
            text = "\n".join(
                f"{minute // 60:02d}:{minute % 60:02d}  bus {rng.randint(1, 90)} to {rng.choice(CITIES)}"
                for minute in range(360, rng.randint(600, 1300), step)
            )
        yield Text(text=text, whole=True)
