"""What is written for a command is what `--help` prints: every sentence, every option, every default."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from glm4_deploy.cli.app import COMMANDS, app, main
from glm4_deploy.cli.params import FLAGS, METAVARS, SPELLED
from glm4_deploy.report.terminal import results_text
from glm4_deploy.result import Result, Status
from glm4_deploy.settings import Settings, limits

TREE = get_command(app)
WITH_SETTINGS = ("render", "up", "lock", "plan", "scale", "bench", "doctor", "smoke")


def below(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from below((*path, name), inner)


PATHS = dict(below((), TREE))


def squeezed(text: str) -> str:
    """Without blanks and line ends: wrapping may break anywhere."""
    return re.sub(r"\s+", "", text)


def printed(*path: str) -> str:
    done = CliRunner().invoke(app, [*path, "--help"], prog_name="glm4-deploy", terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_is_printed_as_it_is_written(path: tuple[str, ...]) -> None:
    text = squeezed(printed(*path))
    command = PATHS[path]
    assert squeezed(command.help or "") in text
    for option in command.params:
        written = option.help or ""
        assert written, f"{option.name} has no help"
        assert squeezed(written) in text, option.name
        assert not re.search(r"\[[^\]]*\]\W*$", written), f"{option.name}: write the default as show_default"
        if isinstance(option.show_default, str):
            assert squeezed(f"{written}  [default: ({option.show_default})") in text, option.name
        elif option.show_default and option.default and not getattr(option, "is_flag", False):
            assert squeezed(f"{written}  [default: {option.default}") in text, option.name
    for name, inner in getattr(command, "commands", {}).items():
        if path:
            first = str(inner.help).partition("\n")[0]
            assert squeezed(name + re.split(r"(?<=\.)\s", first)[0].rstrip(".")) in text


def test_every_summary_is_the_first_sentence_of_the_help() -> None:
    page = squeezed(printed())
    for rows in COMMANDS.values():
        for name, (module, summary) in rows.items():
            command = getattr(import_module(f"glm4_deploy.cli.{module}"), name.replace("-", "_"))
            written = command.info.help if isinstance(command, typer.Typer) else command.__doc__
            first = re.match(r".*?\.(?=\s|$)", " ".join(written.split()))
            assert first is not None, name
            assert summary == first[0]
            assert squeezed(f"{name}  {summary}") in page


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_the_flags_of_a_deployment_are_made_from_its_settings(name: str) -> None:
    options = {option.name: option for option in PATHS[(name,)].params}
    for key in FLAGS:
        about, option = Settings.model_fields[key], options[key]
        assert option.opts == [SPELLED.get(key, "--" + key.replace("_", "-"))]
        assert (option.help or "").casefold().startswith(str(about.description).casefold())
        assert all(word in (option.help or "") for word in limits(about)), key
        assert option.default is None
        assert option.metavar == METAVARS.get(key)
    assert options["sets"].opts == ["--set"]
    assert options["config"].opts == ["--config"]


def test_a_flag_says_its_default_and_whether_profiles_set_it() -> None:
    text = squeezed(printed("render"))
    assert squeezed("Host port (1 to 65535).  [default: (8080)]") in text
    assert squeezed("--shm-size <str> Size limit of /dev/shm in the container, for example 8gb.") in text
    assert squeezed("[default: (the profile's, else 8gb)]") in text
    assert squeezed("KV cache type (auto, fp8, fp8_e4m3, fp8_e5m2, bfloat16).") in text


INSTALL = "pip install 'glm4-deploy[quantize]'"


def test_brackets_are_printed_whole_in_help_tables_and_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert INSTALL in printed("checkpoint", "quantize")
    assert "hub:NAME[:SPLIT]" in printed("checkpoint", "quantize")
    row = Result(check="a[b]", status=Status.FAIL, observed="[red]x[/red]", expected="[1]", remedy=INSTALL)
    table = results_text([row])
    for text in ("a[b]", "[red]x[/red]", "[1]"):
        assert text in table
    assert squeezed(INSTALL) in squeezed(table)
    for word, value in (("--profile", "[bold]gb10[/bold]"), ("--set", "[/]"), ("--[red]port", "--[red]port")):
        monkeypatch.setattr(sys, "argv", ["glm4-deploy", "render", word, value])
        with pytest.raises(SystemExit):
            main()
        assert value in capsys.readouterr().err
