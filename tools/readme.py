"README.md from nbs/index.ipynb (nbdev's own command needs Quarto): `python tools/readme.py [--check]`"
import sys
from configparser import ConfigParser

from pages import NBS, ROOT, directives, read


def markdown() -> str:
    "The notebook as Markdown: hidden cells dropped, outputs as text, names of the project filled in from settings.ini"
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    parts = []
    for c in read(NBS / 'index.ipynb').cells:
        tags = directives(c['source'])
        if tags & {'hide'}:
            continue
        if c['cell_type'] == 'markdown':
            parts.append(c['source'].strip())
            continue
        source = '\n'.join(s for s in c['source'].splitlines() if not s.startswith('#|')).strip()
        if source and 'echo: false' not in tags:
            parts.append(f'```python\n{source}\n```')
        for o in c.get('outputs', []):
            data = o.get('data', {})
            text = data.get('text/markdown') or o.get('text') or ('' if 'text/html' in data else data.get('text/plain', ''))
            text = ''.join(text).strip()
            if text:
                parts.append(text if 'text/markdown' in data else f'```\n{text}\n```')
    head = '<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook. -->\n\n'
    text = head + '\n\n'.join(parts) + '\n'
    return text.replace('](../', '](').replace('{repo}', f"{ini['DEFAULT']['user']}/{ini['DEFAULT']['repo']}").replace('{branch}', ini['DEFAULT']['branch'])


def main() -> int:
    readme, want = ROOT / 'README.md', markdown()
    have = readme.read_text(encoding='utf-8') if readme.exists() else ''
    if '--check' in sys.argv:
        if have != want:
            print('README.md is not current: run `python3 dev.py sync`', file=sys.stderr)
        return int(have != want)
    if have != want:
        readme.write_text(want, encoding='utf-8', newline='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
