#!/usr/bin/env python3
"""Small templates of our own through jinja2 as transformers runs chat templates -> jinja_cases.json.

Each case is {template, variables, text} or, where jinja2 raises, {template, variables, error: true}.

    make_jinja.py [--out tests/golden/jinja_cases.json]
"""
import argparse
import copy
import datetime
import json
import os

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2023, 11, 14, 22, 13, 20)  # 1700000000


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


TALK = {"messages": [{"role": "system", "content": "  Be kind. "}, {"role": "user", "content": "Hé 'you' \"there\"\n2 < 3 & <b>"},
                     {"role": "assistant", "content": "",
                      "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5, "y": [True, None, "ü"]}}}]},
                     {"role": "tool", "content": "42"}, {"role": "assistant", "content": "<think>hm</think>\n\nThat is 42."}],
        "tools": [{"name": "f", "n": 3, "big": 1e20, "small": 1e-7, "neg": -0.5}], "bos": "<s>", "none": None, "n": 7, "flag": True,
        "empty": [],
        "nil": None, "l": [3, 1, 2], "s": "Hello", "words": ["b", "A", "c", "a"], "d": {"b": 2, "a": 1, "C": 3, "k": "two"}}

TEMPLATES = [
    # text, comments, white space
    "a{# c #}b", "a {#- c -#} b", "x\n{# c #}\ny", "  {% if flag %}\n  yes\n  {% endif %}\nend\n", "a\r\nb\rc", "a\n\n",
    "{%- if flag -%}  x  {%- endif -%}\n",
    "  {%+ if flag %}k{% endif +%}\nz", "a  {{- n -}}  b", "t {{ n }}\nu", "{% raw %}{{ x }}{% y %}{% endraw %}!",
    " {%- raw -%} {{ {% endraw %} a",
    "\t {% if 1 %}\n{{ 1 }}\n\t {% endif %}\n", "{% if 1 %} {% endif %}\n  {% if 1 %}b{% endif %}",
    # values and printing
    "{{ none }} {{ flag }} {{ not flag }} {{ 1.0 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 1 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} "
    "{{ 2 ** 10 }} {{ 1_000 }}",
    "{{ words }} {{ d }} {{ (1,) }} {{ (1, 'a') }} {{ [] }} {{ {} }} {{ tools }}",
    "{{ [\"it's\", 'say \"x\"', 'both \\' \"', 'n\\n\\t\\\\', '\\x00é\\u200b'] }}",
    "{{ missing }}|{{ missing is defined }}|{{ missing is none }}|{{ missing or 'x' }}|{{ 'a' ~ missing ~ none ~ 1 }}",
    "{{ missing.x }}", "{{ missing + 'x' }}", "{{ none.x }}|{{ n.x }}",
    "{{ 'a' 'b' \"c\" }}", "{{ '\\u00e9\\x41\\101\\q\\'' }}", "{{ true }} {{ True }} {{ None }} {{ none }}",
    "{{ 'a' * 3 }} {{ [1] * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }}",
    "{{ 1 + true }} {{ true == 1 }} {{ 1 == 1.0 }} {{ '1' == 1 }} {{ none == false }}", "{{ 'x' + 1 }}",
    "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }}", "{{ 1 < 'a' }}",
    "{{ 'b' in 'abc' }} {{ 'x' not in words }} {{ 'a' in d }} {{ 1 in [1.0] }} {{ 'x' in missing }}", "{{ 'x' in none }}",
    "{{ 5 in 'x5' }}",
    "{{ 1 if flag }}|{{ 1 if not flag }}|{{ 1 if not flag else 2 if n > 9 else 3 }}",
    "{{ flag and n }} {{ empty or 'e' }} {{ not empty }} {{ 0 or none or '' or 5 }}", "{{ 1 / 0 }}",
    "{{ -n|abs }} {{ (-n)|abs }} {{ 3 - -2 }} {{ +n }}",
    # attributes, items, slices
    "{{ messages[0].role }} {{ messages[-1]['role'] }} {{ messages[9] }} {{ messages[0]['nope'] }} {{ words[0] }}",
    "{{ d.b }} {{ d['a'] }} {{ d.items is defined }}", "{{ messages[9].role }}",
    "{{ words[1:] }} {{ words[:-1] }} {{ words[::-1] }} {{ words[1:3] }} {{ words[::2] }} {{ words[5:] }}",
    "{{ 'héllo'[1:3] }} {{ 'héllo'[::-1] }} {{ 'héllo'[-1] }} {{ 'abc'[9] }} {{ 'héllo'|length }}", "{{ words[::0] }}",
    "{{ words['x'] }}|{{ 'x'.role }}|{{ words.0 }}",
    # loops
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }} {{ m.role }};{% endfor %}",
    "{% for m in messages if m.role == 'assistant' %}{{ loop.index }}/{{ loop.length }}{% else %}none{% endfor %}",
    "{% for x in empty %}a{% else %}nothing{% endfor %}", "{% for x in missing %}a{% else %}nothing{% endfor %}",
    "{% for x in none %}a{% endfor %}", "{% for x in n %}a{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for c in 'aé' %}[{{ c }}]{% endfor %}", "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }} {% endfor %}",
    "{% for a, b in [1] %}{% endfor %}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(2, 10, 3) %}{{ i }} {% endfor %}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
    "{% for a in words %}{{ loop.previtem }}<{{ a }}>{{ loop.nextitem }}{% if loop.previtem is defined %}!{% endif %} {% endfor %}",
    "{% for a in [1, 1, 2] %}{{ loop.changed(a) }} {{ loop.cycle('x', 'y') }} {% endfor %}",
    "{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for i in range(999999) %}{% endfor %}",
    # variables and their scopes
    "{% set x = 1 %}{% for i in range(2) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if flag %}{% set x = 2 %}{% endif %}{{ x }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}",
    "{% set ns = namespace(c=0, s='') %}{% for w in words %}{% set ns.c = ns.c + 1 %}{% set ns.s = ns.s ~ w %}{% endfor %}"
    "{{ ns.c }}{{ ns.s }}{{ ns.none }}", "{% set d.x = 1 %}", "{% set x %}a{{ n }}b{% endset %}[{{ x }}]",
    "{% set x | upper | trim %} ab {% endset %}[{{ x }}]",
    "{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a }}", "{% filter upper %}abc{{ n }}{% endfilter %}",
    "{% filter trim | replace('a', 'b') %} aa {% endfilter %}.",
    "{% if messages %}{% set messages = messages[1:] %}{% endif %}{{ messages | length }}",
    # macros
    "{% macro f(a, b=2, c) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ f(1) }}{{ f(1, 3, 4) }}{{ f(b=5, a=6) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(x=1) }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro g() %}{{ h() }}{% endmacro %}{% macro h() %}h{% endmacro %}{{ g() }}",
    "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}",
    "{% macro w() %}<{{ caller() }}>{% endmacro %}{% call w() %}in{{ n }}{% endcall %}",
    "{% macro w(x) %}{{ caller(x) }}{% endmacro %}{% call(v) w(5) %}v={{ v }}{% endcall %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ nope() }}", "{{ n() }}",
    "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}",
    # tests
    "{% for x in [none, flag, 0, 1.5, 'a', words, d, missing] %}{{ x is defined }}{{ x is none }}{{ x is boolean }}"
    "{{ x is integer }}{{ x is float }}{{ x is number }}{{ x is string }}{{ x is sequence }}{{ x is mapping }}"
    "{{ x is iterable }}\n{% endfor %}",
    "{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ 1 is eq 1 }}{{ 1 is ne(2) }}{{ 2 is gt 1 }}{{ 1 is in [1, 2] }}"
    "{{ flag is true }}{{ 1 is true }}{{ flag is not false }}{{ 'AB' is upper }}{{ n is callable }}", "{{ n is nosuch }}",
    "{{ 1 is defined and 2 is not none or false }}",
    # filters
    "[{{ ' a\\n' | trim }}][{{ 'xxaxx' | trim('x') }}]{{ 'aé' | upper }}{{ 'ÀB' | lower }}{{ 'hELLO wORLD' | capitalize }}"
    "{{ 'hello big-world (x) it\\'s' | title }}",
    "{{ words | join(', ') }}{{ words | join }}{{ messages | join('/', attribute='role') }}{{ [1, none, 'x'] | join('-') }}",
    "{{ words | first }}{{ words | last }}{{ empty | first }}{{ words | length }}{{ 'abc' | list }}{{ d | list }}{{ d | length }}",
    "{{ words | sort }}{{ words | sort(reverse=true) }}{{ words | sort(case_sensitive=true) }}"
    "{{ messages | sort(attribute='role') | map(attribute='role') | list }}",
    "{{ d | dictsort }}{{ d | dictsort(true) }}{{ d | dictsort(by='value', reverse=true) }}",
    "{{ ['a', 'A', 'b', 'a'] | unique | list }}{{ words | reverse | list }}{{ 'abc' | reverse }}",
    "{{ messages | map(attribute='role') | list }}{{ words | map('upper') | join }}{{ messages | map(attribute='x', default='-') | "
    "join }}",
    "{{ messages | selectattr('role', 'equalto', 'tool') | list | length }}{{ messages | rejectattr('role', 'in', ['tool', "
    "'user']) | map(attribute='role') | join(',') }}{{ messages | selectattr('tool_calls') | list | length }}"
    "{{ messages | selectattr('tool_calls', 'defined') | list | length }}",
    "{{ [0, 1, none, 2] | select | list }}{{ [1, 2, 3, 4] | select('even') | list }}{{ [1, 2, 3] | reject('odd') | list }}"
    "{{ [1, 2] | select('gt', 1) | list }}",
    "{% if empty | select %}t{% endif %}{% set g = words | map('upper') %}{{ g | list }}{{ g | list }}",
    "{{ words | map('upper') | length }}",
    "{{ missing | default('x') }}{{ none | default('x') }}{{ '' | default('x', true) }}{{ missing | d }}",
    "{{ 'abcabc' | replace('b', 'X') }}{{ 'abcabc' | replace('b', 'X', 1) }}{{ 5 | replace('5', '6') }}",
    "{{ '3' | int + 1 }}{{ 'x' | int }}{{ 'x' | int(9) }}{{ '3.9' | int }}{{ 3.9 | int }}{{ '2.5' | float }}{{ 5 | string + 'x' }}",
    "{{ 2.567 | round(1) }} {{ [3, 1, 2] | min }}{{ [3, 1, 2] | max }}{{ [1, 2] | sum }}{{ -3 | abs }}",
    "{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(2, blank=true) }}|{{ 'a\\nb' | indent('> "
    "') }}", "{{ d | items | list }}{% for k, v in d | items %}{{ k }}{{ v }}{% endfor %}{{ missing | items | list }}",
    "{{ n | items | list }}",
    "{{ '<a> & \"b\"' | escape }}{{ '<b>' | safe + '<c>' }}{{ '<c>' + ('<b>' | safe) }}{{ ('<b>' | safe) ~ '<c>' }}"
    "{{ ('a' | safe) == 'a' }}", "{{ x | nosuch }}", "{{ words | attr('x') }}|{{ '%s-%d' | format('a', 3) }}",
    # json
    "{{ messages | tojson }}", "{{ tools | tojson(indent=2) }}{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=4) }}",
    "{{ d | tojson(sort_keys=true) }}{{ d | tojson(separators=(',', ':')) }}{{ 'é\\u2028\\x01/' | tojson }}"
    "{{ 'é🙂' | tojson(ensure_ascii=true) }}{{ none | tojson }}{{ {1: 2, none: 3, true: 4} | tojson }}", "{{ missing | tojson }}",
    "{{ [1.0, 1e100, 1e-5, 0.0001, 123456789.125] | tojson }}",
    # methods
    "{{ ' a b '.strip() }}|{{ 'xax'.lstrip('x') }}|{{ 'xax'.rstrip('x') }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a "
    "b c'.split(' ', 1) }}|{{ 'a b c'.rsplit(' ', 1) }}",
    "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}{{ 'abc'.find('c') }}{{ 'abc'.find('z') }}{{ 'abcb'.rfind('b') }}"
    "{{ 'aXbX'.count('X') }}{{ 'abc'.index('b') }}",
    "{{ 'Ab'.upper() }}{{ 'Ab'.lower() }}{{ 'ab cd'.title() }}{{ 'aB'.capitalize() }}{{ 'aB'.swapcase() }}"
    "{{ 'a-b'.replace('-', '+') }}{{ '-'.join(words) }}{{ 'ab'.replace('', '.') }}",
    "{{ 'a\\nb\\r\\nc'.splitlines() }}{{ 'k=v=w'.partition('=') }}{{ 'k=v=w'.rpartition('=') }}{{ 'abc'.removeprefix('a') }}"
    "{{ 'abc'.removesuffix('c') }}",
    "{{ '12'.isdigit() }}{{ 'ab'.isalpha() }}{{ 'a1'.isalnum() }}{{ ' '.isspace() }}{{ ''.isdigit() }}{{ 'AB'.isupper() }}"
    "{{ 'ab'.islower() }}",
    "{{ d.get('a') }}{{ d.get('z') }}{{ d.get('z', 5) }}{{ d.keys() | list }}{{ d.values() | list }}{{ words.index('c') }}"
    "{{ words.count('a') }}", "{{ words.append(1) }}", "{{ d.update({}) }}", "{{ 'a'.nope() }}", "{{ ''.join(1) }}",
    "{{ messages[4].content.split('</think>')[-1].lstrip('\\n') }}|{{ "
    "messages[4].content.split('</think>')[0].split('<think>')[-1] }}",
    # formats, functions
    "{{ '%s is %d and %.2f%%' % ('a', 3, 1.5) }}{{ '%r' % 'x' }}{{ '%s' % n }}{{ '%(a)s' % d }}{{ '%05d|%x' % (42, 255) }}",
    "{{ '%s %s' % ('a',) }}", "{{ dict(a=1, b=2) }}{{ namespace(a=1).a }}", "{{ strftime_now('%Y-%m-%d %H:%M %B %j') }}",
    "{{ raise_exception('no: ' ~ n) }}",
    # blocks of generation
    "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% set q = 1 %}"
    "{% endgeneration %}{% endif %}{{ q }};{% endfor %}",
    # whole chats
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + (m['content'] | trim) + eos }}{% endfor %}",
    "{%- for m in messages %}\n    {%- if m.tool_calls %}\n        {%- for c in m.tool_calls %}\n            {{- '{\"name\": \"' + "
    "c.function.name + '\", \"arguments\": ' }}\n            {{- c.function.arguments | tojson }}\n            {{- '}' }}\n        "
    "{%- endfor %}\n    {%- else %}\n        {{- m.role ~ ': ' ~ m.content }}\n    {%- endif %}\n{%- endfor %}\n",
    "{{ bos }}{% if messages[0].role == 'system' %}{% set s = messages[0].content.strip() %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if loop.first and s is defined %}[{{ s }}] {% endif %}"
    "{{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}",
    # ways of jinja2's own
    "{% for x in l %}{% continue %}{% else %}none{% endfor %}",
    "{% for x in l %}{% break %}{% else %}none{% endfor %}",
    "{% for x in l %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% else %}none{% endfor %}",
    "{% for x in [] %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l if x > 5 %}{{ x }}{% else %}none{% endfor %}",
    "{{ n|round }} {{ 2.5|round }} {{ 3.5|round }} {{ true|round(1) }} {{ 2.675|round(2) }}",
    "{{ 7.5 % 2 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }} {{ 12345678901234567 % 2.5 }}",
    "{{ 7.5 // 2 }} {{ -7.5 // 2 }} {{ 7 // -2 }} {{ -7 % 3 }}",
    "{{ n[1:] }}",
    "{{ nil[1:] }}",
    "{{ d[1:] }}",
    "{{ missing[1:] }}",
    "{{ n[0] is defined }}",
    "{{ s[::-1] }}{{ l[::-2] }}{{ s[-3:-1] }}",
    "{{ \"x\" % n }}",
    "{{ \"x\" % \"y\" }}",
    "{{ \"x\" % l }}{{ \"x\" % d }}",
    "{{ \"%s-%s\" % (1,) }}",
    "{{ \"%s\" % n }}{{ \"%d%%\" % 5 }}",
    "{{ n|indent }}",
    "{{ l|indent }}",
    "{{ \"a\nb\"|indent(2) }}",
    "{{ missing|int }}",
    "{{ missing|float }}",
    "{{ none|int }} {{ \"x\"|int(3) }} {{ \" 12 \"|int }} {{ \"3.9\"|int }} {{ \"1e2\"|int }}",
    "{{ d|attr(\"k\") }}.",
    "{{ d.k }}{{ d[\"b\"] }}{{ d.items()|list }}",
    "{{ loop }}|{{ missing }}|{{ missing.x is defined }}",
    "{{ missing is defined }}{{ d.x is defined }}{{ none is none }}",
    "{{ 1 if false }}.",
    "{{ [1, \"a\", none, true, 2.0] }} {{ (1,) }} {{ {\"a\": [1]} }}",
    "{{ \"a\" ~ 1 ~ none ~ true }}",
    "{{ 1.0 }} {{ 1e22 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}",
    "{{ d|tojson }} {{ \"é<\"|tojson }} {{ l|tojson(indent=1) }}",
    "{{ 'it\\'s' }} {{ ['it\\'s', '\"', \"\\n\"] }}",
    "{%- set ns = namespace(a=0) -%}{% for x in l %}{% set ns.a = ns.a + x %}{% set y = x %}{% endfor %}{{ ns.a }}"
    "{{ y is defined }}",
    "  {%- if n -%}  a  {%+ endif %}\n b",
    "  {% if n %}\n  x\n  {% endif %}\ny\n",
    "{{ l|sort|join(\",\") }} {{ l|map(\"string\")|join }} {{ s|list|unique|join }}",
    "{{ s.split(\"l\") }} {{ \"a  b \".split() }} {{ s.replace(\"l\", \"L\", 1) }}",
    "{{ ' a b  c '.split(none, 1) }}",
    "{{ l.append(4) }}",
    "{{ d.update({}) }}",
    "{{ raise_exception(\"no\") }}",
    "{{ n.foo.bar }}",
    "{{ s._private }}",
    "{{ 1 + \"a\" }}",
    "{{ 3 < \"a\" }}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}{{ m() }}",
    # syntax errors
    "{% if %}x{% endif %}", "{{ 'a }}", "{% for x in %}{% endfor %}", "{{ a b }}", "{% endif %}", "{% if 1 %}", "{{ 1 + }}",
    "{% set %}", "{{ {1: } }}", "{# x", "{{ (1 }}", "{% macro %}{% endmacro %}", "{{ a.}}", "{% nosuch %}",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=os.path.join(HERE, "jinja_cases.json"))
    args = parser.parse_args()
    cases = []
    for source in TEMPLATES:
        try:
            cases.append({"template": source, "text": environment().from_string(source).render(**copy.deepcopy(TALK))})
        except Exception:  # whatever it is, there is no text
            cases.append({"template": source, "error": True})
    with open(args.out, "w", encoding="utf-8") as f:
        json.dump({"variables": TALK, "cases": cases}, f, ensure_ascii=False, indent=0)
        f.write("\n")
    print(len(cases), "cases,", sum("error" in c for c in cases), "of them errors")


if __name__ == "__main__":
    main()
