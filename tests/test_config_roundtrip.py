"Whatever a config, a schedule or plain data holds comes back from its text as it was"
import copy
import json
import math
import pickle
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlnb.core.config import Config, diff, param
from rlnb.core.errors import BadInput
from rlnb.core.schedule import KLAdaptive, Plateau, Schedule, Timeline, at, constant, cosine, exponential, linear, piecewise, schedule, spec, warmup
from rlnb.core.yaml import dump_yaml, load_yaml

few = settings(max_examples=150, deadline=None, derandomize=True)
real = st.floats(-1e12, 1e12)
positive = st.floats(1e-12, 1e12)
unit = st.floats(0, 1)
text = st.text(st.characters(codec='utf-8'), max_size=30)
whole = st.integers(-2**53, 2**53)

leaf = st.one_of(st.builds(constant, real), st.builds(linear, real, real), st.builds(exponential, positive, positive), st.builds(cosine, real, real),
                 st.builds(lambda ps: piecewise(sorted(ps, key=lambda p: p[0])), st.lists(st.tuples(unit, real), min_size=1, max_size=5)))
schedules = st.recursive(leaf, lambda s: st.builds(warmup, st.floats(.01, .99), s | real), max_leaves=3)
plain = st.recursive(st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | text,
                     lambda x: st.lists(x, max_size=4) | st.dictionaries(text.filter(bool), x, max_size=4), max_leaves=12)


@dataclass(frozen=True)
class Inner(Config):
    lr: float = param(3e-4, 'step size', sched=True)
    clip: float | None = param(None, 'clip')
    hidden: tuple[int, ...] = param((64,), 'widths')
    names: tuple[str, ...] = param((), 'words')


@dataclass(frozen=True)
class Outer(Config):
    env: str = param('x', 'world')
    note: str | None = param(None, 'a remark')
    seed: int = param(0, 'seed')
    fast: bool = param(False, 'fast')
    env_kw: dict[str, Any] | None = param(None, 'arguments')
    agent_cfg: Inner = param(None, 'inner')


inners = st.builds(Inner, lr=real | schedules, clip=st.none() | real, hidden=st.lists(whole, max_size=4), names=st.lists(text, max_size=3))
outers = st.builds(Outer, env=text, note=st.none() | text, seed=whole, fast=st.booleans(), env_kw=st.none() | st.dictionaries(text.filter(bool), plain, max_size=3), agent_cfg=inners)


@few
@given(outers)
def test_config(c):
    for back in (Outer.from_dict(c.to_dict()), Outer.from_json(c.to_json()), Outer.from_yaml(c.to_yaml()),
                 pickle.loads(pickle.dumps(c)), copy.deepcopy(c)):
        assert back == c and back.to_json() == c.to_json() and back.digest() == c.digest() and not diff(back, c)
    assert repr(c) and c._repr_html_() and c._repr_markdown_() and c.help_lines()


@few
@given(outers, outers)
def test_digest_and_diff_tell_configs_apart(a, b):
    assert (a == b) == (a.digest() == b.digest()) == (not diff(a, b))


@few
@given(plain)
def test_yaml(x):
    out = dump_yaml(x)
    back = load_yaml(out)
    assert json.dumps(back) == json.dumps(x)              # types too: 1 is not 1.0 and not true


@few
@given(plain)
def test_other_readers_of_yaml_see_the_same(x):
    "PyYAML follows YAML 1.1, where more bare words are values"
    assert yaml.safe_load(dump_yaml({'x': x})) == {'x': x}


@few
@given(text)
def test_any_text_is_read_or_refused_in_one_line(s):
    try: v = load_yaml(s)
    except BadInput as e: assert str(e).isprintable()
    else: assert json.dumps(load_yaml(dump_yaml(v))) == json.dumps(v)


@few
@given(schedules, unit)
def test_schedule(s, p):
    for back in (schedule(str(s)), schedule(json.loads(json.dumps(spec(s)))), pickle.loads(pickle.dumps(s)), copy.deepcopy(s)):
        assert back == s and back(p) == s(p) and str(back) == str(s)
    assert Timeline({'x': s}).at(p)['x'] == at(s, p) == Timeline({'x': spec(s)}).at(p)['x']


@few
@given(schedules, unit)
def test_a_schedule_keeps_between_its_knots(s, p):
    lo, hi = min(s.knots()), max(s.knots())
    rounding = 1e-12*max(abs(lo), abs(hi))
    assert lo - rounding <= s(p) <= hi + rounding
    assert s(-1) == s(0) and s(2) == s(1)


@few
@given(schedules, st.integers(1, 200), st.integers(0, 200))
def test_a_run_that_stopped_sees_the_same_values(s, horizon, cut):
    assume(cut <= horizon)
    whole = [s(k/horizon) for k in range(horizon + 1)]
    text = json.dumps(spec(s))                             # all that is saved; the step is the run's
    assert whole[:cut] + [schedule(json.loads(text))(k/horizon) for k in range(cut, horizon + 1)] == whole


@few
@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=40), st.integers(0, 40), st.booleans())
def test_the_state_of_those_that_listen(xs, cut, maximise):
    for make in (lambda: KLAdaptive(1e-3, .1), lambda: Plateau(1., patience=2, maximise=maximise, lo=1e-3)):
        one, part, rest = make(), make(), make()
        values = [one.update(x) for x in xs]
        first = [part.update(x) for x in xs[:cut]]
        rest.load_state_dict(json.loads(json.dumps(part.state_dict(), allow_nan=False)))
        assert first + [rest.update(x) for x in xs[cut:]] == values


def test_every_schedule_was_tried():
    assert set(Schedule.kinds.values()) == {constant, linear, exponential, cosine, warmup, piecewise}
