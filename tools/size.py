"Print the exported lines of each room against its budget (and fail when one is exceeded): `python tools/size.py [--rooms]`"
import statistics
import sys
from collections import defaultdict

from pages import lines, pages

BUDGET = {'00_core': 3100, '10_envs': 2400, '20_buffers': 1200, '30_agents': 2400, '40_runs': 1200, '45_evaluation': 2000, '50_train': 3700,
          '60_search': 1500, '70_flow': 1800, '80_panels': 2200, '': 800}


def main() -> int:
    rooms = defaultdict(list)
    for p in pages():
        rooms[p.folder].append(p)
    over, whole = [], 0
    print(f'{"room":<28}{"lines":>7}{"budget":>8}{"pages":>7}{"words":>8}')
    for folder, ps in rooms.items():
        n = sum(p.size for p in ps)
        whole += n
        budget = BUDGET.get(folder, 0)
        if n > budget:
            over.append(folder)
        print(f'{folder or "cli, all":<28}{n:>7}{budget:>8}{len(ps):>7}{sum(p.words for p in ps):>8}')
        if '--rooms' in sys.argv:
            for p in ps:
                print(f'   {p.path.stem:<25}{p.size:>7}{"":>15}{p.words:>8}')
    print(f'{"the whole house":<28}{whole:>7}')
    cells = sorted(lines(s) for ps in rooms.values() for p in ps for s in p.exported)
    nine, mid = cells[int(.9*len(cells))], statistics.median(cells)
    print(f'{len(cells)} exported cells: median {mid:.0f} lines, nine in ten at most {nine}, longest {cells[-1]}')
    for folder in over:
        print(f'{folder or "cli, all"}: over its budget')
    return bool(over)


if __name__ == '__main__':
    sys.exit(main())
