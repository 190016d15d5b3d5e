"""What a command writes costs no other file, and what cannot be written is said before the work."""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from lines import QUICK, SIZES, finetune, the_error

import minilora as ml
from minilora.commands.main import COMMANDS, main
from minilora.commands.options import convert
from minilora.commands.outputs import claimed, refuse_overwriting, require_writable
from minilora.nn.storage import BASE

posix = pytest.mark.skipif(os.name == "nt", reason="links, pipes and locks as POSIX has them")
FINETUNE = ["finetune", "--model", "base.npz", "--corpus", "text.txt", "--rank", "2", *QUICK]
PRETRAIN = ["pretrain", "--corpus", "text.txt", *SIZES, *QUICK]


def everything(folder):
    """{path: (kind and mode, content)} of all that is in a folder."""
    return {
        path.relative_to(folder): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def adapted(trained):
    """The folder of the model, with an adapter and the checkpoint of its run."""
    with contextlib.chdir(trained):
        finetune("--output", "adapter.npz", "--checkpoint", "run.npz")
    return trained


@pytest.fixture
def files(base, adapted):
    """A folder with all that a command may be given, and names that other files have."""
    for name in ("adapter.npz", "run.npz"):
        shutil.copyfile(adapted / name, name)
    (base.parent / "notes.json").write_text('{"mine": 1}')
    (base.parent / "list.json").write_text("[1]")
    (base.parent / "text.json").write_text("A text whose name ends in json.\n" * 60)
    if os.name != "nt":
        (base.parent / "link.npz").symlink_to("base.npz")
        os.link("text.txt", "hard.npz")
    return base.parent


@posix
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*FINETUNE, "--output", "text.txt"], "--output 'text.txt' would overwrite the corpus 'text.txt'"),
        ([*FINETUNE, "--output", "./new/../text.txt"], "would overwrite the corpus"),
        ([*FINETUNE, "--output", "hard.npz"], "would overwrite the corpus"),
        ([*FINETUNE, "--output", "base.npz"], "would overwrite the model 'base.npz'"),
        ([*FINETUNE, "--output", "link.npz"], "would overwrite the model 'base.npz'"),
        (["finetune", "--model", "link.npz", "--corpus", "text.txt", *QUICK, "--output", "base.npz"], "the model"),
        (["finetune", "--corpus", "text.txt", *QUICK, "--output", str(BASE)], "would overwrite the model"),
        ([*FINETUNE, "--output", "a.npz", "--checkpoint", "a.npz"], "--checkpoint 'a.npz' would overwrite --output"),
        ([*FINETUNE, "--checkpoint", "base.npz"], "--checkpoint 'base.npz' would overwrite the model"),
        ([*FINETUNE, "--checkpoint", "text.txt"], "--checkpoint 'text.txt' would overwrite the corpus"),
        (["finetune", "--resume", "run.npz", "--output", "run.npz"], "would overwrite the checkpoint 'run.npz'"),
        (["finetune", "--resume", "run.npz", "--output", "text.txt"], "would overwrite the corpus"),
        (["finetune", "--resume", "run.npz", "--output", "a.npz", "--checkpoint", "text.txt"], "the corpus"),
        ([*PRETRAIN, "--output", "text.txt"], "would overwrite the corpus"),
        ([*PRETRAIN, "--output", "x.json"], "would overwrite --output 'x.json'"),
        ([*PRETRAIN, "--output", "notes.npz"], "record beside --output would overwrite 'notes.json', which is none"),
        ([*PRETRAIN, "--output", "list.npz"], "would overwrite 'list.json'"),
        (["pretrain", "--corpus", "text.json", *SIZES, *QUICK, "--output", "text.npz"], "'text.json'"),
        ([*PRETRAIN, "--output", "new.npz", "--checkpoint", "new.json"], "would overwrite what is written beside"),
        (["merge", "--model", "base.npz", "--adapter", "adapter.npz", "--output", "adapter.npz"], "the adapter"),
        (["merge", "--model", "base.npz", "--adapter", "adapter.npz", "--output", "link.npz"], "the model"),
        (["bench", "--output", "s.png", "--figure", "s.svg"], "would overwrite --figure 's.png'"),
    ],
)  # fmt: skip
def test_an_output_that_costs_another_file_is_refused_before_the_work(argv, said, files, capsys, monkeypatch):
    before = everything(files)
    monkeypatch.setattr(ml, "train", lambda *args, **kwargs: pytest.fail("began to train"))
    assert said in the_error(capsys, *argv)
    assert everything(files) == before


def test_a_record_of_its_own_is_written_over(base):
    assert main([*PRETRAIN, "--seed", "3", "--output", "base.npz"]) == 0


@pytest.mark.parametrize("command", [PRETRAIN, FINETUNE, ["merge", "--model", "base.npz"]])
@pytest.mark.parametrize("name", ["base", "./base"])
def test_no_file_is_called_as_the_shipped_model(command, name, base, capsys):
    before = everything(base.parent)
    assert "'base' is the name of the model that comes with minilora" in the_error(capsys, *command, "--output", name)
    assert everything(base.parent) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_every_output_says_which_option_takes_another_place(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for flag, how in COMMANDS[name].options:
        if flag in ("--output", "--checkpoint", "--figure"):
            with pytest.raises(OSError) as error:
                convert(flag, how, str(tmp_path / "file" / "x"))
            assert f"{flag} takes another" in error.value.__notes__


@pytest.mark.parametrize(
    "argv", [["demo"], FINETUNE, PRETRAIN, ["merge"], ["study", "ranks"], ["figures"], ["homework", "release"]]
)
def test_a_folder_that_cannot_be_written_is_said_with_what_helps(argv, base, capsys):
    for name in ("runs", "figures", "homework"):
        (base.parent / name).touch()
    line = the_error(capsys, *argv)
    assert "cannot write to" in line and line.endswith("--output takes another")


@posix
def test_a_device_that_is_full_is_named(base, capsys):
    line = the_error(capsys, *FINETUNE, "--output", "/dev/full")
    assert "/dev/full: No space left on device (the file needs about" in line and "nothing of it is saved" in line


def test_what_is_only_asked_about_is_not_made(base, capsys):
    """A folder is made with the file that goes in it, not with a command line that turns out to be wrong."""
    before = everything(base.parent)
    the_error(capsys, *FINETUNE, "--output", "new/folder/a.npz", "--rank", "0")
    the_error(capsys, "demo", "--output", "pictures", "--steps", "0")
    the_error(capsys, "finetune", "--model", "nowhere.npz")
    require_writable(base.parent / "new" / "folder")
    assert everything(base.parent) == before
    assert main([*FINETUNE, "--output", "new/folder/a.npz"]) == 0


NEEDED = {"study": ["ranks"], "homework": ["release"]}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_no_file(name, here, capsys):
    for flag, how in COMMANDS[name].options:
        if flag.startswith("--") and how.get("metavar", "TEXT") != "TEXT" and flag != "--peers":
            assert f"{flag}: got ''" in the_error(capsys, name, *NEEDED.get(name, []), flag, "")


@posix
def test_the_results_keep_links_modes_and_devices(base):
    (base.parent / "store").mkdir()
    (base.parent / "a.npz").symlink_to("store/adapter.npz")
    before = os.umask(0o077)
    try:
        assert main([*FINETUNE, "--output", "a.npz"]) == 0
        assert main([*PRETRAIN, "--output", "private.npz"]) == 0
    finally:
        os.umask(before)
    stored = base.parent / "store" / "adapter.npz"
    for path in (stored, base.parent / "private.npz", base.parent / "private.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (base.parent / "a.npz").is_symlink() and os.listdir(base.parent / "store") == ["adapter.npz"]
    stored.chmod(0o640)
    assert main([*FINETUNE, "--output", "a.npz"]) == 0
    assert stat.S_IMODE(stored.stat().st_mode) == 0o640
    left = os.listdir("/dev")
    for argv in (PRETRAIN, FINETUNE, ["merge", "--model", "base.npz", "--adapter", "a.npz"]):
        assert main([*argv, "--output", "/dev/null"]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and os.listdir("/dev") == left


@posix
def test_a_file_that_another_run_is_writing_is_refused(base, capsys):
    code = "import sys\nfrom minilora.commands.outputs import claimed\nfrom pathlib import Path\n"
    code += "with claimed(Path(sys.argv[1])):\n    print(flush=True)\n    input()\n"
    with subprocess.Popen(
        [sys.executable, "-c", code, "a.npz"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        assert "another run is writing 'a.npz'" in the_error(capsys, *FINETUNE, "--output", "a.npz")
        assert "another run is writing 'a.npz'" in the_error(
            capsys, *FINETUNE, "--output", "b.npz", "--checkpoint", "a.npz"
        )
        (base.parent / "link").symlink_to("a.npz")
        assert "another run is writing 'link'" in the_error(capsys, *FINETUNE, "--output", "link")
        assert main([*FINETUNE, "--output", "b.npz"]) == 0
        other.send_signal(signal.SIGKILL)
    assert main([*FINETUNE, "--output", "a.npz"]) == 0  # the lock of a killed process is none
    assert not [name for name in os.listdir() if name.endswith(".lock")]


@posix
def test_the_checkpoint_of_an_earlier_run_is_nobodys(base, monkeypatch):
    """A run that found it in its way does not hold it: another may go on with it meanwhile."""
    assert main([*FINETUNE, "--output", "a.npz", "--checkpoint", "a.checkpoint.npz"]) == 0
    train, calls = ml.train, []

    def meanwhile(run, checkpoint, progress):
        calls.append(str(checkpoint))
        if len(calls) == 1:
            assert main(["finetune", "--resume", "a.checkpoint.npz", "--output", "b.npz"]) == 0
            assert main([*FINETUNE, "--output", "a"]) == 0  # whose checkpoint would have the first one's name
        return train(run, checkpoint, progress)

    monkeypatch.setattr(ml, "train", meanwhile)
    assert main([*FINETUNE, "--output", "a.npz"]) == 0
    assert calls == ["a.checkpoint-2.npz", "a.checkpoint.npz", "a.checkpoint-3.npz"]


def test_the_same_path_twice_and_missing_inputs(tmp_path):
    refuse_overwriting([("a", tmp_path / "x")], [("b", None), ("c", tmp_path / "y")])
    with pytest.raises(ValueError, match=r"a '.*x' would overwrite b '.*x'"):
        refuse_overwriting([("a", tmp_path / "x")], [("b", tmp_path / "." / "x")])
    with claimed(tmp_path / "x"), pytest.raises(ValueError, match="another run"), claimed(tmp_path / "x"):
        pass


def test_the_shipped_model_is_as_it_was():
    with np.load(BASE) as file:
        assert "header" in file.files
