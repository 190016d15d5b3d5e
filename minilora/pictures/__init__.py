"""Floor 7, how it is drawn: the style, the diagrams, a file a family of figures, and the table of methods."""
