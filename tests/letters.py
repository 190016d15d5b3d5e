"""A tokenizer of letters with the face of a model's own: an end of texts, a token of two letters, a chat template."""

import re

import numpy as np

END, TWO_LINES = 1, 2


class Letters:
    """A token a letter, but for <end> where special is asked for, and two line ends, which are one token."""

    eos, special, vocab_size = frozenset({END}), {"eos_token": "<end>"}, 128

    def __init__(self, begin: bool = False, keeps: bool = True):
        self.begin, self.keeps = begin, keeps  # a token before every text; whether earlier answers stay as they were

    def encode(self, text, special=False, frame=True):
        if not isinstance(text, str):
            raise TypeError(f"encode: got {text!r}, expected a text")
        pieces = re.findall(r"<end>|\n\n|.|\n" if special else r"\n\n|.|\n", text)
        ids = [{"<end>": END, "\n\n": TWO_LINES}.get(piece) or ord(piece) for piece in pieces]
        return np.array([0] * (self.begin and frame) + ids, dtype=np.int64)

    def decode(self, tokens):
        return "".join({0: "", END: "<end>", TWO_LINES: "\n\n"}.get(int(t), chr(int(t))) for t in tokens)

    def chat_text(self, messages, add_generation_prompt=True):
        said = [m["content"] for m in messages]
        if not self.keeps:
            said[:-1] = [text.upper() for text in said[:-1]]
        turns = [f"<{m['role']}>\n{text}<end>\n" for m, text in zip(messages, said, strict=True)]
        return "".join(turns) + "<assistant>\n" * add_generation_prompt

    def chat(self, messages, add_generation_prompt=True):
        return self.encode(self.chat_text(messages, add_generation_prompt), special=True, frame=False)
