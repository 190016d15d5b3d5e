"""Floor 8, how fast it is, beside the peers: a file a part; `benchmark` puts them together."""
