"""Labels as a network reads them, and the reward that classifiers make of them."""

import pytest
import torch
from torch import Tensor

from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.forms import Perceptron
from difftilt.kernels.networks import VectorKernel
from difftilt.models.labels import Labels
from difftilt.models.mlp import Size
from difftilt.posteriors import Prior
from difftilt.rewards.contract import CheckedReward
from difftilt.rewards.controls import ControlReward
from difftilt.transitions.gaussian import GaussianTilt, MixtureTilt
from small_chains import moved, noise
from toys import gaussian_chain

LABELS = (2, 3)
CONDITION = torch.tensor([[0, 0], [1, 2], [1, 0], [0, 1]])


def first(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], -x[:, 0]], 1)


def second(x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], x[:, 0] * x[:, 1], 0 * x[:, 0]], 1)


def test_codes_are_one_hot_side_by_side():
    code = Labels(LABELS).code(CONDITION, torch.zeros(4, 2))
    assert code.tolist() == [
        [1, 0, 1, 0, 0],
        [0, 1, 0, 0, 1],
        [0, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
    ]
    assert torch.equal(Labels((2,)).code(CONDITION[:, 0], torch.zeros(4, 2)), code[:, :2])


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "no condition is bound"),
        (CONDITION.float(), "integers, and got float32"),
        (CONDITION[:, :1], r"shape \(4, 2\), integers, and got int64 of shape \(4, 1\)"),
        (CONDITION[:3], r"got int64 of shape \(3, 2\)"),
        (CONDITION + 1, r"labels \[1, 1\] to \[2, 3\], sizes \(2, 3\)"),
        (-CONDITION, "out of range"),
    ],
)
def test_conditions_that_are_no_labels(condition: Tensor | None, message: str):
    with pytest.raises(InputError, match=message):
        Labels(LABELS).code(condition, torch.zeros(4, 2))


@pytest.mark.parametrize("components", [1, 3])
def test_a_labelled_kernel_starts_at_the_prior_whatever_the_labels(components: int):
    kernel = VectorKernel((2,), 3, components, size=Size(16), reads=Labels(LABELS))
    chain = gaussian_chain(2).tilted(kernel).given(CONDITION)
    path = rollout(chain, 4, noise())
    assert path.log_ratio is not None and not path.log_ratio.any()


@pytest.mark.parametrize("components", [1, 3])
def test_labels_are_read_once_their_embeddings_have_moved(components: int):
    kernel = VectorKernel((2,), 3, components, True, Size(16, frequencies=2), Labels(LABELS))
    x, prediction = torch.ones(4, 2), torch.ones(4, 2)
    embeddings = kernel.network.first.weight[:, 4:9]
    assert not embeddings.any() and kernel.network.first.weight[:, 9:].any()
    with torch.no_grad():
        kernel.network.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    same = shifts(kernel, x, prediction)
    assert torch.allclose(same, same[:1].expand_as(same))
    kernel(x, 2, prediction, CONDITION).log_ratio(x + 1).sum().backward()
    assert kernel.network.first.weight.grad[:, 4:9].any(0).all()
    moved(kernel)
    found = shifts(kernel, x, prediction)
    assert len(found.unique(dim=0)) == 4


def shifts(kernel: VectorKernel, x: Tensor, prediction: Tensor) -> Tensor:
    tilt = kernel(x, 2, prediction, CONDITION)
    assert isinstance(tilt, GaussianTilt | MixtureTilt)
    first = tilt.delta if isinstance(tilt, GaussianTilt) else tilt.delta.movedim(-1, 0)
    return first.detach().flatten(1)


def test_a_perceptron_takes_labels():
    target = Prior(gaussian_chain(2)).tilt(ControlReward([first, second]))
    form = Perceptron(components=1, width=16, labels=LABELS)
    posterior = target.posterior(form).given(CONDITION[1:2])
    assert posterior.sample(5).shape == (5, 2)
    with pytest.raises(InputError, match="no condition is bound"):
        target.posterior(form).sample(5)


@pytest.mark.parametrize("strengths", [None, [1.0, 1.0], [2.0, 0.5]])
def test_controls_add_their_classifiers(strengths: list[float] | None):
    x = torch.randn(4, 2)
    reward = ControlReward([first, second], strengths)
    a, b = (1.0, 1.0) if strengths is None else strengths
    rows = torch.arange(4)
    wanted = (
        a * first(x).log_softmax(1)[rows, CONDITION[:, 0]]
        + b * second(x).log_softmax(1)[rows, CONDITION[:, 1]]
    )
    assert torch.allclose(reward(x, CONDITION), wanted, atol=1e-6)
    assert reward.bound == 0.0 and bool((wanted <= 0).all())


def test_probabilities_of_all_labels_sum_to_one():
    x = torch.randn(4, 2, dtype=torch.float64)
    reward = ControlReward([first, second])
    every = [reward(x, torch.tensor([[i, j]]).expand(4, 2)).exp() for i in (0, 1) for j in range(3)]
    assert torch.allclose(torch.stack(every).sum(0), torch.ones(4, dtype=torch.float64))


def test_controls_have_a_gradient_by_the_sample():
    x = torch.randn(4, 2, dtype=torch.float64).requires_grad_()
    checked = CheckedReward(ControlReward([first, second], [1.5, 0.5]))
    assert checked.bound == 0.0
    assert torch.autograd.gradcheck(lambda x: checked.differentiable(x, CONDITION), x)


@pytest.mark.parametrize(
    ("classifiers", "strengths"),
    [([], None), ([first], [1.0, 2.0]), ([first], [0.0]), ([first, second], [1.0, -1.0])],
)
def test_controls_without_classifiers_or_strengths(classifiers, strengths):
    with pytest.raises(InputError, match="a strength above 0 for each"):
        ControlReward(classifiers, strengths)


@pytest.mark.parametrize("condition", [None, CONDITION[:, 0], CONDITION[:, :1], CONDITION[:2]])
def test_controls_without_their_labels(condition: Tensor | None):
    with pytest.raises(InputError, match=r"one label for each classifier, shape \(4, 2\)"):
        ControlReward([first, second])(torch.zeros(4, 2), condition)
    with pytest.raises(InputError, match="there is no class 2"):
        ControlReward([first, second])(torch.zeros(4, 2), CONDITION + 1)
