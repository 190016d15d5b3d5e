"""Chats as the text that a model was trained on: templates in Jinja's language, which come with the model.

A template is somebody else's program, so it runs in Jinja's sandbox, with the settings and the few functions that
transformers gives it ("Chat templates" in its documentation), and sees the messages alone.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..autograd.signatures import shown
from ..nn.storage import said
from .extras import extra


def render(template: str, messages: Any, add_generation_prompt: bool, special: Mapping[str, str]) -> str:
    """The text of a chat. Raises TypeError for what are no messages, ValueError where the template refuses them."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise TypeError(f'chat: got {shown(messages)}, expected messages: [{{"role": "user", "content": "Hello"}}]')
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise TypeError(f'chat: got the message {shown(message)}, expected {{"role": "user", "content": "Hello"}}')
    jinja2 = extra("jinja2", "a chat template")
    try:
        return _compiled(template).render(
            messages=[dict(message) for message in messages],
            tools=None, documents=None, add_generation_prompt=add_generation_prompt, **special,
        )  # fmt: skip
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"chat: line {error.lineno} of the model's template: {said(error)}") from None
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"chat: the model's template takes no such messages: {said(error)}") from None


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    jinja2 = extra("jinja2", "a chat template")
    sandbox, extensions = extra("jinja2.sandbox", "a chat template"), extra("jinja2.ext", "a chat template")

    class Generation(extensions.Extension):  # type: ignore[name-defined]
        """{% generation %}, which marks what the model said, and {% endgeneration %}: here it is text as any other."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            """What stands between the marks."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extensions.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)  # Jinja's own writes HTML's escapes

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)
