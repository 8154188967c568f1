"""Nothing that is read can run: no evaluation of text, no pickles, no code of a model's, in any line of the package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "criteria_hpo"
MODULES = sorted(PACKAGE.rglob("*.py"))

BUILTINS = {"eval", "exec", "compile", "__import__"}
PICKLERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
LOADERS = {
    "torch": {"load"},
    "yaml": {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all", "Loader", "UnsafeLoader"},
    "pandas": {"read_pickle"},
    "runpy": {"run_path", "run_module"},
}
MUST_BE_FALSE = {"trust_remote_code", "allow_pickle"}
FROM_A_NAME = {"from_pretrained", "from_config"}
PICKLES_READ = {"language.py": {"pickle.Unpickler", "pickle.UnpicklingError"}}  # the reader that admits `set` only


def imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for, e.g. {"np": "numpy", "load": "torch.load"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name that an expression stands for, "" for anything else."""
    if isinstance(node, ast.Attribute):
        owner = full_name(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def call_faults(node: ast.Call) -> list[str]:
    """What is wrong with the keywords of a call."""
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    faults = [f"{name} is not False" for name in MUST_BE_FALSE & given.keys() if not is_false(given[name])]
    if isinstance(node.func, ast.Attribute) and node.func.attr in FROM_A_NAME:
        faults += [] if "trust_remote_code" in given else [f"{node.func.attr} without trust_remote_code=False"]
        weights = node.func.attr == "from_pretrained" and "Model" in ast.unparse(node.func.value)
        safe = isinstance(given.get("use_safetensors"), ast.Constant) and given["use_safetensors"].value is True
        faults += ["weights without use_safetensors=True"] if weights and not safe else []
    return faults


def reads_only_weights(node: ast.AST, names: dict[str, str]) -> bool:
    """Whether the node is `torch.load(..., weights_only=True)`, which builds nothing but tensors and plain values."""
    if not isinstance(node, ast.Call) or full_name(node.func, names) != "torch.load":
        return False
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    return isinstance(given.get("weights_only"), ast.Constant) and given["weights_only"].value is True


def dangers(source: str) -> list[str]:
    """What in a module's source could run what it reads."""
    tree, found = ast.parse(source), []
    names = imported(tree)
    safe = {node.func for node in ast.walk(tree) if reads_only_weights(node, names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in modules if name.split(".")[0] in PICKLERS - {"pickle"}]
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names if is_danger(f"{node.module}.{alias.name}")]
        if isinstance(node, ast.Name | ast.Attribute) and node not in safe and is_danger(name := full_name(node, names)):
            found.append(name)
        if isinstance(node, ast.Call):
            found += call_faults(node)
        if isinstance(node, ast.Constant) and node.value in MUST_BE_FALSE:
            found.append(f"{node.value} as a word")
    return sorted(set(found))


def is_danger(name: str) -> bool:
    """Whether a dotted name is one that runs what it reads."""
    first, _, last = name.removeprefix("builtins.").partition(".")
    return first in BUILTINS or (first == "pickle" and bool(last)) or last in LOADERS.get(first, ())


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("eval('1')", "eval"),
        ("import builtins\nbuiltins.exec(text)", "builtins.exec"),
        ("f = compile", "compile"),
        ("import pickle as p\np.load(file)", "pickle.load"),
        ("from pickle import loads\nloads(b'')", "pickle.loads"),
        ("def f():\n    import pickle\n    return pickle.Unpickler(file)", "pickle.Unpickler"),
        ("import joblib", "import joblib"),
        ("from dill import load", "import dill"),
        ("import torch\ntorch.load(path)", "torch.load"),
        ("import torch\ntorch.load(path, weights_only=False)", "torch.load"),
        ("import torch\nread = torch.load", "torch.load"),
        ("from torch import load as read\nread(path)", "torch.load"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "allow_pickle is not False"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "yaml.Loader"),
        ("from yaml import unsafe_load", "yaml.unsafe_load"),
        ("import pandas as pd\npd.read_pickle(path)", "pandas.read_pickle"),
        ("AutoConfig.from_pretrained(path)", "from_pretrained without trust_remote_code=False"),
        ("AutoConfig.from_pretrained(path, trust_remote_code=None)", "trust_remote_code is not False"),
        ("AutoModel.from_config(config)", "from_config without trust_remote_code=False"),
        ("AutoModel.from_pretrained(path, trust_remote_code=False)", "weights without use_safetensors=True"),
        ("AutoModel.from_pretrained(path, **{'trust_remote_code': True})", "trust_remote_code as a word"),
    ],
)
def test_dangers_are_seen(source: str, danger: str) -> None:
    assert danger in dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()\nre.compile(text)",
        "import yaml\nyaml.safe_load(text)",
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
        "AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True)",
    ],
)
def test_what_is_safe_is_let_through(source: str) -> None:
    assert dangers(source) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_module_runs_what_it_reads(module: Path) -> None:
    assert set(dangers(module.read_text(encoding="utf-8"))) == PICKLES_READ.get(module.name, set())
