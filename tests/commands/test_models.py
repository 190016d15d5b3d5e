"""The model and adapter files that commands are given."""

from lines import finetune, the_error


def test_files_of_another_kind_are_refused(base, capsys):
    finetune("--output", "adapter.npz")
    assert "'adapter', expected 'model'" in the_error(capsys, "generate", "--model", "adapter.npz")
    assert "expected 'adapter'" in the_error(capsys, "merge", "--model", "base.npz", "--adapter", "base.npz")
    base.write_bytes(base.read_bytes()[:500])
    assert "base.npz" in the_error(capsys, "generate", "--model", "base.npz")


def test_a_name_close_to_a_file_is_suggested(base, capsys):
    assert "did you mean 'base.npz'?" in the_error(capsys, "generate", "--model", "bse.npz")
