"Rows 11-14 and 35 of the security list: what a stranger may write into a YAML file, a JSON file or an override, and what comes of it"
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from rlnb.core.config import Config, Field, param
from rlnb.core.errors import BadInput
from rlnb.core.field import valid
from rlnb.core.schedule import schedule
from rlnb.core.yaml import load_yaml


@dataclass(frozen=True)
class Inner(Config):
    lr: float = param(3e-4, 'step size', lo=1e-5, hi=1e-2, log=True, sched=True)
    n_steps: int = param(128, 'steps', lo=8, hi=2048)
    hidden: tuple[int, ...] = param((64, 64), 'widths', lo=1, hi=4096)


@dataclass(frozen=True)
class Outer(Config):
    env: str = param('CartPole-v1', 'the world')
    num_envs: int = param(8, 'worlds', lo=1, hi=65536)
    seed: int = param(0, 'seed', lo=0, hi=2**53)
    compile: bool = param(False, 'a graph')
    env_kw: dict[str, Any] | None = param(None, "the world's arguments")
    agent_cfg: Inner = param(None, 'the algorithm')


@pytest.fixture(params=['c', 'python'])
def parser(request):
    "PyYAML's parser in C, and the one in Python"
    if request.param == 'c' and not hasattr(yaml, 'CSafeLoader'): pytest.skip('PyYAML was built without C')
    with patch.object(yaml, 'CSafeLoader', getattr(yaml, 'CSafeLoader' if request.param == 'c' else 'SafeLoader'), create=True):
        yield request.param


def one_line(f, *args, **kw):
    "The refusal: short, one line, nothing that steers a terminal, and soon"
    then = time.perf_counter()
    with pytest.raises(BadInput) as e: f(*args, **kw)
    m = str(e.value)
    assert len(m) < 300 and m.isprintable(), m
    assert time.perf_counter() - then < 2
    return m


LAUGHS = 'a: &a [lol, lol]\n' + '\n'.join(f'{c}: &{c} [{", ".join([f"*{b}"]*9)}]' for b, c in zip('abcdefgh', 'bcdefghi'))
ROW_11 = {
    'apply': '!!python/object/apply:os.system ["touch canary"]', 'new': 'lr: !!python/object/new:os.system [touch canary]', 'name': 'a: !!python/name:os.system ""',
    'module': 'a: !!python/module:os', 'own tag': 'a: !env HOME', 'declared tag': '%TAG !p! tag:yaml.org,2002:python/\n---\na: !p!name:os.system ""', 'standard tag': 'a: !!str 1',
    'bare tag': 'a: ! x', 'set': '!!set {a, b}', 'binary': 'a: !!binary aGk=', 'tagged key': '!!str a: 1', 'tagged list': 'a: !!python/tuple [1, 2]', 'anchor': 'a: &x 1', 'alias': 'a: *x', 'cycle': '&a [*a]',
    'cycle in a mapping': 'a: &a {b: *a}', 'merge': 'a: &a {b: 1}\nc:\n  <<: *a', 'billion laughs': LAUGHS, 'lists': '['*500 + ']'*500, 'mappings': '{a: '*500 + '1' + '}'*500,
    'blocks': '\n'.join('  '*i + 'a:' for i in range(500)), 'dashes': '- '*500 + '1', '100k lists': '['*100_000, '100k questions': '? '*100_000, '100 MB': 'a: ' + 'x'*100_000_000,
    'two documents': 'a: 1\n---\nb: 2\n', 'NUL': 'a: \0', 'escape': 'a: \x1b]0;title\x07', 'half a pair': 'a: "\ud800"', 'unclosed': 'a: "', 'tab': 'a:\n\tb: 1', 'list as key': '? [1]\n: 2',
}


@pytest.mark.parametrize('name', ROW_11)
def test_row_11_yaml_that_attacks_the_reader(name, parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.match(r'exp\.yaml:\d+:\d+: \S', one_line(load_yaml, ROW_11[name], 'exp.yaml'))
    assert not list(tmp_path.iterdir())
    one_line(Outer.from_yaml, ROW_11[name], 'exp.yaml')


def test_row_11_twenty_levels_are_fine_and_twenty_one_are_not(parser):
    assert load_yaml('['*20 + ']'*20) is not None
    assert one_line(load_yaml, '['*21 + ']'*21, 'f') == 'f:1:21: nested deeper than 20 levels'


def test_row_11_a_megabyte_is_fine(parser):
    n = 100_000
    assert len(load_yaml('a: "' + 'x'*n + '"\nb: [' + '1, '*(n//10) + '1]')['b']) == n//10 + 1
    assert one_line(load_yaml, 'x'*1_000_001, 'f') == 'f:1:1: 1000001 characters: at most 1000000'


@pytest.mark.parametrize('text', ['['*250_000 + ']'*250_000, 'a: ' + 'x '*300_000, 'a:\n' + ' x\n'*200_000, '#'*900_000, '\n'*900_000, '{' + 'a,'*300_000, "a: '" + "''"*300_000,
                                  'x'*900_000 + ': 1', '- '*300_000, '!'*900_000, '%'*900_000, '&a '*300_000, '"\\x'*200_000, '|'*900_000, '---\n'*200_000], ids=lambda s: repr(s[:6]))
def test_row_11_no_text_takes_long(text):
    then = time.perf_counter()
    try: load_yaml(text)
    except BadInput as e: assert len(str(e)) < 300
    assert time.perf_counter() - then < 3


def test_row_12_words_mean_what_they_say(parser):
    text = 'a: 1e-3\nb: 1E+5\nc: no\nd: yes\ne: on\nf: 12:30:45\ng: 2026-01-01\nh: 1_000\ni: .5\nj: 0x10\nk: ~\nl: =\nno: off\n1: x'
    assert load_yaml(text) == dict(a=1e-3, b=1e5, c='no', d='yes', e='on', f='12:30:45', g='2026-01-01', h='1_000', i=.5, j=16, k=None, l='=', no='off') | {'1': 'x'}
    assert yaml.safe_load('c: no\nf: 12:30:45\na: 1e-3\nz: 010') == dict(c=False, f=45045, a='1e-3', z=8)     # the traps are real


@pytest.mark.parametrize('text', ['010', '-010', '+08', '00', '08'])
def test_row_12_a_number_that_two_readers_read_differently(text, parser):
    assert one_line(load_yaml, f'lr: 1\nseed: {text}', 'f').startswith(f'f:2:7: {text} begins with a zero')
    assert load_yaml(f'seed: "{text}"') == {'seed': text}


@pytest.mark.parametrize('text, where', [('lr: 1\nseed: 2\nlr: 3', '3:1'), ('{a: 1, a: 1}', '1:8'), ('a:\n  b: 1\n  c: 2\n  b: 1', '4:3'), ('a: 1\n"a": 2', '2:1'), ('"a": 1\n? a\n: 2', '2:3')])
def test_row_12_a_key_twice(text, where, parser):
    assert re.match(rf"f:{where}: the key '\w+' stands twice, first in line \d", one_line(load_yaml, text, 'f'))


def test_row_12_the_same_key_in_two_places_is_fine(parser):
    assert load_yaml('a: {x: 1}\nb: {x: 2}\nc: [{x: 1}, {x: 2}]') == {'a': {'x': 1}, 'b': {'x': 2}, 'c': [{'x': 1}, {'x': 2}]}


ROW_13 = {
    'num_env: 8': "num_env: no such field; did you mean 'num_envs'?", 'agent_cfg: {lrr: 1}': "agent_cfg.lrr: no such field; did you mean 'lr'?",
    'num_envs: 1000000000': 'num_envs: 1000000000 is out of bounds; a whole number, 1 … 65536', 'num_envs: -1': 'num_envs: -1 is out of bounds; a whole number, 1 … 65536',
    'seed: 18446744073709551616': 'seed: 18446744073709551616 is not possible; a whole number, 0 … 9007199254740992', 'num_envs: 8.5': 'num_envs: 8.5 is not possible; a whole number, 1 … 65536',
    'num_envs: true': 'num_envs: True is not possible; a whole number, 1 … 65536', 'num_envs: "8"': "num_envs: '8' is not possible; a whole number, 1 … 65536",
    'num_envs: .nan': 'num_envs: nan is not possible; a whole number, 1 … 65536', 'compile: no': "compile: 'no' is not possible; true or false", 'compile: 1': 'compile: 1 is not possible; true or false',
    'env: 3': 'env: 3 is not possible; text', 'env: ': 'env: None is not possible; text', 'agent_cfg: {n_steps: .inf}': 'agent_cfg.n_steps: inf is not possible; a whole number, 8 … 2048',
    'agent_cfg: {hidden: [64, 0]}': 'agent_cfg.hidden: (64, 0) is out of bounds; a list, each a whole number, 1 … 4096', 'agent_cfg: 3': 'agent_cfg: int is not possible; settings of Inner',
    'agent_cfg: {hidden: 64}': 'agent_cfg.hidden: 64 is not possible; a list, each a whole number, 1 … 4096', 'env_kw: {a: .nan}': "env_kw: {'a': nan} is not possible; a mapping or null",
    '- 1': 'Outer: list is not possible; a mapping of field: value',
    **{f'agent_cfg: {{lr: {x}}}': f"agent_cfg.lr: {y} is {what}; a number, 1e-05 … 0.01, or a schedule like 'linear(1e-3, 0)'"
       for x, y, what in (('1e99', '1e+99', 'out of bounds'), ('.nan', 'nan', 'not possible'), ('-.inf', '-inf', 'not possible'), ('-1e-3', '-0.001', 'out of bounds'), ('0', '0.0', 'out of bounds'))},
}


@pytest.mark.parametrize('text', ROW_13)
def test_row_13_wrong_keys_types_and_sizes(text, parser):
    assert one_line(Outer.from_yaml, text) == ROW_13[text]


@pytest.mark.parametrize('key', ['__class__', '__init__', 'check', 'to_dict', '', ' ', 'a.b', 'lr\n', '\x1b[31mlr', '\u202erl', 'x'*10_000, 7, None, ('a',), 'Ｌr'])
def test_row_13_odd_keys(key):
    one_line(Outer.from_dict, {key: 1})
    one_line(Outer().override, {key: 1})


@pytest.mark.parametrize('text', ['[', '['*100_000, '{"a":'*100_000, '1'*5000, '{"seed": 1e999}', '{"seed": Infinity}', '{"seed": 1, "seed": 2}', '{"env_kw": {"a": 1, "a": 2}}', '{"env_kw": {"a": NaN}}',
                                  '{"seed": 1} x', '\ufeff{}', '{"env": "\\ud800"}', ' '*1_000_001, "{'seed': 1}"], ids=lambda s: repr(s[:12]))
def test_row_13_json(text):
    one_line(Outer.from_json, text)


@pytest.mark.parametrize('text', ['${env:RLNB_CANARY}', '${oc.env:RLNB_CANARY}', '$RLNB_CANARY', '{{ RLNB_CANARY }}', '{% include "x" %}', '%(RLNB_CANARY)s', '~', '`id`', '$(id)'])
def test_row_14_nothing_is_filled_in(text, monkeypatch, parser):
    monkeypatch.setenv('RLNB_CANARY', 'chirp')
    c = Outer.from_yaml(f'env: "{text}"\nenv_kw: {{a: \'{text}\'}}' if '"' not in text else f"env: '{text}'")
    assert c.env == text and Outer().override([f'env={text}']).env == text
    for out in (c.to_json(), c.to_yaml(), repr(c), c._repr_html_(), *c.help_lines()): assert 'chirp' not in out
    assert Outer.from_yaml(c.to_yaml()) == c == Outer.from_json(c.to_json())


@pytest.mark.parametrize('text', ['$(touch canary)', '; touch canary', '| touch canary', "'; import os; os.system('touch canary')", '-rf', '--config=/etc/passwd', '../../x', '\u202ex', '%%bash', '!touch canary'])
def test_row_21_an_override_is_a_text(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Outer().override([f'env={text}']).env == text
    for field in ('num_envs', 'agent.lr', 'agent.hidden', 'compile'): one_line(Outer().override, [f'{field}={text}'])
    assert not list(tmp_path.iterdir())


CALLS = ["__import__('os').system('touch canary')", 'eval("1")', 'exec("1")', 'lambda p: p', 'lambda: 1', 'os.system("touch canary")', 'linear.__init__.__globals__', '().__class__.__bases__[0].__subclasses__()',
         'linear(__import__("os").system("touch canary"), 0)', 'linear(1e-3, open("canary", "w"))', '[x for x in (1,)]', 'linear(*[1, 2])', 'linear(**{})', 'linear(a:=1, 2)', 'f"{1}"', 'linear(1, 2) if 1 else 0',
         'print(1)', 'Schedule()', 'schedule("x")', 'linear(1e-3, 0)(0.5)', 'linear(1, 0); 1', 'linear\n(1, 0)', 'l\u0456near(1, 0)', 'ｌinear(1, 0)', '1e-3 # x', '9**9**9', '1e999', 'nan', 'inf', '-'*400 + '1', '('*99 + '1' + ')'*99]


HEARD = []                       # what Python itself reports of code that runs; such a hook can't be taken off again
sys.addaudithook(lambda event, _: HEARD.append(event) if event in ('os.system', 'exec', 'subprocess.Popen') else None)


@pytest.mark.parametrize('text', CALLS, ids=lambda s: s[:20])
def test_row_35_no_text_names_code(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    HEARD.clear()
    for f, args in ((schedule, [text]), (valid, [Field('lr', float, 0., sched=True), text]), (Inner, [text]), (Inner().override, [[f'lr={text}']]), (Inner.from_dict, [{'lr': text}])):
        try: f(*args)
        except BadInput as e: assert str(e).isprintable() and len(str(e)) < 300
        else: assert text.startswith('(((')              # brackets around a number are harmless
    assert not list(tmp_path.iterdir()) and not HEARD


@pytest.mark.parametrize('text', ['_target_: os.system', 'agent_cfg: {_target_: os.system}', 'agent_cfg: {lr: {_target_: os.system, command: id}}', 'agent_cfg: {lr: {"os.system": id}}', 'agent_cfg: {lr: {eval: "1"}}',
                                  'agent_cfg: {lr: [linear, 1, 0]}', 'agent_cfg: {lr: {linear: {a: 1, b: 0, c: 1}}}', 'agent_cfg: {lr: {linear: {self: 1, b: 0}}}', 'agent_cfg: {_class: Outer}', 'agent_cfg: os.system'])
def test_row_35_no_mapping_names_code(text):
    one_line(Outer.from_yaml, text)


def test_row_35_a_plain_mapping_stays_plain():
    "In the world's arguments a key is a key, and a value a value"
    assert Outer.from_yaml('env_kw: {_target_: os.system, f: "lambda: 1"}').env_kw == {'_target_': 'os.system', 'f': 'lambda: 1'}
    assert 'RLNB_CANARY' not in os.environ
