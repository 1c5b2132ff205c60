"""The instrument that certifies: each piece of a trainer's state, forgotten in turn, and the comparison goes red every time"""
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from rlnb.runs.ckpt import load_state
from rlnb.runs.keep import resume_point
from rlnb.runs.run import Run
from rlnb.train.certify import Killer, differences
from rlnb.train.session import asked, folder_for

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='each life would begin with importing torch')

WORDS = dict(n_steps=16, minibatch=24, epochs=2, num_envs=4, norm_obs=True, norm_reward=True, lr='linear(0.003, 0.0001)', clip='linear(0.3, 0.05)',
             checkpoint_every=128, seed=1)
KNOWN = {'buffer/ages',        # PQN alone asks for it, which this is not
         'step', 'collector/env/rng/uinteger', 'agent/rng/uinteger',     # the collector counts the same steps, and the loop asks it; half of a draw, if none is waiting for it
         *(f'cbs/Guard/{k}' for k in ('late', 'since', 'weights/all', 'count/kl', 'count/dead', 'count/entropy', 'count/value'))}    # of its last looks: made anew
NAMES = {'kind', 'bit_generator'}       # not a value: which kind of generator it is


@pytest.fixture(scope='module')
def half():
    "A killer, a run in peace, and one that was stopped in the middle of a rollout after it was given a change"
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as d:
        k = Killer(asked('ppo', 'rough:Impolite', 16*4*8 + 20, False, **WORDS), Path(d), allow=['rough'])
        k.plant = 'rough:set_at:128'
        whole = k.run('whole')
        run = folder_for(k.exp, d, 'half')
        k.plant = 'rough:both:128:75'
        assert k.life(run)[0] == 75
        yield k, whole, run


def paths(d: dict, at: str = ''):
    "The first keys, and those below which no dictionaries are; empty ones left out"
    for k, v in d.items():
        if k in NAMES or v is None or (isinstance(v, (dict, list)) and not v): continue
        if not at or not isinstance(v, dict): yield f'{at}{k}'
        if isinstance(v, dict): yield from paths(v, f'{at}{k}/')


def spoiled(half, path: str) -> list[str]:
    k, whole, run = half
    copy = Run(shutil.copytree(run.path, run.path.with_name('copy')))
    k.plant = f'rough:forget:{path}' if path else ''
    try:
        code = k.life(copy)[0]
        return ['the life ended with an error'] if code else differences(whole, copy)
    finally: shutil.rmtree(copy.path)


def test_the_half_is_half(half):
    state = load_state(resume_point(half[2].path)[0])
    assert state['open'] and state['buffer']['t'] == 7 and state['episodes'] and state['cbs']['Control']['changes'] == {'ent_coef': .03, 'lr': .002}


def test_nothing_forgotten_nothing_differs(half): assert spoiled(half, '') == []


def test_each_key_that_is_forgotten_shows(half):
    state = load_state(resume_point(half[2].path)[0])
    keys = list(paths(state))
    unseen = [p for p in keys if not spoiled(half, p)]
    print(f'{len(keys)} keys of the state forgotten, {len(keys) - len(unseen)} noticed')
    assert len(keys) > 70 and set(unseen) <= KNOWN, unseen
