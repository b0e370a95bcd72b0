"""A hostile chat template: no code, no files, no endless loop, no flood of memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from tune.errors import DataError, TokenizerError, TuneError
from tune.tokenizers import chat_template_sandbox
from tune.tokenizers.chat_template import ChatTemplate

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


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ 999999999 * 'x' }}",
        "{{ (9 ** 9999) ** 9999 }}",
        "{{ 'x'.center(999999999) }}",
        "{{ 'x' | center(999999999) }}",
        "{{ 'x'.zfill(999999999) }}",
        "{{ '%999999999d' % 7 }}",
        "{{ '%*d' % (999999999, 7) }}",
        "{{ '{:>999999999}'.format(7) }}",
        "{{ '{:>{}}'.format(7, 99999999) }}",
        "{{ strftime_now('%999999999Y') }}",
        "{{ 'x' | indent(999999999, true) }}",
        "{{ messages | tojson(indent=999999) }}",
        "{{ 'a\\tb'.expandtabs(999999999) }}",
        "{{ range(999999999) | list }}",
        "{{ [messages[0].content * 100000] * 99 | join }}",
        "{{ ([messages[0].content * 100000] * 99) | join }}",
        "{{ ''.join([messages[0].content * 100000] * 99) }}",
        "{{ (messages[0].content * 10000).replace('x', 'y' * 100000) }}",
        "{{ (messages[0].content * 10000) | replace('x', 'y' * 100000) }}",
        "{{ (messages[0].content * 10000).replace('', 'y' * 100000) }}",
        grow("{% set ns.s = ns.s + ns.s %}"),
        grow("{% set ns.s = ns.s ~ ns.s %}"),
        grow("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
        grow("{% set ns.s = '{}{}'.format(ns.s, ns.s) %}"),
        grow("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
        grow("{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"),
        grow("{% set ns.s = [ns.s, ns.s] %}"),
        grow("{% set ns.s = {'a': ns.s, 'b': ns.s} %}").replace(
            "{{ ns.s }}{% end", "{{ ns.s | tojson }}{% end"
        ),
        grow("{% set ns.s = ns.s + (ns.s | list) | join %}"),
        grow("{% filter upper %}{{ ns.s }}{% endfilter %}{% set ns.s = ns.s ~ ns.s ~ ns.s %}"),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages[0].content * 999 }}{% endfor %}",
        "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
        "{{ lipsum(n=99999) }}",
        "{% set tick = ''.format %}{% set _tick = tick %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ ([[1]] * 999999) | sum(start=[]) | length }}",
        "{{ ([{'a': [1]}] * 999999) | sum('a', []) | length }}",
    ],
)
def test_time_and_memory_have_bounds(template, monkeypatch):
    # As in earnest, but so that the test is quick.
    monkeypatch.setattr(chat_template_sandbox, "MAX_PASSES", 20_000)
    monkeypatch.setattr(chat_template_sandbox, "MAX_CHARS", 2_000_000)
    monkeypatch.setattr(chat_template_sandbox, "MAX_CHARS_MADE", 20_000_000)
    started = time.process_time()  # of this process alone: the machine may be busy
    tracemalloc.start()
    try:
        with pytest.raises(TuneError) as caught:
            ChatTemplate(template).render(MESSAGES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 10
    assert peak < 100e6
    assert len(str(caught.value)) < 500


def test_blocks_that_write_others_twice_are_counted(monkeypatch):
    monkeypatch.setattr(chat_template_sandbox, "MAX_PASSES", 2_000)
    source = "{% block b15 %}{% endblock %}"
    for name in range(15):
        call = f"{{{{ self.b{name + 1}() }}}}"
        source += f"{{% block b{name} %}}{call}{call}{{% endblock %}}"
    with pytest.raises(TokenizerError, match="more than 2,000 times"):
        ChatTemplate(source).render(MESSAGES)


def test_the_clock_is_looked_at(monkeypatch):
    monkeypatch.setattr(chat_template_sandbox, "MAX_SECONDS", 0.05)
    slow = "{% for i in range(99999) %}{{ range(20000) | sum and '' }}{% endfor %}"
    with pytest.raises(TokenizerError, match="runs for more than 0 seconds"):
        ChatTemplate(slow).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 3000, "{{" + "[" * 60000, "{% if x %}" * 200 + "{% endif %}" * 200, "x" * 2_000_000],
)
def test_a_template_too_large_to_compile(source):
    with pytest.raises(TokenizerError):
        ChatTemplate(source).render(MESSAGES)


def test_nothing_is_worked_out_while_a_template_is_compiled():
    tracemalloc.start()
    try:
        ChatTemplate(
            "{{ 'x' | center(999999) }}" * 2000 + "{% set x = 'x' | center(999999) %}" * 2000
        ).check()
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


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
