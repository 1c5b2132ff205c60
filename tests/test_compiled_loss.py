"Every head and network inside one compiled graph over the flat vector gives the eager gradient (`30_agents/base` stands on it)"
import shutil

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from rlnb.agents.a2c import A2C
from rlnb.agents.sac import SAC
from rlnb.core.batch import Batch
from rlnb.core.heads import Categorical, Gaussian, MultiBinary, MultiCategorical, Squashed
from rlnb.core.nets import Flat, mlp
from rlnb.envs.classic import CartPole
from rlnb.train.trainer import Trainer


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


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ('g++', 'clang++', 'c++'))), reason='torch.compile needs a C++ compiler')
def test_a_wide_update_as_one_graph_equals_the_plain_one() -> None:
    "Wide enough for the other kernel of core/product, where this processor has it"
    see, do, n = spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,)), 256
    plain, quick = (SAC(see, do, SAC.config.from_dict(dict(compile=c)), 1) for c in (False, True))
    g = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=g)
    b = Batch(obs=draw(n, 17), act=draw(n, 6).tanh(), reward=draw(n), discount=torch.full((n,), .99), next_obs=draw(n, 17), weight=torch.ones(n))
    for _ in range(3):
        (a, _), (c, _) = plain.step(b, 0.), quick.step(b, 0.)
        torch.testing.assert_close(c, a, atol=1e-4, rtol=1e-4)
        for k in ('q', 'pi'): torch.testing.assert_close(quick.opts[k].grad, plain.opts[k].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ('g++', 'clang++', 'c++'))), reason='torch.compile needs a C++ compiler')
def test_what_a_schedule_moves_is_not_built_into_the_graph() -> None:
    "A2C whose entropy bonus falls to nothing: the compiled one ends where the plain one does, and not where a bonus that stays would lead"
    def end(bonus: object, quick: bool) -> Tensor:
        env = CartPole(8)
        t = Trainer(A2C(env.obs_space, env.act_space, A2C.config.from_dict(dict(ent_coef=bonus, compile=quick, lr=1e-3)), 1), env, horizon=400)
        return t.fit(400).agent.opts['all'].vec.clone()
    plain, quick, stays = end('linear(1, 0)', False), end('linear(1, 0)', True), end(1., False)
    assert (plain - quick).abs().max() < (plain - stays).abs().max()/10
