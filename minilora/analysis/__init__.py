"""Floor 5, what the lecture asks of trained matrices: rank, counting, studies and figures."""
