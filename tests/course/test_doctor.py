"""The doctor finds what is wrong with a machine, and says what to do about it."""

import importlib.metadata
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest

from lora_lab import assets
from lora_lab.course import doctor as room
from lora_lab.course.doctor import Finding, Report, doctor


@pytest.fixture
def versions(monkeypatch):
    """Give a table of installed versions that a test can change; other packages keep their own version."""
    table: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = table[name] if name in table else real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(room, "tested_versions", dict)
    return table


def row(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


class TestReport:
    def test_it_is_ok_unless_a_finding_would_stop_the_course(self):
        fine, remark, wrong = Finding("a", "1"), Finding("b", "2", None), Finding("c", "3", False, "mend it")
        assert Report((fine, remark)).ok
        assert not Report((fine, wrong, remark)).ok
        assert Report((fine, wrong, remark)).problems == (wrong,)

    def test_advice_stands_under_the_line_it_belongs_to(self):
        report = Report((Finding("Python", "3.11"), Finding("memory", "1 GB", False, "buy more")))
        assert str(report).splitlines() == [
            "ok       Python  3.11",
            "PROBLEM  memory  1 GB",
            "                 -> buy more",
        ]


class TestThisMachine:
    def test_every_check_finds_something(self):
        names = [finding.name for finding in doctor().findings]
        for name in ("Python", "torch", "numpy", "memory", "processors", "device", "kernel", "cache", *assets.ASSETS):
            assert names.count(name) == 1

    def test_each_problem_has_advice(self):
        assert all(finding.advice for finding in doctor().problems)

    def test_the_kernel_is_this_python(self):
        (finding,) = room.kernel()
        assert finding.ok


class TestVersions:
    def test_python_outside_the_range(self, monkeypatch):
        monkeypatch.setattr(room.platform, "python_version", lambda: "3.10.1")
        (finding,) = room.python()
        assert finding.ok is False
        assert finding.advice.startswith("make an environment with Python")

    def test_package_that_is_missing(self, versions):
        versions["torch"] = None
        finding = row(room.packages(), "torch")
        assert (finding.value, finding.ok, finding.advice) == ("missing", False, room.INSTALL)

    def test_package_outside_its_range(self, versions):
        versions["torch"] = "1.13.1"
        finding = row(room.packages(), "torch")
        assert finding.ok is False
        assert finding.advice.startswith("the course takes >=2")

    def test_local_version_counts_as_the_version(self, versions, monkeypatch):
        versions["torch"] = "2.13.0+cu130"
        monkeypatch.setattr(room, "tested_versions", lambda: {"torch": "2.13.0"})
        assert row(room.packages(), "torch").ok is True

    def test_version_that_is_not_the_tested_one_is_a_remark(self, versions, monkeypatch):
        versions["torch"] = "2.13.1"
        monkeypatch.setattr(room, "tested_versions", lambda: {"torch": "2.13.0"})
        finding = row(room.packages(), "torch")
        assert finding.ok is None
        assert "tested with 2.13.0" in finding.advice

    def test_packages_of_the_tests_are_not_asked_for(self, versions):
        versions["nbval"] = None
        assert "nbval" not in [finding.name for finding in room.packages()]

    def test_course_that_is_not_installed(self, monkeypatch):
        def absent(name: str) -> None:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "metadata", absent)
        monkeypatch.setattr(importlib.metadata, "requires", absent)
        (finding,) = room.python()
        assert finding.ok is None
        assert room.packages() == []

    def test_pins_are_read_without_remarks_and_markers(self, tmp_path, monkeypatch):
        (tmp_path / "constraints.txt").write_text(
            "# the pins\ntorch==2.13.0  # the one\nnumpy==2.4.6 ; python_version < '3.14'\n\n", "utf-8"
        )
        monkeypatch.setattr(room.assets, "__file__", str(tmp_path / "lora_lab" / "assets.py"))
        assert room.tested_versions() == {"torch": "2.13.0", "numpy": "2.4.6"}

    def test_package_installed_without_its_folder_has_no_pins(self, tmp_path, monkeypatch):
        monkeypatch.setattr(room.assets, "__file__", str(tmp_path / "lora_lab" / "assets.py"))
        assert room.tested_versions() == {}


class TestMachines:
    @pytest.mark.parametrize(
        ("total", "free", "limits", "ok", "words"),
        [
            (16e9, 12e9, [], True, ""),
            (16e9, 2e9, [], None, "close other programs"),
            (2e9, 2e9, [], False, "another machine"),
            (64e9, 60e9, [2_000_000_000], False, "another machine"),
        ],
    )
    def test_memory(self, total, free, limits, ok, words, monkeypatch):
        psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(total=total, available=free))
        monkeypatch.setitem(sys.modules, "psutil", psutil)
        monkeypatch.setattr(room, "_container_limits", lambda: limits)
        (finding,) = room.memory()
        assert finding.ok is ok
        assert words in finding.advice

    def test_check_that_misses_a_package_does_not_stop_the_others(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "psutil", None)
        report = doctor()
        finding = row(list(report.findings), "memory")
        assert (finding.ok, finding.advice) == (False, room.INSTALL)
        assert "psutil" in finding.value
        assert report.findings[-1].name in assets.ASSETS

    def test_torch_that_does_not_load(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lora_lab.finetune.model", None)
        (finding,) = room.device()
        assert finding.ok is False
        assert finding.advice == room.INSTALL

    def test_gpu_that_torch_does_not_see(self, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(room.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
        (finding,) = room.device()
        assert finding.ok is None
        assert "PyTorch sees no GPU" in finding.advice

    def test_gpu(self, monkeypatch):
        import torch

        card = SimpleNamespace(name="H200", total_memory=140e9)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
        assert room.device() == [Finding("device", "CUDA: H200, 140 GB, trains in bfloat16")]

    @pytest.mark.parametrize(
        ("command", "ok"), [("python", True), ("python3", True), ("/elsewhere/bin/python3", False), (None, False)]
    )
    def test_kernel(self, command, ok, monkeypatch):
        from jupyter_client import kernelspec

        def spec(_: object, name: str) -> SimpleNamespace:
            if command is None:
                raise kernelspec.NoSuchKernel(name)
            return SimpleNamespace(argv=[command, "-m", "ipykernel_launcher"])

        monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", spec)
        (finding,) = room.kernel()
        assert finding.ok is ok
        assert bool(finding.advice) is not ok


class TestCache:
    @pytest.fixture
    def cached(self, monkeypatch, tmp_path):
        """Give a set of the assets that count as cached, in an empty folder."""
        names: set[str] = set()
        monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(assets, "is_cached", names.__contains__)
        return names

    def test_empty_cache_is_no_problem(self, cached):
        folder, *contents = room.cache()
        assert folder.ok
        assert [finding.name for finding in contents] == list(assets.ASSETS)
        sizes = {"smollm2-135m-instruct": 93, "movielens-100k": 2, "minilm-l6": 84, "film-reviews": 9, "mnist-5k": 1}
        sizes["reveal-js"] = 2
        for finding in contents:
            assert (finding.value, finding.ok) == ("not in the cache yet", None)
            assert f"`lora-lab fetch` gets it ({sizes[finding.name]} MB)" in finding.advice

    def test_the_doctor_makes_nothing(self, cached, tmp_path):
        room.cache()
        assert list(tmp_path.iterdir()) == []

    def test_damaged_file(self, cached):
        path = assets.cached_path("smollm2-135m-instruct")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        finding = row(room.cache(), "smollm2-135m-instruct")
        assert (finding.value, finding.ok) == ("in the cache, but damaged", None)

    @pytest.mark.parametrize("complete", [True, False])
    def test_full_disk_stops_only_who_still_has_to_fetch(self, complete, cached, monkeypatch):
        cached.update(assets.ASSETS if complete else ())
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10, 10))
        finding = row(room.cache(), "cache")
        assert finding.ok is (None if complete else False)
        assert finding.advice == "free 1 GB there, or set LORA_LAB_CACHE to another folder"

    @pytest.mark.parametrize("complete", [True, False])
    def test_cache_that_cannot_be_written(self, complete, cached, monkeypatch):
        cached.update(assets.ASSETS if complete else ())
        monkeypatch.setattr(room.os, "access", lambda *_: False)
        finding = row(room.cache(), "cache")
        assert finding.ok is (None if complete else False)
        assert finding.advice == "set LORA_LAB_CACHE to another folder"

    def test_cache_path_that_is_a_file(self, cached, tmp_path):
        (tmp_path / "cache").touch()
        assert row(room.cache(), "cache").ok is False

    def test_cache_path_that_is_relative(self, monkeypatch):
        monkeypatch.setenv("LORA_LAB_CACHE", "here")
        (finding,) = room.cache()
        assert finding.ok is False
        assert "takes an absolute path" in finding.advice
