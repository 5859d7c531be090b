"""Imports point down: every module imports only from strictly lower layers, and some packages only in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tripletmas"

LAYERS = (
    {
        "allocator",
        "aside",
        "params",
        "hooks",
        "metrics",
        "forgetting",
        "compatibility",
        "drift",
        "data",
        "images",
        "downloads",
        "spelling",
        "version",
    },
    {"index_file", "image_paths", "embedding_file"}
    | {"splits", "sampling", "models", "losses", "index", "embedding", "importance", "doctor", "recognition"}
    | {"datasets", "photographs", "folders"}
    | {"penalty", "penalty_gradient", "coverage", "protection_file"},
    {"tasks", "readers", "protection", "retrieval", "optimization", "picture_grid"},
    {"facts"},
    {"sequences", "class_means", "strategies", "image_index"},
    {"checkpoint", "evaluation", "index_changes"},
    {"task_training", "resuming", "gallery", "shown", "fact_evaluation"},
    {"search", "updates", "fact_shown"},
    {"finishing"},
    {"training"},
    {"catalog", "report"},
    {"configuration"},
    {"experiment"},
    {"sweeps", "run_models"},
    {"image_embedding"},
    {"commands"},
    {"cli"},
)
LAYER_OF = {module: number for number, modules in enumerate(LAYERS) for module in modules}
FACADE = {"__init__", "__main__"}  # the public names, and `python -m tripletmas`
ONLY_IN = {
    "faiss": {"index"},
    "matplotlib": {"report"},
    "jinja2": {"report", "picture_grid"},
    "jsonargparse": {"configuration", "commands"},
    "pytorch_metric_learning": {"losses", "photographs", "facts"},
    "sklearn": {"datasets", "report", "retrieval"},
    "optuna": {"sweeps"},
    "filelock": {"index_file"},
    "pyarrow": {"embedding_file"},
    "torch.distributed": set(),
}


def unit(path: Path) -> str:
    """The module, or the sub-package, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("tripletmas.")}


def test_every_module_has_a_layer():
    assert {unit(path) for path in files()} == LAYER_OF.keys() | FACADE


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    own = unit(path)
    if own in FACADE:
        return
    for imported in own_imports(path) - {own}:
        assert imported in LAYER_OF, f"{path.name} imports tripletmas.{imported}, which is no module"
        assert LAYER_OF[imported] < LAYER_OF[own], f"{path.name} imports {imported}, which is no lower layer"


@pytest.mark.parametrize("package", ["importance", "index", "strategies", "report", "commands"])
def test_no_cycle_inside_a_package(package):
    needs = {
        path.stem: {
            name.split(".")[2]
            for name in imports(path)
            if name.startswith(f"tripletmas.{package}.") and (PACKAGE / package / f"{name.split('.')[2]}.py").exists()
        }
        for path in (PACKAGE / package).glob("*.py")
        if path.stem != "__init__"
    }
    assert needs
    while needs:
        free = {module for module, others in needs.items() if not others & needs.keys()}
        assert free, f"a cycle among {sorted(needs)}"
        needs = {module: others for module, others in needs.items() if module not in free}


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_foreign_package_is_known_in_one_place(package):
    users = {
        unit(path) for path in files() for name in imports(path) if name == package or name.startswith(f"{package}.")
    }
    assert users <= ONLY_IN[package]


def test_the_tree():
    assert not list(ROOT.rglob("tripletmas/**/utils.py"))
    assert not list((ROOT / "datasets").glob("*.py")), "it would hide the package `datasets` of Hugging Face"
