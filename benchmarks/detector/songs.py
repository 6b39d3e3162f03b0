"""Traditional songs (all in the public domain), as a singer would write them out: refrains, counting, cumulation."""

import random
from collections.abc import Iterator

from benchmarks.detector.documents import Text, legitimate


def green_bottles(top: int) -> str:
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    return "\n\n".join(
        f"{words[left].title()} green bottles hanging on the wall,\n{words[left].title()} green bottles hanging on the "
        f"wall,\nAnd if one green bottle should accidentally fall,\nThere'll be {words[left - 1]} green bottles hanging "
        "on the wall."
        for left in range(top, 0, -1)
    )


def bottles_of_beer(top: int) -> str:
    return "\n".join(
        f"{left} bottles of beer on the wall, {left} bottles of beer.\nTake one down and pass it around, "
        f"{left - 1} bottles of beer on the wall."
        for left in range(top, 0, -1)
    )


def macdonald(rng: random.Random) -> str:
    sounds = {"cow": "moo", "pig": "oink", "duck": "quack", "horse": "neigh", "sheep": "baa", "dog": "woof"}
    return "\n\n".join(
        f"Old MacDonald had a farm, E-I-E-I-O,\nAnd on that farm he had a {animal}, E-I-E-I-O.\n"
        f"With a {sound}-{sound} here and a {sound}-{sound} there,\nHere a {sound}, there a {sound}, everywhere a "
        f"{sound}-{sound},\nOld MacDonald had a farm, E-I-E-I-O."
        for animal, sound in rng.sample(sorted(sounds.items()), rng.randint(3, 6))
    )


def wheels(rng: random.Random) -> str:
    verses = [
        ("wheels", "go round and round, round and round, round and round"),
        ("wipers", "go swish, swish, swish, swish, swish, swish, swish, swish, swish"),
        ("horn", "goes beep, beep, beep, beep, beep, beep, beep, beep, beep"),
        ("babies", "go waa, waa, waa, waa, waa, waa, waa, waa, waa"),
    ]
    return "\n\n".join(
        f"The {what} on the bus {do},\nThe {what} on the bus {do.split(',')[0]},\nAll through the town."
        for what, do in rng.sample(verses, rng.randint(2, 4))
    )


def twelve_days() -> str:
    gifts = [
        "a partridge in a pear tree",
        "two turtle doves",
        "three French hens",
        "four calling birds",
        "five gold rings",
        "six geese a-laying",
        "seven swans a-swimming",
        "eight maids a-milking",
        "nine ladies dancing",
        "ten lords a-leaping",
        "eleven pipers piping",
        "twelve drummers drumming",
    ]
    days = [
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    ]
    return "\n\n".join(
        f"On the {day} day of Christmas my true love sent to me\n" + ",\n".join(reversed(gifts[: index + 1])) + "."
        for index, day in enumerate(days)
    )


def john_brown() -> str:
    lines = [
        "John Brown's body lies a-mouldering in the grave",
        "The stars above in heaven are looking kindly down",
        "He's gone to be a soldier in the army of the Lord",
    ]
    chorus = "Glory, glory, hallelujah!\nGlory, glory, hallelujah!\nGlory, glory, hallelujah!\nHis soul is marching on."
    return "\n\n".join(f"{line},\n{line},\n{line},\nBut his soul goes marching on.\n\n{chorus}" for line in lines)


def spiritual(rng: random.Random) -> str:
    who = rng.sample(
        ["brother", "sister", "mother", "father", "preacher", "deacon", "sinner", "captain"], rng.randint(3, 7)
    )
    return "\n\n".join(
        f"It's not my {one}, but it's me, O Lord,\nStanding in the need of prayer.\n"
        "It's me, it's me, it's me, O Lord,\nStanding in the need of prayer."
        for one in who
    )


def mantra(rng: random.Random) -> str:
    verse = "Hare Krishna, Hare Krishna,\nKrishna Krishna, Hare Hare,\nHare Rama, Hare Rama,\nRama Rama, Hare Hare."
    return "\n\n".join([verse] * rng.randint(2, 3))


def nonsense(rng: random.Random) -> str:
    unit = rng.choice(["la la la", "na na na na", "fa la la la la, la la la la", "hallelujah", "hey ho", "啦啦啦"])
    verse = f"We walk along the river in the {rng.choice(['morning', 'evening'])},\n"
    refrain = "\n".join([", ".join([unit] * rng.randint(2, 4))] * rng.randint(2, 3))
    return "\n\n".join([verse + refrain, "We sing a song that nobody has written,\n" + refrain, refrain])


def row_row(rng: random.Random) -> str:
    verse = (
        "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream."
    )
    jacques = "Frère Jacques, Frère Jacques,\nDormez-vous ? Dormez-vous ?\nSonnez les matines, sonnez les matines,\nDing, dang, dong. Ding, dang, dong."
    return "\n\n".join([rng.choice([verse, jacques])] * rng.randint(1, 3))


def outburst(rng: random.Random) -> str:
    noise = rng.choice(["Ha", "No", "Ah", "哈", "W", "ja", "😂", "!"]) * rng.randint(6, 24)
    return f"{noise}! I did not expect that at all. " + rng.choice(["", "Tell me more.", "-" * 60, "=" * 80, "~" * 40])


@legitimate("songs-and-refrains", "traditional songs")
def _(rng: random.Random) -> Iterator[Text]:
    makers = (macdonald, wheels, spiritual, mantra, nonsense, row_row, outburst)
    for _ in range(80):
        yield Text(text=rng.choice(makers)(rng))
    for top in (5, 10):
        yield Text(text=green_bottles(top), whole=True)
        yield Text(text=bottles_of_beer(top), whole=True)
    yield Text(text=bottles_of_beer(99), prompt="Write the full lyrics of 99 Bottles of Beer.", whole=True)
    yield Text(text=twelve_days(), whole=True)
    yield Text(text=john_brown(), whole=True)
