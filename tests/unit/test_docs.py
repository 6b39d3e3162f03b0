"""The documentation names only what exists: pages, headings, files, make targets, commands and their options."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from cogapp import Cog
from scripts.manual import PAGE, manual
from scripts.reference import tree

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
MAX_LINE = 120
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`]+)`")
CODE_DIRECTORIES = ("src/", "tests/", "scripts/", "benchmarks/", "templates/", "compose/", "demo/", "docs/")
TEST_DIRECTORIES = ("unit/", "e2e/")
# In code: the words up to the end of the line, a comment, a pipe, or the next command.
CALL = re.compile(r"(?<![\w/.-])glm4-deploy ([a-z][^\n`#|;&)]*)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """The page without fenced and inline code."""
    return INLINE.sub("", FENCE.sub("", text_of(page)))


def code_of(page: Path) -> Iterator[str]:
    """Fenced blocks, indented blocks and inline code, with continued lines joined."""
    text = text_of(page).replace("\\\n", " ")
    yield from FENCE.findall(text)
    rest = FENCE.sub("", text)
    yield from (line for line in rest.splitlines() if line.startswith("    "))
    yield from (found.replace("\n", " ") for found in INLINE.findall(rest))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


@cache
def options() -> dict[str, set[str]]:
    """`render` → its options; groups are there too."""
    return {
        " ".join(path): {"-h", "--help"} | {word for row in command.params for word in (*row.opts, *row.secondary_opts)}
        for path, command in tree()
    }


def wrong_in(call: str) -> str:
    """What a call of the command line names that does not exist; empty if everything does."""
    words = call.split()
    group = any(name.startswith(f"{words[0]} ") for name in options())
    path = " ".join(words[:2] if group and words[1:] and words[1][0].isalpha() else words[:1])
    if path not in options():
        return path
    flags = [re.split(r"[=,.]", word)[0] for word in words[1:] if re.match(r"--?[a-z]", word)]
    return " ".join(flag for flag in flags if flag not in options()[path])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_anchor_resolves(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_is_wider_than_a_terminal(page: Path) -> None:
    lines = FENCE.sub("", text_of(page)).splitlines()
    assert not [line for line in lines if len(line) > MAX_LINE and not line.startswith("|")]


def test_every_file_in_the_documentation_exists() -> None:
    missing = []
    for page in PAGES:
        for code in INLINE.findall(FENCE.sub("", text_of(page))):
            if re.search(r"[\s*…<>{}]|NAME", code):
                continue
            name = f"tests/{code}" if code.startswith(TEST_DIRECTORIES) else code
            if name.startswith(CODE_DIRECTORIES) and not (ROOT / name).exists():
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_every_page_that_the_code_names_exists() -> None:
    rooms = [ROOT / "Makefile", *(path for name in CODE_DIRECTORIES[:6] for path in (ROOT / name).rglob("*"))]
    named = set()
    for path in rooms:
        if path.is_file() and path.suffix in {"", ".py", ".yaml", ".j2", ".sh", ".md"}:
            named |= set(re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8", errors="replace")))
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_index_links_to_every_page() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall(prose_of(index))}
    linked |= {(DOCS / "lab" / name).resolve() for name in LINK.findall(prose_of(DOCS / "lab/README.md"))}
    assert not [str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md") if page not in linked | {index}]


def test_the_generated_parts_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    pages = [str(page) for page in PAGES if "[[[cog" in text_of(page)]
    assert len(pages) > 4
    done = Cog().main(["cog", "--check", "--diff", "-I", str(ROOT), *pages])
    assert done == 0, f"run `make docs`\n{capsys.readouterr().out[-3000:]}"


def test_the_man_page_is_up_to_date_and_has_every_command() -> None:
    assert PAGE.read_text(encoding="utf-8") == manual(), "run `make docs`"
    sections = re.findall(r"^\.SS (.+)$", manual().replace("\\-", "-"), re.MULTILINE)
    assert sections == [" ".join(("glm4-deploy", *path)) for path, _ in tree() if path]
    assert not re.findall(r"^[.'](?!SH |SS |TH |TP$|PP$|B |nf$|fi$|RS 4$|RE$|\\\").*", manual(), re.MULTILINE)


def test_a_placeholder_for_the_repository_is_explained_on_its_page() -> None:
    pages = [page for page in PAGES if "OWNER/glm4-deploy" in text_of(page)]
    assert {page.name for page in pages} == {"ci.md", "install.md"}
    assert all("`OWNER/glm4-deploy` is the repository" in text_of(page) for page in pages)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    call = re.compile(r"(?:^|&&)\s*make ([a-z][a-z0-9-]*)", re.MULTILINE)
    named = {name for page in PAGES for code in code_of(page) for name in call.findall(code)}
    assert len(named) > 5
    assert not named - targets


def test_every_command_and_option_exists() -> None:
    calls = {call for page in PAGES for code in code_of(page) for call in CALL.findall(code)}
    assert len(calls) > 50
    wrong = {call: found for call in sorted(calls) if (found := wrong_in(call))}
    assert not wrong


@pytest.mark.parametrize(
    ("call", "wrong"),
    [("renders", "renders"), ("key ad ada", "key ad"), ("render --prot 9000 -o FILE", "--prot"), ("render -x", "-x")],
)
def test_a_wrong_command_or_option_is_found(call: str, wrong: str) -> None:
    assert wrong_in(call) == wrong


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.name)
def test_issue_forms_are_valid_and_name_only_what_exists(form: Path) -> None:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema"]
    kind = "vendor.github-issue-config" if form.name == "config.yml" else "vendor.github-issue-forms"
    if form.name != "config.yml":
        assert not {call: found for call in CALL.findall(text_of(form)) if (found := wrong_in(call))}
        names = [field["id"] for field in yaml.safe_load(text_of(form))["body"] if field["type"] != "markdown"]
        assert len(names) == len(set(names))
    done = subprocess.run([*command, kind, form], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pictures_are_small_and_load_nothing() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    assert {picture.name for picture in pictures} == {"demo.svg", "report.png"}
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
    film = (DOCS / "pictures/demo.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(film)  # noqa: S314 (our own file)
    assert "href" not in film
    assert "/tmp/" not in film, "a path of the machine that drew it"
