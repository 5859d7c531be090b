"""What the machine has, problems included."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata

import pytest
import threadpoolctl
import torch

from tripletmas.basics.version import __version__
from tripletmas.cli import doctor


def found(what: str) -> doctor.Finding:
    (finding,) = [each for each in doctor.findings() if each.what == what]
    return finding


def test_versions_and_processors():
    assert found("tripletmas") == (True, "tripletmas", __version__)
    assert found("torch").text == metadata.version("torch")
    assert found("processors").text == f"{torch.get_num_threads()} threads for torch"
    assert not [finding for finding in doctor.findings() if finding.good is False and finding.what != "OpenMP"]


def test_a_package_that_cannot_be_imported_is_a_problem(monkeypatch):
    real = importlib.import_module

    def broken(name, *rest):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    problems = [finding for finding in doctor.findings() if finding.good is False]
    assert (
        "torchvision",
        f"cannot be imported (operator torchvision::nms does not exist); needed for {doctor.FEATURES['torchvision']}",
    ) in [(problem.what, problem.text) for problem in problems]


@pytest.mark.parametrize(("available", "text"), [(False, "no GPU: everything runs on the CPU"), (True, "Fast, 8 GiB")])
def test_devices(available, text, monkeypatch):
    class Properties:
        total_memory = 8 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Fast")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    finding = found("cuda:0" if available else "cuda")
    assert finding.text == text
    assert finding.good is (True if available else None)


@pytest.mark.parametrize(
    ("system", "libraries", "good"),
    [
        ("Linux", ["/a/libgomp.so"], True),
        ("Linux", ["/a/libgomp.so", "/b/libomp.so"], None),
        ("Darwin", ["/a/libomp.dylib", "/b/libomp.dylib"], False),
        ("Linux", [], None),
    ],
)
def test_openmp_runtimes(system, libraries, good, monkeypatch):
    pools = [{"user_api": "openmp", "filepath": library} for library in libraries]
    pools.append({"user_api": "blas", "filepath": "/c/blas.so"})
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: pools)
    monkeypatch.setattr(platform, "system", lambda: system)
    finding = found("OpenMP")
    assert finding.good is good
    assert finding.text.startswith(f"{len(libraries)} runtime")
    assert ("OMP_NUM_THREADS=1" in finding.text) == (good is False)


def test_a_package_that_is_not_installed_is_a_problem(monkeypatch):
    real = metadata.version

    def without_faiss(package):
        if package == "faiss-cpu":
            raise metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(metadata, "version", without_faiss)
    assert found("faiss-cpu") == (False, "faiss-cpu", "missing")


@pytest.mark.slow
def test_doctor_answers_where_torch_cannot_be_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    command = [sys.executable, "-m", "tripletmas", "doctor"]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "torch                    cannot be imported (libcudart.so.13" in ran.stdout
    other = subprocess.run(
        [*command[:-1], "report", "x"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert other.returncode == 2
    assert "tripletmas doctor" in other.stderr
    assert "Traceback" not in other.stderr


def test_doctor_prints_its_findings(call, monkeypatch):
    findings = [
        doctor.Finding(True, "torch", "2"),
        doctor.Finding(False, "faiss", "gone"),
        doctor.Finding(None, "x", "y"),
    ]
    monkeypatch.setattr(doctor, "findings", lambda: iter(findings))
    status, text, _ = call("doctor")
    assert status == 0
    assert [line.split() for line in text.splitlines()] == [
        ["ok", "torch", "2"],
        ["PROBLEM", "faiss", "gone"],
        ["note", "x", "y"],
    ]
    monkeypatch.undo()
    assert f"tripletmas  {__version__}" in re.sub(" +", "  ", call("doctor")[1])
