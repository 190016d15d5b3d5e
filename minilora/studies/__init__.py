"""Floor 6, what is asked of trained models: the runs, the studies, what their records say, and taking turns."""
