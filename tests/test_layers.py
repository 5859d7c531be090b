"""Imports point down: every module imports only from strictly lower layers, and some packages only in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tripletmas"

# package -> the packages, or the modules of them, that it may import
MAY_IMPORT = {
    "basics": (),
    "data": ("basics",),
    "index": ("basics",),
    "stores": ("index", "basics"),
    "protection": ("basics",),
    "models": ("data", "basics"),
    "objectives": ("models", "index", "data", "basics"),
    "integrations": ("protection", "data", "basics"),
    "strategies": ("objectives", "protection", "models", "data", "basics"),
    "runs": ("strategies", "objectives", "protection", "models", "data", "stores", "index", "basics"),
    "report": ("runs.directory", "objectives", "protection.coverage", "basics"),
    "serve": ("stores", "runs", "objectives", "models", "data", "index", "basics"),
    "cli": (
        *("report", "serve", "runs", "strategies", "objectives", "protection", "models", "data", "stores", "index"),
        "basics",
    ),
}
# one file of a package -> what it alone may import beside that: it embeds by whatever model a folder holds
ALSO = {"integrations/ray.py": ("runs.models", "runs.deployed", "runs.directory")}
FACADE = {"__init__", "__main__"}  # the public names, and `python -m tripletmas`
ONLY_IN = {
    "faiss": {"index"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "jsonargparse": {"runs", "cli"},
    "pytorch_metric_learning": {"objectives", "data", "integrations"},
    "sklearn": {"data", "report", "objectives"},
    "threadpoolctl": {"report"},
    "scipy": {"report", "data"},
    "optuna": {"runs"},
    "filelock": {"basics"},
    "pyarrow": {"cli", "data", "stores"},
    "lancedb": {"stores"},
    "qdrant_client": {"stores"},
    "qdrant_edge": {"stores"},
    "pymilvus": {"stores"},
    "psycopg": {"stores"},
    "pgvector": {"stores"},
    "chromadb": {"stores"},
    "sqlite_vec": {"stores"},
    "safetensors": {"basics"},
    "sentence_transformers": {"models", "integrations"},
    "transformers": {"models", "integrations"},
    "huggingface_hub": {"models"},
    "torch.distributed": {"basics"},
    "lightning": {"integrations"},
    "pytorch_lightning": {"integrations"},
    "avalanche": {"integrations"},
    "accelerate": {"integrations"},
    "ray": {"integrations"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "anyio": {"serve"},
    "triton": {"protection"},
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


def at_the_top(path: Path) -> set[str]:
    """The modules of ours that are imported with this one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    names = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
    return {name.removeprefix("tripletmas.") for name in names if name.startswith("tripletmas.")}


def own_imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, as `package.module`."""
    return {name.removeprefix("tripletmas.") for name in imports(path) if name.startswith("tripletmas.")}


def test_every_package_has_its_place():
    assert {unit(path) for path in files()} == MAY_IMPORT.keys() | FACADE


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    own = unit(path)
    if own in FACADE:
        return
    for imported in own_imports(path):
        allowed = (own, *MAY_IMPORT[own], *ALSO.get(path.relative_to(PACKAGE).as_posix(), ()))
        assert any(f"{imported}.".startswith(f"{each}.") for each in allowed), f"{own} may not import {imported}"


def test_the_importance_engine_is_a_closed_box():
    """Only importance and structured protection open it, by a door each."""
    box = PACKAGE / "protection" / "engine"
    users = {
        (path.parent.name, name)
        for path in files()
        if not path.is_relative_to(box)
        for name in own_imports(path)
        if f"{name}.".startswith("protection.engine.")
    }
    doors = {"importance": "per_sample.PerSampleGradients", "structured": "inputs.LayerInputs"}
    assert users == {(room, f"protection.engine.{door}") for room, door in doors.items()}


def test_no_circle():
    """No module imports itself, however far around; imports inside functions count."""
    imported = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): own_imports(path) for path in files()}
    needs = {
        name: {other for each in names for other in (each, each.rpartition(".")[0]) if other in imported}
        for name, names in imported.items()
    }
    while needs:
        free = {module for module, others in needs.items() if not others & needs.keys()}
        assert free, f"a circle among {sorted(needs)}"
        needs = {module: others for module, others in needs.items() if module not in free}


def test_a_kind_of_task_is_known_to_its_folder_alone():
    """And to `kinds`, which lists them; what commands and updates measure of retrieval and ask of facts is theirs."""
    of_kinds = ("objectives.retrieval.", "objectives.recognition.", "objectives.facts.")
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in files()
        if unit(path) != "objectives" and any(name.startswith(of_kinds) for name in own_imports(path))
    }
    assert users == {"runs/updates.py", "cli/query.py"}
    for path in files():
        if unit(path) != "objectives":
            asked = re.findall(
                r"isinstance\([^)]*\b(?:Retrieval|Recognition|Facts?|FactLoss)\b", path.read_text("utf-8")
            )
            assert not asked, f"{path.name} asks which kind it has"


def test_no_chain_of_imports_is_longer_than_16():
    """Of imports at the top of modules, without those for types alone."""
    imported = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): at_the_top(path) for path in files()}

    @cache
    def depth(module: str) -> int:
        needs = {other for each in imported[module] for other in (each, each.rpartition(".")[0]) if other in imported}
        return 1 + max(map(depth, needs - {module}), default=0)

    assert max(map(depth, imported)) <= 16


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_foreign_package_is_known_in_one_place(package):
    users = {
        unit(path) for path in files() for name in imports(path) if name == package or name.startswith(f"{package}.")
    }
    assert users <= ONLY_IN[package]


def test_the_tree():
    assert not list(ROOT.rglob("tripletmas/**/utils.py"))
    assert not list((ROOT / "datasets").glob("*.py")), "it would hide the package `datasets` of Hugging Face"
