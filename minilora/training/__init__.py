"""Floor 4, training: real text, batches, optimisers, the loop and its checkpoints."""
