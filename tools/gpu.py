"""PPO on a GPU as one CUDA graph, where there is only torch, numpy and Gymnasium: `python tools/gpu.py --envs 4096 16384 65536 --json`,
and SAC and DQN: `python tools/gpu.py --memory --envs 1024 4096 --json`

The pages are nbs/50_train/85_graph.ipynb and 86_graph_memory.ipynb. The one thing it needs beside these three is fastcore's `patch`, which stands
here in short for a machine without it."""
import functools
import sys
import types
from importlib import util
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def patch(f=None, *, as_prop=False, cls_method=False):
    "Make a function a method of the class that its first parameter is annotated with"
    if f is None: return functools.partial(patch, as_prop=as_prop, cls_method=cls_method)
    kind = next(iter(f.__annotations__.values()))
    setattr(kind, f.__name__, property(f) if as_prop else classmethod(f) if cls_method else f)
    return f


if not util.find_spec('fastcore'):
    sys.modules['fastcore'], sys.modules['fastcore.basics'] = types.ModuleType('fastcore'), types.ModuleType('fastcore.basics')
    sys.modules['fastcore.basics'].patch = patch

if __name__ == '__main__':
    from importlib import import_module
    memory = '--memory' in sys.argv
    main = import_module('rlnb.train.graph_memory' if memory else 'rlnb.train.graph').main
    sys.exit(main([x for x in sys.argv[1:] if x != '--memory']))
