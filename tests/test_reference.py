"The reference table: what is missing is named, both sides stand beside each other, and only rows of the present version count"
import json

import learn
import peer
import pytest
import reference
from rlnb.evaluation.tests import verdict

CELLS = [learn.Cell('ppo', 'CartPole-v1', 1000, 0), learn.Cell('c51', 'CartPole-v1', 0, 0), learn.Cell('ppo', 'Pendulum-v1', 1000, 0)]
HARDWARE = dict(cpu='a CPU', cores=2, python='3.11', torch='2.13', gymnasium='1.4')


@pytest.fixture
def have(monkeypatch, tmp_path):
    "Two sides of PPO in CartPole, one row of them of an older version; nothing else"
    monkeypatch.setattr(reference, 'cells', lambda: CELLS)
    monkeypatch.setattr(learn, 'version', lambda c: 'now')
    monkeypatch.setattr(reference, 'RESULTS', tmp_path/'reference.jsonl')
    monkeypatch.setattr(learn, 'RESULTS', tmp_path/'learning.jsonl')
    base = dict(agent='ppo', world='CartPole-v1', steps=1000, seconds=1)
    def row(side, seed, mean, version): return dict(side=side, seed=seed, final=dict(mean=mean), version=version, commit='abc', hardware=HARDWARE, **base)
    theirs = peer.version(CELLS[0], '2.9')
    rows = [*(row('rlnb', s, 480. + s, 'now') for s in range(4)), row('rlnb', 4, 7., 'before'), *(row('sb3', s, 300. + s, theirs) for s in range(5))]
    (tmp_path/'reference.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    (tmp_path/'learning.jsonl').write_text(json.dumps(base | dict(seed=0, version='now', final=dict(mean=1.))) + '\n')
    return reference.read()


def test_rows_of_another_version_do_not_count(have):
    ours = reference.finals(reference.of(have, 'rlnb', CELLS[0], '2.9'))
    assert ours == [480., 481., 482., 483.]                    # and the one that knows its machine goes before the one of the nightly grid


def test_both_sides_and_what_their_seeds_say(have):
    row, other = reference.rows_of('CartPole-v1', have, '2.9')
    assert row[:3] == ('ppo', '1,000', '480, 481, 482, 483') and row[3].startswith('481.5 [') and row[4].startswith('302 [')
    assert row[5] == f"{verdict([480., 481, 482, 483], [300., 301, 302, 303, 304], ('rlnb', 'SB3')).better} higher" == 'rlnb higher'
    assert other == ('c51', '', '', 'missing', '', '')


def test_what_is_missing_is_named_with_its_reason(have):
    said = '\n'.join(reference.missing(have, '2.9'))
    assert 'Seeds 4 were not run yet: ppo in CartPole-v1.' in said
    assert 'No settings were chosen for this world yet: c51 in CartPole-v1.' in said
    assert "Seeds 0, 1, 2, 3, 4 were not run yet: ppo in Pendulum-v1, Stable-Baselines3's ppo in Pendulum-v1." in said
    assert 'Nothing.' not in reference.page(have, '2.9')


def test_what_is_measured_next(have):
    left = reference.todo(have, '2.9')
    assert [(side, c.world, s) for side, c, s in left[:1]] == [('rlnb', 'CartPole-v1', 4)] and len(left) == 1 + 10
    assert all(side == 'rlnb' for side, *_ in reference.todo(have, ''))     # no peer here: its rows stay as they are


def test_the_page_is_the_same_when_written_again(have):
    assert reference.page(have, '2.9') == reference.page(dict(reversed(have.items())), '2.9')
    assert 'a CPU, 2 cores' in reference.page(have, '2.9') and '| abc |' in reference.page(have, '2.9')


def test_a_guest_plays_in_the_scale_of_our_worlds():
    "Theirs took -2 … 2, ours takes -1 … 1: the same torque; whole numbers stay as they are"
    import numpy as np
    import peer
    from gymnasium import spaces

    class Model:
        def __init__(self, space, a): self.action_space, self.a = space, np.array([a])
        def predict(self, obs, deterministic): return self.a, None
    same = lambda obs: obs
    assert peer.Guest(Model(spaces.Box(-2, 2, (1,)), [2.]), same).act(0)['act'].tolist() == [[1.]]
    assert peer.Guest(Model(spaces.Box(-2, 2, (1,)), [-.5]), same).act(0)['act'].tolist() == [[-.25]]
    assert peer.Guest(Model(spaces.Discrete(3), 2), same).act(0)['act'].tolist() == [2]
