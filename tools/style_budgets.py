"""Compare the notebooks with the style budgets and list the worst offenders; exit with 1 if a hard budget fails.

Most budgets are soft: a line `over` is a recommendation, because some code reads better above the limit. The others are hard: a
line `FAIL` makes this program fail. Lines are lines of code, without blank lines and nbdev directives.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nbfiles import Cell, Notebook, read, skip_reason, sources, templates

WORST = 5
FASTCORE_ASSERTIONS = {"test_eq", "test_ne", "test_close", "test_fail", "test_is", "test_warns", "test_stdout"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(cell: Cell) -> ast.Module:
    """The cell's syntax tree; IPython's %magic and !shell lines are read as comments."""
    lines = ("#" + line if line.lstrip().startswith(("%", "!")) else line for line in cell.source.splitlines())
    return ast.parse("\n".join(lines))


def is_assertion(node: ast.AST) -> bool:
    """Whether the node is an `assert` statement or a call of one of fastcore's test functions."""
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(node, ast.Assert) or (isinstance(called, ast.Name) and called.id in FASTCORE_ASSERTIONS)


@dataclass(frozen=True)
class Measured:
    """A notebook that exports a module, with what the budgets measure."""

    notebook: Notebook

    @property
    def name(self) -> str:
        """The notebook's name without its suffix."""
        return self.notebook.path.stem

    @cached_property
    def exported(self) -> list[Cell]:
        """The cells of the module."""
        return [cell for cell in self.notebook.code if cell.exported]

    @cached_property
    def cells(self) -> list[tuple[str, int]]:
        """(name, lines) of every cell of the module; the name is that of its first definition, else its number."""
        found = []
        for number, cell in enumerate(self.notebook.code, start=1):
            names = [node.name for node in parsed(cell).body if isinstance(node, Function | ast.ClassDef)]
            if cell.exported:
                found.append((f"{self.name}.{names[0]}" if names else f"{self.name} code cell {number}", cell.lines))
        return found

    @cached_property
    def lines(self) -> int:
        """Lines of the module."""
        return sum(cell.lines for cell in self.exported)

    @cached_property
    def assertions(self) -> int:
        """Number of assertions in the cells that are not exported."""
        tests = (cell for cell in self.notebook.code if not cell.exported)
        return sum(is_assertion(node) for cell in tests for node in ast.walk(parsed(cell)))

    @cached_property
    def functions(self) -> list[tuple[str, Function]]:
        """The functions and methods of the module, as (name, node)."""
        return [(name, node) for cell in self.exported for name, node in functions_of(parsed(cell))]

    @cached_property
    def definitions(self) -> list[tuple[str, bool]]:
        """(names, whether the next code cell is not exported) of every exported cell with definitions."""
        code = self.notebook.code
        found = []
        for cell, following in zip(code, [*code[1:], None]):
            names = [node.name for node in parsed(cell).body if isinstance(node, Function | ast.ClassDef)]
            if cell.exported and names:
                found.append((", ".join(names), following is not None and not following.exported))
        return found

    @cached_property
    def prose(self) -> int:
        """Number of markdown cells."""
        return sum(cell.kind == "markdown" for cell in self.notebook.cells)


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below a node with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, Function)
        name = f"{prefix}{node.name}" if is_function or isinstance(node, ast.ClassDef) else ""
        if is_function:
            yield name, node
        yield from functions_of(node, f"{name}." if name else prefix)


def length(function: Function) -> int:
    """Lines from `def` to the end, docstring and blank lines included."""
    return function.end_lineno - function.lineno + 1


def unannotated(function: Function) -> list[str]:
    """The arguments without a type annotation, except `self` and `cls`."""
    a = function.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return [arg.arg for arg in arguments if arg.annotation is None and arg.arg not in ("self", "cls")]


@dataclass
class Budget:
    """One line of the report: the measured value, its limit, and the names that exceed it, worst first."""

    what: str
    value: float
    wanted: str
    kept: bool
    hard: bool = False
    offenders: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = "ok" if self.kept else "FAIL" if self.hard else "over"
        more = [f"and {len(self.offenders) - WORST} more"] if len(self.offenders) > WORST else []
        names = f"   {'; '.join([*self.offenders[:WORST], *more])}" if self.offenders else ""
        return f"{verdict:4} {self.what:44} {self.value:7.4g}   {self.wanted:18}{names}".rstrip()


def above(limit: float, measured: Iterable[tuple[str, float]]) -> list[str]:
    """Names and figures above the limit, the highest first."""
    return [f"{name} {value:.0f}" for name, value in sorted(measured, key=lambda pair: -pair[1]) if value > limit]


def below(limit: float, measured: Iterable[tuple[str, float]]) -> list[str]:
    """Names and figures below the limit, the lowest first."""
    return [f"{name} {value:.1f}" for name, value in sorted(measured, key=lambda pair: pair[1]) if value < limit]


def cell_budgets(measured: list[Measured]) -> Iterator[Budget]:
    """How long cells, functions and modules are."""
    cells = [cell for module in measured for cell in module.cells]
    middle, p90 = np.quantile([size for _, size in cells], [0.5, 0.9])
    yield Budget("export cells, median of lines", middle, "at most 10", middle <= 10, False, above(10, cells))
    yield Budget("export cells, 90th percentile of lines", p90, "at most 25", p90 <= 25, True, above(25, cells))
    functions = [(f"{module.name}.{name}", length(node)) for module in measured for name, node in module.functions]
    most = max(size for _, size in functions)
    yield Budget("longest function, lines", most, "at most 50", most <= 50, True, above(most - 1, functions))
    modules = [(module.name, module.lines) for module in measured]
    most = max(size for _, size in modules)
    yield Budget("longest module, lines", most, "at most 300", most <= 300, True, above(most - 1, modules))
    long = above(200, modules)
    yield Budget("modules above 200 lines", len(long), "none", not long, False, long)


def documentation_budgets(measured: list[Measured]) -> Iterator[Budget]:
    """How well the notebooks explain and run what they define."""
    density = 100 * sum(module.assertions for module in measured) / sum(module.lines for module in measured)
    few = below(8, ((module.name, 100 * module.assertions / module.lines) for module in measured))
    yield Budget("assertions per 100 exported lines", density, "at least 8", density >= 8, True, few)
    ran = [followed for module in measured for _, followed in module.definitions]
    share = 100 * sum(ran) / len(ran)
    not_run = [f"{module.name}: {names}" for module in measured for names, followed in module.definitions if not followed]
    yield Budget("definitions followed by a running cell, %", share, "at least 75", share >= 75, False, not_run)
    prose = 100 * sum(module.prose for module in measured) / sum(len(module.notebook.cells) for module in measured)
    sparse = below(25, ((module.name, 100 * module.prose / len(module.notebook.cells)) for module in measured))
    yield Budget("prose cells, %", prose, "at least 25", prose >= 25, True, sparse)


def coverage_budgets(measured: list[Measured], notebooks: list[Notebook]) -> Iterator[Budget]:
    """Arguments without a type, and code that no test runs, which would make the other figures meaningless."""
    functions = [(f"{module.name}.{name}", unannotated(node)) for module in measured for name, node in module.functions]
    bare = [f"{name}({', '.join(args)})" for name, args in functions if args]
    yield Budget("exported functions with unannotated arguments", len(bare), "none", not bare, True, bare)
    never = [
        f"{nb.path.stem} code cell {number}"
        for nb in notebooks
        for number, cell in enumerate(nb.code, start=1)
        if "eval: false" in cell.directives
    ]
    yield Budget("cells that never run (eval: false)", len(never), "none", not never, False, never)
    skipped = [f"{nb.path.stem}: {skip_reason(nb)}" for nb in notebooks if skip_reason(nb)]
    yield Budget("notebooks that nbdev skips", len(skipped), "none", not skipped, True, skipped)


def main() -> int:
    """Print every budget and return 1 if a hard one fails."""
    notebooks = [read(path) for path in [*sources(), *templates()]]
    measured = [module for module in map(Measured, notebooks) if module.exported]
    budgets = [*cell_budgets(measured), *documentation_budgets(measured), *coverage_budgets(measured, notebooks)]
    print(*budgets, sep="\n")
    failed = [budget.what for budget in budgets if budget.hard and not budget.kept]
    print(f"style: {len(measured)} notebooks, {sum(module.lines for module in measured)} exported lines", end="")
    print(f"; failed: {', '.join(failed)}" if failed else "")
    return min(1, len(failed))


if __name__ == "__main__":
    sys.exit(main())
