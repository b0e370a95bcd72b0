"""A hostile chat template: no code, no files, no endless loop, no flood of memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from tune.errors import DataError, TokenizerError, TuneError
from tune.tokenizers import chat_template_render
from tune.tokenizers.chat_template import ChatTemplate
from tune.utils.workers import Worker

MESSAGES = [{"role": "user", "content": "x" * 100}]


def grow(step: str) -> str:
    return (
        "{% set ns = namespace(s='xxxxxxxxxx') %}{% for i in range(99) %}" + step + "{% endfor %}{{ ns.s }}"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ (messages | tojson).__init__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '%s'.__mod__ }}",
        "{{ '{0.__class__}'.format_map }}{{ messages[0].__class__ }}{{ messages[0].items.__self__ }}",
        "{% for m in messages %}{{ loop.__class__ }}{{ loop._undefined.__init__ }}{% endfor %}",
        "{% set ns = namespace(f='{0.__class__}'.format) %}{{ ns.f(messages) }}{{ ns._Namespace__attrs }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ messages | attr('__class__') }}",
        "{{ strftime_now.__self__ }}",
        "{{ dict.__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 7 %}",
    ],
)
def test_nothing_of_python_is_reached(template):
    try:
        text = ChatTemplate(template).render(MESSAGES)
    except TuneError:
        return
    assert "class" not in text
    assert "built-in" not in text


@pytest.mark.parametrize(
    "template",
    ["{% include '/etc/hostname' %}", "{% import '/etc/hostname' as x %}", "{% extends 'conftest.py' %}"],
)
def test_no_file_is_read(template):
    with pytest.raises(DataError, match="cannot write"):
        ChatTemplate(template).render(MESSAGES)


@pytest.mark.parametrize(
    "change", ["messages.append(1)", "messages[0].update(role='x')", "messages[0].clear()"]
)
def test_the_conversation_is_not_changed(change):
    with pytest.raises(TokenizerError, match="is stopped"):
        ChatTemplate("{{ " + change + " }}").render(MESSAGES)
    assert MESSAGES == [{"role": "user", "content": "x" * 100}]


def doubled(use):
    """Return a template that doubles a list 26 times, so that it is small until it is used."""
    return (
        "{% set a = namespace(x=['x']) %}{% for i in range(26) %}{% set a.x = [a.x, a.x] %}{% endfor %}" + use
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ ((9 ** 99999) ** 99999) % 7 }}",
        "{{ 'x' | center(999999999) }}",
        "{{ '%999999999d' % 7 }}",
        "{{ '{:>{}}'.format(7, 999999999) }}",
        "{{ messages | tojson(indent=9999999999) }}",
        "{{ ([messages[0].content * 100000] * 99) | join }}",
        "{{ (messages[0].content * 10000).replace('', 'y' * 100000) }}",
        "{{ ('a' * 999999).translate({97: 'x' * 99999}) | length }}",
        "{{ ('\ufdfa' * 19000000).encode('punycode') | length }}",
        grow("{% set ns.s = ns.s + ns.s %}"),
        grow("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
        grow("{% set ns.s = {'a': ns.s, 'b': ns.s} %}"),
        doubled("{{ a.x | upper }}"),
        doubled("{{ raise_exception(a.x) }}"),
        doubled("{{ a.x == (a.x | tojson) }}{{ {(a.x | string): 1} }}"),
        doubled(
            "{% set b = namespace(x=['y']) %}{% for i in range(26) %}{% set b.x = [b.x, b.x] %}{% endfor %}"
        )
        + "{{ [a.x, b.x] | sort }}{{ a.x | map('list') | list }}{{ a.x | string | length }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages[0].content * 999 }}{% endfor %}",
        "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{{ lipsum(n=9999999) }}",
        "{{ ([[1]] * 999999) | sum(start=[]) | length }}",
        "".join(
            f"{{% block b{n} %}}{{{{ self.b{n + 1}() }}}}{{{{ self.b{n + 1}() }}}}{{% endblock %}}"
            for n in range(40)
        )
        + "{% block b40 %}{% endblock %}",
    ],
)
def test_time_and_memory_have_bounds(template, small_worker):
    started = time.process_time()  # of this process alone: the machine may be busy
    tracemalloc.start()
    try:
        with pytest.raises(TuneError) as caught:
            ChatTemplate(template).render(MESSAGES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5
    assert peak < 100e6
    assert len(str(caught.value)) < 700
    assert ChatTemplate("{{ messages[0].role }}").render(MESSAGES) == "user"


@pytest.fixture(scope="module")
def small_worker():
    """As in earnest, but so that the tests are quick."""
    worker = Worker(memory_bytes=200 << 20, seconds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_render, "_worker", worker)
        yield
    worker.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000,
        "{{" + "[" * 60000,
        "{% if x %}" * 200 + "{% endif %}" * 200,
        "x" * 2_000_000,
        "{{ " + "9" * 5000 + " }}",
    ],
)
def test_a_template_too_large_to_compile(source):
    with pytest.raises(TokenizerError) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert "set_int" not in str(caught.value)


def test_a_long_conversation_is_no_attack():
    template = ChatTemplate(
        "{% for m in messages %}{{ '<' ~ m.role + '>' + m.content | trim }}\n{% endfor %}"
    )
    messages = [{"role": "user", "content": "naïve " * 200}] * 3000
    assert len(template.render(messages)) == 3000 * (6 + 1199 + 1)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ 'a' ~ 7 ~ none ~ ['b'] }}", "a7None['b']"),
        ("{{ ['a', 7] | join('-') }}{{ messages | map(attribute='role') | join(', ') }}", "a-7user"),
        (
            "{{ [1, 2, 3] | sum }}{{ 'a,b'.split(',')[1] }}{{ '%02d' % 7 }}{{ '{:>4}'.format('x') }}",
            "6b07   x",
        ),
        ("{{ {'b': '<\u00e9>', 'a': [1]} | tojson }}", '{"b": "<\u00e9>", "a": [1]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}"
            "{% endfor %}",
            "023",
        ),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x }}{% set y | upper %}b{% endset %}{{ y }}", "a1B"),
        (
            "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m(1) %}c{% endcall %}",
            "12c",
        ),
        ("{% for i in [1, [2]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}", "12"),
        ("{% generation %}a{% endgeneration %}{{ missing }}{{ missing is defined }}", "aFalse"),
    ],
)
def test_what_templates_may_do(template, expected):
    assert ChatTemplate(template).render(MESSAGES) == expected
