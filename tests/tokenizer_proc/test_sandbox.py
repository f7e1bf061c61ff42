"""What chat templates can do, and that they end."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenizer_proc.sandbox import ChatEnvironment, LimitError, render

ENVIRONMENT = ChatEnvironment()


def rendered(source: str, max_chars: int = 10_000, time_limit_s: float = 60, **variables: Any) -> str:
    return render(ENVIRONMENT.compile_template(source), variables, max_chars, time_limit_s)


class TestDialect:
    @pytest.mark.parametrize(
        "source",
        [
            "{% for x in items %}{{ loop.index }}:{{ x }}{{ ',' if not loop.last }}{% endfor %}",
            "{% for x in items if x > 1 %}{{ loop.length }}{{ x }}{% else %}none{% endfor %}",
            "{% for x in items if x > 9 %}{{ x }}{% else %}none{% endfor %}",
            "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
            "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{% for x in items %}{{ twice(x) }}{% endfor %}",
            "{% set ns = namespace(n=0) %}{% for x in items %}{% set ns.n = ns.n + x * 2 ** 3 %}{% endfor %}{{ ns.n }}",
            "{% for x in items %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
            "{% for x in items %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
            "{{ items | map('string') | join('-') }}{{ items | select('odd') | list }}{{ items | sum }}",
            "{% call(x) twice(1) %}{{ x }}{% endcall %}",
            "  {% if true %}\n  yes\n  {% endif %}\nend",
            "{{ 'ab' * 2 }}{{ [1] * 2 }}{{ 2.5 * 2 }}{{ 2 ** 10 }}{{ 2 ** -1 }}",
        ],
    )
    def test_like_any_jinja_template(self, source: str) -> None:
        """The looks at the clock change nothing."""
        plain = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        if "call(x)" in source:
            source = "{% macro twice(x) %}{{ caller(x) }}{{ caller(x) }}{% endmacro %}" + source
        assert rendered(source, items=[1, 2, 3]) == plain.from_string(source).render(items=[1, 2, 3])

    def test_json_is_not_made_fit_for_html(self) -> None:
        assert rendered("{{ x | tojson }}", x={"a": "<é>"}) == '{"a": "<é>"}'
        assert rendered("{{ x | tojson(indent=1) }}", x=["a"]) == '[\n "a"\n]'

    def test_the_generation_tag_is_a_block(self) -> None:
        assert rendered("{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x }}") == "a"

    def test_the_time(self) -> None:
        assert rendered("{{ strftime_now('%Y') | length }}") == "4"

    def test_a_template_refuses(self) -> None:
        with pytest.raises(TemplateError, match="roles must alternate"):
            rendered("{{ raise_exception('roles must alternate') }}")

    def test_syntax_errors(self) -> None:
        with pytest.raises(TemplateSyntaxError):
            ENVIRONMENT.compile_template("{% for %}")


class TestSandbox:
    @pytest.mark.parametrize(
        "source", ["{{ ''.__class__.__mro__ }}", "{{ items.append(1) }}", "{{ raise_exception.__globals__.os }}"]
    )
    def test_nothing_can_be_reached_or_changed(self, source: str) -> None:
        with pytest.raises(SecurityError):
            rendered(source, items=[])

    def test_no_endless_words(self) -> None:
        with pytest.raises(UndefinedError):
            rendered("{{ lipsum(1000000) }}")

    def test_the_deadline_is_no_variable_of_the_template(self) -> None:
        template = ENVIRONMENT.compile_template("{% for x in [1] %}{% endfor %}")
        with pytest.raises(LimitError):
            render(template, {"the deadline": 1e18}, 100, time_limit_s=-1)


class TestLimits:
    @pytest.mark.parametrize(
        "source",
        [
            "{% for a in big %}{% for b in big %}{% for c in big %}{% endfor %}{% endfor %}{% endfor %}",
            "{% set x %}{% for a in big %}{% for b in big %}{{ b }}{% endfor %}{% endfor %}{% endset %}",
            "{% for a in big if big | select('in', big) | list | length < 0 %}{% endfor %}",
            "{{ big | map('replace', 'a', 'b') | map('upper') | select('in', big | list) | list }}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
            "{% for a in [[big] * 99] * 99 recursive %}{{ loop(a) if a is not number }}{% endfor %}",
        ],
    )
    def test_every_loop_ends_at_the_deadline(self, source: str) -> None:
        """The deadline has passed at the start; without a look at the clock each of these would take hours."""
        with pytest.raises(LimitError, match="too long"):
            rendered(source, time_limit_s=-1, big=range(99999))

    def test_endless_recursion(self) -> None:
        with pytest.raises(RecursionError):
            rendered("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")

    def test_output(self) -> None:
        assert rendered("{{ 'x' * 10 }}", max_chars=10) == "x" * 10
        with pytest.raises(LimitError, match="more than 9 characters"):
            rendered("{{ 'x' * 10 }}", max_chars=9)
        with pytest.raises(LimitError, match="more than 100 characters"):
            rendered("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", max_chars=100)

    @pytest.mark.parametrize(
        "source",
        ["{{ 9 ** (9 ** 9) }}", "{{ 2 ** 1000 * 2 ** 1000 }}", "{{ 'x' * 10 ** 9 }}", "{{ 10 ** 9 * [1] }}"],
    )
    def test_single_operations(self, source: str) -> None:
        with pytest.raises(LimitError):
            rendered(source)

    def test_ranges(self) -> None:
        with pytest.raises(OverflowError):
            rendered("{% for x in range(10 ** 8) %}{% endfor %}")
