"""A Jinja environment for chat templates, which are programs that come with a model from elsewhere.

A template reaches nothing but its variables (Jinja's immutable sandbox), and its rendering ends: the clock is looked at
in every round of every loop and at every call, and what it writes is limited. Jinja has no such limits, and a thread
cannot be stopped from outside, so the looks at the clock are put into the syntax tree before it is compiled. Not
limited is the memory that a template takes for variables of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

TIME_LIMIT_S = 5.0

# A single operation must not take long either: these bound what `*` and `**` can make.
MAX_NUMBER_BITS = 1024
MAX_REPEATED_ITEMS = 1 << 24

# No template can name these: they are not identifiers.
_DEADLINE = "the deadline"
_LOOK_AT_CLOCK = "look at the clock"


class LimitError(TemplateError):
    """A template took too long, or made too much."""


def render(template: Template, variables: Mapping[str, Any], max_chars: int, time_limit_s: float = TIME_LIMIT_S) -> str:
    """What a template of `ChatEnvironment` makes of its variables.

    Raises LimitError for more than `max_chars` characters or `time_limit_s` seconds; other errors as the template does.
    """
    pieces = []
    room = max_chars
    for piece in template.generate({**variables, _DEADLINE: time.monotonic() + time_limit_s}):
        room -= len(piece)
        if room < 0:
            raise LimitError(f"it writes more than {max_chars} characters")
        pieces.append(piece)
    return "".join(pieces)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The dialect that chat templates are written in: that of `transformers`, without Jinja's `lipsum`."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
        self.filters["tojson"] = to_json
        self.filters[_LOOK_AT_CLOCK] = look_at_clock
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = strftime_now
        del self.globals["lipsum"]

    def compile_template(self, source: str) -> Template:
        """A template that looks at the clock in every round of its loops. Raises jinja2.TemplateSyntaxError."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.body.insert(0, nodes.ExprStmt(_watched(nodes.Const(None)), lineno=loop.lineno))
            if loop.test is not None:  # the body does not see the rounds that the loop's own `if` leaves out
                loop.test = _watched(loop.test)
        tree.set_environment(self)
        return Template.from_code(self, self.compile(tree, filename="<chat template>"), self.make_globals(None))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        look_at_clock(context, None)
        return super().call(context, obj, *args, **kwargs)

    # The filters `map`, `select` and their like loop on their own, and come by here in every round.

    def call_filter(
        self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None, eval_ctx: Any = None
    ) -> Any:
        look_at_clock(context, None)
        return super().call_filter(name, value, args, kwargs, context, eval_ctx)

    def call_test(
        self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None, eval_ctx: Any = None
    ) -> Any:
        look_at_clock(context, None)
        return super().call_test(name, value, args, kwargs, context, eval_ctx)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's part for training; here it is a plain block."""

    tags: set[str] = {"generation"}  # noqa: RUF012 (so declared by Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


@pass_context
def look_at_clock(context: Context, value: Any) -> Any:
    """A filter that changes nothing, and ends the rendering when its time is over."""
    if time.monotonic() > context.parent[_DEADLINE]:
        raise LimitError("it takes too long")
    return value


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would make it fit for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    """How a template refuses a conversation."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """The local date and time."""
    return datetime.now().strftime(form)


def _watched(node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, _LOOK_AT_CLOCK, [], [], None, None, lineno=node.lineno)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Raises LimitError for a product or power of unreasonable size, before it is worked out."""
    if isinstance(left, int) and isinstance(right, int):
        times = right if operator == "**" else 1
        bits = left.bit_length() * max(times, 1) + (right.bit_length() if operator == "*" else 0)
        if bits > MAX_NUMBER_BITS:
            raise LimitError("it works with numbers that are too large")
    elif operator == "*":
        count, items = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(count, int) and hasattr(items, "__len__") and len(items) * count > MAX_REPEATED_ITEMS:
            raise LimitError("it repeats a value too often")
