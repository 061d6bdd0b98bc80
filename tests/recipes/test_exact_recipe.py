"""What is recommended for an exact problem follows from its dimensions and its budget."""

from dataclasses import replace

import pytest

from difftilt.forms import Perceptron
from difftilt.kernels.networks import VectorKernel
from difftilt.recipes.exact.recipe import (
    Effort,
    Exact,
    build,
    form_of,
    plan_of,
    recommended,
    setting_of,
)
from difftilt.recipes.form import FormChoice
from difftilt.tasks.exact.linear_gaussian import linear_gaussian
from difftilt.training.plan import BehaviourWeights

FEW, MANY = "linear_gaussian_d2", "linear_gaussian_d10"
OWN = BehaviourWeights(on_policy=1, pool=0)


def test_few_dimensions_get_a_mixture_and_a_pool():
    problem = build(FEW)
    plan = plan_of(problem, Effort(seconds=5.0))
    assert form_of(problem).components == 4 and not form_of(problem).linear
    assert plan == recommended(5.0) and plan.warm_start > 0 and plan.behaviour.pool > 0


def test_many_dimensions_get_a_gaussian_and_their_own_paths():
    problem = build(MANY)
    plan = plan_of(problem, Effort(seconds=5.0))
    assert form_of(problem).components == 1 and form_of(problem).linear
    assert plan == replace(recommended(5.0), warm_start=0.0, behaviour=OWN)


def test_very_many_dimensions_get_no_sines_and_small_batches():
    problem = linear_gaussian(40, steps=3)
    form, plan = form_of(problem), plan_of(problem, Effort(seconds=5.0))
    assert form.components == 1 and form.linear and form.frequencies == 0
    assert plan.behaviour == OWN and plan.batch == 32


@pytest.mark.parametrize(("name", "fresh"), [("rare_corner", 128), (FEW, 32)])
def test_where_calls_are_counted_the_pool_grows_slowly(name: str, fresh: int):
    # The corner's own truth takes long to work out, and no plan may read it.
    setting = setting_of(replace(build(FEW), name=name), Effort(network_calls=1000), seed=3)
    assert setting.plan.replaying.pool_fresh == fresh
    assert (setting.plan.network_calls, setting.plan.seconds, setting.plan.seed) == (1000, None, 3)
    assert setting.calls == 1000 and isinstance(setting.form, Perceptron)


@pytest.mark.parametrize("name", [FEW, MANY])
def test_a_recipe_follows_the_problem_unless_it_is_told_otherwise(name: str):
    many = name == MANY
    form = FormChoice("perceptron", components=2, width=16)
    job = Exact(problem=name).job()
    told = Exact(problem=name, own_paths=not many, form=form).job()
    assert (job.training.behaviour == OWN) == many
    assert (told.training.behaviour == OWN) != many
    kernel, own = job.posterior.chain.kernel, told.posterior.chain.kernel
    assert isinstance(kernel, VectorKernel) and isinstance(own, VectorKernel)
    assert (kernel.linear is not None) == many and own.linear is None
    assert kernel.components == (1 if many else 4)
    assert own.network.first.out_features == 16
