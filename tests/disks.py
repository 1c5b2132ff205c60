"""Disks that misbehave, for tests: one that notes what a power cut would lose, one that is careless, one that refuses its N-th operation.
They do what `rlnb.core.io.Disk` does, on a real folder."""
import itertools
import os
import random
import shutil
import sys
from pathlib import Path

from rlnb.core.io import Disk


class Noting(Disk):
    """Do what a disk does, and keep its effects: `data` reaches the disk with the file's fsync, an `entry` (a name) with its folder's.
    Inodes are our own numbers, since names move. `skip` is the number of a sync that is left out."""
    def __init__(self, root: Path, skip: int = -1):
        self.root, self.skip, self.syncs = root, skip, 0
        self.log: list[tuple] = []                      # (kind, inode, …)
        self.dirs: dict[int, dict[str, int]] = {0: {}}
        self.fds: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.next = itertools.count(1)
    def find(self, path) -> tuple[int, str]:
        *above, name = Path(path).relative_to(self.root).parts
        d = 0
        for p in above: d = self.dirs[d][p]
        return d, name
    def entry(self, *changes) -> None:
        for d, name, ino in changes:
            if ino is None: self.dirs[d].pop(name)
            else: self.dirs[d][name] = ino
        self.log.append(('entry', changes))
    def open(self, path, flags):
        new = not os.path.exists(path)
        fd = super().open(path, flags)
        d, name = self.find(path)
        if new:
            ino = next(self.next)
            self.sizes[ino] = 0
            self.entry((d, name, ino))
        self.fds[fd] = self.dirs[d][name]
        return fd
    def write(self, fd, data):
        super().write(fd, data)
        ino, data = self.fds[fd], bytes(data)
        self.log.append(('data', ino, self.sizes[ino], data))
        self.sizes[ino] += len(data)
    def truncate(self, fd, size):
        super().truncate(fd, size)
        self.sizes[self.fds[fd]] = size
        self.log.append(('size', self.fds[fd], size))
    def sync(self, ino) -> None:
        self.syncs += 1
        if self.syncs - 1 != self.skip: self.log.append(('sync', ino))
    def fsync(self, fd): self.sync(self.fds[fd])
    def fsync_dir(self, path):
        self.sync(('dir', self.find(Path(path)/'x')[0]))
    def fsync_all(self, fds, folder):
        for fd in fds: self.fsync(fd)
        self.fsync_dir(folder)
    def replace(self, a, b):
        super().replace(a, b)
        (da, na), (db, nb) = self.find(a), self.find(b)
        self.entry((db, nb, self.dirs[da][na]), (da, na, None))
    def unlink(self, path):
        super().unlink(path)
        self.entry((*self.find(path), None))
    def rmdir(self, path):
        super().rmdir(path)
        self.entry((*self.find(path), None))
    def mkdir(self, path):
        super().mkdir(path)
        ino = next(self.next)
        self.dirs[ino] = {}
        self.log.append(('dir', ino))
        self.entry((*self.find(path), ino))


def pending(log: list[tuple]) -> list[int]:
    "The effects of a log that no sync has brought to the disk"
    left: list[int] = []
    for i, op in enumerate(log):
        if op[0] == 'sync':
            left = [j for j in left if not ((log[j][0] in ('data', 'size') and log[j][1] == op[1])
                                            or (log[j][0] == 'entry' and all(('dir', d) == op[1] for d, _, _ in log[j][1])))]
        elif op[0] != 'dir': left.append(i)
    return left


def tree(log: list[tuple], fate: dict[int, str]) -> dict:
    "What stands on the disk: path → bytes, or None for a folder; `fate` says what became of the unsynchronised effects"
    files: dict[int, bytearray] = {}
    dirs: dict[int, dict[str, int]] = {0: {}}
    for i, op in enumerate(log):
        f = fate.get(i, 'kept')
        if op[0] == 'dir': dirs.setdefault(op[1], {})
        if f == 'lost' or op[0] in ('dir', 'sync'): continue
        if op[0] == 'entry':
            for d, name, ino in op[1]:
                if ino is None: dirs.setdefault(d, {}).pop(name, None)
                else: dirs.setdefault(d, {})[name] = ino
        elif op[0] == 'size':
            b = files.setdefault(op[1], bytearray())
            b[:] = b[:op[2]].ljust(op[2], b'\0')
        else:
            _, ino, at, data = op
            if f == 'torn': data = data[:len(data)//2]
            if f == 'zeros': data = b'\0'*len(data)
            b = files.setdefault(ino, bytearray())
            if len(b) < at: b.extend(b'\0'*(at - len(b)))
            b[at:at + len(data)] = data
    out: dict[str, bytes | None] = {}
    def walk(d: int, at: str) -> None:
        for name, ino in dirs[d].items():
            if ino in dirs: out[at + name] = None; walk(ino, at + name + '/')
            else: out[at + name] = bytes(files.get(ino, b''))
    walk(0, '')
    return out


def power_cuts(log: list[tuple], most: int = 1500):
    "Every state (or `most` of them, drawn fairly) that a cut may leave behind, after each prefix of the operations"
    rng = random.Random(0)
    for k in range(len(log) + 1):
        open_ = pending(log[:k])
        fates = [('kept', 'lost', 'torn', 'zeros') if log[i][0] == 'data' else ('kept', 'lost') for i in open_]
        n = 1
        for f in fates: n *= len(f)
        draws = itertools.product(*fates) if n <= most else itertools.chain(
            [tuple('kept' for _ in fates), tuple('lost' for _ in fates)],
            (tuple('lost' if i == j else 'kept' for i in range(len(fates))) for j in range(len(fates))),
            (tuple(rng.choice(f) for f in fates) for _ in range(most)))
        for d in draws: yield k, tree(log[:k], dict(zip(open_, d)))


def build(at: Path, state: dict) -> Path:
    "Put a state onto a real disk"
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    for name, data in state.items():
        if data is None: (at/name).mkdir()
        else: (at/name).write_bytes(data)
    return at


class Careless(Disk):
    "Quick, for looking at a state: nothing is synchronised"
    def fsync(self, fd): pass
    def fsync_dir(self, path): pass
    def fsync_all(self, fds, folder): pass


class Refusing(Disk):
    "Refuse the Nth operation, or all from the Nth on; a write is refused after half of it was written"
    def __init__(self, at: int, code: int, on: bool): self.at, self.code, self.on, self.n = at, code, on, 0
    def now(self) -> bool:
        self.n += 1
        return self.n - 1 == self.at or (self.on and self.n > self.at)
    def fail(self): raise OSError(self.code, os.strerror(self.code))


def _refuse(name):
    def op(self, *args):
        no, real = self.now(), getattr(Disk, name)
        if not no: return real(self, *args)
        if name == 'close': real(self, *args)           # as Linux does: closed, whatever it says
        if name == 'write': real(self, args[0], bytes(args[1])[:len(bytes(args[1]))//2])
        self.fail()
    return op


OPERATIONS = ['open', 'write', 'fsync', 'close', 'truncate', 'replace', 'unlink', 'mkdir', 'rmdir', 'fsync_dir', 'fsync_all']
for _name in OPERATIONS: setattr(Refusing, _name, _refuse(_name))


class Window(Refusing):
    "Refuse every operation from the a-th to the one before the b-th"
    def __init__(self, a: int, b: int, code: int): super().__init__(a, code, True); self.b = b
    def now(self) -> bool:
        self.n += 1
        return self.at < self.n <= self.b


class Listing(Disk):
    "Write down every operation, and who asked for it: names of functions of rlnb, the nearest first"
    def __init__(self): self.ops: list[tuple[str, list[str]]] = []


def _listed(name):
    def op(self, *args):
        frame, who = sys._getframe(1), []
        while frame:
            if 'rlnb' in frame.f_code.co_filename: who.append(frame.f_code.co_name)
            frame = frame.f_back
        self.ops.append((name, who))
        return getattr(Disk, name)(self, *args)
    return op


for _name in OPERATIONS: setattr(Listing, _name, _listed(_name))
