"""The built wheel carries what the installed package reads and requires what it imports; every requirement is pinned."""

import ast
import re
import sys
import zipfile
from configparser import ConfigParser, SectionProxy
from importlib.metadata import packages_distributions, requires
from pathlib import Path


def data_files(root: Path) -> set[str]:
    """Every file below the package, by its path in the wheel."""
    files = (path for path in root.glob("criteria_hpo/**/*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in files}


def test_wheel_has_every_file_of_the_package(root: Path, wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("criteria_hpo/")}
    assert inside == data_files(root)
    assert {"criteria_hpo/configs/preset/smoke.yaml", "criteria_hpo/demo_corpus/posts.jsonl"} <= inside


def test_wheel_has_script_and_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    entry_points = next(name for name in names if name.endswith("/entry_points.txt"))
    assert "criteria-hpo = criteria_hpo.cli:main" in archive.read(entry_points).decode()
    assert any(name.endswith("LICENSE") for name in names)


def settings(root: Path) -> SectionProxy:
    """What settings.ini says."""
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def optional_extras(config: SectionProxy) -> list[str]:
    """The extras of settings.ini but for the tools of development."""
    found = [key.removesuffix("_requirements") for key in config if key.endswith("_requirements")]
    return sorted(set(found) - {"dev"})


def test_wheel_offers_every_extra_and_all_of_them_together(root: Path, wheel: Path) -> None:
    """A message names the extra `lora`; pip only warns about an extra that it does not know."""
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    config = settings(root)
    offered = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert offered == {"dev", "all", *optional_extras(config)} and len(offered) == 9
    together = re.findall(r"^Requires-Dist: (\S+).*extra == ['\"]all['\"]", metadata, re.MULTILINE)
    wanted = " ".join(config[f"{extra}_requirements"] for extra in optional_extras(config))
    assert {normalised(item) for item in together} == {normalised(item) for item in wanted.split()}
    source = "".join(path.read_text(encoding="utf-8") for path in root.glob("criteria_hpo/**/*.py"))
    assert {"lora", "onnx", "mlflow"} <= set(re.findall(r"(?:extra_hint|check_extra)\(['\"](\w+)", source)) <= offered


def normalised(requirement: str) -> str:
    """The project's name in a requirement, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_constraints_pin_every_requirement_and_theirs(root: Path) -> None:
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a line is no plain pin"
    pins = {normalised(line) for line in lines}
    config = settings(root)
    direct = (config["requirements"] + " " + config["dev_requirements"]).split()
    needed = {normalised(requirement) for requirement in direct}
    for name in sorted(needed - {"torch"}):  # torch's own list is that of its CPU or its CUDA build
        needed |= {normalised(line) for line in requires(name) or [] if ";" not in line}
    assert needed <= pins, f"not pinned: {sorted(needed - pins)}"


def imported(root: Path) -> set[str]:
    """Top-level names that the package imports, inside functions too, but for the standard library's and its own."""
    found = set()
    for path in root.glob("criteria_hpo/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"criteria_hpo"}


def test_requirements_name_what_the_package_imports(root: Path) -> None:
    """A wheel installed without the tools of development has all that it imports, and not by the grace of another package."""
    config = settings(root)
    required = {normalised(requirement) for requirement in config["requirements"].split()}
    extras = " ".join(config[f"{extra}_requirements"] for extra in optional_extras(config))
    optional = {normalised(requirement) for requirement in extras.split()} | {"mlflow"}  # which mlflow-skinny provides
    owners = {name: {normalised(owner) for owner in found} for name, found in packages_distributions().items()}
    needed = {name for name in imported(root) if normalised(name) not in optional}
    missing = {name: owners.get(name) for name in needed if not owners.get(name, set()) & required}
    assert {"torch", "yaml", "sklearn"} <= imported(root)
    assert not missing, f"not in settings.ini's requirements: {missing}"
