"""Good texts that look like loops or salad: real files of many kinds and languages, and answers to unusual requests."""

import glob
import gzip
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
from benchmarks.detector.documents import Text
from benchmarks.detector.legit_real import some
from benchmarks.detector.sick_made import paragraph, sentence
from benchmarks.detector.threads import EACH
from benchmarks.detector.wordstock import ADJECTIVES, CITIES, NAMES, NOUNS, VERBS

NUMPY = str(Path(numpy.__file__).parent)
FAMILIES: dict[str, tuple[str, Callable[[random.Random], Iterator[Text]]]] = {}
REAL = {
    # name: glob pattern
    "manuals-nordic": "/usr/share/man/[dsf][aiv]/man*/*.gz",
    "manuals-romance": "/usr/share/man/[efpir][rsto]/man*/*.gz",
    "manuals-slavic": "/usr/share/man/[csphu][lrsk]/man*/*.gz",
    "manuals-turkish-hungarian-indonesian": "/usr/share/man/[thi][rud]/man*/*.gz",
    "manuals-korean-japanese": "/usr/share/man/[kj][oa]/man*/*.gz",
    "manuals-ukrainian": "/usr/share/man/uk/man*/*.gz",
    "manuals-english-troff": "/usr/share/man/man[1358]/*.gz",
    "locales": "/usr/share/i18n/locales/*",
    "charmaps": "/usr/share/i18n/charmaps/*.gz",
    "keyboard-layouts": "/usr/share/X11/xkb/symbols/*",
    "mime-types": "/usr/share/mime/packages/*.xml",
    "fortran": f"{NUMPY}/**/*.f90",
    "protobuf": "/usr/lib/google-cloud-sdk/lib/**/*.proto",
    "javascript": "/usr/lib/node_modules/npm/**/*.js",
    "css": "/usr/share/javascript/**/*.css",
    "tcl": "/usr/share/tcltk/**/*.tcl",
    "perl": "/usr/share/perl/5*/**/*.pm",
    "vim-syntax": "/usr/share/vim/vim90/**/*.vim",
    "release-notes": "/usr/share/doc/*/NEWS*.gz",
    "changelogs-upstream": "/usr/share/doc/*/changelog.gz",
    "readmes": "/usr/lib/node_modules/npm/**/README.md",
    "cloud-api-yaml": "/usr/lib/google-cloud-sdk/lib/surface/**/*.yaml",
    "numeric-csv": f"{NUMPY}/random/tests/data/*.csv",
    "zsh-and-fish-completions": "/usr/share/[fz][is][sh]*/**/*",
    "cmake": "/usr/share/cmake*/Modules/**/*.cmake",
    "terminfo-and-groff": "/usr/share/groff/*/tmac/*.tmac",
    "dpkg-lists": "/var/lib/dpkg/info/*.list",
    "maintainer-scripts": "/var/lib/dpkg/info/*.postinst",
    "shared-objects-symbols": "/var/lib/dpkg/info/*.symbols",
    "python-records": "/usr/lib/python3/dist-packages/*/RECORD",
    "header-tables": "/usr/include/linux/**/*.h",
    "glade-and-gtk": "/usr/share/gtk-3.0/**/*.ui",
    "postgres-sql": "/usr/share/postgresql/**/*.sql",
    "gettext-examples": "/usr/share/doc/gettext/**/*",
}


def _files(pattern: str) -> Callable[[random.Random], Iterator[Text]]:
    return lambda rng: (Text(text=text) for text in some(pattern, rng, EACH))


FAMILIES.update({name: (pattern, _files(pattern)) for name, pattern in REAL.items()})


def good(name: str) -> Callable[[Callable[[random.Random], Text]], None]:
    def register(maker: Callable[[random.Random], Text]) -> None:
        FAMILIES[name] = ("made by rule", lambda rng: (maker(rng) for _ in range(EACH)))

    return register


def asked(prompt: str | None, text: str) -> Text:
    return Text(text=text, prompt=prompt, whole=True)


# Output of programs


@good("recursion-traceback")
def _(rng: random.Random) -> Text:
    frame = f'  File "/srv/app/{rng.choice(NOUNS)}.py", line {rng.randrange(9, 99)}, in {rng.choice(VERBS)}\n    return {rng.choice(VERBS)}(node.next, depth + 1)\n'
    return asked("Why does this crash?", "The traceback shows unbounded recursion:\n\n```\nTraceback (most recent call last):\n" + frame * rng.randint(3, 12)
                 + "  [Previous line repeated 977 more times]\nRecursionError: maximum recursion depth exceeded\n```\n\n" + paragraph(rng, 3))  # fmt: skip


@good("pip-already-satisfied")
def _(rng: random.Random) -> Text:
    lines = [f"Requirement already satisfied: {a}-{b}>={rng.randrange(9)}.{rng.randrange(9)} in /usr/lib/python3/dist-packages (from app) ({rng.randrange(9)}.{rng.randrange(20)}.{rng.randrange(9)})\n"
             for a in rng.sample(NOUNS, 8) for b in rng.sample(NOUNS, 3)]  # fmt: skip
    return asked(None, "".join(lines))


@good("ping-and-progress")
def _(rng: random.Random) -> Text:
    host = f"10.0.{rng.randrange(255)}.{rng.randrange(255)}"
    if rng.random() < 0.5:
        return asked(
            None,
            "".join(
                f"64 bytes from {host}: icmp_seq={n} ttl=63 time={rng.uniform(0.2, 3):.2f} ms\n"
                for n in range(1, rng.randint(12, 60))
            )
            + f"--- {host} ping statistics ---\n",
        )
    return asked(
        None,
        "".join(
            f"Epoch {n}/40 [{'=' * (n % 20)}>] loss: {rng.uniform(0.1, 2):.4f} - acc: {rng.uniform(0.5, 1):.4f}\n"
            for n in range(1, 41)
        ),
    )


@good("test-report")
def _(rng: random.Random) -> Text:
    names = [
        f"tests/test_{noun}.py::test_{verb}_{rng.choice(ADJECTIVES)}"
        for noun in rng.sample(NOUNS, 9)
        for verb in rng.sample(VERBS, 4)
    ]
    return asked(
        None,
        "".join(
            f"{name} {rng.choice(['PASSED', 'PASSED', 'PASSED', 'SKIPPED'])} [{100 * n // len(names):3}%]\n"
            for n, name in enumerate(names, 1)
        )
        + "\n=== 36 passed in 4.2s ===\n",
    )


@good("directory-listing")
def _(rng: random.Random) -> Text:
    out = subprocess.run(
        [
            "ls",
            "-lR",
            rng.choice(["/etc", "/usr/share/perl5", "/usr/share/doc/python3", "/usr/lib/python3/dist-packages"]),
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    at = rng.randrange(max(len(out) - 5000, 1))
    return Text(text=out[at : at + rng.randint(800, 5000)])


@good("strace-like")
def _(rng: random.Random) -> Text:
    calls = [
        'openat(AT_FDCWD, "/lib/x86_64-linux-gnu/lib{}.so.6", O_RDONLY|O_CLOEXEC) = 3\n',
        'read(3, "\\177ELF\\2\\1\\1", 832) = 832\n',
        "close(3) = 0\n",
        "mmap(NULL, {}, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7f{}\n",
    ]
    return Text(
        text="".join(rng.choice(calls).format(rng.choice(NOUNS), f"{rng.randrange(1 << 32):x}") for _ in range(60))
    )


@good("tokenizer-dump")
def _(rng: random.Random) -> Text:
    return asked(
        "Show me how the tokenizer splits this text",
        "| # | id | token |\n|---|---|---|\n"
        + "".join(
            f"| {n} | {rng.randrange(150000)} | `{'▁' * rng.randrange(2)}{rng.choice(NOUNS)[: rng.randint(1, 5)]}` |\n"
            for n in range(rng.randint(30, 90))
        ),
    )


# Repetition and counts on request, in many languages


REQUESTS = [
    ("Escribe la frase «no llegaré tarde» 40 veces", "No llegaré tarde.\n", 40),
    ("Schreib 30 mal: Ich soll nicht schwatzen.", "Ich soll nicht schwatzen.\n", 30),
    ("Napiš stokrát větu 'Nebudu zlobit' (100x)", "Nebudu zlobit. ", 100),
    ('Skriv "jag älskar dig" 50 gånger', "jag älskar dig ", 50),
    ("Напиши 60 раз: Я больше не буду", "Я больше не буду. ", 60),
    ("「ありがとう」を80回書いてください", "ありがとう", 80),
    ("'감사합니다'를 70번 반복해", "감사합니다 ", 70),
    ("اكتب 'شكرا' 45 مرة", "شكرا ", 45),
    ("请把“我会努力学习”抄写50遍", "我会努力学习。\n", 50),
    ("Print the string na 64 times followed by Batman", "na ", 64),
    ("give me 48 dots in a row please", ". ", 48),
    ("Tulis 'saya minta maaf' sebanyak 40 kali", "Saya minta maaf. ", 40),
    ("Yaz: 'seni seviyorum' 30 kere", "seni seviyorum\n", 30),
    ("Écris 35 fois « je dois faire mes devoirs »", "Je dois faire mes devoirs.\n", 35),
    ("Viết 'xin lỗi' 50 lần", "xin lỗi ", 50),
    ("Γράψε 40 φορές 'καλημέρα'", "καλημέρα ", 40),
]


@good("repeat-in-any-language")
def _(rng: random.Random) -> Text:
    prompt, unit, times = rng.choice(REQUESTS)
    return asked(prompt, rng.choice(["", "Sure!\n\n", "```\n"]) + unit * times)


@good("count-in-any-language")
def _(rng: random.Random) -> Text:
    prompt, form, last = rng.choice([("Zähle von 1 bis 80", "{}\n", 80), ("Conta fino a 60", "{}, ", 60), ("1から100まで数えて", "{}\n", 100), ("Посчитай до 75", "{} ", 75),
                                     ("Count down from 50, one sentence each", "Number {} is on the board.\n", 50), ("Cuenta hasta 90", "{}, ", 90), ("1부터 60까지 세어줘", "{} ", 60),
                                     ("List the 80 seats of the hall", "Seat {}: free.\n", 80)])  # fmt: skip
    return asked(prompt, "".join(form.format(n) for n in range(1, last + 1)))


@good("sheep-and-breathing")
def _(rng: random.Random) -> Text:
    if rng.random() < 0.5:
        return asked(
            "Count sheep for me until I fall asleep",
            "".join(f"{n} sheep jump over the fence. " for n in range(1, rng.randint(30, 70))) + "Good night.",
        )
    return asked(
        "Guide me through a breathing exercise of 12 rounds",
        "".join(f"Round {n}: Breathe in for four counts. Hold for four. Breathe out for six.\n" for n in range(1, 13)),
    )


@good("drills-and-exercises")
def _(rng: random.Random) -> Text:
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    lines = [
        f"{n}. {name} ______ ({verb}) the {noun} every day.\n"
        for n, name in enumerate(rng.sample(NAMES, min(15, len(NAMES))), 1)
    ]
    return asked(
        "Make a grammar worksheet with 15 gaps",
        "Fill in the gaps.\n\n" + "".join(lines) + "\nKey: " + ", ".join(f"{verb}s" for _ in lines),
    )


@good("conjugations")
def _(rng: random.Random) -> Text:
    stems = rng.sample(["parl", "cant", "am", "port", "compr", "pag", "lav", "mand", "pens", "guard"], 6)
    ends = [("io", "o"), ("tu", "i"), ("lui", "a"), ("noi", "iamo"), ("voi", "ate"), ("loro", "ano")]
    return asked(
        "Coniuga i verbi al presente",
        "".join(f"**{stem}are**\n" + "".join(f"- {who} {stem}{end}\n" for who, end in ends) + "\n" for stem in stems),
    )


@good("typing-lesson")
def _(rng: random.Random) -> Text:
    return asked(
        "Give me a typing drill for the home row",
        "\n".join(
            " ".join(rng.choice(["asdf", "jkl;", "fdsa", "aj sk", "fj dk", "sad lad", "all fall"]) for _ in range(8))
            for _ in range(rng.randint(8, 24))
        ),
    )


@good("empty-rows-and-templates")
def _(rng: random.Random) -> Text:
    rows = rng.randint(10, 40)
    return asked(
        f"Make a CSV template with {rows} blank rows and 5 columns", "date,name,in,out,note\n" + ",,,,\n" * rows
    )


@good("villanelle-and-pantoum")
def _(rng: random.Random) -> Text:
    a, b = sentence(rng).strip(), sentence(rng).strip()
    stanzas = "\n\n".join(f"{sentence(rng)}\n{sentence(rng)}\n{rng.choice([a, b])}" for _ in range(5))
    return asked("Write a villanelle", f"{a}\n{sentence(rng)}\n{b}\n\n{stanzas}\n{a}\n{b}")


@good("lullaby-and-campfire")
def _(rng: random.Random) -> Text:
    line, last = f"Row, row the {rng.choice(NOUNS)},", f"gently to the {rng.choice(NOUNS)}.\n"
    return asked(
        "Make up a campfire song with ten verses",
        "\n".join(
            f"{line}\n{rng.choice(VERBS)}, {rng.choice(VERBS)}, the {rng.choice(NOUNS)},\n{line}\n{last}"
            for _ in range(10)
        ),
    )


@good("dialogue-with-formulas")
def _(rng: random.Random) -> Text:
    return asked("Write a customs dialogue for actors", "".join(f"OFFICER: Next, please. Your passport?\n{name.upper()}: Here you are.\nOFFICER: Anything to declare?\n{name.upper()}: One {rng.choice(NOUNS)}.\nOFFICER: Thank you. Have a good stay.\n\n"
                 for name in rng.sample(NAMES, 7)))  # fmt: skip


@good("recitals")
def _(rng: random.Random) -> Text:
    return Text(
        text="RESOLUTION\n\n"
        + "".join(f"WHEREAS, {sentence(rng).strip().rstrip('.')}; and\n\n" for _ in range(rng.randint(6, 16)))
        + "NOW, THEREFORE, BE IT RESOLVED that "
        + sentence(rng)
    )


@good("about-loops")
def _(rng: random.Random) -> Text:
    unit = rng.choice(["the the ", "GGGG", "I'm sorry, but ", "很好", "!!!!", "Wait, no. "])
    return asked(
        rng.choice([None, "What does a repetition loop look like?"]),
        f"{paragraph(rng, 2)} A broken model might answer:\n\n> {unit * rng.randint(10, 60)}\n\nor, in a log,\n\n```\n{unit * rng.randint(20, 90)}\n```\n\n{paragraph(rng, 4)}",
    )


@good("glyphs-and-ipa")
def _(rng: random.Random) -> Text:
    sounds = [*"pbtdkɡfvθðszʃʒhmnŋlɹjwɪeæɒʊʌə", "iː", "ɑː", "ɔː", "uː", "ɜː"]
    return asked(
        "Transcribe these words into IPA",
        "".join(f"- {noun}: /ˈ{''.join(rng.choices(sounds, k=len(noun) - 1))}/\n" for noun in rng.sample(NOUNS, 25)),
    )


@good("word-list-requested")
def _(rng: random.Random) -> Text:
    words = [a + " " + b for a in rng.sample(ADJECTIVES, min(9, len(ADJECTIVES))) for b in rng.sample(NOUNS, 9)]
    return asked(
        rng.choice(["Give me random word pairs as passphrases", "80 random two-word code names please"]),
        rng.choice(["\n", ", ", " "]).join(words),
    )


@good("emoji-story")
def _(rng: random.Random) -> Text:
    return asked(
        "Tell the story in emoji only",
        "".join(rng.choices("😀👧🐶🏠🌲🌧️☔🚲🏖️🌊🐚🌅🚂🏔️❄️⛷️☕📚🎻🌙⭐😴🎈🎂🍎🥖🧀🐱🐭🦊🌻🌵", k=rng.randint(40, 160))),
    )


@good("multilingual-greetings")
def _(rng: random.Random) -> Text:
    pairs = [("English", "Good morning"), ("Русский", "Доброе утро"), ("日本語", "おはようございます"), ("한국어", "좋은 아침"), ("العربية", "صباح الخير"), ("हिन्दी", "सुप्रभात"), ("Ελληνικά", "Καλημέρα"),
             ("עברית", "בוקר טוב"), ("ไทย", "สวัสดีตอนเช้า"), ("中文", "早上好"), ("ქართული", "დილა მშვიდობისა"), ("Հայերեն", "Բարի լույս"), ("Tiếng Việt", "Chào buổi sáng"), ("Türkçe", "Günaydın")]  # fmt: skip
    return asked(
        "Say good morning in many languages",
        "".join(rng.choice(["- **{}**: {}\n", "{} – {}\n"]).format(*pair) for pair in rng.sample(pairs, 14)),
    )


@good("translation-of-words")
def _(rng: random.Random) -> Text:
    pairs = [("水", "water", "вода"), ("火", "fire", "огонь"), ("山", "mountain", "гора"), ("川", "river", "река"), ("空", "sky", "небо"), ("海", "sea", "море"), ("石", "stone", "камень"), ("木", "tree", "дерево"),
             ("花", "flower", "цветок"), ("鳥", "bird", "птица"), ("魚", "fish", "рыба"), ("犬", "dog", "собака"), ("猫", "cat", "кошка"), ("家", "house", "дом"), ("道", "road", "дорога")]  # fmt: skip
    return asked(
        "Make flash cards Japanese-English-Russian", "".join(f"{a} = {b} = {c}; " for a, b, c in rng.sample(pairs, 15))
    )


@good("python-help")
def _(rng: random.Random) -> Text:
    name = rng.choice(
        ["argparse", "re", "json", "datetime", "pathlib", "random", "decimal", "collections", "statistics", "textwrap"]
    )
    out = subprocess.run([sys.executable, "-m", "pydoc", name], capture_output=True, text=True, check=False).stdout
    at = rng.randrange(max(len(out) - 5000, 1))
    return Text(text=out[at : at + rng.randint(900, 5000)])


@good("git-log-and-diff")
def _(rng: random.Random) -> Text:
    command = rng.choice(
        [["log", "--stat", "-60"], ["log", "--oneline", "-300"], ["log", "-p", "-25"], ["shortlog", "-400"]]
    )
    out = subprocess.run(["git", *command], capture_output=True, text=True, check=False).stdout
    at = rng.randrange(max(len(out) - 6000, 1))
    return Text(text=out[at : at + rng.randint(900, 6000)])


@good("troff-rendered-as-text")
def _(rng: random.Random) -> Text:
    with gzip.open(rng.choice(sorted(glob.glob("/usr/share/man/man[15]/*.gz"))), "rt", errors="replace") as page:
        text = re.sub(r"^\.\w*|\\f.|\\", "", page.read(), flags=re.MULTILINE)
    return Text(text=text[: rng.randint(900, 6000)])


@good("bracket-tournament")
def _(rng: random.Random) -> Text:
    teams = rng.sample(CITIES, min(12, len(CITIES)))
    return asked(
        "Round robin schedule please",
        "".join(
            f"Round {n}: {' | '.join(f'{a} v {b}' for a, b in zip(rng.sample(teams, 6), rng.sample(teams, 6), strict=True))}\n"
            for n in range(1, 12)
        ),
    )


@good("story-with-refrain")
def _(rng: random.Random) -> Text:
    refrain = f"“Not I,” said the {rng.choice(NOUNS)}. “Then I will do it myself,” said the {rng.choice(NOUNS)}, and {rng.choice(NAMES)} did. "
    return asked(
        "Tell the children a cumulative tale",
        "".join(paragraph(rng, rng.randint(1, 3)) + " " + refrain + "\n\n" for _ in range(rng.randint(4, 8))),
    )


@good("answers-same-shape")
def _(rng: random.Random) -> Text:
    return asked("Describe each product in one sentence", "".join(f"The {adjective} {noun} is ideal for {rng.choice(['beginners', 'families', 'offices', 'students'])} who want to {rng.choice(VERBS)} and {rng.choice(VERBS)} in {rng.choice(CITIES)}. "
                 for adjective, noun in zip(rng.sample(ADJECTIVES * 2, 14), rng.sample(NOUNS, 14), strict=True)))  # fmt: skip
