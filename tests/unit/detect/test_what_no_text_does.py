"""What no good text does: reserved tokens, marks and ideographs in no order, transcripts."""

import random

import pytest

from glm4_deploy.detect import scan
from glm4_deploy.detect.finding import LoopVerdict

DICE = random.Random(7)
ANSWER = "The capital of Peru is Lima. It lies on the coast, and about ten million people live there today. "
WORDS = "und die ayant NewOS colons fournir auf option dass suffix version einer mit sur pour".split()  # noqa: SIM905
CHINESE = (
    "秋天的早上，他从家里出来，沿着河边的小路慢慢地走。河水很清，可以看见水底的石头。他在一座木桥上站了一会儿，看着几只鸭子在水"
    "里游来游去。太阳已经升起来了，照在对面的山上，树叶有的红，有的黄，非常好看。他想起小时候和哥哥一起在这里钓鱼的日子，那时候"
    "桥还没有修好，他们要从石头上跳过去才能到对岸。现在哥哥在很远的城市里工作，每年只能回来一两次。"
)


def shuffled(text: str) -> str:
    return "".join(DICE.sample(text, len(text)))


SICK = {
    "reserved tokens": ANSWER + "".join(DICE.choice([f"[control_{n}]" for n in range(9)] + WORDS) for _ in range(200)),
    "one reserved token": ANSWER[:60] + "".join(f"{word} <unk> " for word in WORDS),
    "noise": ANSWER + "".join(DICE.choices([chr(code) for code in range(33, 73)], k=500)),
    "marks": ANSWER + "".join(DICE.choices(".,;:!?-()'\"/ ", k=700)),
    "Chinese marks": "答案是利马。" + "".join(DICE.choices("。，、？！：；《》“”…", k=400)),
    "closing tags": ANSWER + "".join(DICE.choices(["</div>\n", "</section>\n", "    }\n", "  ]\n"], k=60)),
    "ends of code": ANSWER + "".join(DICE.choices(["end\n", "done\n", "fi\n", "})\n"], k=80)),
    "Chinese in no order": CHINESE[:60] + shuffled(CHINESE * 2),
    "lost function words": ANSWER
    * 4
    + "This opens doors for people living far apart regions having limited access points available locally within "
    "reachable distance proximity wise speaking terms relative contextually relevantly situated spatially positioned "
    "accordingly respectively correspondingly proportionately distributed",
    "one slot": "Here is a blessing. " + "".join(f"May you be blessed with {word}. " for word in WORDS * 5),
    "roles": ANSWER + "".join(f"\nassistant\n\nStrength: it is {word}.\n" for word in WORDS[:4]),
}


@pytest.mark.parametrize("kind", SICK)
def test_what_no_text_does_is_found(kind: str) -> None:
    found = scan(SICK[kind], prompt="What is the capital of Peru?", finish_reason="length")
    assert found.degenerate


PHRED = "".join(DICE.choices([chr(code) for code in range(33, 73)], k=400))
SIGNS = ["/\\", "__", "||", "  "]
GOOD = {
    "BERT": "BERT reads [CLS] the cat sat on the [MASK] [SEP], and pads the rest with [PAD] [PAD] [PAD]. " * 2,
    "FASTQ": f"@read 1\n{''.join(DICE.choices('ACGT', k=400))}\n+\n{PHRED}\n",
    "a drawing": "\n".join("".join(DICE.choices(SIGNS, k=2)) * 10 for _ in range(24)),
    "Lisp": "(define (f x)\n  (if (zero? x)\n      1\n      (* x (f (- x 1)))))\n" * 2,
    "nested to its end": "<div>\n" * 30 + "Hello\n" + "</div>\n" * 30,
    "a password": "".join(DICE.choices([chr(code) for code in range(33, 73)], k=400)),
    "a maze": "".join(DICE.choices("|_-+/.: ", k=600)),
    "Chinese": CHINESE * 2,
    "a classic": "關關雎鳩，在河之洲。窈窕淑女，君子好逑。參差荇菜，左右流之。窈窕淑女，寤寐求之。求之不得，寤寐思服。"
    "悠哉悠哉，輾轉反側。參差荇菜，左右采之。窈窕淑女，琴瑟友之。參差荇菜，左右芼之。窈窕淑女，鍾鼓樂之。",
    "a user's record": f"{ANSWER}\nUser: anna\nShell: /bin/sh\nHome: /home/anna\n",
    "part-of-speech tags": " ".join(DICE.choices(["DET", "NOUN", "VERB", "ADP", "ADJ", "PUNCT"], k=100)),
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_texts_that_look_like_it_are_clean(kind: str) -> None:
    found = scan(GOOD[kind], prompt="Show me one, please.", finish_reason="stop")
    assert not found.degenerate, found.why


EXAMPLES = "Input: It rains.\nOutput: It rained.\n\nInput: He goes.\nOutput: He went.\n\nInput: We eat.\nOutput:"
MORE = " We ate.\n\nInput: They run.\nOutput: They ran.\n\nInput: I see.\nOutput: I saw."


def test_more_examples_after_the_answer_are_a_missed_stop() -> None:
    found = scan(MORE, prompt=EXAMPLES, finish_reason="length")
    assert found.verdict is LoopVerdict.RUNAWAY_NO_STOP
    assert "2 more examples" in found.why
    assert found.start == MORE.index("Input")
    assert not scan(" We ate.", prompt=EXAMPLES, finish_reason="stop").degenerate
    assert not scan(MORE, prompt=EXAMPLES, finish_reason="stop").degenerate
    assert not scan(MORE, prompt="Give me two more examples like these.", finish_reason="stop").degenerate


def test_a_line_broken_off_in_the_middle_of_a_known_one_was_cut_off() -> None:
    cases = "".join(
        f"    def test_stone_{n}(self):\n        self.assertEqual(self.get('/stone'), 200)\n\n" for n in range(60)
    )
    assert scan(cases + "    def test_stone_60(self):\n        self.assertEq").degenerate
    assert not scan(cases, finish_reason="stop").degenerate


def test_a_list_that_names_each_thing_once_may_have_one_slot() -> None:
    dice = random.Random(3)
    thanks = "".join(f"I am grateful for my {dice.choice(WORDS)}{dice.choice(WORDS)}. " for _ in range(150))
    different = "".join(f"I am grateful for my {one}{other}. " for one in WORDS for other in WORDS[7:])
    assert scan(thanks, prompt="Tell me about yourself.", finish_reason="length").degenerate
    assert not scan(different, prompt="Tell me about yourself.", finish_reason="length").degenerate


FORM = "```text\n" + "Task: ________\nOwner: ________\nDue: ________\n\n" * 7 + "```"


def test_a_fence_that_ends_is_no_line_broken_off() -> None:
    assert not scan("Here is a form to print.\n\n" * 3 + FORM, prompt="A form for my team").degenerate


def test_a_form_that_is_filled_in_is_no_missed_stop() -> None:
    sheet = "EN: cat\nDE:\nEN: dog\nDE:\nEN: bird\nDE:"
    filled = " Katze\nEN: dog\nDE: Hund\nEN: bird\nDE: Vogel\n"
    assert not scan(filled, prompt=sheet, finish_reason="length").degenerate


def test_the_commonest_characters_are_a_list() -> None:
    common = (
        "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多"
        "经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情"
    )
    assert not scan(common, prompt="最常用的汉字有哪些？", finish_reason="stop").degenerate
