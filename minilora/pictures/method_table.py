"""Every method in one table, from the records of `study methods`: what it learns, forgets, trains, stores and costs."""

from ..studies.findings import Records, Row, each, rows_of, where

NUMBERS = ("trainable", "loss", "loss_spread", "old_loss", "old_before", "memory_bytes", "step_ratio", "stored_bytes")
HEAD = (
    f"{'method':<12}{'trained':>8}{'loss':>7} ±{'spread':>6}{'forgot':>8}{'MiB':>7}{'step':>6}{'bytes':>10}{'token':>6}"
    "  merges"
)

FOOT = """trained: parameters. forgot: how much the loss on the old text rose. MiB: memory
of training. step: time over full's. bytes: stored for a task. token: time over
the base's, merged where a method merges; qlora merges q and v, and unpacks the
rest for each token."""


def methods_table(records: Records) -> str:
    """A table for each text, 80 columns wide, of the records of the study `methods`.

    trained: parameters while training. loss: on held-out text of the new kind, nats per character, mean ± half the
    range over the seeds. forgot: old_loss - old_before, by how much the loss on the old text rose. MiB: memory of
    training, 2^20 bytes. step: time of a training step over full fine-tuning's. bytes: stored for a task. token: time
    of a generated token over the base model's, merged where the method merges.

    Raises ValueError for records of another study and for rows that lack a number.
    """
    rows = rows_of(records, "methods", "corpus", "method", "before", "token_ratio", "mergeable", *NUMBERS)
    tables = []
    for corpus in each(rows, "corpus"):
        found = where(rows, corpus=corpus)
        before, old = found[0]["before"], found[0]["old_before"]
        base = f"{corpus}: the base model's loss is {before:.3f}, on the old text {old:.3f}"
        tables.append("\n".join([base, HEAD, "-" * len(HEAD), *map(_line, found)]))
    return "\n\n".join(tables)


def _line(row: Row) -> str:
    return (
        f"{row['method']:<12}{row['trainable']:>8,}{row['loss']:>7.3f} ±{row['loss_spread']:>6.3f}"
        f"{row['old_loss'] - row['old_before']:>+8.3f}{row['memory_bytes'] / 2**20:>7.1f}{row['step_ratio']:>6.2f}"
        f"{row['stored_bytes']:>10,.0f}{row['token_ratio']:>6.2f}  {'yes' if row['mergeable'] else 'no'}"
    )
