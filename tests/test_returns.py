"""Returns where a notebook would be slow or has no machine: compiled, on a GPU, and over long tables in float32."""
import numpy as np
import pytest
import torch

from rlnb.core.returns import discounted, gae, lambda_returns, nstep, vtrace

CALLS = {
    'discounted': lambda t: discounted(t['reward'], t['discount'], t['value'][-1]),
    'nstep': lambda t: nstep(t['reward'], t['discount'], t['next_value'], t['done'], 3),
    'lambda_returns': lambda t: lambda_returns(t['reward'], t['discount'], t['next_value'], t['done'], .9),
    'gae': lambda t: gae(t['reward'], t['discount'], t['value'], t['next_value'], t['done'], .95),
    'vtrace': lambda t: torch.stack(vtrace(t['reward'], t['discount'], t['value'], t['next_value'], t['done'], t['rho'])),
}


def table(T: int, N: int = 3, dtype=np.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    "Random rows with all kinds of ends"
    rng = np.random.default_rng(seed)
    ends = rng.choice(3, (T, N), p=[.9, .05, .05])
    t = dict(reward=rng.standard_normal((T, N)), discount=.99 * (ends != 1), value=rng.standard_normal((T, N)),
             next_value=rng.standard_normal((T, N)), rho=rng.gamma(2., .5, (T, N)))
    return {k: torch.from_numpy(v.astype(dtype)) for k, v in t.items()} | {'done': torch.from_numpy(ends > 0)}


@pytest.mark.parametrize('name', CALLS)
def test_compiled_whole(name):
    t = table(16)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(CALLS[name], backend='eager', fullgraph=True)(t), CALLS[name](t))


@pytest.mark.parametrize('name', [n for n in CALLS if n != 'vtrace'])
@pytest.mark.parametrize('T', [1, 2, 127, 2048])
def test_long_tables_in_float32(name, T):
    "Both orders of the sum, against float64"
    t = table(T)
    right = CALLS[name](table(T, dtype=np.float64)).numpy()
    for out in (CALLS[name](t).numpy(), CALLS[name]({k: v.numpy() for k, v in t.items()})):
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, right, atol=2e-4)


def test_rows_that_are_not_contiguous():
    "A rollout stored world by world, seen time-major"
    t = table(32)
    turned = {k: np.moveaxis(np.ascontiguousarray(np.moveaxis(v.numpy(), 0, -1)), -1, 0) for k, v in t.items()}
    np.testing.assert_array_equal(CALLS['gae'](turned), CALLS['gae']({k: v.numpy() for k, v in t.items()}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('name', CALLS)
def test_on_a_gpu(name):
    t = table(128)
    torch.testing.assert_close(CALLS[name]({k: v.cuda() for k, v in t.items()}).cpu(), CALLS[name](t), atol=1e-4, rtol=1e-4)
