"Execute a notebook through papermill, its progress live in the terminal, and print what it produced"
import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def newest(root: Path, since: float) -> dict | None:
    "The result that a run wrote after `since`, with the folder it lies in"
    found = [f for f in root.glob('*/result.json') if f.stat().st_mtime >= since]
    if not found:
        return None
    f = max(found, key=lambda f: f.stat().st_mtime)
    return json.loads(f.read_text(encoding='utf-8')) | {'folder': f.parent}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('notebook', type=Path)
    p.add_argument('--root', type=Path, default=Path('runs'))
    p.add_argument('-p', nargs=2, action='append', default=[], metavar=('NAME', 'VALUE'))
    a = p.parse_args()
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    import papermill
    from papermill.exceptions import PapermillExecutionError
    root = (ROOT / a.root).resolve()
    root.mkdir(parents=True, exist_ok=True)
    out, then = root / f'executed-{a.notebook.name}', time.time()
    # what the kernel's process itself says goes into a file; its cells speak through papermill
    noise = os.open(root / 'kernel.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    console = os.fdopen(os.dup(2), 'w')
    os.dup2(noise, 2)
    try:
        parameters = {'root': str(root), **{k: json.loads(v) for k, v in a.p}}
        papermill.execute_notebook(ROOT / a.notebook, out, parameters=parameters, kernel_name='python3', cwd=str((ROOT / a.notebook).parent),
                                   progress_bar=False, stdout_file=sys.stdout, stderr_file=console)
    except PapermillExecutionError as e:
        print(f'{a.notebook}: cell {e.cell_index} ended with {e.ename}: {e.evalue} (the executed notebook: {out})', file=console)
        return 1
    finally:
        os.dup2(console.fileno(), 2)
    r = newest(root, then - 1)
    if r:
        ret, folder = r['return'], r['folder']
        place = folder / out.name.removeprefix('executed-')
        out.replace(place)
        print(f"\nreturn     {ret['mean']:.1f}  [{ret['low']:.1f}, {ret['high']:.1f}]  95 % interval over {ret['n']} {ret['over']}")
        print(f"run        {folder}\npicture    {folder / 'curve.png'}\nnotebook   {place}")
    else:
        print(f'notebook   {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
