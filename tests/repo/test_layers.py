"""Imports go one way. The table is the architecture; docs/architecture.md draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from consumers.compiled import compiled_sources

ROOT = Path(__file__).parents[2]
PACKAGES = ("consumers", "pipeline")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

ONLY_IN = {
    "mlflow": ("pipeline.registry",),
    "confluent_kafka": (
        "consumers.kafka",  # reading
        "consumers.librdkafka",  # in bulk
        "consumers.broker",  # the embedded broker and topic administration
        "consumers.codecs.registry",  # the client of the Schema Registry
        "pipeline.deadletter",  # producing
        "pipeline.demo",  # producing
        "pipeline.cli.doctor",
    ),
    "torch": ("pipeline",),
    "pipeline": ("pipeline",),
    "matplotlib": ("pipeline.report",),
    "rich": ("pipeline.demo", "pipeline.cli"),
}
"""Who may import what, wherever in the file the import stands: a module, or a package with all below it."""


def imported(path: Path, module: str) -> Iterator[tuple[str, bool]]:
    """Names of imported modules, and whether importing the file imports them."""
    tree = ast.parse(path.read_text())
    at_import = {id(node) for node in import_time_nodes(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in at_import
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module), id(node) in at_import


def import_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from import_time_nodes(node)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    for name, _ in imported(MODULES[module], module):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or within(module, allowed), f"{module} must not import {name}"


def test_no_module_is_imported_in_a_circle() -> None:
    graph = {
        module: {name for name, at_import in imported(path, module) if at_import and name in MODULES} - {module}
        for module, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which shows the circle


def test_the_check_sees_imports_in_functions_and_in_type_checking_blocks(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text("import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from consumers import record\n")
    found = [("a", True), ("b", False), ("consumers.record", False)]
    assert sorted(imported(path, "example")) == found


def test_what_compiled_loops_take_from_other_files_names_their_cache_too() -> None:
    """A constant is compiled in: a loop that is found in the cache would have the one of before."""
    named = set(compiled_sources())
    for path in MODULES.values():
        tree = ast.parse(path.read_text())
        used = set(compiled_in(tree))
        for node in tree.body:
            if (
                isinstance(node, ast.ImportFrom)
                and node.module in MODULES
                and used & {name.name for name in node.names}
            ):
                assert MODULES[node.module].resolve() in named, f"{path}: {node.module}"


def compiled_in(tree: ast.Module) -> Iterator[str]:
    """Names in compiled functions, and, where there are any, in the constants of the module."""
    compiled = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any("njit_" in ast.unparse(by) for by in node.decorator_list)
    ]
    constants = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)] if compiled else []
    for node in [*compiled, *constants]:
        yield from (name.id for name in ast.walk(node) if isinstance(name, ast.Name))
