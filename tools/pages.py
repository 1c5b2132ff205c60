"What the tools and the house tests know of the notebooks: where they are, what they export, how long they are"
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'


def lines(source: str) -> int:
    "Lines of code: neither blank nor a comment alone"
    return sum(1 for s in source.splitlines() if s.strip() and not s.strip().startswith('#'))


def directives(source: str) -> set[str]:
    "The nbdev directives that head a cell: {'export'}, {'hide'}, …"
    return {m[1].strip() for m in re.finditer(r'^#\|\s*(.+)$', source, re.M)}


@dataclass
class Page:
    "A notebook, read"
    path: Path
    cells: list[dict] = field(repr=False)

    @property
    def name(self) -> str: return self.path.relative_to(ROOT).as_posix()
    @property
    def folder(self) -> str: return self.path.parent.name if self.path.parent != NBS else ''
    @property
    def code(self) -> list[dict]: return [c for c in self.cells if c['cell_type'] == 'code']
    @property
    def prose(self) -> list[dict]: return [c for c in self.cells if c['cell_type'] == 'markdown']
    @property
    def exported(self) -> list[str]: return [c['source'] for c in self.code if directives(c['source']) & {'export', 'exporti', 'exports'}]
    @property
    def lessons(self) -> list[str]: return [c['source'] for c in self.code if not directives(c['source']) & {'export', 'exporti', 'exports'}]
    @property
    def hidden(self) -> int: return sum(bool(directives(c['source']) & {'hide'}) for c in self.code)
    @property
    def size(self) -> int: return sum(map(lines, self.exported))
    @property
    def words(self) -> int: return sum(len(c['source'].split()) for c in self.prose)
    @property
    def outputs(self) -> int: return sum(len(json.dumps(c.get('outputs', []))) for c in self.code)
    @property
    def module(self) -> str:
        "rlnb.core.returns for a page that exports to core.returns, else ''"
        for c in self.code:
            for d in directives(c['source']):
                if d.startswith('default_exp'):
                    return 'rlnb.' + d.split()[1]
        return ''

    @property
    def key(self) -> tuple[int, int]:
        "Floor and number within it: pages may import from smaller keys only"
        n = re.match(r'\d+', self.path.name)
        f = re.match(r'\d+', self.folder)
        return (int(f[0]), int(n[0])) if f and n else (int(n[0]), 0) if n else (0, 0)


def read(path: Path) -> Page:
    nb = json.loads(path.read_text(encoding='utf-8'))
    for c in nb['cells']:
        c['source'] = ''.join(c['source'])
    return Page(path, nb['cells'])


def pages(root: Path = NBS) -> list[Page]:
    "Every notebook of the house, in order"
    found = (p for p in sorted(root.rglob('*.ipynb')) if not any(s.startswith(('.', '_')) for s in p.relative_to(root).parts))
    return [read(p) for p in found]
