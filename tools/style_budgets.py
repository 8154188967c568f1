"""Print how the notebooks keep our style budgets, the worst offenders by name and how many more there are; fail on the hard ones.

A budget is a wish, and where it hurts the code, the code wins: such a line says `over`. A few are promises: what breaks
one says `FAIL`, and so does this program. Lines are lines of code, without blank ones and directives.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nbfiles import Cell, Notebook, read, refusal, sources, templates

WORST = 5
FASTCORE_ASSERTIONS = {"test_eq", "test_ne", "test_close", "test_fail", "test_is", "test_warns", "test_stdout"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(cell: Cell) -> ast.Module:
    """The cell's syntax tree; lines of IPython's own (%magic, !shell) count as comments."""
    lines = ("#" + line if line.lstrip().startswith(("%", "!")) else line for line in cell.source.splitlines())
    return ast.parse("\n".join(lines))


def is_assertion(node: ast.AST) -> bool:
    """Whether the node states what must hold: an `assert`, or one of fastcore's tests."""
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(node, ast.Assert) or (isinstance(called, ast.Name) and called.id in FASTCORE_ASSERTIONS)


@dataclass(frozen=True)
class Room:
    """A notebook that exports a module, measured."""

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
        """(name, lines) of every cell of the module: named after what it defines first, else by its number."""
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
        """Assertions in the cells beside the module."""
        beside = (cell for cell in self.notebook.code if not cell.exported)
        return sum(is_assertion(node) for cell in beside for node in ast.walk(parsed(cell)))

    @cached_property
    def functions(self) -> list[tuple[str, Function]]:
        """The functions and methods of the module, as (name, node)."""
        return [(name, node) for cell in self.exported for name, node in functions_of(parsed(cell))]

    @cached_property
    def definitions(self) -> list[tuple[str, bool]]:
        """(what a cell defines, whether the next code cell runs something) of every cell that defines something."""
        code = self.notebook.code
        found = []
        for cell, following in zip(code, [*code[1:], None]):
            names = [node.name for node in parsed(cell).body if isinstance(node, Function | ast.ClassDef)]
            if cell.exported and names:
                found.append((", ".join(names), following is not None and not following.exported))
        return found

    @cached_property
    def prose(self) -> int:
        """Cells that are prose."""
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
    """The arguments without a type, `self` and `cls` aside."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return [arg.arg for arg in every if arg.annotation is None and arg.arg not in ("self", "cls")]


@dataclass
class Budget:
    """One line of the report: what was measured, what is wanted, and who is worst."""

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


def cell_budgets(rooms: list[Room]) -> Iterator[Budget]:
    """How long cells, functions and modules are."""
    cells = [cell for room in rooms for cell in room.cells]
    middle, p90 = np.quantile([size for _, size in cells], [0.5, 0.9])
    yield Budget("export cells, median of lines", middle, "at most 10", middle <= 10, False, above(10, cells))
    yield Budget("export cells, 90th percentile of lines", p90, "at most 25", p90 <= 25, True, above(25, cells))
    functions = [(f"{room.name}.{name}", length(node)) for room in rooms for name, node in room.functions]
    most = max(size for _, size in functions)
    yield Budget("longest function, lines", most, "at most 50", most <= 50, True, above(most - 1, functions))
    modules = [(room.name, room.lines) for room in rooms]
    most = max(size for _, size in modules)
    yield Budget("longest module, lines", most, "at most 300", most <= 300, True, above(most - 1, modules))
    long = above(200, modules)
    yield Budget("modules above 200 lines", len(long), "none", not long, False, long)


def teaching_budgets(rooms: list[Room]) -> Iterator[Budget]:
    """How well the notebooks explain and show what they define."""
    density = 100 * sum(room.assertions for room in rooms) / sum(room.lines for room in rooms)
    thin = below(8, ((room.name, 100 * room.assertions / room.lines) for room in rooms))
    yield Budget("assertions per 100 exported lines", density, "at least 8", density >= 8, True, thin)
    ran = [followed for room in rooms for _, followed in room.definitions]
    share = 100 * sum(ran) / len(ran)
    unseen = [f"{room.name}: {names}" for room in rooms for names, followed in room.definitions if not followed]
    yield Budget("definitions followed by a running cell, %", share, "at least 75", share >= 75, False, unseen)
    prose = 100 * sum(room.prose for room in rooms) / sum(len(room.notebook.cells) for room in rooms)
    terse = below(25, ((room.name, 100 * room.prose / len(room.notebook.cells)) for room in rooms))
    yield Budget("prose cells, %", prose, "at least 25", prose >= 25, True, terse)


def honesty_budgets(rooms: list[Room], notebooks: list[Notebook]) -> Iterator[Budget]:
    """What would make the other figures lie: arguments without a type, cells that nobody runs."""
    bare = [f"{room.name}.{name}({', '.join(args)})" for room in rooms for name, f in room.functions if (args := unannotated(f))]
    yield Budget("exported functions with unannotated arguments", len(bare), "none", not bare, True, bare)
    never = [
        f"{nb.path.stem} code cell {number}"
        for nb in notebooks
        for number, cell in enumerate(nb.code, start=1)
        if "eval: false" in cell.directives
    ]
    yield Budget("cells that never run (eval: false)", len(never), "none", not never, False, never)
    skipped = [f"{nb.path.stem}: {refusal(nb)}" for nb in notebooks if refusal(nb)]
    yield Budget("notebooks of which nothing runs", len(skipped), "none", not skipped, True, skipped)


def main() -> int:
    """Print every budget; 1 if a hard one is broken."""
    notebooks = [read(path) for path in [*sources(), *templates()]]
    rooms = [room for room in map(Room, notebooks) if room.exported]
    budgets = [*cell_budgets(rooms), *teaching_budgets(rooms), *honesty_budgets(rooms, notebooks)]
    print(*budgets, sep="\n")
    broken = [budget.what for budget in budgets if budget.hard and not budget.kept]
    print(f"style: {len(rooms)} notebooks, {sum(room.lines for room in rooms)} exported lines", end="")
    print(f"; broken: {', '.join(broken)}" if broken else "")
    return min(1, len(broken))


if __name__ == "__main__":
    sys.exit(main())
