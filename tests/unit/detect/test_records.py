"""Lists of records: lines that begin with the same labels, and whose slots hold one of a few things."""

import random

import pytest

from glm4_deploy.detect import Stream, scan

CHINESE = (
    "城市：{name}\n"
    "人口约为{a}，是该地区重要的经济、文化和交通中心之一，近年来发展十分迅速，居民生活水平不断提高。\n"
    "著名景点包括{b}，每年都吸引着来自世界各地的大量游客前来参观和游览。\n\n"
)
ENGLISH = (
    "City: {name}\n"
    "The population is about {a} people, and it is growing slowly every year.\n"
    "Famous sights include {b}, the river walk and the railway museum, which are open to visitors all year.\n\n"
)
WORDS = {
    "Chinese": (
        "北京 上海 广州 深圳 杭州 南京 武汉 成都 重庆 西安 苏州 天津 "
        "长沙 青岛 大连 厦门 昆明 沈阳 郑州 济南 福州 合肥 南昌",
        "五百万人 八百万人 一千万人 一千二百万人 两千万人",
        "古城墙、博物馆和人民公园 湖滨公园、老街和博物馆 老街、古城墙和大剧院 大剧院、植物园和湖滨公园",
    ),
    "English": (
        "Leeds Bristol Cardiff Belfast Dundee Exeter York Bath Derby Hull Lincoln Oxford Norwich Truro Wells Perth "
        "Ripon Durham Ely Chester Carlisle Lancaster Salford",
        "half_a_million two_million three_hundred_thousand one_million",
        "the_old_town_hall the_cathedral the_castle the_botanical_garden",
    ),
}
LISTS = {
    "Chinese": CHINESE,
    "Chinese, numbered": CHINESE.replace("城市：", "{number}. ").replace("居民", "那里的居民"),
    "Chinese, headings": CHINESE.replace("城市：", "### ").replace("人口", "- **人口**："),
    "English": ENGLISH,
    "English, numbered": ENGLISH.replace("City: ", "{number}. "),
    "English, headings": ENGLISH.replace("City: ", "## ").replace("Famous sights", "**Famous sights:** they"),
}


def _records(language: str, seed: int, names: int = 23, count: int = 23) -> str:
    record, (known, *slots) = LISTS[language], WORDS[language.partition(",")[0]]
    dice = random.Random(seed)
    rows = [known.split()[n % names] for n in range(count)]
    a, b = ([one.replace("_", " ") for one in slot.split()] for slot in slots)
    return "".join(
        record.format(number=number, name=name, a=dice.choice(a), b=dice.choice(b))
        for number, name in enumerate(rows, start=1)
    )


@pytest.mark.parametrize("language", LISTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_list_of_different_records_is_no_loop(language: str, seed: int) -> None:
    text, stream = _records(language, seed), Stream()
    for at in range(0, len(text), 4):
        stream.feed(text[at : at + 4])
        assert stream.final is None
    assert not stream.close("stop").degenerate
    assert not scan(text).degenerate


@pytest.mark.parametrize("language", LISTS)
def test_the_same_records_again_are_a_loop(language: str) -> None:
    text = _records(language, 1, names=2, count=30)
    assert scan(text, finish_reason="stop").degenerate
    assert scan(text, finish_reason="length").degenerate


@pytest.mark.parametrize("language", WORDS)
def test_records_that_come_again_alarm_but_may_still_end(language: str) -> None:
    text, stream = _records(language, 1, names=2, count=30), Stream()
    alarms = []
    for at in range(0, len(text), 4):
        alarms.append(stream.feed(text[at : at + 4]) is not None)
        assert stream.final is None
    assert any(alarms)
    assert stream.close("length").degenerate
