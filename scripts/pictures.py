"""Draw the README's pictures from a real run of `make demo-fault` (see scripts/pictures.sh).

    python -m scripts.pictures TYPESCRIPT TIMING PAGE

TYPESCRIPT and TIMING are what script(1) recorded; PAGE is the report.html of the release that failed its gate.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs/pictures"
COLUMNS, ROWS = 104, 26
CELL, LINE = 7.8, 18  # pixels
PAUSE_S = 0.5  # longer waits are cut to this
STEP_S = 0.07  # at least, so that lines that come at once can be followed
END_S = 5.0  # the last screen stays
MOST_BYTES = 200_000
COLOURS = {"31": "#ff7b72", "32": "#4ac26b", "33": "#d9a23b"}
SEQUENCE = re.compile(r"\x1b\[([\d;]*)m")
OTHER = re.compile(r"\x1b\[[\d;?]*[A-Za-ln-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1a\x1c-\x1f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the terminal and when it was complete, in seconds of the film."""

    text: str
    at: float


def read_run(typescript: Path, timing: Path) -> list[Line]:
    """The lines of a recording, with waits cut to PAUSE_S. A line that was rewritten counts as it was left."""
    recorded = typescript.read_bytes()
    rest = recorded.partition(b"\n")[2]  # after script's own first line
    lines: list[Line] = []
    clock, pending = 0.0, b""
    for row in timing.read_text(encoding="utf-8").splitlines():
        words = row.removeprefix("O ").split()
        if len(words) != 2 or not words[1].isdigit():
            continue
        clock += min(float(words[0]), PAUSE_S)
        chunk, rest = rest[: int(words[1])], rest[int(words[1]) :]
        *done, pending = (pending + chunk).split(b"\n")
        for raw in done:
            last = lines[-1].at if lines else 0.0
            lines.append(Line(text=_left(raw.decode("utf-8", "replace")), at=max(clock, last + STEP_S)))
            clock = lines[-1].at
    return lines


def _left(raw: str) -> str:
    """What stays of a line after its carriage returns, without the machine's paths and with colours only."""
    parts = [part for part in raw.split("\r") if part.strip()]
    return OTHER.sub("", parts[-1] if parts else "").replace(f"{ROOT}/", "").rstrip()


def film(lines: list[Line], title: str) -> str:
    """An animated SVG: the terminal scrolls as it did; without animation it shows the end."""
    width, height = COLUMNS * CELL + 24, ROWS * LINE + 46
    total = lines[-1].at + END_S
    steps = [
        f"{100 * line.at / total:.2f}%{{transform:translateY({(ROWS - place) * LINE}px)}}"
        for place, line in enumerate(lines, start=1)
    ]
    end = (ROWS - len(lines)) * LINE
    drawn = "".join(
        f'<text y="{place * LINE + 13}">{_spans(line.text)}</text>' for place, line in enumerate(lines) if line.text
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">'
        f"<title>{escape(title)}</title><style>text{{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#e6e6e1;"
        f"white-space:pre}}.b{{font-weight:700}}#roll{{transform:translateY({end}px);"
        f"animation:roll {total:.1f}s step-end infinite}}"
        f"@keyframes roll{{0%{{transform:translateY({ROWS * LINE}px)}}{''.join(steps)}}}"
        "@media (prefers-reduced-motion:reduce){#roll{animation:none}}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#161615"/>'
        '<circle cx="18" cy="16" r="5" fill="#ff7b72"/><circle cx="36" cy="16" r="5" fill="#d9a23b"/>'
        '<circle cx="54" cy="16" r="5" fill="#4ac26b"/>'
        f'<svg x="12" y="32" width="{COLUMNS * CELL:.0f}" height="{ROWS * LINE}"><g id="roll">{drawn}</g></svg></svg>\n'
    )


def _spans(text: str) -> str:
    """A line with its colours, cut at COLUMNS."""
    shown, room, style = [], COLUMNS, ""
    pieces = SEQUENCE.split(text)
    for place, piece in enumerate(pieces):
        if place % 2:
            codes = piece.split(";")
            colour = next((COLOURS[code] for code in codes if code in COLOURS), "")
            style = (f' fill="{colour}" style="fill:{colour}"' if colour else "") + (
                ' class="b"' if "1" in codes else ""
            )
            continue
        cut = piece if len(piece) <= room else piece[: max(0, room - 1)] + "…"
        cut = cut if room > 0 else ""
        room -= len(cut)
        if cut:
            shown.append(f"<tspan{style}>{escape(cut)}</tspan>" if style else escape(cut))
    head = "".join(shown)
    return f'<tspan class="b">{head}</tspan>' if text.startswith("== ") else head


def photograph(page: Path, picture: Path, width: int = 1040, height: int = 1180) -> None:
    """The top of a page, by Chromium. Raises SystemExit without one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium: `make test-needs` installs it")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += [f"--user-data-dir={profile}", "--blink-settings=preferredColorScheme=1"]
        flags += [f"--window-size={width},{height}", f"--screenshot={picture}", page.resolve().as_uri()]
        subprocess.run([chromium, *flags], check=True, capture_output=True, timeout=120)


def main(typescript: Path, timing: Path, page: Path) -> None:
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "demo.svg").write_text(film(read_run(typescript, timing), "make demo-fault"), encoding="utf-8")
    photograph(page, PICTURES / "report.png")
    for picture in sorted(PICTURES.iterdir()):
        size = picture.stat().st_size
        print(f"{picture.relative_to(ROOT)}: {size} bytes")
        if size > MOST_BYTES:
            raise SystemExit(f"{picture.name} is larger than {MOST_BYTES} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
