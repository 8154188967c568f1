"""A command in a pseudo-terminal whose screen can be read, resized, and drawn as a picture.

The terminal is pyte's, the letters are drawn by Pillow: no browser, a twentieth of a second a picture.
"""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageDraw, ImageFont

pyte = pytest.importorskip("pyte")

ROWS = 40
SIZE = 15  # points
# The 16 colours of a terminal by their names in pyte, on a light and on a dark background: those of GNOME's terminal.
NAMES = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")
PLAIN = dict(zip(NAMES, ("#171421", "#c01c28", "#26a269", "#a2734c", "#12488b", "#a347ba", "#2aa1b3", "#d0cfcc"), strict=True))
BRIGHT = {
    f"bright{name}": colour
    for name, colour in zip(
        NAMES, ("#5e5c64", "#f66151", "#33d17a", "#e9ad0c", "#2a7bde", "#c061cb", "#33c7de", "#ffffff"), strict=True
    )
}
LOOKS = {"light": ("#ffffff", "#171421"), "dark": ("#1e1e1e", "#d0cfcc")}  # background, letters


class Screen(pyte.HistoryScreen):
    """A screen that knows dim letters, which pyte does not: they are kept as blinking ones, which this project never writes."""

    def select_graphic_rendition(self, *attrs: int) -> None:
        """Take a change of style: 2 is dim, and 22 ends dim and bold."""
        super().select_graphic_rendition(*(new for old in attrs for new in {2: (5,), 22: (22, 25)}.get(old, (old,))))


class Terminal:
    """A running command; `screen` is what a user sees of it, `written` every byte of it."""

    def __init__(self, words: list[str], columns: int) -> None:
        self.main, other = pty.openpty()
        self.screen, self.written = Screen(columns, ROWS, history=10_000), b""
        self.stream = pyte.ByteStream(self.screen)
        self.resize(columns)
        unwanted = ("COLUMNS", "LINES", "NO_COLOR", "CRITERIA_HPO_PROGRESS")
        env = {name: value for name, value in os.environ.items() if name not in unwanted}
        env |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(words, stdin=other, stdout=other, stderr=other, env=env)
        os.close(other)

    def resize(self, columns: int) -> None:
        """Change the width, as dragging the window's border does."""
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self.screen.resize(ROWS, columns)

    def read(self) -> bool:
        """Wait for output and take it; False once the command has ended."""
        with contextlib.suppress(OSError):  # the other end is closed
            piece = os.read(self.main, 65536)
            self.written += piece
            self.stream.feed(piece)
            return bool(piece)
        os.close(self.main)
        return False

    @property
    def history(self) -> str:
        """All lines since the start, those that have left the screen at its top included."""
        rows = ["".join(row[column].data for column in range(self.screen.columns)).rstrip() for row in self.screen.history.top]
        return "\n".join([*rows, self.text])

    @property
    def text(self) -> str:
        """The screen, without the empty lines at its end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()


def colour_of(name: str, default: str) -> str:
    """The colour of a character as Pillow takes it."""
    return default if name == "default" else (PLAIN | BRIGHT).get(name, f"#{name}")


def mixed(colour: str, background: str, share: float) -> str:
    """A colour with a share of the background in it."""
    both = zip(bytes.fromhex(colour[1:]), bytes.fromhex(background[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in both)


def draw(screen: pyte.Screen, look: str, path: Path) -> None:
    """Write the screen as a PNG; `look`: a key of `LOOKS`."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, bold = (ImageFont.truetype(fonts / f"DejaVuSansMono{kind}.ttf", SIZE) for kind in ("", "-Bold"))
    paper, ink = LOOKS[look]
    width, height = round(plain.getlength("M" * 100) / 100), round(SIZE * 1.27)
    lines = len("\n".join(line.rstrip() for line in screen.display).rstrip().splitlines()) + 1
    image = Image.new("RGB", (width * (screen.columns + 2), height * (lines + 1)), paper)
    pen = ImageDraw.Draw(image)
    for row in range(lines):
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            front, back = colour_of(cell.fg, ink), colour_of(cell.bg, paper)
            if cell.reverse:
                front, back = back, front
            place = width * (column + 1), height * row + height // 2
            if cell.blink:
                front = mixed(front, back, 0.4)
            if back != paper:
                pen.rectangle((*place, place[0] + width - 1, place[1] + height - 1), fill=back)
            pen.text(place, cell.data, fill=front, font=bold if cell.bold else plain)
    image.save(path)
