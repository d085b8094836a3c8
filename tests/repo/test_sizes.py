"""A function fits on a screen and a file has one subject: the limits of CONTRIBUTING.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("consumers", "pipeline") for path in (ROOT / package).rglob("*.py"))

FILE_LINES_MAX = 350
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX, f"{path.relative_to(ROOT)} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, f"{place} is too long"
            if any("njit" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue  # a compiled kernel takes its arrays one by one
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            assert len(names) <= PARAMETERS_MAX, f"{place} has too many parameters"
