"""Prioritised replay against its definition: a plain array of priorities that is searched whole. What is drawn and with which weight, rings that wrap,
rows that were spent on resets, restarts; then the mistakes that libraries have made, planted."""
import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_replay import Random, Scripted, same

from rlnb.buffers.collect import Collector
from rlnb.buffers.per import Prioritised, Sums
from rlnb.buffers.replay import Replay

FREELY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@FREELY
@given(n=st.integers(1, 5000), fan=st.sampled_from([2, 3, 16]), top=st.sampled_from([1, 8, 64]), zeros=st.sampled_from([0., .5, .95]), seed=st.integers(0, 10**6))
def test_sums_are_the_running_sum(n, fan, top, zeros, seed):
    rng, p, s = np.random.default_rng(seed), np.zeros(n), Sums(n, fan, top)
    for _ in range(6):
        i = rng.integers(n, size=rng.integers(1, 200))
        v = rng.random(len(i))**4*(rng.random(len(i)) > zeros)
        for k, x in zip(i, v): p[k] = x                            # of one that is named twice, the last
        s.set(i, v)
        assert np.array_equal(s.values[:n], p)
        if not p.any(): continue
        assert s.least == p[p > 0].min()
        x = rng.random(300)
        found = s.find(np.concatenate([x, [0., 1.]]))
        assert (p[found] > 0).all() and (found < n).all()
        edges = p.cumsum()
        u = x*edges[-1]
        off = found[:-2] != np.searchsorted(edges, u, side='right')
        assert (np.abs(edges[found[:-2]][off] - u[off]) < 1e-9*edges[-1]).all()      # only where u lies on an edge, to rounding


class Book:
    "The definition: raw errors by transition number, everything computed whole"
    def __init__(self, alpha, beta, eps): self.alpha, self.beta, self.eps, self.p, self.top = alpha, beta, eps, {}, 1.
    def enter(self, ring):
        low = ring.low*ring.num_envs
        self.p = {f: self.p.get(f, self.top) for f in range(low, ring.written*ring.num_envs) if ring.flat.valid[f % ring.M]}
    def update(self, rows, err):
        for f, e in zip(rows, err):
            p = np.float32((abs(e) + self.eps)**self.alpha)
            self.top = max(self.top, float(p))
            if f in self.p: self.p[f] = p
    def weights(self, rows):
        n, total = len(self.p), sum(self.p.values())
        w = {f: (n*p/total)**-self.beta for f, p in self.p.items()}
        return np.array([w[f] for f in rows])/max(w.values())


def lived(sampler, book, turns=20, mode='next', n=2, size=30, seed=3, watch=lambda ring: None):
    "Turns of a world, two updates in each, and the book beside"
    world = Scripted(n, seed, mode, .3)
    ring, c, agent, rng = Replay(size, world, n_step=2, sampler=sampler), Collector(world), Random(seed), np.random.default_rng(seed)
    for _ in range(turns):
        ring.begin()
        c.collect(agent, ring, 3)
        if not ring.ready: continue
        for _ in range(2):
            b = ring.sample(8)
            book.enter(ring)
            rows = b.row.tolist()
            assert set(rows) <= set(book.p)                                      # only what is there, no reset rows
            np.testing.assert_allclose(b.weight.numpy(), book.weights(rows), rtol=2e-5)
            err = torch.from_numpy(rng.normal(0, 3, 8).astype(np.float32))
            ring.update(b.row, err)
            book.update(rows, err.tolist())
    book.enter(ring)
    ring.sample(1)
    return ring, c


def frequencies(ring, book, draws=400):
    "χ² of what is drawn, against the book; and the expectation of χ²"
    rows = np.concatenate([ring.sample(25).row.numpy() for _ in range(draws)])
    f = np.array(sorted(book.p))
    share = np.array([book.p[x] for x in f])/sum(book.p.values())*len(rows)
    seen = np.array([(rows == x).sum() for x in f])
    return ((seen - share)**2/share).sum(), len(f) - 1


@pytest.mark.parametrize('mode', ['same', 'next'])
@pytest.mark.parametrize('alpha,beta', [(0., 0.), (.6, .4), (1., 1.)])
def test_as_defined(mode, alpha, beta):
    book = Book(alpha, beta, 1e-3)
    ring, _ = lived(Prioritised(1, alpha, beta, 1e-3), book, mode=mode)
    chi, free = frequencies(ring, book)
    assert chi < free + 4*(2*free)**.5


def check_stratified(per):
    "Each of n equal pieces of the sum gives one draw: of an item with half of the sum, n/2 are drawn, within one at each edge"
    lived(per, Book(1., .4, 0.), turns=5, mode='same')
    n = per.ring.written*per.ring.num_envs - per.low*per.ring.num_envs
    per.update(torch.arange(per.low*2, per.low*2 + n), torch.ones(n))
    per.update(torch.tensor([per.low*2 + 3]), torch.tensor([n - 1.]))
    counts = [(per.draw(30, 0.)[0] == per.low*2 + 3).sum() for _ in range(200)]
    assert min(counts) >= 14 and max(counts) <= 16


def test_stratified_draws_scatter_less(): check_stratified(Prioritised(alpha=1., eps=0.))


class Unstratified(Prioritised):
    def draw(self, n, progress):
        self._enter()
        p = self.sums.find(self.rng.random(n))
        return self.low*self.ring.num_envs + (p - self.low*self.ring.num_envs) % self.ring.M, np.ones(n, np.float32)


def test_planted_draws_that_are_not_stratified():
    with pytest.raises(AssertionError): check_stratified(Unstratified(alpha=1., eps=0.))


def test_new_rows_get_the_largest_priority_there_ever_was():
    per = Prioritised(alpha=.5, eps=0.)
    ring, c = lived(per, Book(.5, .4, 0.), turns=3, mode='same')
    ring.update(torch.arange(per.low*2, ring.written*2), torch.full((ring.written*2 - per.low*2,), 16.))
    ring.update(torch.arange(per.low*2, ring.written*2), torch.full((ring.written*2 - per.low*2,), 1.))
    ring.begin()
    c.collect(Random(0), ring, 2)
    ring.sample(1)
    new = per.sums.values[np.arange(ring.written*2 - 4, ring.written*2) % ring.M]
    assert np.array_equal(new, [4.]*4)


def test_errors_of_rows_that_are_gone_change_nothing():
    per, book = Prioritised(alpha=1.), Book(1., .4, 1e-6)
    ring, _ = lived(per, book, mode='same')
    before = per.sums.values.copy()
    ring.update(torch.tensor([0, 1, 2]), torch.tensor([50., 50., 50.]))
    assert np.array_equal(per.sums.values, before) and per.top < 50


def check_goes_on(kind):
    runs = []
    for stop in (False, True):
        per = kind(1)
        ring, c = lived(per, Book(.6, .4, 1e-6), turns=9)
        if stop:
            small, rows = copy.deepcopy(ring.state_dict(rows=False)), ring.rows(ring.kept, ring.written)
            other = Replay(30, c.env, n_step=2, sampler=kind(2))
            lived_in, _ = other, other.load_state_dict(small)
            lived_in.put(ring.kept, rows)
            assert small['sampler']['priority'].dtype == np.float32
            ring = lived_in
        rng, agent = np.random.default_rng(0), Random(4)
        for _ in range(20):
            ring.begin()
            c.collect(agent, ring, 3)
            b = ring.sample(8, .5)
            ring.update(b.row, torch.from_numpy(rng.normal(size=8).astype(np.float32)))
        runs.append((ring.state_dict(), b.numpy()))
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1])


def test_goes_on_to_the_last_bit(): check_goes_on(Prioritised)


def check_annealed(kind):
    "w = (p/least)^−β with the β of that moment"
    per = kind(0, 1., 'linear(0.4, 1)', 0.)
    ring, _ = lived(per, Book(1., .4, 0.), turns=3, mode='same')
    p = per.sums.values[per.sums.values > 0]
    for progress in (0., .25, 1.):
        f, w = per.draw(64, progress)
        np.testing.assert_allclose(w, (per.sums.values[f % ring.M]/p.min())**-(.4 + .6*progress), rtol=1e-5)


def test_beta_is_annealed(): check_annealed(Prioritised)


def check_drift(kind):
    "After fifty thousand changes over twelve orders of magnitude the sums are what they would be if they were new"
    rng, s = np.random.default_rng(0), kind(20_000, top=64)
    s.set(np.arange(20_000), np.full(20_000, 1e6))
    for _ in range(200): s.set(rng.integers(20_000, size=256), 10**rng.uniform(-6, 6, 256))
    s.set(np.arange(20_000), rng.random(20_000)*1e-6)
    np.testing.assert_allclose(s.blocks[-1][0].sum(), s.values[:20_000].sum(), rtol=1e-9)
    assert s.least == s.values[:20_000].min()


def test_no_error_gathers(): check_drift(Sums)


# ---- planted
class AlphaTwice(Prioritised):
    def update(self, row, err): super().update(row, err.abs()**self.alpha)

class NoWeights(Prioritised):
    def draw(self, n, progress): return super().draw(n, progress)[0], np.ones(n, np.float32)

class BatchWeights(Prioritised):
    def draw(self, n, progress):
        f, w = super().draw(n, progress)
        return f, w/w.max()

class SizeOfTheRing(Prioritised):
    "(N P)^−β with N the capacity, not normalised by the largest"
    def draw(self, n, progress):
        f, _ = super().draw(n, progress)
        return f, ((self.ring.M*self.sums.values[f % self.ring.M]/self.sums.values.sum())**-.4).astype(np.float32)

class OnesForNewRows(Prioritised):
    def _enter(self):
        top, self.top = self.top, 1.
        super()._enter()
        self.top = max(top, self.top)

class KeepsOldRows(Prioritised):
    def _enter(self):
        super()._enter()
        p = np.arange((self.low - 1)*2, self.low*2) % self.ring.M
        if self.low: self.sums.set(p, np.ones(2))

class ResetRows(Prioritised):
    def _enter(self):
        super()._enter()
        self.sums.set(p := np.arange(self.low*2, self.high*2) % self.ring.M, np.maximum(self.sums.values[p], 1e-3))

class OtherUnits(Prioritised):
    "The largest error where the largest priority belongs"
    def update(self, row, err):
        super().update(row, err)
        self.top = max(self.top, float(err.abs().max()))

class OneOff(Prioritised):
    "The error of a window entered at its second row"
    def update(self, row, err): super().update((row + self.ring.num_envs).clamp(max=self.ring.written*self.ring.num_envs - 1), err)

class AddsDuplicates(Sums):
    def set(self, i, v):
        if len(np.unique(i)) < len(i): v = np.array([v[i == k].sum() for k in i])
        super().set(i, v)


@pytest.mark.parametrize('wrong', [AlphaTwice, NoWeights, BatchWeights, SizeOfTheRing, OnesForNewRows, KeepsOldRows, ResetRows, AddsDuplicates, OtherUnits, OneOff], ids=lambda k: k.__name__)
def test_planted(wrong, monkeypatch):
    kind = wrong
    if wrong is AddsDuplicates:
        monkeypatch.setattr('rlnb.buffers.per.Sums', wrong)
        kind = Prioritised
    with pytest.raises((AssertionError, KeyError)): lived(kind(1, .6, .4, 1e-3), Book(.6, .4, 1e-3), turns=40)


class NeverRises(Prioritised):
    def draw(self, n, progress): return super().draw(n, 0.)

class OldTree(Prioritised):
    "Priorities are loaded, the sums above them are those of before"
    def load_state_dict(self, d):
        super().load_state_dict(d)
        for sums, _ in self.sums.blocks[-1:]: sums *= np.random.default_rng(0).random(sums.shape)

class Differences(Sums):
    "The difference is added to the sums above, in four bytes, as trees do it"
    def set(self, i, v):
        i, k = np.unique(i[::-1], return_index=True)
        v = v[::-1][k]
        top, delta = self.blocks[-1][0].astype(np.float32), np.zeros(self.blocks[-1][0].size, np.float32)
        np.add.at(delta, i//self.fan**(len(self.blocks) - 1), (v - self.values[i]).astype(np.float32))
        super().set(i, v)
        self.blocks[-1][0][...] = top + delta.reshape(top.shape)


@pytest.mark.parametrize('check, wrong', [(check_annealed, NeverRises), (check_goes_on, OldTree), (check_drift, Differences)], ids=lambda k: k.__name__)
def test_planted_elsewhere(check, wrong):
    with pytest.raises(AssertionError): check(wrong)
