"Every head and network inside one compiled graph over the flat vector gives the eager gradient (`30_agents/base` stands on it)"
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from rlnb.core.heads import Categorical, Gaussian, MultiBinary, MultiCategorical, Squashed
from rlnb.core.nets import Flat, mlp


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pi, self.twins, self.log_std = mlp([4, 32, 3]), mlp([4, 32, 4], members=2, norm=True), nn.Parameter(torch.zeros(4))
    def forward(self, b: dict[str, Tensor]) -> Tensor:
        pi, y = Categorical(self.pi(b['obs']), b['mask']), self.twins(b['obs'])[1]
        box, bell = Squashed(y, self.log_std), Gaussian(y, self.log_std)
        terms = [pi.log_prob(b['act']), pi.entropy(), box.log_prob(b['u']), box.entropy(), bell.kl(Gaussian(y + 1, self.log_std)),
                 MultiBinary(y).entropy(), MultiCategorical(y, [2, 2]).entropy()]
        return torch.stack([t.mean() for t in terms]).sum()


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ('g++', 'clang++', 'c++'))), reason='torch.compile needs a C++ compiler')
def test_one_graph_equals_eager() -> None:
    torch.manual_seed(0)
    net = Everything()
    flat = Flat(net)
    b = dict(obs=torch.randn(64, 4), mask=torch.rand(64, 3) > .3, act=torch.zeros(64, dtype=torch.int64), u=torch.rand(64, 4)*1.8 - .9)
    b['mask'][:, 0] = True
    def step(vec: Tensor, b: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return grad_and_value(lambda v: functional_call(net, flat.params(v), (b,)))(vec)
    graph = torch.compile(step, fullgraph=True, dynamic=False)
    for _ in range(3):
        flat.zero(); net(b).backward()
        g, value = graph(flat.vec, b)
        torch.testing.assert_close(g, flat.grad, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(value, net(b).detach(), atol=1e-5, rtol=1e-5)
        flat.adam(1e-2)
    assert flat.grad.norm() > .1
