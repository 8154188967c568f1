"""The pages for readers say what is: quoted messages exist in the source, the citation is valid, tables are whole."""

import ast
import json
import re
import shlex
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GAP = "\0"  # what a message fills in
NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))
PAGES = sorted(path.stem for path in ROOT.glob("nbs/*.ipynb") if not path.stem[0].isdigit() and path.stem != "index")
CFF_KEYS = [
    "abstract",
    "authors",
    "cff-version",
    "commit",
    "contact",
    "date-released",
    "doi",
    "identifiers",
    "keywords",
    "license",
    "license-url",
    "message",
    "preferred-citation",
    "references",
    "repository",
    "repository-artifact",
    "repository-code",
    "title",
    "type",
    "url",
    "version",
]


def prose(notebook: Path) -> list[str]:
    """The texts of the Markdown cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def page(name: str) -> str:
    """The markdown of a page."""
    return "\n".join(prose(ROOT / "nbs" / f"{name}.ipynb"))


def template(node: ast.AST) -> str:
    """The text of a string expression with `GAP` for each value that it fills in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(\.\d+f|[srdg])", GAP, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return GAP


@pytest.fixture(scope="module")
def templates() -> str:
    """Every string of the package that could be a message, and the Makefile, separated by blank lines."""
    found = {(ROOT / "Makefile").read_text(encoding="utf-8")}
    for path in ROOT.glob("criteria_hpo/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                found.add(template(node))
    return "\n\n".join(" ".join(text.split("\n")) for text in found)


def is_there(message: str, templates: str) -> bool:
    """Whether a message, with `…` for what differs, is in one of the strings."""
    pattern = "[^\n]*?".join(re.escape(part.strip()) for part in message.split("…"))
    return re.search(pattern, templates) is not None


QUOTED = re.findall(r"^\| `([^\n]*?)` \|", page("troubleshooting"), re.MULTILINE)


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_exists(message: str, templates: str) -> None:
    assert is_there(message, templates)


def test_a_message_that_is_gone_is_seen(templates: str) -> None:
    assert len(QUOTED) > 60 and len(set(QUOTED)) == len(QUOTED)
    assert not is_there("the moon is full; wait for another night", templates)
    assert not is_there("column … is mislaid", templates)
    assert is_there("column … is missing", templates)


def test_the_citation_is_valid_and_agrees_with_the_settings() -> None:
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    given, cited = settings["DEFAULT"], yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"authors", "cff-version", "message", "title"} <= cited.keys() <= set(CFF_KEYS)
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert cited["version"] == given["version"] and cited["repository-code"] == given["git_url"]
    assert cited["authors"] == [{"name": given["author"], "email": given["author_email"]}]
    assert given["lib_name"] in cited["title"] and cited["abstract"].strip(" .").lower() == given["description"].lower()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_reached_from_the_readme(name: str) -> None:
    assert f"](nbs/{name}.ipynb)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_whole() -> None:
    for notebook in NOTEBOOKS:
        for table in re.findall(r"(?:^\|[^\n]*\n?)+", "\n\n".join(prose(notebook)), re.MULTILINE):
            rows = table.strip().splitlines()
            columns = {len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in rows}
            assert len(columns) == 1 and re.fullmatch(r"\|[-:| ]+\|", rows[min(1, len(rows) - 1)]), (notebook.name, rows[0])


def test_a_first_cell_has_no_list() -> None:
    lists = [notebook.name for notebook in NOTEBOOKS if re.search(r"^- ", prose(notebook)[0], re.MULTILINE)]
    assert lists == [], "nbdev takes it for settings of the page, and warns"


def test_every_version_that_is_compared_has_a_source() -> None:
    text = page("other_tools")
    heads = next(line for line in text.splitlines() if line.startswith("| | criteria_hpo"))
    versions = re.findall(r"\d+\.\d+\.\d+", heads)[1:]
    sources = text[text.index("## Where it was read") :]
    assert len(versions) == 6 and all(version in sources for version in versions)
    assert re.search(r"\*\*\d+ \w+ \d{4}\*\*", text), "the page has no date of reading"


@pytest.mark.parametrize("page", ["README.md", "studies/gallery/README.md"])
def test_every_picture_of_a_page_exists_and_says_in_a_sentence_what_it_shows(page: str) -> None:
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert pictures
    for words, path in pictures:
        assert ((ROOT / page).parent / path).is_file() and words.endswith(".") and len(words.split()) > 12, path


def lines_to_type(text: str) -> list[list[str]]:
    """The commands and settings that a page gives, in blocks of shell and between backticks, as a shell splits them."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    found = []
    for line in lines:
        if re.match(r"make |(\.venv/bin/)?criteria-hpo |[a-z_]+(\.[a-z_]+)*=\S", line):
            words = shlex.split(line.replace(r"\|", "|"), comments=True)
            found.append([word for word in words if "…" not in word])
    return [words for words in found if words]


def settings_of(words: list[str]) -> list[list[str]]:
    """The settings of a line, once for each of the values that stand beside each other, as in `hpo.mode=kfold|single_split`."""
    given = [word for word in words if "=" in word]
    several = [word for word in given if re.fullmatch(r"[\w.]+=\w+(\|\w+)+", word)]
    if not several:
        return [given]
    name, _, values = several[0].partition("=")
    return [[f"{name}={value}"] for value in values.split("|")]


def is_ours(words: list[str]) -> bool:
    """Whether the settings are of this project, not of a library that the page speaks of."""
    from criteria_hpo.config.schema import Config

    names = {*Config.model_fields, "preset"}
    return all(word.partition("=")[0].split(".")[0] in names and word.partition("=")[2] for word in words if "=" in word)


TYPED = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "studies/gallery/README.md")}
TYPED |= {name: page(name) for name in PAGES}


OTHERS = pytest.param([name for name in TYPED if name != "README.md"], marks=pytest.mark.slow, id="other pages")


@pytest.mark.parametrize("pages", [pytest.param(["README.md"], id="README"), OTHERS])
def test_a_setting_on_a_page_is_accepted(pages: list[str]) -> None:
    from criteria_hpo.cli import COMMANDS, split_words
    from criteria_hpo.config.load import load_config
    from criteria_hpo.core.errors import ConfigError

    found, refused = set(), []
    for words in (words for name in pages for words in lines_to_type(TYPED[name])):
        if words[0].endswith("criteria-hpo") or is_ours(words):
            found |= {tuple(settings) for settings in settings_of(words)}
    for settings in sorted(found - {(f"command={name}",) for name in COMMANDS}):  # `model=ID` stands for any model
        try:
            load_config(split_words([re.sub(r"^model=[A-Z_]+$", "model=roberta-base", word) for word in settings]))
        except ConfigError as err:
            refused.append(f"{shlex.join(settings)}: {err}")
    assert len(found) > 40 and not refused, "\n".join(refused)


def test_a_make_command_of_the_readme_is_accepted() -> None:
    lines = {tuple(words) for words in lines_to_type(TYPED["README.md"]) if words[0] == "make"}
    assert len(lines) > 12
    for words in sorted(lines):
        if "*" not in words[1]:
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (words, done.stderr)


def test_a_command_that_does_not_exist_is_seen() -> None:
    from criteria_hpo.config.load import load_config
    from criteria_hpo.core.errors import ConfigError

    (words,) = lines_to_type("Write `hpo.pruner.type=rasing|none` into it.")
    assert settings_of(words) == [["hpo.pruner.type=rasing"], ["hpo.pruner.type=none"]] and is_ours(words)
    with pytest.raises(ConfigError, match="racing"):
        load_config(settings_of(words)[0])
