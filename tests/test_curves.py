"""Columns and pictures of a metrics file: the same numbers whoever kept them, damaged or not; quick for a million rows; valid JSON whatever is refused."""
import errno
import itertools
import json
import time

import numpy as np
import pytest
from disks import Careless, Refusing
from test_io_faults import quick  # noqa: F401

from rlnb.core.errors import DiskError
from rlnb.core.io import from_json, using
from rlnb.core.rows import read_jsonl
from rlnb.runs import curves as page
from rlnb.runs import glance as sight
from rlnb.runs.curves import columns, curves, index, metrics_json
from rlnb.runs.glance import glance, holding, spread

KEYS = ['episode/return', 'episode/return/n', 'learn/pg_loss', 'learn/vf_loss', 'learn/entropy']


def rows(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.random((n, 6))
    for i in range(n):
        r = {'step': 40*(i + 1), 'iter': i + 1}
        if i % 3: r |= {f'episode/{k}': dict(mean=x[i, 0]*500, min=x[i, 1], max=500., n=3) for k in ('length', 'return')}
        yield r | {'learn/pg_loss': x[i, 2] if i % 7 else 'NaN', 'learn/vf_loss': x[i, 3], 'learn/entropy': x[i, 4], 'learn/explained_variance': x[i, 5]}


def write(folder, n: int, seed: int = 0):
    folder.mkdir(exist_ok=True)
    with open(folder/'metrics.jsonl', 'a') as f:
        for r in rows(n, seed): f.write(json.dumps(r, separators=(',', ':')) + '\n')
    return folder/'metrics.jsonl'


def plainly(path) -> dict:
    "The same columns, one row at a time"
    out: dict = {k: [] for k in ('step', *KEYS)}
    for r in read_jsonl(path)[0]:
        e = r.get('episode/return', {})
        for k in out: out[k].append({'episode/return': e.get('mean', np.nan), 'episode/return/n': e.get('n', np.nan)}.get(k, r.get(k, np.nan)))
    return {k: np.array(v, float) for k, v in out.items()}


def agree(path) -> None:
    got, want = columns(path, KEYS)[0], plainly(path)
    for k in want: np.testing.assert_array_equal(got[k], want[k], err_msg=k)


@pytest.fixture
def small(monkeypatch): monkeypatch.setattr(page, '_BLOCK', 3000)


def test_damaged_columns_are_never_shown(quick, small):  # noqa: F811
    "Any bit of the kept columns flipped, or any part of them missing: the numbers stay those of the rows"
    path = write(quick/'r', 60)
    index(path)
    keep, rng = path.with_suffix('.columns'), np.random.default_rng(0)
    good = keep.read_bytes()
    for i in [*range(0, 1500, 3), *rng.integers(0, len(good), 300).tolist()]:
        bad = bytearray(good)
        bad[i] ^= 1 << int(rng.integers(8))
        keep.write_bytes(bad)
        with using(Refusing(0, errno.EROFS, True)): agree(path)
    for i in rng.integers(0, len(good), 60).tolist():
        keep.write_bytes(good[:i])
        with using(Refusing(0, errno.EROFS, True)): agree(path)


@pytest.mark.parametrize('looked', [False, True])
def test_columns_of_a_run_that_went_on_otherwise_are_not_used(looked, quick, small):  # noqa: F811
    path = write(quick/'r', 60)
    index(path)
    data = path.read_bytes()
    path.write_bytes(data[:data.index(b'\n', len(data)//2) + 1])
    if looked: agree(path)
    write(quick/'r', 40, seed=1)
    agree(path)
    index(path)
    agree(path)


def test_a_follower_sees_each_row_once(quick, small):  # noqa: F811
    path, got, at = write(quick/'r', 1), [], 0
    for k in range(30):
        new, at = columns(path, KEYS, at)
        got.append(new)
        write(quick/'r', int(np.random.default_rng(k).integers(0, 40)), seed=k)
    got.append(columns(path, KEYS, at)[0])
    want = plainly(path)
    for k in want: np.testing.assert_array_equal(np.concatenate([g[k] for g in got]), want[k])


def test_metrics_json_is_valid_whatever_the_disk_refuses(quick):  # noqa: F811
    write(quick/'r', 5)
    for n in itertools.count():
        (quick/'r/metrics.json').unlink(missing_ok=True)
        with using(Careless()): metrics_json(quick/'r')
        write(quick/'r', 1, seed=n)
        disk, failed = Refusing(n, errno.ENOSPC, False), False
        with using(disk):
            try: metrics_json(quick/'r')
            except DiskError: failed = True
        got = len(from_json((quick/'r/metrics.json').read_bytes())['rows'])
        assert got == 6 + n or (failed and got == 5 + n)
        if disk.n <= n: break
    assert n >= 5


@pytest.mark.parametrize('seed', range(12))
def test_a_glance_shows_only_what_stands_there(seed, quick, monkeypatch):  # noqa: F811
    "Against every row parsed by hand: any length, lines torn and glued, keys that are rare, kept columns before it or none"
    rng = np.random.default_rng(seed)
    path, n = quick/'metrics.jsonl', int(rng.integers(1, 900))
    lines = [json.dumps(r | ({'eval/return': dict(mean=i, min=0, max=1, n=2)} if rng.random() < .01 else {})).encode() + b'\n' for i, r in enumerate(rows(n, seed))]
    lines = [x if rng.random() < .97 else x[:len(x)//2] + (b'\n' if rng.random() < .5 else b'') for x in lines]
    half = int(rng.integers(0, n)) if seed % 2 else 0
    monkeypatch.setattr(sight, '_BLOCK', int(rng.integers(100, 20_000)))
    if half:
        path.write_bytes(b''.join(lines[:half]))
        index(path)
    path.write_bytes(b''.join(lines) + b'{"step": 1, "half'*(seed % 3))
    keys, points = [*KEYS, 'eval/return', 'eval/return/max'], int(rng.integers(2, 120))
    want, _ = columns(path, keys)
    got = glance(path, keys, points)
    at = np.searchsorted(want['step'], got.cols['step'])
    for k in keys: np.testing.assert_array_equal(got.cols[k], want[k][at], err_msg=k)
    assert (np.diff(at) > 0).all() and (not got.whole or len(at) == len(want['step'])) and columns(path, keys, got.end)[1] == got.end
    rare = np.isfinite(want['eval/return']).sum()
    assert np.isfinite(got.cols['eval/return']).sum() == rare if rare <= points else points/2 <= np.isfinite(got.cols['eval/return']).sum()
    if not got.whole and half == 0 and points > 20:
        where, span = np.r_[0, np.array(list(spread(path, 0, path.stat().st_size, points)))], path.stat().st_size/points
        assert np.diff(where).max() <= span + 2*max(map(len, lines)) + 2


def test_a_glance_at_a_file_that_is_cut_meanwhile(quick, monkeypatch):  # noqa: F811
    "A resume cuts the file between the look at its size and the reading: fewer rows, no exception, none that do not stand there"
    monkeypatch.setattr(sight, '_BLOCK', 1000)
    path = write(quick/'r', 300)
    whole, cut = path.read_bytes(), path.read_bytes().index(b'\n', 30_000) + 1
    kept = sight._kept
    def cutting(*args):
        path.write_bytes(whole[:cut])
        return kept(*args)
    monkeypatch.setattr(sight, '_kept', cutting)
    got, n = glance(path, KEYS, 50), whole[:cut].count(b'\n')
    assert set(got.cols['step']) <= {40*(i + 1) for i in range(n)} and len(got.cols['step']) > 10 and got.end <= cut
    path.write_bytes(b'')
    assert holding(path, KEYS) == {k: [] for k in KEYS} and len(glance(path, KEYS).cols['step']) == 0


def spent(f) -> float:
    then = time.process_time()
    f()
    return time.process_time() - then


def million(folder, n: int) -> None:
    "CPU seconds, since the machines that run this are shared; the bars are those of the specification"
    path = write(folder, n)
    glanced = spent(lambda: glance(path, [*KEYS, 'eval/return', 'episode/success']))
    first = spent(lambda: index(path))
    again, drawn = spent(lambda: columns(path, KEYS)), spent(lambda: curves(folder))
    print(f'{n:,} rows, {path.stat().st_size/1e6:.0f} MB: a first glance in {glanced:.2f} s; kept in {first:.1f} s, then read in {again:.3f} s; pictures in {drawn:.2f} s')
    assert glanced < 1 and again < 1 and drawn < 2
    got, end = columns(path, KEYS)
    assert len(got['step']) == n and end == path.stat().st_size


def test_fifty_thousand_rows(tmp_path): million(tmp_path/'r', 50_000)


@pytest.mark.slow
def test_a_million_rows(tmp_path): million(tmp_path/'r', 1_000_000)
