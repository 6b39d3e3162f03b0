"""Every shell command of every page and of every `--help`: run here as written, or excused by a mark that says why.

bash runs a page's indented blocks and `sh` fences where each program only notes how it was called: so the shell's own
reading counts, and a program that no page may call is not found. What was called is then judged. This kit's commands
run on a machine that has a checkpoint but no GPU, no Docker and no engine, and must get as far as that lets them.
`make` must know its target, and a script its options. All else needs a mark above its block:

    <!-- not run: needs Docker -->
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from scripts.reference import tree

import preloaded

ROOT = Path(__file__).parents[2]
# The changelog is history; the reference repeats the help, whose examples are judged here.
NOT_PAGES = {ROOT / "CHANGELOG.md", ROOT / "docs/reference/commands.md"}
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - NOT_PAGES)
FENCES = {"sh", "text", "yaml", "python", "mermaid", "ini"}
MARK = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)

KIT = "glm4-deploy"
# The exit codes that a command may end with here; 2, wrong usage, is none of them.
DOCKER = (5, 6)  # there is none
ENDS: dict[str, tuple[int, ...]] = {
    "audit": (0, 1),
    "bench": (3,),
    "bundle create": DOCKER,
    "checkpoint repair": (0,),
    "checkpoint verify": (0, 1),
    "completion": (0,),
    "config": (0,),
    "config show": (0,),
    "detect": (0,),
    "diagnose": (0, 1, 3, *DOCKER),
    "doctor": (0, 1),
    "down": DOCKER,
    "explain": (0,),
    "fleet smoke": (1,),
    "fleet status": (1,),
    "image build": DOCKER,
    "images": (0,),
    "init": (0, 13),
    "key add": (0,),
    "key list": (0,),
    "key revoke": (0,),
    "lock": DOCKER,
    "logs": DOCKER,
    "plan": (0, 13),
    "pull": (3,),
    "releases": (0,),
    "releases prune": (0,),
    "render": (0, 1, 13),
    "smoke": (0, 3),
    "status": DOCKER,
    "tune": (0, 13, *DOCKER),
    "up": DOCKER,
}
# What this machine cannot run far enough is parsed. It runs in these tests.
PARSED = {
    "bundle load": "tests/e2e/test_bundle.py",
    "bundle verify": "tests/e2e/test_bundle.py",
    "certificate": "tests/journeys/test_certificate.py",
    "certificate verify": "tests/journeys/test_certificate.py",
    "certificate diff": "tests/journeys/test_certificate.py",
    "checkpoint fingerprint": "tests/unit/checkpoint/test_reference.py",
    "checkpoint quantize": "tests/unit/checkpoint/test_quantize.py",
    "diff": "tests/journeys/test_rollback.py",
    "guard": "tests/e2e/test_guard.py",
    "rollback": "tests/journeys/test_rollback.py",
    "scale": "tests/unit/cli/test_scale_cli.py",
    "support-bundle": "tests/unit/deploy/test_support.py",
    "upgrade": "tests/e2e/test_upgrade.py",
    "watch": "tests/e2e/test_watch.py",
}
KIT_TARGETS = ("up", "down", "smoke", "logs", "status")  # `make` hands their ARGS to the kit
PYTHON = ("python", "python3", ".venv/bin/python")
INSTALLERS = ("pip", "pipx", "uvx")
PROGRAMS = (KIT, "make", "python", "python3", *INSTALLERS, "docker", "kubectl", "curl", "ssh", "xdg-open", "journalctl")
PROGRAMS += ("systemctl", "sudo", "iptables", "mkdir", "cp", "tar", "cat", "sha256sum", "man")
NOTE = """#!/bin/sh
printf '%s\\0' "${0#$PWD/}" "$@" '
' >>"$CALLS" # in one write: programs of a pipe run side by side
case $0 in *cpu-engine.sh) echo python;; esac
"""
# YAML that a page shows, under the name that its commands use.
SHOWN = {
    "a.json": "docs/how-to/scale.md",
    "b.json": "docs/how-to/scale.md",
    "fleet.yaml": "docs/how-to/fleet.md",
    "questions.yaml": "docs/how-to/questions.md",
    "slo.yaml": "docs/how-to/smoke.md",
}
CLOSED = "http://127.0.0.1:9"  # "discard": nothing answers there
ADDRESS = re.compile(r"https?://[\w.-]+(:\d+)?")  # of the reader's engines


@dataclass(frozen=True)
class Block:
    """Shell commands of a page or of a command's help. excuse: the page's mark."""

    where: str
    text: str
    excuse: str = ""


@dataclass(frozen=True)
class Call:
    """A program as the shell started it."""

    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.program, *self.words))


def blocks_of(page: Path) -> Iterator[Block]:
    excuse = ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            found = MARK.search(token.content)
            excuse = " ".join(found[1].split()) if found else excuse
        elif token.type == "code_block" or token.info == "sh":
            line = token.map[0] + 1 if token.map else 0
            yield Block(where=f"{page.relative_to(ROOT)}:{line}", text=token.content, excuse=excuse)
            excuse = ""
    if excuse:
        raise ValueError(f"{page}: no block of commands follows the mark {excuse!r}")


def help_blocks() -> Iterator[Block]:
    """The example at the end of each command's help."""
    for path, command in tree():
        for example in re.findall(r"Example: (.+)", command.help or ""):
            excuse = "needs Docker" if "docker " in example else ""  # a help has no place for a mark
            yield Block(where=f"{' '.join((KIT, *path))} --help", text=example, excuse=excuse)


BLOCKS = [*(block for page in PAGES for block in blocks_of(page)), *help_blocks()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint") / "glm-4-9b-chat-hf-nvfp4"
    return shutil.copytree(ROOT / "demo/glm-4-tiny-chat-nvfp4", made)


@pytest.fixture
def world(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of a user who has followed the pages so far."""
    programs = tmp_path / "programs"
    work = tmp_path / "work"
    for place in (programs, work / ".venv/bin", tmp_path / "home/.config/fish/completions"):
        place.mkdir(parents=True)
    scripts = [path.relative_to(ROOT) for name in ("scripts", "benchmarks") for path in (ROOT / name).rglob("*.sh")]
    for place in (*(programs / name for name in PROGRAMS), work / ".venv/bin/python", *(work / one for one in scripts)):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(NOTE)
        place.chmod(0o755)
    for name in ("models/glm-4-9b-chat-hf-nvfp4", "DIR"):
        shutil.copytree(checkpoint, work / name, copy_function=os.link)
    for name in ("compose.yaml", "docker-compose.yml"):
        shutil.copy(ROOT / "compose/gb10.yaml", work / name)
    for name, page in SHOWN.items():
        shown = [one.content for one in MarkdownIt().parse((ROOT / page).read_text()) if one.info == "yaml"]
        (work / name).write_text(shown[0])
    (work / "glm4.yaml").write_text(f"profile: gb10\nmodel_dir: {work}/models/glm-4-9b-chat-hf-nvfp4\n")
    (work / "answers.jsonl").write_text('{"text": "The capital of France is Paris."}\n')
    boot = "INFO 11-24 10:00:00 [api_server.py:1] vLLM API server version 0.27.1\n"
    for name in ("boot.log", ".glm4/failed.log", ".glm4/releases/0013-…/boot.log"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(boot)
    shutil.copy(ROOT / "compose/gb10.yaml", work / ".glm4/compose.yaml")
    shutil.copy(checkpoint / "fingerprint.json", work)
    run = {"base_url": CLOSED, "model": "m", "started": "", "input_len": 512, "output_len": 128, "levels": []}
    (work / "yesterday.json").write_text(json.dumps(run | {"verdict": "ok", "exit_code": 0}))
    (work / "bundle").mkdir()
    (work / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "home/.ssh").mkdir()
    (tmp_path / "home/.ssh/id_ed25519").write_text("a key\n")
    monkeypatch.chdir(work)
    for name in [one for one in os.environ if one.startswith("GLM4_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    return work


def calls_of(block: Block, work: Path) -> list[Call]:
    """What bash starts of a block."""
    noted = work.parent / "calls"
    noted.touch()
    done = subprocess.run(
        ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", block.text],
        cwd=work,
        env={"PATH": str(work.parent / "programs"), "HOME": str(work.parent / "home"), "CALLS": str(noted)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{block.where}\n{block.text}\n{done.stderr}"
    rows = [row.split("\0") for row in noted.read_text(encoding="utf-8").split("\0\n\0") if row]
    return [Call(program=row[0].rpartition("/programs/")[2], words=tuple(row[1:])) for row in rows]


def path_of(call: Call) -> str:
    """`checkpoint verify` of `glm4-deploy checkpoint verify DIR`."""
    names = {" ".join(path) for path, _ in tree()}
    two = " ".join(call.words[:2])
    return two if two in names else call.words[0]


def parse(call: Call) -> None:
    """Let the command line read the words as it would; nothing runs. Raises its usage error."""
    command, context, words = dict(tree())[()], None, list(call.words)
    while True:
        context = command.make_context(command.name, words, parent=context)
        if not (hasattr(command, "commands") and (rest := [*context._protected_args, *context.args])):
            return
        _, command, words = command.resolve_command(context, rest)


def run(call: Call, work: Path) -> int:
    """The exit code of a command. No address and no absolute path of the page is used."""
    words = [ADDRESS.sub(CLOSED, word).replace("/models/", f"{work}/models/") for word in call.words]
    done = preloaded.run(*words, cwd=work, stdin=(work / "boot.log").read_bytes())
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def wrong_in_make(call: Call) -> str:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return "" if call.words[0] in targets else f"no such target: {call.words[0]}"


def wrong_in_script(call: Call) -> str:
    """What a call of a script of this repository names that is not there: the script, or an option of it."""
    words = list(call.words) if call.program in PYTHON else [call.program, *call.words]
    if words[0] == "-c":
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)
        return done.stderr
    name = words[1].replace(".", "/") if words[0] == "-m" else words[0]
    files = [path for path in (ROOT / name, ROOT / f"{name}.py", ROOT / name / "__main__.py") if path.is_file()]
    if not files:
        return f"no such script: {name}"
    source = "".join(one.read_text(encoding="utf-8") for one in files[0].parent.glob(f"*{files[0].suffix}"))
    options = (word for word in words[2:] if word.startswith("--"))
    return " ".join(word for word in options if not re.search(rf"\b{word.strip('-')}\b", source))


def wrong_in_install(call: Call) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [word for word in call.words if re.match(r"glm4.deploy", word)]
    extras = {extra for word in named for extra in re.findall(r"\[(\w+)\]", word)}
    known = bool(named) or "--requirement" in call.words
    return "" if known and extras <= set(project["optional-dependencies"]) else str(call)


def wrong_in(call: Call) -> str | None:
    """What is wrong in a call of another program than the kit; None if nothing here can judge it."""
    if call.program == "make":
        return wrong_in_make(call)
    if call.program == "man":
        return "" if (ROOT / call.words[0]).is_file() else str(call)
    if call.program in INSTALLERS:
        return wrong_in_install(call)
    if call.program in PYTHON or "/" in call.program:
        return wrong_in_script(call)
    return None


def by_make(call: Call) -> Call | None:
    """The kit's command that `make up ARGS="…"` runs."""
    if call.program != "make" or call.words[0] not in KIT_TARGETS:
        return None
    words = [word.removeprefix("ARGS=").split() for word in call.words[1:]]
    return Call(program=KIT, words=(call.words[0], *(one for row in words for one in row)))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_every_command_runs_or_is_excused(block: Block, world: Path) -> None:
    unjudged = []
    for noted in calls_of(block, world):
        if noted.program != KIT and (wrong := wrong_in(noted)) is None:
            unjudged.append(noted.program)
        elif noted.program != KIT:
            assert not wrong, noted
        if (call := noted if noted.program == KIT else by_make(noted)) is not None:
            parse(call)
            if path_of(call) not in PARSED:
                assert run(call, world) in ENDS[path_of(call)], call
    assert bool(unjudged) == bool(block.excuse), f"not run: {unjudged}; the page's reason: {block.excuse or 'none'}"


@pytest.mark.parametrize("name", PARSED)
def test_what_is_only_parsed_here_runs_elsewhere(name: str) -> None:
    source = (ROOT / PARSED[name]).read_text(encoding="utf-8")
    assert name.split()[-1].replace("-", "_") in source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_has_a_language(page: Path) -> None:
    fences = [one.info for one in MarkdownIt().parse(page.read_text(encoding="utf-8")) if one.type == "fence"]
    assert set(fences) <= FENCES


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("glm4-deploy render --prot 9000", "No such option"),
        ("glm4-deploy render --port eighty", "should be a valid integer"),
        ("glm4-deploy checkpoint verify", "Missing parameter: directory"),
        ("glm4-deploy plan …", "unexpected extra argument"),
    ],
)
def test_a_wrong_call_is_found(text: str, error: str, world: Path) -> None:
    (call,) = calls_of(Block(where="here", text=text), world)
    with pytest.raises(Exception, match=error):
        parse(call)


def test_a_program_that_no_page_may_call_is_found(world: Path) -> None:
    with pytest.raises(AssertionError, match="rm: command not found"):
        calls_of(Block(where="here", text="rm -r DIR"), world)


def test_a_wrong_value_is_found(world: Path) -> None:
    assert run(Call(program=KIT, words=("up", "--set", "no_such_setting=1")), world) == 2
