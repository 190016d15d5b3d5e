"""Files that are written whole or not at all, and stay what they were."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from minilora.nn.files import write_beside

posix = pytest.mark.skipif(os.name == "nt", reason="modes, links and pipes as POSIX has them")
NEW = lambda file: file.write(b"new")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Sets the umask; it is put back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@posix
@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077])
def test_a_new_file_has_the_mode_that_the_umask_leaves(mask, umask, tmp_path):
    umask(mask)
    assert mode(write_beside(tmp_path / "file", NEW)) == 0o666 & ~mask
    (tmp_path / "plain").touch()
    assert mode(tmp_path / "file") == mode(tmp_path / "plain")


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("was", [0o600, 0o640, 0o644, 0o664, 0o666, 0o755, 0o777])
def test_a_file_keeps_its_mode(was, mask, umask, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(was)
    umask(mask)
    write_beside(path, NEW)
    assert path.read_bytes() == b"new" and mode(path) == was


@posix
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)
    path.chmod(0o4750)
    write_beside(path, NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321) and mode(path) == 0o4750


@posix
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_owner_keeps_its_group_where_it_can(tmp_path, monkeypatch):
    path, chown = tmp_path / "file", os.chown
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)

    def only_groups(place, owner, group):
        if owner != -1:
            raise PermissionError(1, "Operation not permitted")
        chown(place, owner, group)

    monkeypatch.setattr(os, "chown", only_groups)
    write_beside(path, NEW)
    assert path.read_bytes() == b"new" and (path.stat().st_uid, path.stat().st_gid) == (0, 4321)


@posix
@pytest.mark.skipif(os.name != "nt" and os.geteuid() == 0, reason="root may write anything")
def test_a_protected_file_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="protected"):
        write_beside(path, NEW)
    assert path.read_bytes() == b"old"


@posix
def test_a_link_is_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "target", tmp_path / "link", tmp_path / "second"
    link.symlink_to(os.path.join("far", "target"))  # to nothing, so far; and relative
    second.symlink_to(link)
    for content in (b"one", b"two"):
        assert write_beside(second, lambda file, content=content: file.write(content)) == second
        assert link.is_symlink() and second.is_symlink()
        assert target.read_bytes() == content and not target.is_symlink()
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["target"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["far", "link", "second"]


@posix
def test_a_link_to_itself_is_refused(tmp_path):
    path = tmp_path / "link"
    path.symlink_to(path)
    with pytest.raises(OSError, match="link"):
        write_beside(path, NEW)
    assert path.is_symlink()


@posix
def test_a_pipe_and_a_device_stay_what_they_are(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_bytes()))
    reader.start()

    def back_and_forth(file):  # as zip archives are written
        file.write(b"old and new")
        file.seek(0)
        file.write(b"new")

    assert write_beside(pipe, back_and_forth) == pipe
    reader.join(10)
    assert came == [b"new and new"] and stat.S_ISFIFO(pipe.stat().st_mode)
    write_beside("/dev/null", NEW)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_beside(tmp_path, NEW)


WRITER = """
import resource, signal, sys
from minilora.nn.files import write_beside
from minilora.nn.storage import save_arrays
import numpy as np
"""


def run(code, *argv):
    command = [sys.executable, "-c", WRITER + code, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@posix
@pytest.mark.parametrize("compress", [True, False])
def test_a_full_disk_names_file_and_size_and_leaves_the_old_file(compress, tmp_path):
    """A limit on the size of files fails a write in its middle, as a full disk does."""
    path = tmp_path / "arrays.npz"
    path.write_bytes(b"old")
    code = f"""
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
arrays = {{name: np.random.default_rng(0).random(30_000) for name in "abc"}}
try:
    save_arrays(sys.argv[1], arrays, {{"kind": "x"}}, compress={compress})
except OSError as error:
    print(error.filename, error.strerror)
"""
    done = run(code, path)
    assert done.stderr == ""
    assert done.stdout.startswith(f"{path} File too large (the file needs about 720,0")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@posix
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file"
    killed = run(
        "write_beside(sys.argv[1], lambda file: (file.write(b'half'), signal.raise_signal(signal.SIGKILL)))", path
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    other = tmp_path / ".file.of.mine.part"
    other.touch()
    running = subprocess.Popen(
        [sys.executable, "-c", WRITER + "write_beside(sys.argv[1], lambda file: (print(flush=True), input()))", path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with running:
        running.stdout.readline()
        assert not left.exists()  # it was the first that it did
        write_beside(path, NEW)
        assert len(list(tmp_path.iterdir())) == 3  # the file, what is not ours, and what is still being written
        running.stdin.close()
    assert sorted(tmp_path.iterdir()) == [other, path]


@posix
def test_file_and_folder_are_put_on_the_disk(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)), sync(fd)))
    write_beside(tmp_path / "file", NEW)
    assert synced == [False, True]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    def refuse(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    assert write_beside(tmp_path / "file", NEW).read_bytes() == b"new"


def test_several_threads_write_one_file(tmp_path):
    path = tmp_path / "file"

    def write(n):
        for _ in range(20):
            write_beside(path, lambda file: (file.write(b"%d" % n), time.sleep(0.001)))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"0", b"1", b"2", b"3") and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "語" * 85])
def test_names_of_any_length_are_written(name, tmp_path):
    assert write_beside(tmp_path / name, NEW).read_bytes() == b"new"


def test_a_folder_that_may_not_be_looked_into_is_written_into(tmp_path, monkeypatch):
    def refuse(place):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(os, "listdir", refuse)
    assert write_beside(tmp_path / "file", NEW).read_bytes() == b"new"
