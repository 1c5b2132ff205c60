"""The replay against a log that forgets nothing: every draw is followed step by step, for random episodes, in both ways in which worlds begin
the next one, with nested and with stacked observations, across the ring's seam, after a cut, and after a checkpoint. Then each famous mistake is
planted and must be seen."""
import copy
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlnb.buffers import replay as page
from rlnb.buffers import store
from rlnb.buffers.collect import Collector
from rlnb.buffers.her import Hindsight
from rlnb.buffers.per import Prioritised
from rlnb.buffers.replay import Replay, Uniform
from rlnb.buffers.rollout import row_spec
from rlnb.core.batch import Batch
from rlnb.core.errors import BadInput
from rlnb.envs.base import Step, VecEnv
from rlnb.envs.goal import BitFlip
from rlnb.envs.wrap import FrameStack
from rlnb.train.memory import by_key


class Scripted(VecEnv):
    "Worlds whose episodes end at random; an observation says world, episode and step; `log` has every transition as it was"
    act_space = spaces.Discrete(5)

    def __init__(self, n=2, seed=0, mode='same', p=.25, nested=False, picture=False):
        self.num_envs, self.mode, self.p, self.nested, self.picture_, self.rng = n, mode, p, nested, picture, np.random.default_rng(seed)
        self.number = np.arange(n)*10_000                  # world, episode, step as one number
        self.waits, self.log = np.zeros(n, bool), [[] for _ in range(n)]
        box = spaces.Box(0, 1e9, (1,))
        self.obs_space = spaces.Dict(a=box, b=spaces.Dict(c=spaces.Box(0, 1e9, (2,)))) if nested else spaces.Box(0, 255, (1, 2, 2), np.uint8) if picture else box

    def see(self, number):
        x = np.array(number, np.float32)[:, None]
        if self.picture_: return np.broadcast_to((number % 251)[:, None, None, None], (len(number), 1, 2, 2)).astype(np.uint8)
        return Batch(a=x, b=Batch(c=np.concatenate([x, -x], 1))) if self.nested else x
    def reset(self, seed=None):
        self.number = self.number//100*100 + 100
        self.waits[:] = False
        return self.see(self.number)
    def step(self, act):
        before, valid = self.number.copy(), ~self.waits
        u = self.rng.random(self.num_envs)
        term, trunc = valid & (u < self.p/2), valid & (u >= self.p/2) & (u < self.p)
        reward = (self.rng.random(self.num_envs)*valid).astype(np.float32)
        after = np.where(valid, before + 1, before//100*100 + 100)
        for j in np.flatnonzero(valid):
            self.log[j].append(SimpleNamespace(obs=before[j], act=act[j], reward=reward[j], term=term[j], over=term[j] or trunc[j], after=after[j]))
        if self.mode == 'next':
            self.number, self.waits = after, term | trunc
            now = self.see(after)
            return Step(now, reward, term, trunc, now, Batch(valid=valid))
        done = term | trunc
        self.number = np.where(done, before//100*100 + 100, after)
        now = self.see(self.number)
        return Step(now, reward, term, trunc, self.see(after) if done.any() else now)


class Random:
    def __init__(self, seed): self.rng = np.random.default_rng(seed)
    def act(self, obs, explore, progress):
        n = len(obs) if not isinstance(obs, dict) else len(obs['a'])
        return Batch(act=self.rng.integers(5, size=n))


def number(obs): return (obs['a'] if isinstance(obs, dict) else obs)[:, 0].astype(int)


def follow(log, i, n, gamma):
    "k steps from step i of a world's log"
    total, k = 0., 0
    while True:
        s = log[i + k]
        total, k = total + gamma**k*s.reward, k + 1
        if s.over or k == n or i + k == len(log): return total, gamma**k*(not s.term), s.after


def check(ring, world, gamma=.9):
    "Every transition that may be drawn is what happened, and every one that happened lately may be drawn"
    every = np.arange(ring.low*ring.num_envs, ring.written*ring.num_envs)
    every = every[ring.flat.valid.take(every % ring.M)]
    b, seen = ring.gather(every), [{s.obs: i for i, s in enumerate(log)} for log in world.log]
    for x, f in enumerate(every):
        j = f % ring.num_envs
        i = seen[j][number(b.obs)[x]]
        total, discount, after = follow(world.log[j], i, ring.n_step, gamma)
        assert (b.act[x], number(b.next_obs)[x]) == (world.log[j][i].act, after)
        assert abs(b.reward[x] - total) < 1e-5 and abs(b.discount[x] - discount) < 1e-6
    lately = sum(len(log) for log in world.log) if ring.kept == 0 else None
    assert lately in (None, len(every)) and len(every) >= min(1, ring.seen)


def life(world, ring, turns, per=3, cut_at=(), seed=0):
    c, agent = Collector(world), Random(seed)
    for turn in range(turns):
        ring.begin()
        c.collect(agent, ring, per)
        if turn in cut_at:
            ring.cut(c.obs)
            for log in world.log: log[-1].over = True
            c.obs = world.reset()
    ring.close(c.obs)
    return c


def same(a, b):
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype


def queue(ring):
    "All there is of the true successors, also where nobody looks"
    ring.ends.forget(ring.kept)
    return dict(lo=ring.ends.lo, hi=ring.ends.hi, row=ring.ends.row, obs=ring.ends.obs)


FREELY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
patterns = dict(n=st.integers(1, 4), size=st.integers(4, 40), n_step=st.integers(1, 6), p=st.sampled_from([0., .1, .3, .8, 1.]), mode=st.sampled_from(['same', 'next']),
                nested=st.booleans(), turns=st.integers(1, 25), per=st.integers(1, 5), seed=st.integers(0, 10**6), cuts=st.sets(st.integers(0, 25), max_size=3))


@FREELY
@given(**patterns)
def test_every_draw_is_what_happened(n, size, n_step, p, mode, nested, turns, per, seed, cuts):
    world = Scripted(n, seed, mode, p, nested)
    ring = Replay(max(size, 2*n), world, gamma=.9, n_step=n_step)
    life(world, ring, turns, per, cuts, seed)
    check(ring, world)


@FREELY
@given(**patterns, cut=st.integers(0, 10**6))
def test_small_state_and_rows_are_the_whole_state(n, size, n_step, p, mode, nested, turns, per, seed, cuts, cut):
    "A checkpoint in pieces of any size, some of them written before the oldest row of today, equals one that is whole"
    world = Scripted(n, seed, mode, p, nested)
    ring = Replay(max(size, 2*n), world, gamma=.9, n_step=n_step, seed=seed)
    c, agent, pieces, done = Collector(world), Random(seed), [], 0
    for turn in range(turns):
        ring.begin()
        c.collect(agent, ring, per)
        if (cut >> turn) & 1 or turn == turns - 1:                     # a checkpoint now: only what is new
            pieces.append((max(done, ring.kept), ring.rows(max(done, ring.kept), ring.written)))
            done = ring.written
    small, whole = copy.deepcopy(ring.state_dict(rows=False)), copy.deepcopy(ring.state_dict())
    assert 'rows' not in small
    for state, parts in ((small, pieces), (whole, [])):
        other = Replay(max(size, 2*n), world, gamma=.9, n_step=n_step, seed=seed + 1)
        life(Scripted(n, seed + 7, mode, .5, nested), other, 3)       # it has held something else before
        other.load_state_dict(state)
        for a, piece in parts:
            assert all(len(v) == len(piece['reward']) for v in piece.values())
            other.put(a, piece)
        assert same(other.state_dict(), whole) and same(queue(other), queue(ring))
        other.close(c.obs)
        check(other, world)
        if ring.ready:
            a, b = copy.deepcopy(ring), other
            a.close(c.obs)
            assert same(a.sample(32).numpy(), b.sample(32).numpy())


@FREELY
@given(mode=st.sampled_from(['same', 'next']), n=st.integers(1, 3), k=st.integers(2, 4), size=st.integers(12, 40), n_step=st.integers(1, 4), p=st.sampled_from([.1, .3, .8]),
       turns=st.integers(2, 20), seed=st.integers(0, 10**6))
def test_single_frames_are_whole_stacks(mode, n, k, size, n_step, p, turns, seed):
    "Stacks made when they are drawn equal stacks that were stored"
    rings = []
    for frames in (None, (k, 0)):
        world = FrameStack(Scripted(n, seed, mode, p, picture=True), k, axis=0)
        rings.append(Replay(max(size, n*(k + 2)), world, n_step=n_step, frames=frames))
        life(world, rings[-1], turns, seed=seed)
    whole, single = rings
    f = np.arange(single.low*n, single.written*n)
    f = f[single.flat.valid.take(f % single.M)]
    a, b = whole.gather(f), single.gather(f)
    assert set(a) == set(b) and all(np.array_equal(a[key], b[key]) for key in a)
    assert single.np.obs.nbytes*k == whole.np.obs.nbytes


SHAPES = pytest.mark.parametrize('shape,axis', [((3, 4, 4), 0), ((4, 4, 3), -1), ((4, 4), 0), ((5,), 0)])


def noise(shape, axis):
    "A world whose every observation, three of them stacked, is another picture of this shape"
    class Noise(Scripted):
        def see(self, number): return np.stack([np.random.default_rng(int(x)).integers(256, size=shape) for x in number]).astype(np.uint8)
    world = Noise(2, 1)
    world.obs_space = spaces.Box(0, 255, shape, np.uint8)
    return FrameStack(world, 3, axis if len(shape) == 3 else None)


@SHAPES
def test_frames_of_every_shape(shape, axis):
    whole, single = Replay(40, noise(shape, axis)), Replay(40, noise(shape, axis), frames=(3, axis))
    for ring in (whole, single): life(noise(shape, axis), ring, 12)
    f = np.arange(single.low*2, single.written*2)
    assert np.array_equal(whole.gather(f).obs, single.gather(f).obs) and np.array_equal(whole.gather(f).next_obs, single.gather(f).next_obs)


def test_frames_that_are_no_repeated_frame_are_refused():
    class Padded(FrameStack):
        def _filled(self, obs): return np.stack([0*obs]*(self.k - 1) + [obs], 1)
    world = Padded(Scripted(2, 0, picture=True), 3, axis=0)
    with pytest.raises(BadInput, match='repeated'): life(world, Replay(40, world, frames=(3, 0)), 2)


def test_reset_rows_are_never_drawn():
    world = Scripted(3, 0, 'next', .5)
    ring = Replay(60, world)
    life(world, ring, 30)
    assert (~ring.np.valid).sum() > 10
    drawn = np.concatenate([ring.sample(100).row.numpy() for _ in range(50)])
    assert ring.flat.valid.take(drawn % ring.M).all()
    real = np.arange(ring.low*3, ring.written*3)
    real = real[ring.flat.valid.take(real % ring.M)]
    counts = np.bincount(drawn - ring.low*3, minlength=60)[real - ring.low*3]
    mean = len(drawn)/len(real)
    assert counts.sum() == len(drawn) and ((counts - mean)**2/mean).sum() < len(real) + 5*(2*len(real))**.5
    assert ring.seen == sum(map(len, world.log)) == Collector(world).steps + ring.seen


def test_a_turn_counts_transitions_and_episodes_once():
    world = Scripted(2, 3, 'next', .4)
    ring = Replay(50, world)
    c, agent = Collector(world), Random(0)
    over = 0
    for _ in range(20):
        ring.begin()
        before = c.steps
        c.collect(agent, ring, 4)
        fresh = ring.fresh
        ring.close(c.obs)                                              # told twice, as after a restart: nothing counts twice
        assert ring.fresh == fresh == c.steps - before
        over += len(ring.over)
        for first, last, j in ring.over:
            rows = range(max(first, ring.kept), last + 1)
            f = np.array(rows)*2 + j
            assert ring.flat.valid.take(f % ring.M).all()
            assert not (ring.flat.terminated | ring.flat.truncated).take(f[:-1] % ring.M).any()
    assert ring.seen == c.steps and over == sum(s.over for log in world.log for s in log)


def test_stopped_inside_a_turn():
    "A turn cut short by `stop` goes on behind its last row"
    rings = []
    for polls in (2, 99):
        world = Scripted(2, 5)
        ring, c, agent = Replay(40, world), Collector(world), Random(1)
        for _ in range(5):
            ring.begin()
            c.stop = lambda ring=ring, polls=polls: ring.t >= polls
            c.collect(agent, ring, 4)
            if c.halted:
                c.stop = lambda: False
                c.collect(agent, ring, 4)
        rings.append(ring)
    assert same(rings[0].state_dict(), rings[1].state_dict())


def test_starts_counts_transitions():
    world = Scripted(4, 0, 'next', .5)
    ring, c, agent = Replay(400, world, starts=50), Collector(world), Random(0)
    while not ring.ready:
        assert c.steps < 50
        ring.begin()
        c.collect(agent, ring, 1)
    assert 50 <= c.steps <= 54


def test_refused_before_anything_is_allocated(monkeypatch, tmp_path):
    big = SimpleNamespace(num_envs=1, obs_space=spaces.Box(0, 255, (36, 64, 64), np.uint8), act_space=spaces.Discrete(4))
    monkeypatch.setattr(page, 'free_memory', lambda: 8 << 30)
    with pytest.raises(BadInput, match='buffer_size') as e: Replay(1_000_000, big)
    fits = int(str(e.value).rsplit(' ', 1)[1])
    each = 8 + sum(store.bytes_of(dict(obs=row_spec(big.obs_space), act=((), np.int64), reward=((), np.float32), flags=((3,), bool))).values())
    assert .85*(8 << 30) < fits*each < 8 << 30
    assert sum(store.bytes_of(Replay(10, big, frames=(4, 0)).spec).values()) < 37_500
    for bad, field in ((dict(size=0), 'buffer_size'), (dict(size=5, n_step=0), 'n_step'), (dict(size=5, frames=(5, 0)), 'frames')):
        with pytest.raises(BadInput, match=field): Replay(env=big, **bad)


class Cameras(VecEnv):
    "Three cameras of 64 × 64 in colour"
    num_envs, obs_space, act_space = 2, spaces.Box(0, 255, (64, 64, 9), np.uint8), spaces.Discrete(4)


def test_the_figures_of_three_cameras():
    "147,456 bytes are seen at once; kept twice, a hundred thousand are 29.5 GB; kept singly, 3.7"
    world = FrameStack(Cameras(), 4, axis=-1)
    assert np.prod(world.obs_space.shape) == 147_456
    each = sum(store.bytes_of(Replay(20, world, frames=(4, -1)).spec).values())
    assert f'{2*147_456*1e5/1e9:.1f} {each*1e5/1e9:.1f}' == '29.5 3.7'


@pytest.mark.parametrize('how', ['plain', 'priorities', 'hindsight', 'frames', 'file'])
def test_what_is_counted_is_what_is_taken(how, monkeypatch, tmp_path):
    "Bytes that a refusal is built on, beside those of the arrays, to 2 %"
    asked = []
    monkeypatch.setattr(page, 'fits', lambda size, each, free: asked.append(size*each))
    world = BitFlip(4) if how == 'hindsight' else FrameStack(Scripted(4, picture=True), 3, axis=0) if how == 'frames' else Scripted(4)
    more = dict(priorities=dict(sampler=Prioritised()), hindsight=dict(relabel=Hindsight(world)) if how == 'hindsight' else {}, frames=dict(frames=(3, 0)), file=dict(memmap=str(tmp_path)))
    taken = sum(n for k, n in by_key(Replay(200_000, world, **more.get(how, {}))).items() if not k.startswith('ends'))
    assert abs(sum(asked)/taken - 1) < .02, (sum(asked), taken)


def test_refused_with_what_would_fit(monkeypatch, tmp_path):
    world = Scripted(1)
    monkeypatch.setattr(page, 'free_memory', lambda: 10**6)
    for sampler in (None, Prioritised()):
        with pytest.raises(BadInput, match='buffer_size') as e: Replay(10**6, world, sampler=sampler)
        Replay(int(str(e.value).rsplit(' ', 1)[1]), world, sampler=sampler)
    monkeypatch.setattr(page, 'free_bytes', lambda folder: 10**8)
    Replay(10**6, world, memmap=str(tmp_path))                             # in a file memory doesn't matter, but for priorities
    with pytest.raises(BadInput, match='buffer_size'): Replay(10**6, world, memmap=str(tmp_path), sampler=Prioritised())
    with pytest.raises(BadInput, match='at most'): Replay(10**7, world, memmap=str(tmp_path))
    for nowhere in ('/nowhere', __file__):
        with pytest.raises(BadInput, match='memmap'): Replay(100, world, memmap=nowhere)


def test_a_mapped_ring_that_is_put_back(tmp_path):
    "What was in a file that has vanished comes out of the checkpoint"
    world = Scripted(2, 4)
    ring = Replay(40, world, .9, 3, 1, memmap=str(tmp_path))
    c = life(world, ring, 20)
    small, rows, oldest = copy.deepcopy(ring.state_dict(rows=False)), ring.rows(ring.kept, ring.written), ring.kept
    whole = copy.deepcopy(ring.state_dict())
    del ring
    other = Replay(40, world, .9, 3, 2, memmap=str(tmp_path))
    other.load_state_dict(small)
    other.put(oldest, rows)
    other.close(c.obs)
    assert same(other.state_dict(), whole)
    check(other, world)


def test_a_mapped_ring_is_the_same_ring(tmp_path):
    rings = []
    for folder in ('', str(tmp_path)):
        world = Scripted(2, 4, nested=True)
        rings.append(Replay(40, world, n_step=3, memmap=folder))
        life(world, rings[-1], 20)
    assert same(rings[0].state_dict(), rings[1].state_dict()) and not list(tmp_path.iterdir())


# ---- planted: each must turn a check red
class WrongK(Replay):
    def _fold(self, *a):
        last, ret, discount = super()._fold(*a)
        return last, ret, np.where(discount > 0, self.powers[-1], 0)

class TruncatedIsTerminated(Replay):
    def _fold(self, w, reward, term, over): return super()._fold(w, reward, over, over)

class AcrossEpisodes(Replay):
    def _fold(self, w, reward, term, over): return super()._fold(w, reward, term, over & False)

class NextEpisode(Replay):
    def after(self, last, part=""): return store.pick(self.flat.obs, (last + self.num_envs) % self.M)

class WriteHead(Replay):
    @property
    def kept(self): return max(0, self.written - self.R)

class PastTheHead(Replay):
    def _fold(self, w, reward, term, over):
        self.written += 100
        try: return super()._fold(w, reward, term, over)
        finally: self.written -= 100

class ResetRows(Replay):
    def close(self, obs):
        super().close(obs)
        self.np.valid[...] = True

class OldLink(Replay):
    def slot(self, t):
        i = self.written % self.R
        was = self.link[i].copy()
        row = super().slot(t)
        self.link[i] = was
        return row


@pytest.mark.parametrize('wrong,mode', [(WrongK, 'same'), (TruncatedIsTerminated, 'same'), (AcrossEpisodes, 'same'), (NextEpisode, 'same'), (WriteHead, 'same'),
                                        (PastTheHead, 'same'), (ResetRows, 'next'), (OldLink, 'same')], ids=lambda x: getattr(x, '__name__', x))
def test_planted(wrong, mode):
    for kind, red in ((Replay, False), (wrong, True)):
        world = Scripted(2, 11, mode, .3)
        ring = kind(30, world, gamma=.9, n_step=3)
        life(world, ring, 25)
        if red:
            with pytest.raises((AssertionError, KeyError, IndexError)): check(ring, world)
        else: check(ring, world)


def test_planted_state_that_forgets_successors():
    world = Scripted(2, 11)
    ring = Replay(30, world, gamma=.9)
    life(world, ring, 25)
    other = Replay(30, world, gamma=.9)
    state = copy.deepcopy(ring.state_dict())
    state['rows']['ended'][:] = False
    other.load_state_dict(state)
    other.close(np.zeros((2, 1), np.float32))
    with pytest.raises(AssertionError): check(other, world)


class Small(store.Ends):
    "A queue that begins small again after a restart"
    def __init__(self, spec, room=8, first=1): super().__init__(spec, 8, first)

class Littered(store.Ends):
    "A queue whose forgotten entries stay where they were"
    def forget(self, kept):
        while self.lo < self.hi and self.row[self.lo % len(self.row)] < kept: self.lo += 1


@pytest.mark.parametrize('kind', [store.Ends, Small, Littered])
def test_planted_queue_that_is_not_put_back(kind, monkeypatch):
    "What can't be read doesn't matter, but a run that is compared number by number would look like another"
    monkeypatch.setattr(page, 'Ends', kind)
    world = Scripted(4, 5, p=.9)
    ring = Replay(40, world)
    c = life(world, ring, 12)
    world.p = .1
    for _ in range(5):
        ring.begin()
        c.collect(Random(1), ring, 2)
    other = Replay(40, world)
    other.load_state_dict(copy.deepcopy(ring.state_dict()))
    assert same(queue(other), queue(ring)) is (kind is store.Ends)


def test_uniform_goes_on_where_it_was():
    a, b = Uniform(1), Uniform(2)
    ring = SimpleNamespace(low=0, written=10, num_envs=2, holes=False)
    for s in (a, b): s.attach(ring)
    a.draw(5, 0.)
    b.load_state_dict(a.state_dict())
    assert np.array_equal(a.draw(50, 0.)[0], b.draw(50, 0.)[0])
