"""The door: `minilora COMMAND`. One file a command; its options stand above it, its docstring is its help.

A new command is a function under `@command(...)` in a file of its own, and a word in the table of `main.py`. It gets
the parsed options and returns an exit code. What it raises for a wrong argument or file becomes one line on stderr and
exit code 2; Ctrl-C is one line and exit code 130.
"""
