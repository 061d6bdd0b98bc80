"""Token problems against sampling and brute force, and their rows of the bench."""

import itertools
import math

import pytest
import torch

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.diffusions.masked import GENERATED, canvas
from difftilt.diffusions.orders import AnyOrder, Order, Parallel, Stepwise
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.marginals import completions, words
from difftilt.noise import GeneratorNoise
from difftilt.recipes.exact.bench import Bench
from difftilt.recipes.exact.recipe import Effort, Exact, build, problem_names
from difftilt.recipes.exact.tokens import averaged, judge_tokens, single
from difftilt.tasks.exact.judge import Judgement
from difftilt.tasks.tokens import TokenProblem, token_problems
from difftilt.tasks.tokens.laws import exact_law, total_variation
from difftilt.tasks.tokens.networks import arbitrary_table, consistent_table, random_joint
from difftilt.tasks.tokens.problems import Couplings, posterior_law, random_couplings
from token_paths import every_path, token_chain

SMALL = ("tokens_v3n4", "tokens_parity", "tokens_table", "tokens_arbitrary")
DRAWS = 20_000


def built(name: str) -> TokenProblem:
    problem = build(name)
    assert isinstance(problem, TokenProblem)
    return problem


def agrees(counts: torch.Tensor, law: torch.Tensor) -> bool:
    """Pearson's statistic, within 5 of its standard deviations; rare completions are pooled."""
    expected = law * counts.sum()
    big = expected >= 10
    counts = torch.cat([counts[big], counts[~big].sum()[None]])
    expected = torch.cat([expected[big], expected[~big].sum()[None]]).clamp(min=1e-9)
    freedom = len(counts) - 1
    return float(((counts - expected) ** 2 / expected).sum()) < freedom + 5 * (2 * freedom) ** 0.5


def moved(prior: Chain, learned_order: bool) -> Chain:
    kernel = FullCopy(learned_order=learned_order).kernel(prior)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return prior.tilted(kernel)


@pytest.mark.parametrize("name", token_problems())
def test_a_problem_is_as_it_says(name: str):
    problem = built(name)
    assert problem.name == name
    assert problem.summary
    count = len(problem.conditions)
    assert problem.conditions.shape == (count, 2, problem.chain.event_shape[0])
    assert torch.allclose(problem.law.sum(1), torch.ones(count, dtype=torch.float64))
    prior = exact_law(problem.chain, problem.conditions)
    assert torch.allclose(prior.sum(1), torch.ones(count, dtype=torch.float64), atol=1e-6)
    assert total_variation(prior, problem.law).mean() > 0.5
    log_r = problem.log_reward(words(count, problem.chain.event_shape[0]))
    assert problem.log_bound is not None
    assert 0 < problem.log_bound - log_r.max() < 1e-3


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("own", [False, True], ids=["prior", "posterior"])
def test_samples_follow_the_exact_law_and_given_tokens_stay(name: str, own: bool, generator):
    problem = built(name)
    chain = moved(problem.chain, problem.learned_order) if own else problem.chain
    condition = problem.conditions[1:2]
    law = exact_law(chain, condition)[0]
    bound = chain.given(condition.expand(DRAWS, -1, -1))
    path = rollout(bound, DRAWS, GeneratorNoise(generator))
    assert (path.states[..., 0] == 1).all()
    place = len(problem.conditions) ** torch.arange(path.x_0.shape[1] - 2, -1, -1)
    counts = torch.bincount((path.x_0[:, 1:] * place).sum(1), minlength=len(law)).double()
    assert agrees(counts, law)
    assert not agrees(counts, law.flip(0))


@pytest.mark.parametrize("name", SMALL)
def test_log_z_is_the_prior_mean_of_the_reward(name: str, generator):
    problem = built(name)
    condition = problem.conditions[:1].expand(DRAWS, -1, -1)
    x_0 = rollout(problem.chain.given(condition), DRAWS, GeneratorNoise(generator)).x_0
    w = problem.log_reward(x_0).double().exp() / problem.log_z[0].exp()
    assert abs(float(w.mean()) - 1) < 5 * float(w.std()) / math.sqrt(DRAWS)


def test_parity_and_offset_of_the_reward():
    plain = random_couplings(3, 4, 0)
    odd, lower = Couplings(plain.table, parity=True), Couplings(plain.table, offset=-30.0)
    x = words(3, 4)
    difference = odd(x) - plain(x)
    assert torch.allclose(difference, math.log(1e-3) * (x.sum(1) % 2), atol=1e-5)
    assert torch.allclose(lower(x), plain(x) - 30, atol=1e-5)
    total = torch.zeros(len(x))
    for a, b in itertools.combinations(range(4), 2):
        total += plain.table[a, b][x[:, a], x[:, b]]
    assert torch.allclose(plain(x), 1.5 * total / 2, atol=1e-5)


def test_an_offset_changes_log_z_alone():
    problem = built("tokens_table")
    assert isinstance(problem.log_reward, Couplings)
    lower = Couplings(problem.log_reward.table, problem.log_reward.scale, offset=-30.0)
    law, log_z = posterior_law(problem.chain, lower, problem.conditions)
    assert torch.allclose(law, problem.law, atol=1e-5)
    assert torch.allclose(log_z, problem.log_z - 30, atol=1e-4)


def test_the_law_of_parallel_reveals_is_the_sum_over_all_timetables():
    vocab_size, length, steps = 2, 3, 3
    network = arbitrary_table(vocab_size, length, torch.Generator().manual_seed(0))
    chain = moved(token_chain(network, length, Parallel(steps)), False)
    every = canvas(torch.zeros(1, length, dtype=torch.long), torch.full((1, length), GENERATED))
    ends = completions(vocab_size, every)[0]
    timetables = list(itertools.product(range(1, steps + 1), repeat=length))
    summed = torch.zeros(len(ends), dtype=torch.float64)
    for ranks in timetables:
        log_p, at = torch.zeros(len(ends), dtype=torch.float64), torch.tensor(ranks)
        for n in range(steps, 0, -1):
            x = torch.where(at <= n, vocab_size + at, ends)
            assert chain.kernel is not None
            landed = torch.where(at <= n - 1, vocab_size + at, ends)
            prediction = chain.predict(x, n)
            law = chain.law(prediction, x, n)
            tilt = chain.tilt(x, n, prediction)
            assert tilt is not None
            log_p += law.log_prob(landed) + tilt.log_ratio(law.standardise(landed)).detach()
        summed += log_p.exp() / len(timetables)
    found = exact_law(chain, every)[0]
    assert summed.sum() == pytest.approx(1.0, abs=1e-9)
    assert torch.allclose(found, summed, atol=1e-9)


def test_parallel_reveals_approach_the_joint_law():
    joint = random_joint(3, 3, torch.Generator().manual_seed(0))
    every = canvas(torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), GENERATED))
    network = consistent_table(joint, 3)
    gaps = []
    for order in (Parallel(1), Parallel(4), Parallel(16), Parallel(64)):
        law = exact_law(token_chain(network, 3, order), every)
        gaps.append(float(total_variation(law, joint[None])))
    assert gaps[0] > 0.1
    # The error falls as 1 / steps, four times for four times the steps.
    assert 3 < gaps[1] / gaps[2] < 5
    assert 3 < gaps[2] / gaps[3] < 5


@pytest.mark.parametrize("order", [AnyOrder(), Stepwise()], ids=["any", "stepwise"])
def test_every_path_has_its_probability(order: Order):
    chain = token_chain(arbitrary_table(2, 3, torch.Generator().manual_seed(0)), 3, order)
    path, log_p = every_path(chain)
    assert path.batch == 6 * 8
    assert log_p.exp().sum() == pytest.approx(1.0, abs=1e-12)


def test_the_judge_of_the_prior_and_of_each_canvas():
    problem = built("tokens_v3n4")
    found = judge_tokens(problem, problem.chain)
    prior = exact_law(problem.chain, problem.conditions)
    assert found.tv == pytest.approx(float(total_variation(prior, problem.law).mean()))
    assert found.log_z_error is not None and found.ess is not None
    assert 0 <= found.log_z_error < 0.1
    expected = [
        float((p[p > 0]).sum() ** 2 / (r**2 / p)[p > 0].sum())
        for p, r in zip(prior, problem.law, strict=True)
    ]
    assert found.ess == pytest.approx(sum(expected) / len(expected), rel=0.2)
    assert [alone.truth.log_z for alone in single(problem)] == problem.log_z.tolist()


def test_judgements_are_averaged_with_absolute_errors():
    def judgement(error: float, k: float, ess: float | None) -> Judgement:
        return Judgement(error, 0.1, None, ess, k, None, None, None, None, None, None)

    mean = averaged([judgement(-0.5, 0.1, 0.2), judgement(0.3, 0.6, 0.4)])
    assert mean.log_z_error == pytest.approx(0.4)
    assert (mean.k_hat, mean.ess) == (0.6, pytest.approx(0.3))
    assert averaged([judgement(0.1, 0.1, None), judgement(0.1, 0.1, 0.5)]).ess is None


def test_rows_of_the_bench(capsys):
    chosen = ["rtb", "importance", "kl_control", "dps", "detailed_balance"]
    bench = Bench(["tokens_table"], chosen, [0], Effort(200_000))
    rows = {row["method"]: row for row in bench.rows()}
    assert set(rows) == {"rtb", "importance", "detailed_balance"}
    assert rows["rtb"]["tv"] < 0.8 * rows["importance"]["tv"]
    assert rows["rtb"]["ess"] > rows["importance"]["ess"]
    assert rows["rtb"]["network_calls"] >= 200_000
    said = capsys.readouterr().err
    assert said.count("no row") == 2
    assert "tokens" in said


def test_token_problems_have_names_of_their_own():
    assert set(token_problems()) <= set(problem_names())
    with pytest.raises(InputError, match="tokens_table"):
        build("tokens_tables")


def test_a_recipe_of_vectors_refuses_tokens():
    with pytest.raises(InputError, match="problem of tokens"):
        Exact(problem="tokens_table").job()
