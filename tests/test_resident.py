"""The ring on a device against the ring on the host, which test_replay.py holds against a log of what happened: whatever the two have lived, each row
that may be drawn says the same, files of one are files of the other, priorities draw the same rows. The CPU plays the device here; test_far.py has one
that will not be mixed with the host. Then what is easily forgotten is planted, and must be seen."""
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_replay import FREELY, SHAPES, Random, Scripted, life, noise, patterns, same

from rlnb.agents.off_policy import make_replay
from rlnb.buffers import resident as page
from rlnb.buffers.collect import Collector
from rlnb.buffers.per import Prioritised
from rlnb.buffers.replay import Replay
from rlnb.buffers.resident import Priorities, Resident
from rlnb.core.errors import BadInput
from rlnb.envs.wrap import FrameStack
from rlnb.train.memory import by_key


def pair(size, world, kind=Resident, per=False, **how):
    "The same ring here and there, each with a world of its own"
    samplers = (Prioritised(3, eps=1e-3), Priorities(3, eps=1e-3)) if per else (None, None)
    worlds = world(), world()
    return [Replay(size, worlds[0], gamma=.9, sampler=samplers[0], **how), kind(size, worlds[1], gamma=.9, sampler=samplers[1], device='cpu', **how)], worlds


def drawable(ring):
    f = np.arange(ring.low*ring.num_envs, ring.written*ring.num_envs)
    return f[ring.flat.valid.take(f % ring.M)]


def alike(a, b):
    "Equal to the last bit, but for the rounding of a sum"
    if isinstance(a, dict): return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    return a.shape == b.shape and a.dtype == b.dtype and np.allclose(a, b, rtol=1e-6, atol=1e-6)


def check(here, there):
    f = drawable(here)
    assert same(there.rows(there.kept, there.written), here.rows(here.kept, here.written))
    assert alike(here.gather(f), there.gather(torch.from_numpy(f)).numpy())
    assert same(here.obs_at(f), there.obs_at(f)) and same(here.obs_after(f), there.obs_after(f))


@FREELY
@given(**patterns, ranked=st.booleans())
def test_every_draw_is_the_hosts(n, size, n_step, p, mode, nested, turns, per, seed, cuts, ranked):
    (here, there), worlds = pair(max(size, 2*n), lambda: Scripted(n, seed, mode, p, nested), per=ranked, n_step=n_step, seed=seed)
    for ring, world in zip((here, there), worlds): life(world, ring, turns, per, cuts, seed)
    check(here, there)
    if here.ready: assert alike(here.sample(32).numpy(), there.sample(32).numpy())


@FREELY
@given(mode=st.sampled_from(['same', 'next']), n=st.integers(1, 3), k=st.integers(2, 4), size=st.integers(12, 40), n_step=st.integers(1, 4), p=st.sampled_from([.1, .3, .8]),
       turns=st.integers(2, 20), seed=st.integers(0, 10**6))
def test_single_frames(mode, n, k, size, n_step, p, turns, seed):
    (here, there), worlds = pair(max(size, n*(k + 2)), lambda: FrameStack(Scripted(n, seed, mode, p, picture=True), k, axis=0), n_step=n_step, frames=(k, 0))
    for ring, world in zip((here, there), worlds): life(world, ring, turns, seed=seed)
    check(here, there)


@SHAPES
def test_frames_of_every_shape(shape, axis):
    (here, there), worlds = pair(40, lambda: noise(shape, axis), frames=(3, axis))
    for ring, world in zip((here, there), worlds): life(world, ring, 12)
    check(here, there)


@FREELY
@given(**patterns, cut=st.integers(0, 10**6))
def test_files_of_one_are_files_of_the_other(n, size, n_step, p, mode, nested, turns, per, seed, cuts, cut):
    "A checkpoint in pieces, from here to there and from there to here, into a ring that has held something else"
    size = max(size, 2*n)
    rings, worlds = pair(size, lambda: Scripted(n, seed, mode, p, nested), n_step=n_step, seed=seed)
    for ring, world, other in zip(rings, worlds, pair(size, lambda: Scripted(n, seed + 7, mode, .5, nested), n_step=n_step, seed=seed + 1)[0][::-1]):
        c, agent, pieces, done = Collector(world), Random(seed), [], 0
        for turn in range(turns):
            ring.begin()
            c.collect(agent, ring, per)
            if (cut >> turn) & 1 or turn == turns - 1:
                pieces.append((max(done, ring.kept), ring.rows(max(done, ring.kept), ring.written)))
                done = ring.written
        small, whole = copy.deepcopy(ring.state_dict(rows=False)), copy.deepcopy(ring.state_dict())
        life(Scripted(n, seed + 7, mode, .5, nested), other, 3)
        other.load_state_dict(small)
        for a, piece in pieces: other.put(a, piece)
        assert same(other.state_dict(), whole)
        for r in (ring, other): r.close(c.obs)
        check(*((ring, other) if isinstance(other, Resident) else (other, ring)))


@pytest.mark.parametrize('mode', ['same', 'next'])
@pytest.mark.parametrize('n_step', [1, 3])
def test_priorities_draw_the_same(mode, n_step):
    rings, worlds = pair(60, lambda: Scripted(2, 4, mode, .2), per=True, n_step=n_step)
    lives = [(ring, Collector(world), Random(0), np.random.default_rng(1)) for ring, world in zip(rings, worlds)]
    for turn in range(60):
        batches = []
        for ring, c, agent, rng in lives:
            ring.begin()
            c.collect(agent, ring, 2)
            for _ in range(2):
                batches.append(b := ring.sample(24, turn/60))
                ring.update(b.row, torch.from_numpy(rng.normal(0, 2, 24).astype(np.float32)))
        for a, b in zip(batches[:2], batches[2:]): assert alike(a.numpy(), b.numpy()) and torch.equal(a.row, b.row)
    here, there = (ring.sampler for ring in rings)
    a, b = here.state_dict(), there.state_dict()
    assert alike(a['priority'], b['priority']) and a['top'] == pytest.approx(b['top']) and same(a['rng'], b['rng'])
    for old, new in ((a, Priorities(9, eps=1e-3)), (b, Prioritised(9, eps=1e-3))):          # and go on from each other's
        on = dict(device='cpu') if isinstance(new, Priorities) else {}
        ring = (Resident if on else Replay)(60, worlds[0], gamma=.9, n_step=n_step, sampler=new, **on)
        ring.load_state_dict(rings[0].state_dict() | dict(sampler=old))
        assert alike(ring.sampler.state_dict()['priority'], old['priority'])


def check_gone(kind):
    "A row that was overwritten since it was drawn keeps out of its successor's priority"
    world = Scripted(2, 4, p=.1)
    ring, c, agent = Resident(20, world, sampler=kind(3), device='cpu'), Collector(world), Random(0)
    ring.begin()
    c.collect(agent, ring, 6)
    old = ring.sample(8)
    for _ in range(3):
        ring.begin()
        c.collect(agent, ring, 6)
    ring.sample(1)
    was = ring.sampler.sums.values.copy()
    ring.update(old.row, torch.full((8,), 50.))
    assert np.array_equal(ring.sampler.sums.values, was) and ring.sampler.top == 1


def test_errors_of_rows_that_are_gone_change_nothing(): check_gone(Priorities)


def test_a_million_priorities():
    "Found by a sum over all of them as by the tree, up to the rounding of an edge"
    rng, n = np.random.default_rng(0), 1_000_003
    p = (rng.random(n)**4*(rng.random(n) < .7)).astype(np.float32)
    whole = page._Whole(n, 'cpu')
    whole.set(np.arange(n), p)
    x = np.sort(np.concatenate([rng.random(4096), [0., np.nextafter(1, 0)]]))
    found, edge = whole.find(x).numpy(), p.astype(np.float64).cumsum()
    assert (p[found] > 0).all() and float(whole.least) == p[p > 0].min()
    off = found != np.searchsorted(edge, x*edge[-1], side='right')
    assert off.mean() < .01 and (np.abs(edge[found] - x*edge[-1])[off] < 1e-6).all()


@pytest.mark.parametrize('how', ['plain', 'priorities', 'frames'])
def test_what_is_counted_is_what_is_taken(how, monkeypatch):
    "Bytes on each side that a refusal is built on, beside those of the arrays, to 2 %"
    asked = []
    monkeypatch.setattr(page, 'fits', lambda size, each, free, where='': asked.append(size*each))
    world = FrameStack(Scripted(4, picture=True), 3, axis=0) if how == 'frames' else Scripted(4)
    more = dict(priorities=dict(sampler=Priorities()), frames=dict(frames=(3, 0))).get(how, {})
    taken = by_key(Resident(200_000, world, device='cpu', **more))
    room = sum(taken.values()) + 16*50_001*4*(how == 'priorities')        # while all are added up
    assert abs(sum(asked)/room - 1) < .02, (asked, taken)


def test_refused_with_what_would_fit(monkeypatch):
    world = Scripted(1)
    monkeypatch.setattr(page, 'free_on', lambda device: 10**6)
    with pytest.raises(BadInput, match=r'buffer_size.*free on cpu') as e: Resident(10**6, world, device='cpu', sampler=Priorities())
    Resident(int(str(e.value).rsplit(' ', 1)[1]), world, device='cpu', sampler=Priorities())
    monkeypatch.setattr(page, 'free_on', lambda device: 10**12)
    monkeypatch.setattr(page, 'free_memory', lambda: 1000)
    with pytest.raises(BadInput, match='buffer_size'): Resident(10**4, world, device='cpu')


def test_who_gets_which(tmp_path):
    "A ring goes where learning is, unless it is in a file, exchanges goals, or nothing would be gained"
    from rlnb.envs.goal import BitFlip
    cfg = dict(gamma=.9, buffer_size=40, learning_starts=1)
    def made(env, device, **more): return make_replay(SimpleNamespace(**cfg, **more), env, 0, device)
    for device in ('cpu', 'mps:0'): assert type(made(Scripted(2), device)) is Replay
    there = made(Scripted(2), 'meta', per=True)
    assert (type(there), type(there.sampler), there.data.obs.device.type) == (Resident, Priorities, 'meta')
    for ring in (made(Scripted(2), 'meta', memmap=str(tmp_path), per=True), made(BitFlip(2), 'meta', her='future', her_k=4, per=True)):
        assert (type(ring), type(ring.sampler), ring.device) == (Replay, Prioritised, 'meta')


KINDS = pytest.mark.parametrize('kind,sampler', [(Replay, Prioritised), (Resident, Priorities)])


def made(kind, size, world, **how): return kind(size, world, **how, **(dict(device='cpu') if kind is Resident else {}))


@KINDS
def test_a_smaller_ring_takes_over_what_it_holds(kind, sampler):
    "As after a fork with another buffer_size: all rows that are here can be drawn, with the priorities that they had"
    world = Scripted(2, 4, p=.1)
    ring, c = made(kind, 60, world, sampler=sampler(1)), Collector(world)
    for _ in range(12):
        ring.begin()
        c.collect(Random(0), ring, 4)
        b = ring.sample(16)
        ring.update(b.row, torch.linspace(1, 3, 16))
    small = made(kind, 20, world, sampler=sampler(2))
    small.load_state_dict(ring.state_dict())
    f = drawable(small)
    assert len(f) == 20
    small.sampler._enter()
    assert np.array_equal(small.sampler.sums.values[f % small.M], ring.sampler.sums.values[f % ring.M])
    assert set(small.sample(4000).row.tolist()) == set(f.tolist())


@KINDS
def test_priorities_where_there_were_none(kind, sampler):
    "As after a fork with per=True: all rows are new"
    world = Scripted(2, 4, p=.1)
    ring = made(kind, 40, world)
    life(world, ring, 8)
    other = made(kind, 40, world, sampler=sampler(2, alpha=1., beta=1.))
    other.load_state_dict(ring.state_dict())
    b = other.sample(400)
    assert set(b.row.tolist()) == set(drawable(other).tolist()) and (b.weight == 1).all()


@pytest.mark.parametrize('kind,sampler', [(Replay, None), (Replay, Prioritised), (Resident, None), (Resident, Priorities)])
def test_nothing_is_drawn_where_nothing_is(kind, sampler):
    "A ring of one row in which a world's reset took the place of the only step is not ready, however much it has seen"
    world = Scripted(1, 4, 'next', 1.)
    ring, c = made(kind, 1, world, sampler=sampler and sampler(1)), Collector(world)
    said = []
    for _ in range(8):
        ring.begin()
        c.collect(Random(0), ring, 1)
        said.append(ring.ready)
        if ring.ready: assert ring.sample(3).row.tolist() == [ring.written - 1]*3
    assert said == [True, False]*4


def test_fewer_rows_than_frames():
    with pytest.raises(BadInput, match=r'buffer_size.*at least 8'): Replay(7, FrameStack(Scripted(2, picture=True), 4, axis=0), frames=(4, 0))


def test_what_torch_keeps_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d: (3, 100))
    monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda d: 50)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda d: 20)
    assert page.free_on('cuda:0') == 33


@pytest.mark.parametrize('breaks', [False, True], ids=['here', 'gone'])
def test_a_device_that_breaks_leaves_the_weights(breaks, monkeypatch, tmp_path):
    "After an error of a GPU nothing there can be read: the last good weights are on the host, and what happened is told"
    from rlnb.buffers import replay
    from rlnb.runs.run import find
    from rlnb.train.callback import Callback
    from rlnb.train.session import train
    right = replay.span
    monkeypatch.setattr(page, 'apart', lambda device: True)

    def gone(x, a, b):
        if isinstance(x, torch.Tensor): raise RuntimeError('CUDA error: device-side assert triggered')
        return right(x, a, b)

    class Die(Callback):
        def before_fit(self, t): next(c for c in t.cbs.cbs if hasattr(c, 'snapshot')).snapshot = 0.
        def after_learn(self, t):
            assert isinstance(t.buffer, Resident)
            if t.step < 400: return
            if breaks: monkeypatch.setattr(replay, 'span', gone)
            raise RuntimeError('CUDA error: device-side assert triggered')

    with pytest.raises(RuntimeError): train('dqn', 'rlnb/CartPole-v1', 1000, root=tmp_path, name='a', progress=False, presets=False, num_envs=2, cbs=[Die()], learning_starts=64, batch_size=32)
    run = find('a', tmp_path)
    assert run.phase == 'failed' and 'device-side assert' in (run.path/'error.txt').read_text() and 'while that was written' not in run.state['error']['cause']
    (saved,) = run.checkpoints()
    assert saved['resume'] is (not breaks) and run.load('latest').count > 50


# ---- planted: each must turn a check red
class NoAccounts(Resident):
    "A cut that the device isn't told of"
    def cut(self, obs): Replay.cut(self, obs)

class OldQueue(Resident):
    "Successors that stay behind"
    def end(self, *a): Replay.end(self, *a)

class QueueThatShrank(Resident):
    "A queue that grew on the host only"
    def _enqueue(self):
        if not hasattr(self, 'was'): super()._enqueue()
        self.queue = self.was = getattr(self, 'was', self.queue)

class NothingBehind(Resident):
    "What is seen behind the last row isn't sent"
    def close(self, obs):
        a = self.booked
        Replay.close(self, obs)
        self._account(np.arange(a, self.written))

class LateAccounts(Resident):
    "The last row of a turn is told in the next"
    def _account(self, rows): super()._account(np.asarray(rows)[:-1])

class NextRow(Resident):
    "Rows lie one further than the accounts say"
    def _send(self, i): super()._send((i + 1) % self.R)

class RowsOfThePast(Resident):
    "Rows that are put back are not told"
    def put(self, a, rows): Replay.put(self, a, rows)

class Forgetful(Resident):
    "Steps after the episode's end count too"
    def gather(self, f):
        was, self.there.truncated = self.there.truncated, torch.zeros_like(self.there.truncated)
        try: return super().gather(f)
        finally: self.there.truncated = was


@pytest.mark.parametrize('wrong', [Resident, NoAccounts, OldQueue, QueueThatShrank, NothingBehind, LateAccounts, NextRow, RowsOfThePast, Forgetful], ids=lambda x: x.__name__)
def test_planted(wrong):
    (here, there), worlds = pair(40, lambda: Scripted(2, 11, p=.3), kind=wrong, n_step=3)
    def lived():
        for turns in (3, 25):                                          # something is drawn in between, so that all is there
            for ring, world in zip((here, there), worlds): life(world, ring, turns, cut_at={20})
            check(here, there)
        again = wrong(40, worlds[1], gamma=.9, n_step=3, device='cpu')
        again.load_state_dict(here.state_dict())
        for ring in (here, again): ring.close(worlds[0].see(worlds[0].number))
        check(here, again)
    if wrong is Resident: return lived()
    with pytest.raises((AssertionError, IndexError)): lived()


class Writes(Priorities):
    "Priorities of rows that are gone are written"
    def update(self, row, err):
        self.sums.held[row % self.ring.M] = (err.abs() + self.eps)**self.alpha


def test_planted_priorities_of_rows_that_are_gone():
    with pytest.raises(AssertionError): check_gone(Writes)
