"""`glm4-deploy images`: every image for this card and this checkpoint, and the one to take."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from glm4_deploy.catalog.images import default_image, known_images, versions_tested
from glm4_deploy.catalog.rows import profiles
from glm4_deploy.cli.app import app
from glm4_deploy.cli.images import ImageRow, recommend

NVFP4 = Path(__file__).parents[3] / "demo/glm-4-tiny-chat-nvfp4"


def listed(*words: str) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["images", *words, "--json"])
    assert done.exit_code == 0, done.output
    return {row["image"]: row for row in json.loads(done.stdout)["images"]}


def row(image: str, **values: Any) -> ImageRow:
    facts: dict[str, Any] = {
        "vllm": "0.31.0", "architectures": (), "loads": True, "repair": False, "native_fp4": True, "driver_needed": 580,
        "driver_ok": True, "tested": True, "seen": ("12.1",), "trouble": "", "here": False, "chosen": False,
        "source": "a test",
    }  # fmt: skip
    return ImageRow(image=image, **(facts | values))


def test_a_checkpoint_is_judged_for_the_vllm_of_each_image() -> None:
    rows = listed("--profile", "gb10", "--model-dir", str(NVFP4))
    old, new = rows["nvcr.io/nvidia/vllm:26.01-py3"], rows[default_image().reference]
    assert (old["loads"], old["repair"], old["chosen"]) == (False, True, False)
    assert (new["loads"], new["repair"], new["native_fp4"], new["chosen"]) == (True, False, True, True)
    assert "vllm#38423" in old["trouble"]
    assert [name for name, one in rows.items() if one["recommended"]] == [new["image"]]


@pytest.mark.parametrize("profile", [name for name, one in profiles().items() if one.engine == "nvcr"])
def test_the_default_image_is_the_recommended_one_on_every_card(profile: str, tmp_path: Path) -> None:
    rows = listed("--profile", profile, "--model-dir", str(tmp_path))
    assert [name for name, one in rows.items() if one["recommended"]] == [default_image().reference]
    assert [name for name, one in rows.items() if one["chosen"]] == [
        "nvcr.io/nvidia/vllm:26.01-py3" if profile == "seed" else default_image().reference
    ]


def test_without_a_checkpoint_it_is_not_known_whether_it_loads(tmp_path: Path) -> None:
    rows = listed("--profile", "b200", "--model-dir", str(tmp_path))
    assert {(one["loads"], one["repair"]) for one in rows.values()} == {(None, None)}
    assert "scitrera/dgx-spark-vllm:0.14.1-t4" not in rows, "there is none for this processor"


def test_the_image_of_the_settings_is_listed_even_if_nobody_knows_it() -> None:
    one = listed("--profile", "gb10", "--image", "somebody/vllm:1")["somebody/vllm:1"]
    assert (one["vllm"], one["chosen"], one["native_fp4"], one["tested"]) == ("", True, None, False)


@pytest.mark.parametrize(
    "against",
    [{"tested": False}, {"seen": ()}, {"trouble": "x"}, {"driver_ok": False}, {"loads": False, "repair": False}],
)
def test_the_newest_that_nothing_speaks_against_is_recommended(against: dict[str, Any]) -> None:
    rows = recommend((row("a:1"), row("a:2", loads=False, repair=True), row("a:3", **against), row("b:4")))
    assert [one.image for one in rows if one.recommended] == ["a:2"]
    assert "repair" in rows[1].recommended
    assert [one.image for one in recommend((row("a:1", **against), row("b:1"))) if one.recommended] == ["b:1"]
    assert not any(one.recommended for one in recommend((row("a:1", **against),)))


def test_what_is_tested_is_a_version_of_an_image() -> None:
    assert {image.vllm for image in known_images()} & versions_tested()
