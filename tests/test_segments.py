"""Replay segments on a disk that misbehaves: every power cut that the laws allow, every operation refused in turn. What a checkpoint was told stays readable."""
import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from disks import Careless, Noting, Refusing, build, power_cuts, tree
from test_io_faults import quick, refused  # noqa: F401

from rlnb.core.errors import DiskError
from rlnb.core.io import Damaged, using
from rlnb.runs.segments import Segments


def rows(first: int, n: int) -> dict[str, np.ndarray]: return dict(act=np.arange(first, first + n), on=np.arange(first, first + n) % 3 == 0)


def good(s: Segments, facts: dict, first: int, last: int) -> bool:
    "Do the rows come back as they were?"
    try: got = list(s.read(facts, first, last))
    except Damaged: return False
    acts = [a for _, r in got for a in r['act'].tolist()]
    return acts == list(range(first, last)) and [o for _, r in got for o in r['on'].tolist()] == [a % 3 == 0 for a in acts]


STEP = 16                                           # rows between two saves, four chunks, two or three segments


def save(s: Segments, first: int) -> dict:
    for i in range(first, first + STEP, 4): s.append(i, rows(i, 4))
    return s.sync()


def life(root: Path, ack) -> None:
    "A first life that saves, and is killed between two saves; a second that goes on from an earlier save and retires what nobody needs"
    s = Segments(root/'replay', size=260)
    for k in range(3): ack(save(s, k*STEP), 0)
    for i in range(3*STEP, 3*STEP + 12, 4): s.append(i, rows(i, 4))
    s.close()
    ack(KNOWN[1], 0)
    s = Segments(root/'replay', size=260)
    s.cut(KNOWN[1])
    ack(save(s, 2*STEP), 0)
    ack(s.sync(), STEP)
    s.retire(STEP)
    ack(save(s, 3*STEP), STEP)
    s.close()


KNOWN: list[dict] = []                              # what the first life's checkpoints were told


@pytest.fixture(autouse=True, scope='module')
def known(tmp_path_factory):
    s = Segments(tmp_path_factory.mktemp('known')/'replay', size=260)
    for k in range(3): KNOWN.append(save(s, k*STEP))
    s.close()


def kept(root: Path, acked: list) -> bool:
    "The last acknowledged rows are there, the folder can be cut to them, and goes on"
    if not acked: return True
    facts, oldest = acked[-1]
    s = Segments(root/'replay', size=260)
    if not good(s, facts, oldest, facts['last']): return False
    try:
        s.cut(facts)
        s.append(facts['last'], rows(facts['last'], 5))
        s.retire(oldest)
    except (Damaged, DiskError): return False
    after = s.sync()
    s.close()
    return good(s, after, oldest, facts['last'] + 5)


class Deaf(Noting):
    "Never synchronises one file or folder, by the number that it was made with"
    def __init__(self, root: Path, deaf=None):
        super().__init__(root)
        self.deaf, self.targets = deaf, set()
    def sync(self, ino):
        self.targets.add(ino)
        if ino != self.deaf: super().sync(ino)


def tell(where: Path, deaf=None):
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    disk, acks = Deaf(where, deaf), []
    with using(disk): life(where, lambda *what: acks.append((len(disk.log), what)))
    return disk, acks


def losses(quick: Path, deaf=None, stop: bool = False) -> tuple[int, int]:
    "(states, states in which a promise was broken)"
    disk, acks = tell(quick/'told', deaf)
    states, bad, seen = 0, 0, {}
    for k, state in power_cuts(disk.log, 200):
        acked = [w for at, w in acks if at <= k]
        key = (len(acked), tuple(sorted(state.items())))
        if key not in seen:
            with using(Careless()): seen[key] = kept(build(quick/'dark', state), acked)
        states, bad = states + 1, bad + (not seen[key])
        if bad and stop: break
    return states, bad


def test_no_power_cut_loses_rows_that_a_checkpoint_knows(quick):  # noqa: F811
    states, bad = losses(quick)
    print(f'{states} power-cut states, {bad} lost')
    assert bad == 0 and states > 1000


def test_a_kill_at_any_write_leaves_the_last_rows(quick):  # noqa: F811
    "A kill is the power cut that loses nothing: the operations up to some point, the last one perhaps half"
    disk, acks = tell(quick/'told')
    for k in range(len(disk.log) + 1):
        for fate in ({}, {k - 1: 'torn'}):
            if fate and (k == 0 or disk.log[k - 1][0] != 'data'): continue
            acked = [w for at, w in acks if at <= k - len(fate)]
            with using(Careless()): assert kept(build(quick/'dark', tree(disk.log[:k], fate)), acked), (k, fate)


def test_whatever_is_never_synchronised_is_noticed(quick):  # noqa: F811
    "Leave out the syncs of one file, or of one folder: the first test turns red every time"
    targets = tell(quick/'told')[0].targets
    unseen = [t for t in targets if not losses(quick, deaf=t, stop=True)[1]]
    print(f'{len(targets)} files and folders, each left out, {len(targets) - len(unseen)} noticed')
    assert len(targets) >= 8 and unseen == []


def test_refused_operations_leave_the_last_rows(quick):  # noqa: F811
    facts: list[dict] = []
    def act():
        s = Segments(quick/'replay', size=260)
        try:
            s.cut(KNOWN[0])
            facts.append(save(s, STEP))
            s.retire(STEP)
        finally: s.close()
    def before():
        shutil.rmtree(quick/'replay', ignore_errors=True)
        s = Segments(quick/'replay', size=260)
        for k in range(3): save(s, k*STEP)
        s.close()
        facts[:] = [KNOWN[0]]
    def check(error):
        assert kept(quick, [(facts[-1], STEP if len(facts) > 1 else 0)])
    n = refused(act, check, before)
    print(f'{n} refusals')
    assert n > 6*8


def test_a_failed_sync_is_never_taken_for_a_good_one(quick):  # noqa: F811
    s = Segments(quick/'replay')
    s.append(0, rows(0, 4))
    with using(Refusing(0, errno.EIO, False)), pytest.raises(DiskError): s.sync()
    for _ in range(3):
        with pytest.raises(DiskError): s.sync()
    s.close()


@pytest.mark.parametrize('n', range(1, 5))
def test_rows_as_wide_as_a_chunk(n, quick):  # noqa: F811
    "One row may be larger than a chunk: then it is one"
    s = Segments(quick/'replay', size=8 << 20)
    s.append(0, dict(obs=np.arange(n*700_000, dtype=np.float64).reshape(n, -1)))
    got = list(s.read(s.sync(), 0, n))
    s.close()
    assert [f for f, _ in got] == list(range(n))
    np.testing.assert_array_equal(np.concatenate([r['obs'] for _, r in got]), np.arange(n*700_000, dtype=np.float64).reshape(n, -1))
