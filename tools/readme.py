"README.md from nbs/index.ipynb (nbdev's own command needs Quarto), and its picture of the house: `python tools/readme.py [--check]`"
import re
import sys
from collections import defaultdict

from pages import NBS, ROOT, directives, pages, read

FLOORS = {'00_core': 'core · the ground floor', '10_envs': 'envs · worlds', '20_buffers': 'buffers · memories',
          '30_agents': 'agents · a page an algorithm', '40_runs': 'runs · folders that survive', '45_evaluation': 'evaluation · statistics',
          '50_train': 'train · the loop', '60_search': 'search', '70_flow': 'flow · clouds, batches', '80_panels': 'panels · watch and steer',
          '90_learn': 'learn · tutorials'}


def markdown() -> str:
    "The notebook as Markdown: hidden cells dropped, outputs as text"
    parts = []
    for c in read(NBS / 'index.ipynb').cells:
        tags = directives(c['source'])
        if 'hide' in tags:
            continue
        if c['cell_type'] == 'markdown':
            parts.append(c['source'].strip())
            continue
        source = '\n'.join(s for s in c['source'].splitlines() if not s.startswith('#|')).strip()
        if source and 'echo: false' not in tags:
            parts.append(f'```python\n{source}\n```')
        for o in c.get('outputs', []):
            data = o.get('data', {})
            text = ''.join(data.get('text/markdown') or o.get('text') or data.get('text/plain', '')).strip()
            if text:
                parts.append(text if 'text/markdown' in data else f'```\n{text}\n```')
    head = '<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook. -->\n\n'
    text = '\n\n'.join(parts).replace('](../', '](').replace('](house.svg)', '](nbs/house.svg)').replace('](pictures/', '](nbs/pictures/')
    return head + re.sub(r'\]\((\d\d_)', r'](nbs/\1', text) + '\n'


def house() -> str:
    "The floors as an SVG: what each holds, dashed where nothing is built yet"
    from rlnb.core.text import svg
    rooms = defaultdict(list)
    for p in pages():
        if p.folder: rooms[p.folder].append(p.path.stem.split('_', 1)[1].replace('_', ' '))
    out, w, h = [], 760, 30
    for i, (folder, caption) in enumerate(reversed(FLOORS.items())):
        y, names = 4 + i*(h + 4), rooms.get(folder, [])
        look = dict(fill='#eaf3fa', stroke='#0072B2') if names else dict(fill='none', stroke='#999999', stroke_dasharray='4 3')
        text = ' · '.join(names)
        text = text if len(text) < 82 else text[:text.rfind(' · ', 0, 80)] + ' · …'
        out += [svg('rect', x=4, y=y, width=w - 8, height=h, rx=4, **look),
                svg('text', folder.split('_')[0], x=16, y=y + 20, fill='#0072B2' if names else '#999999', font_weight='bold'),
                svg('text', caption, x=46, y=y + 20, fill='#333333' if names else '#999999'),
                svg('text', text, x=246, y=y + 20, fill='#666666', font_size=11)]
    height = 8 + len(FLOORS)*(h + 4)
    title = svg('title', 'The floors of the house, imports run only downward')
    return str(svg('svg', title, *out, xmlns='http://www.w3.org/2000/svg', viewBox=f'0 0 {w} {height}', width=w, height=height,
                   font_family='system-ui, sans-serif', font_size=13)) + '\n'


def main() -> int:
    bad = []
    for path, want in ((NBS / 'house.svg', house()), (ROOT / 'README.md', markdown())):
        if (path.read_text(encoding='utf-8') if path.exists() else '') == want:
            continue
        bad.append(path.relative_to(ROOT).as_posix())
        if '--check' not in sys.argv:
            path.write_text(want, encoding='utf-8', newline='\n')
    if bad and '--check' in sys.argv:
        print(f'{", ".join(bad)}: not current: run `python3 dev.py sync`', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
