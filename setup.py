"""Packaging, nbdev 2 style: everything that varies stands in settings.ini."""

import shlex
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).resolve().parent
PYTHONS = ["3.11", "3.12", "3.13"]
OPTIONAL = ("bench", "dashboard", "ray", "slurm", "lora", "onnx", "mlflow")  # what a setting or a command may want
STATUSES = {
    "1": "1 - Planning",
    "2": "2 - Pre-Alpha",
    "3": "3 - Alpha",
    "4": "4 - Beta",
    "5": "5 - Production/Stable",
}

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

min_python = cfg["min_python"]
if min_python not in PYTHONS:
    sys.exit(f"settings.ini: min_python = {min_python} is not in setup.py's list of Python versions {PYTHONS}")
pythons = PYTHONS[PYTHONS.index(min_python) :]

extras = {extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", *OPTIONAL)}
extras["all"] = sorted({requirement for extra in OPTIONAL for requirement in extras[extra]})

readme = HERE / "README.md"
lib = cfg["lib_path"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        f"Development Status :: {STATUSES[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        *(f"Programming Language :: Python :: {version}" for version in pythons),
    ],
    # The YAML folders below configs/ have no __init__.py: only a namespace search names them as packages, and
    # setuptools wants every folder that carries data to be one.
    packages=find_namespace_packages(include=[lib, f"{lib}.*"], exclude=["*.__pycache__", "*.__pycache__.*"]),
    include_package_data=True,
    python_requires=f">={min_python}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": shlex.split(cfg["console_scripts"]),
        "nbdev": [f"{lib}={lib}._modidx:d"],
    },
    zip_safe=False,
)
