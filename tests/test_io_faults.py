"""The disk misbehaves: every operation refused in turn, every power cut that the laws allow, every damage; and the lock under races.
The stand-in disks here do what `rlnb.core.io.Disk` does, on a real folder, and note what would be lost if the machine went dark."""
import errno
import gc
import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from disks import Careless, Noting, Refusing, build, power_cuts
from rlnb.core import io, platform, rows
from rlnb.core.errors import DiskError, Locked
from rlnb.core.folder import commit_dir, remove_dir, sweep, verify_dir
from rlnb.core.io import Damaged, make_dir, read_bytes, unique_dir, using, write_bytes
from rlnb.core.platform import Lock, is_locked
from rlnb.core.rows import Jsonl, read_jsonl

posix = pytest.mark.skipif(sys.platform == 'win32', reason='POSIX only')


@pytest.fixture
def quick():
    "A folder in memory where there is one: these tests build thousands of trees, and synchronise them"
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as d: yield Path(d)


# ---- what is written, and what must be found
BODY = [bytes([65 + v])*(700*(v + 1)) for v in range(4)]


def one_file(root, ack):
    for v in range(4):
        write_bytes(root/'state.json', BODY[v])
        ack(v)


def find_file(root, acked):
    got = (root/'state.json').read_bytes() if (root/'state.json').exists() else None
    last = len(acked) - 1
    return got in BODY[max(last, 0):last + 2] or (got is None and last < 0)


def save(root, v):
    with commit_dir(root/'ckpt'/f'{v:03}', step=v) as d:
        d.write('model.bin', [BODY[v][:100], BODY[v][100:200], BODY[v][200:300], BODY[v][300:]])
        d.json('state.json', {'v': v})


def folders(root, ack):
    make_dir(root/'ckpt')
    for v in range(3):
        save(root, v)
        ack(v)
    remove_dir(root/'ckpt/000')
    ack('removed')


def find_folders(root, acked):
    "Each acknowledged folder verifies; each folder that has its name, acknowledged or not, does too"
    there = {p.name for p in (root/'ckpt').iterdir() if not p.name.startswith('.')} if (root/'ckpt').exists() else set()
    try:
        for name in there:
            m = verify_dir(root/'ckpt'/name)
            if m['step'] != int(name) or (root/'ckpt'/name/'model.bin').read_bytes() != BODY[m['step']]: return False
    except Damaged: return False
    must = {f'{v:03}' for v in acked if v != 'removed'}
    if 2 in acked: must.discard('000')                  # it is being removed
    return must <= there and ('removed' not in acked or '000' not in there)


ROWS = [{'step': i, 'loss': i/7, 'pad': 'x'*(20*i)} for i in range(8)]
LINES = [io.to_json(r).encode() + b'\n' for r in ROWS]
PREFIX = [(sum(map(len, LINES[:n])), hashlib.sha256(b''.join(LINES[:n])).hexdigest()) for n in range(len(ROWS) + 1)]


def growing(root, ack):
    os.close(io.disk.open(root/'metrics.jsonl', os.O_WRONLY | os.O_CREAT))     # made by a life that was killed at once
    with Jsonl(root/'metrics.jsonl') as log:
        for i, row in enumerate(ROWS):
            log.append(row)
            if i % 4 == 3: ack((i + 1, log.sync(), log.sha256))
    saved = (4, *PREFIX[4])
    ack('cut')
    with Jsonl(root/'metrics.jsonl', cut=saved[1], sha256=saved[2]) as log:     # a resume from the first checkpoint
        ack(saved)
        for row in ROWS[4:7]: log.append(row)
        ack((7, log.sync(), log.sha256))


def find_rows(root, acked):
    "What the last acknowledgement promised is there, the log opens on it, and what was cut lies beside it"
    promised = [a for a in acked if a != 'cut']
    if not promised: return True
    whole, f, tail = b''.join(LINES), root/'metrics.jsonl', root/'metrics.jsonl.tail'
    if 'cut' in acked:
        aside = tail.exists() and tail.read_bytes() == whole[PREFIX[4][0]:]
        if not f.exists() or (not aside and f.read_bytes() != whole): return False
        if promised[-1][0] == 8: promised = [(4, *PREFIX[4])]
    n, offset, sha = promised[-1]
    try:
        with Jsonl(f, cut=offset, sha256=sha) as log: log.append({'step': 'next'})
    except (Damaged, DiskError): return False
    return read_jsonl(f)[0] == [*ROWS[:n], {'step': 'next'}]


def nested(root, ack):
    make_dir(root/'a/b/c')
    ack('made')
    ack(unique_dir(root/'a', 'run').name)


def find_nested(root, acked): return all((root/p).is_dir() for p in (['a/b/c'] if acked else []) + (['a/run'] if len(acked) > 1 else []))


STORIES = {'file': (one_file, find_file), 'folder': (folders, find_folders), 'rows': (growing, find_rows), 'nested': (nested, find_nested)}


def tell(name: str, where: Path, skip: int = -1) -> tuple[Noting, dict[int, list]]:
    "Live through a story on a noting disk; what was acknowledged after how many effects"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    disk, acks, k = Noting(where, skip), [], itertools.count()
    with using(disk), mock.patch('secrets.token_hex', lambda n: f'{next(k):0{2*n}x}'):     # the same names every time
        STORIES[name][0](where, lambda what: acks.append((len(disk.log), what)))
    return disk, acks


VERDICTS: dict[tuple, bool] = {}                        # of states that were looked at; a state is the same whoever left it


def losses(name: str, tmp: Path, skip: int = -1, stop: bool = False) -> tuple[int, int, int]:
    "(states, different states, states in which a promise was broken)"
    disk, acks = tell(name, tmp/'told', skip)
    states, bad, seen = 0, 0, set()
    for k, state in power_cuts(disk.log):
        acked = [w for at, w in acks if at <= k]
        key = (name, len(acked), tuple(sorted(state.items(), key=lambda kv: kv[0])))
        if key not in VERDICTS:
            with using(Careless()): VERDICTS[key] = STORIES[name][1](build(tmp/'dark', state), acked)
        states, bad = states + 1, bad + (not VERDICTS[key])
        seen.add(key)
        if bad and stop: break
    return states, len(seen), bad


@pytest.mark.parametrize('name', STORIES)
def test_no_power_cut_loses_what_was_acknowledged(name, quick):
    states, different, bad = losses(name, quick)
    print(f'{name}: {states} power-cut states ({different} different), {bad} lost')
    assert bad == 0 and states > {'file': 60, 'folder': 4000, 'rows': 800, 'nested': 15}[name]


@pytest.mark.parametrize('name', STORIES)
def test_each_fsync_that_is_left_out_is_noticed(name, quick):
    "Leave out the first sync, the second …: the test above turns red every time"
    syncs = tell(name, quick/'told')[0].syncs
    unseen = [i for i in range(syncs) if not losses(name, quick, skip=i, stop=True)[2]]
    print(f'{name}: {syncs} syncs, left out one by one, {syncs - len(unseen)} noticed')
    assert syncs >= 4 and unseen == []


# ---- every operation refused in turn
def fds() -> int: return len(os.listdir('/proc/self/fd')) if os.path.exists('/proc/self/fd') else 0


@contextmanager
def quick_collections():
    "Collect only what is made inside: a full collection after each refusal would walk through torch thousands of times"
    gc.collect()
    gc.freeze()
    try: yield
    finally: gc.unfreeze()


@quick_collections()
def refused(at_each, check, before=lambda: None) -> int:
    "Refuse each operation of an action in turn, in several ways; how often was it refused?"
    count = 0
    for code, on in itertools.product((errno.ENOSPC, errno.EIO, errno.EACCES), (False, True)):
        for n in itertools.count():
            before()
            gc.collect()
            held, disk, error = fds(), Refusing(n, code, on), None
            try:
                with using(disk): at_each()
            except DiskError as e: error = e
            hit = disk.n > n
            if hit and error:
                assert error.code == 74 and '\n' not in str(error) and errno.errorcode[code] in str(error) and len(str(error)) < 200
            check(error)
            assert fds() == held, f'operation {n} leaks a descriptor'
            if not hit: break
            count += 1
    return count


def test_a_refused_write_leaves_the_former_file_or_the_next(quick):
    f, k = quick/'state.json', itertools.count()
    body = [b'']
    def before():
        write_bytes(f, b'former')
        body[0] = b'next %d' % next(k)*100
    def check(error):
        got = f.read_bytes()
        assert got in (b'former', body[0]) and (error or got == body[0])
        write_bytes(f, b'again')                        # the disk works again: so do we
        assert f.read_bytes() == b'again'
        left = sweep(quick)
        assert all(x.startswith('.tmp-') for x in left) and os.listdir(quick) == ['state.json']
    n = refused(lambda: write_bytes(f, body[0]), check, before)
    print(f'{n} refusals of write_bytes')
    assert n == 6*6


def test_a_refused_commit_leaves_no_folder_or_a_whole_one(quick):
    (quick/'ckpt').mkdir()
    save(quick, 0)
    def before(): shutil.rmtree(quick/'ckpt/001', ignore_errors=True)
    def check(error):
        names = {p.name for p in (quick/'ckpt').iterdir() if not p.name.startswith('.tmp-')}
        assert names in ({'000'}, {'000', '001'}) and (error or '001' in names)
        for name in names: verify_dir(quick/'ckpt'/name)
        sweep(quick/'ckpt')
        if '001' not in names: save(quick, 1)
        assert sorted(os.listdir(quick/'ckpt')) == ['000', '001']
        verify_dir(quick/'ckpt/001')
    n = refused(lambda: save(quick, 1), check, before)
    print(f'{n} refusals of commit_dir')
    assert n > 6*16


@pytest.mark.parametrize('n', range(5))
def test_one_refusal_leaves_nothing_behind(n, quick):
    (quick/'ckpt').mkdir()
    with using(Refusing(n, errno.ENOSPC, False)), pytest.raises(DiskError): write_bytes(quick/'a', b'a'*9)
    with using(Refusing(n, errno.ENOSPC, False)), pytest.raises(DiskError): save(quick, 0)
    assert os.listdir(quick) == ['ckpt'] and os.listdir(quick/'ckpt') == []


def test_a_refused_removal_leaves_the_folder_whole_or_gone(quick):
    (quick/'ckpt').mkdir()
    def before():
        sweep(quick/'ckpt')
        if not (quick/'ckpt/000').exists(): save(quick, 0)
    def check(error):
        if (quick/'ckpt/000').exists(): verify_dir(quick/'ckpt/000')
        assert error or not (quick/'ckpt/000').exists()
    n = refused(lambda: remove_dir(quick/'ckpt/000'), check, before)
    print(f'{n} refusals of remove_dir')
    assert n > 6*5


def test_a_refused_row_is_not_there_and_the_others_are(quick):
    f = quick/'m.jsonl'
    written: list[dict] = []
    def act():
        with Jsonl(f) as log:
            for row in ROWS[:4]:
                log.append(row)
                written.append(row)
            log.sync()
    def before():
        written.clear()
        f.unlink(missing_ok=True)
        f.write_bytes(b'{"step":-1}\n{"torn')
    def check(error):
        got = read_jsonl(f)[0]
        assert got == [{'step': -1}, *written]
        with Jsonl(f) as log: log.append({'step': 'next'})
        assert read_jsonl(f)[0] == [{'step': -1}, *written, {'step': 'next'}]
    n = refused(act, check, before)
    print(f'{n} refusals of Jsonl')
    assert n > 6*10


def test_a_log_goes_on_when_there_is_room_again(quick):
    with Jsonl(quick/'m.jsonl') as log:
        for i, row in enumerate(ROWS):
            if i % 2:
                with using(Refusing(0, errno.ENOSPC, True)), pytest.raises(DiskError): log.append(row)
            else: log.append(row)
        log.append({'step': 'last'})
        assert log.offset == (quick/'m.jsonl').stat().st_size
    assert read_jsonl(quick/'m.jsonl')[0] == [*ROWS[::2], {'step': 'last'}]


def test_a_failed_fsync_is_never_taken_for_a_good_one(quick):
    with Jsonl(quick/'m.jsonl') as log:
        log.append({'step': 0})
        with using(Refusing(0, errno.EIO, False)), pytest.raises(DiskError): log.sync()
        for _ in range(3):
            with pytest.raises(DiskError): log.sync()


def test_new_names_survive_refusals(quick):
    def check(error):
        if not error: assert (quick/'runs').is_dir()
    n = refused(lambda: unique_dir(quick/'runs', 'ppo'), check, lambda: shutil.rmtree(quick/'runs', ignore_errors=True))
    assert n == 6*4


# ---- damage
def damages(at: Path, other: Path):
    "Every way to damage a folder that we thought of, one after the other: yields its name, with the damage done"
    rng, names = random.Random(0), sorted(p.name for p in at.iterdir())
    good = {n: (at/n).read_bytes() for n in names}
    for n, b in good.items():
        for k in sorted({rng.randrange(len(b)) for _ in range(50)} | {0, len(b) - 1}):
            (at/n).write_bytes(b[:k])
            yield f'{n} cut at {k}'
        for _ in range(450):
            i, bit = rng.randrange(len(b)), rng.randrange(8)
            (at/n).write_bytes(b[:i] + bytes([b[i] ^ 1 << bit]) + b[i + 1:])
            yield f'{n} bit {bit} of byte {i}'
        for k in range(0, len(b), 64):
            hole = b[:k] + b'\0'*len(b[k:k + 64]) + b[k + 64:]
            (at/n).write_bytes(hole)
            yield f'{n} zeros at {k}'
        for what, c in {'a byte more': b + b'\n', 'twice': b + b, 'empty': b'', 'of another checkpoint': (other/n).read_bytes()}.items():
            (at/n).write_bytes(c)
            yield f'{n} {what}'
        (at/n).unlink()
        yield f'{n} missing'
        (at/n).mkdir()
        yield f'{n} a folder'
        (at/n).rmdir()
        if hasattr(os, 'mkfifo'):
            os.mkfifo(at/n)
            yield f'{n} a pipe'
            (at/n).unlink()
            os.symlink(other/n, at/n)
            yield f'{n} a link'
            (at/n).unlink()
            (at.parent/'aside').write_bytes(b)
            os.symlink(at.parent/'aside', at/n)
            yield f'{n} a link to the same bytes'
            (at/n).unlink()
        (at/n).write_bytes(b)
    for a, b in itertools.combinations(names, 2):
        (at/a).write_bytes(good[b]), (at/b).write_bytes(good[a])
        yield f'{a} and {b} swapped'
        (at/a).write_bytes(good[a]), (at/b).write_bytes(good[b])
    for extra in ('note.txt', 'model.bin~', '.hidden', 'Model.bin', 'rank-1.bin'):
        (at/extra).write_bytes(good['model.bin'])
        yield f'{extra} added'
        (at/extra).unlink()


def make(at: Path, seed: int) -> Path:
    rng = random.Random(seed)
    with commit_dir(at, step=seed) as d:
        d.write('model.bin', rng.randbytes(4096))
        d.write('optim.bin', rng.randbytes(900))
        d.json('state.json', {'step': seed, 'rng': [rng.random() for _ in range(9)]})
    return at


def test_all_damage_is_detected(quick):
    at, other = make(quick/'000', 0), make(quick/'001', 1)
    manifest, seen, missed = verify_dir(at), 0, []
    for what in damages(at, other):
        try: verify_dir(at)
        except Damaged as e:
            seen += 1
            assert '\n' not in str(e) and e.code == 65
        else: missed.append(what)
    print(f'{seen} of {seen + len(missed)} damages detected')
    assert missed == [] and seen >= 2000
    assert verify_dir(at) == manifest                   # and the healed folder is good again


STRANGE = ['', '{}', '[]', 'null', '{"files":{},"sha256":""}', '{"files":[],"sha256":"' + '0'*64 + '"}', '{"files":{},"files":{}}',
           '{"a":'*5000, '{"files":{"../../etc/passwd":{"size":1,"sha256":"x"}},"sha256":"' + 'a'*64 + '"}', ' '*(1 << 20) + '{}', '\ud800']


@pytest.mark.parametrize('text', STRANGE, ids=range(len(STRANGE)))
def test_a_strange_manifest_is_refused(text, quick):
    at = make(quick/'000', 0)
    (at/'manifest.json').write_bytes(text.encode('utf-8', 'surrogatepass'))
    with pytest.raises(Damaged): verify_dir(at)


@pytest.mark.parametrize('name', ['../x', '/etc/passwd', 'a/b', 'A.bin', '.x', 'a\\b', 'manifest.json', '', 'c:x'])
def test_a_sealed_manifest_with_a_strange_name_is_refused(name, quick):
    "A stranger can seal what he likes; a name that leads out of the folder is refused all the same"
    (quick/'x').write_bytes(b'secret')
    for at, listed in ((quick/'000', 'model.bin'), (quick/'001', name)):
        at.mkdir()
        (at/'model.bin').write_bytes(b'secret')
        text = io.to_json({'files': {listed: dict(size=6, sha256=hashlib.sha256(b'secret').hexdigest())}, 'sha256': '0'*64})
        (at/'manifest.json').write_text(text.replace('0'*64, hashlib.sha256(text.encode()).hexdigest()))
    verify_dir(quick/'000')
    with pytest.raises(Damaged, match='it lists'): verify_dir(quick/'001')


def test_a_sector_that_can_not_be_read_is_damage(quick, monkeypatch):
    at, real = make(quick/'000', 0), os.open
    def bad(path, *args, **kw):
        if str(path).endswith('optim.bin'): raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **kw)
    monkeypatch.setattr(os, 'open', bad)
    with pytest.raises(Damaged, match=r'optim\.bin'): verify_dir(at)


# ---- readers beside a writer
def test_a_reader_never_sees_half(quick):
    f, m, done, wrong = quick/'s', quick/'m.jsonl', threading.Event(), []
    write_bytes(f, b'0'*5000)
    def read():
        got, at = [], 0
        while not done.is_set():
            if len(set(read_bytes(f))) != 1: wrong.append('file')
            new, at = read_jsonl(m, at)
            got += new
            if [r['i'] for r in got] != list(range(len(got))): wrong.append('rows')
    t = threading.Thread(target=read)
    t.start()
    with Jsonl(m) as log:
        for i in range(300):
            if i % 10 == 0: write_bytes(f, bytes([48 + i % 10])*5000)
            log.append({'i': i, 'pad': 'x'*(i*37 % 4000)})
    done.set()
    t.join()
    assert wrong == []


# ---- the lock
RACER = '''
import sys, time
from rlnb.core.platform import Lock
from rlnb.core.errors import Locked
print('ready', flush=True)
for line in sys.stdin:
    path, at = line.split()
    while time.monotonic() < float(at): pass
    try: lock = Lock(path, wait=0)
    except Locked: lock = None
    print(int(lock is not None), flush=True)
    sys.stdin.readline()
    if lock: lock.release()
    print('free', flush=True)
'''


def start(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def test_of_two_processes_one_wins(quick):
    racers, wins = [start(RACER), start(RACER)], []
    for r in racers: r.stdout.readline()
    for i in range(300):
        (quick/f'{i % 7}').mkdir(exist_ok=True)
        for r in racers: r.stdin.write(f'{quick}/{i % 7}/LOCK {time.monotonic() + .001}\n')
        wins.append([int(r.stdout.readline()) for r in racers])
        for r in racers: r.stdin.write('\n')
        for r in racers: r.stdout.readline()
    for r in racers: r.communicate()
    print(f'{len(wins)} races, won by {sum(a for a, _ in wins)} and {sum(b for _, b in wins)}')
    assert all(sum(w) == 1 for w in wins)


def test_of_many_threads_one_wins(quick):
    won, gate = [], threading.Barrier(8)
    def run():
        gate.wait()
        try: won.append(Lock(quick/'LOCK', wait=0))
        except Locked: pass
    ts = [threading.Thread(target=run) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert len(won) == 1
    won[0].release()


@pytest.mark.parametrize('text', ['', 'pid 1', '{"pid": 1}', '\0'*100, f'{{"pid": {os.getpid()}, "nonce": "x"}}'])
def test_what_a_stale_lock_file_says_does_not_matter(text, quick):
    (quick/'LOCK').write_text(text)
    (quick/'holder.json').write_text(text)
    assert not is_locked(quick/'LOCK')
    with Lock(quick/'LOCK', wait=0) as lock: lock.check()


def test_a_hostile_holder_text_stays_one_line(quick):
    with Lock(quick/'LOCK'):
        (quick/'holder.json').write_text('{"pid": "\\u001b[31m\\n", "host": "%s", "since": ["\\u202e"]}' % ('x'*1000))
        with pytest.raises(Locked) as e: Lock(quick/'LOCK', wait=0)
    assert str(e.value).isprintable() and len(str(e.value)) < 400


ORPHAN = '''
import os, sys, time
{patch}
from rlnb.core.platform import Lock
lock = Lock({path!r})
pid = os.fork()
if pid == 0:
    time.sleep(60)
print(pid, flush=True)
time.sleep(60)
'''
FLOCK = 'import fcntl; fcntl.lockf = fcntl.flock'


@posix
@pytest.mark.parametrize('patch, held', [('', False), (FLOCK, True)], ids=['lockf', 'flock'])
def test_a_child_that_outlives_the_owner_does_not_inherit_the_lock(patch, held, quick, monkeypatch):
    "With `flock` it would: the second case shows that this test can fail"
    if held:
        import fcntl
        monkeypatch.setattr(fcntl, 'lockf', fcntl.flock)
    owner = start(ORPHAN.format(path=str(quick/'LOCK'), patch=patch))
    child = int(owner.stdout.readline())
    try:
        assert is_locked(quick/'LOCK')
        owner.kill()
        owner.wait()
        os.kill(child, 0)                               # the child lives
        assert is_locked(quick/'LOCK') == held
    finally: os.kill(child, 9)


@posix
def test_a_forked_child_neither_holds_nor_releases(quick):
    with Lock(quick/'LOCK') as lock:
        r, w = os.pipe()
        if (pid := os.fork()) == 0:
            lock.release()                              # must do nothing
            try: Lock(quick/'LOCK', wait=0)
            except Locked: os.write(w, b'locked')
            finally: os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(r, 10) == b'locked'
        os.close(r), os.close(w)
        lock.check()
        assert (quick/'holder.json').exists() and is_locked(quick/'LOCK')
    with Lock(quick/'LOCK') as lock:
        r, w = os.pipe()
        if (pid := os.fork()) == 0:
            os.read(r, 1)                               # when the parent has let go, its child may write
            try:
                Lock(quick/'LOCK', wait=0)
                os._exit(0)
            finally: os._exit(1)
    os.write(w, b'.')
    assert os.waitpid(pid, 0)[1] == 0
    os.close(r), os.close(w)


def test_a_lock_file_that_was_deleted_is_noticed(quick):
    with Lock(quick/'LOCK') as lock:
        (quick/'LOCK').unlink()
        (quick/'LOCK').touch()
        with pytest.raises(Locked): lock.check()
        with Lock(quick/'LOCK'), pytest.raises(Locked): lock.check()


def test_a_lost_lock_stops_the_commit(quick):
    with Lock(quick/'LOCK') as lock, pytest.raises(Locked), commit_dir(quick/'000', check=lock.check) as d:
        d.json('state.json', {})
        (quick/'holder.json').unlink()
    assert not (quick/'000').exists()


def test_the_lock_refused_by_the_disk_is_one_line(quick):
    n = refused(lambda: Lock(quick/'LOCK', wait=0).release(), lambda error: not is_locked(quick/'LOCK') or pytest.fail('still held'))
    assert n > 6*6
    assert platform._HELD == {}


def test_the_windows_branches_run(quick, monkeypatch):
    "As far as they can without Windows: with its modules stood in for"
    class Msvcrt:
        LK_NBLCK, held = 2, set()
        def locking(self, fd, mode, n):
            key = os.fstat(fd).st_ino
            if key in self.held: raise PermissionError(errno.EACCES, 'locked')
            self.held.add(key)
    fake, real, tries = Msvcrt(), os.replace, []
    monkeypatch.setitem(sys.modules, 'msvcrt', fake)
    def busy(a, b):
        tries.append(a)
        if len(tries) < 3: raise PermissionError(errno.EACCES, 'somebody reads it')
        real(a, b)
    monkeypatch.setattr(platform, 'proc_start', lambda pid: 'now')
    monkeypatch.setattr(os, 'replace', busy)
    monkeypatch.setattr(sys, 'platform', 'win32')
    with Lock(quick/'LOCK', wait=0) as lock:
        lock.check()
        fd = os.open(quick/'LOCK', os.O_RDWR)
        with pytest.raises(PermissionError): platform._grab(fd)
        os.close(fd)
    assert len(tries) == 3
    make(quick/'000', 0)
    assert verify_dir(quick/'000')['step'] == 0
    assert rows.read_jsonl(quick/'none') == ([], 0)


def test_a_mac_flushes_its_drive(quick, monkeypatch):
    import fcntl
    asked: list[int] = []
    def full(fd, what):
        asked.append(what)
        if len(asked) == 2: raise OSError(errno.ENOTSUP, 'not here')
        if len(asked) == 3: raise OSError(errno.EIO, 'broken')
        return 0
    monkeypatch.setattr(fcntl, 'F_FULLFSYNC', 51, raising=False)
    monkeypatch.setattr(fcntl, 'fcntl', full)
    monkeypatch.setattr(sys, 'platform', 'darwin')
    with open(quick/'f', 'wb') as f:
        for _ in range(2): io.disk.fsync(f.fileno())    # the second falls back on fsync
        with pytest.raises(OSError, match='broken'): io.disk.fsync(f.fileno())
    assert asked == [51]*3
