"""Infilling: prior, prompt and trained posterior against the sum over all fillings."""

import itertools
import math

import pytest
import torch

from difftilt.chains.chain import Chain
from difftilt.diffusions.orders import LeftToRight
from difftilt.errors import InputError, RewardError
from difftilt.infilling import Completion, Infilling
from difftilt.loading import load
from difftilt.objectives.supervised import Supervised
from difftilt.posteriors import Sources
from difftilt.rewards.contract import CheckedReward
from difftilt.tasks.shipped import shipped_folder
from difftilt.text.fillings import filled_in
from difftilt.text_priors import TextPrior
from difftilt.training.plan import Optimisation
from tiny_text import WORDS, tiny_prior

TEMPLATES = ["ann saw [2] . bob ran home", "bob met [1] cat"]
OPTIMISATION = Optimisation(learning_rate=1e-2, ema=0.9)


def liking(texts: list[str]) -> list[float]:
    """Cats are liked, and "met saw"; the order of words counts."""
    return [1.5 * t.count("cat") + 3.0 * ("met saw" in t) - 0.5 * t.count(".") for t in texts]


def law(prior: TextPrior, template: str, length: int) -> dict[str, float]:
    """The prior's probability of each text, left to right, from the model itself."""
    tokenizer, model = prior.model.tokenizer, prior.model.network
    head, tail = template.split(f"[{length}]")
    before = tokenizer(head, add_special_tokens=False)["input_ids"]
    hidden = len(tokenizer(tail, add_special_tokens=False)["input_ids"])
    words = tokenizer.convert_tokens_to_ids(WORDS)
    log_p: dict[tuple[int, ...], torch.Tensor] = {}
    for seen in (p for k in range(length) for p in itertools.product(range(len(WORDS)), repeat=k)):
        ids = [words[i] for i in seen] + [tokenizer.mask_token_id] * (length - len(seen))
        ids = [tokenizer.cls_token_id, *before, *ids, *[tokenizer.mask_token_id] * hidden]
        logits = _logits(model, [*ids, tokenizer.sep_token_id])[1 + len(before) + len(seen), words]
        log_p[seen] = logits.double().log_softmax(0)
    found = {}
    for filling in itertools.product(range(len(WORDS)), repeat=length):
        total = sum(float(log_p[filling[:k]][filling[k]]) for k in range(length))
        text = head + " ".join(WORDS[i] for i in filling) + tail
        found[text] = math.exp(total)
    return found


@torch.no_grad()
def _logits(network, ids: list[int]) -> torch.Tensor:
    return network.model(torch.tensor([ids])).logits[0]


def tilted(prior: dict[str, float]) -> tuple[dict[str, float], float]:
    """The posterior and Z."""
    weights = {text: p * math.exp(liking([text])[0]) for text, p in prior.items()}
    z = sum(weights.values())
    return {text: w / z for text, w in weights.items()}, z


def chi_square(texts: list[str], wanted: dict[str, float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees; cells of less than 8 expected draws are joined."""
    assert set(texts) <= set(wanted)
    large = [t for t, p in wanted.items() if p * len(texts) >= 8]
    expected = [wanted[t] * len(texts) for t in large]
    observed = [texts.count(t) for t in large]
    expected.append(len(texts) - sum(expected))
    observed.append(len(texts) - sum(observed))
    terms = zip(observed, expected, strict=True)
    return sum((o - e) ** 2 / e for o, e in terms if e > 1e-9), len(large)


def fits(texts: list[str], wanted: dict[str, float]) -> bool:
    """Whether draws follow a law, by five standard errors of Pearson's statistic."""
    statistic, degrees = chi_square(texts, wanted)
    return statistic < degrees + 5 * math.sqrt(2 * degrees)


@pytest.fixture
def prior() -> TextPrior:
    return tiny_prior(LeftToRight())


@pytest.fixture
def task(prior: TextPrior) -> Infilling:
    return prior.infill(TEMPLATES, liking)


def test_the_prior_is_the_model_without_the_suffix(prior, task, unchecked: None):
    for context, (template, length) in enumerate(zip(TEMPLATES, (2, 1), strict=True)):
        wanted = law(prior, template, length)
        assert sum(wanted.values()) == pytest.approx(1, abs=1e-6)
        texts = [c.text for c in task.prior_samples(1500, context)]
        assert fits(texts, wanted)
        # The check can fail: the law of the posterior does not fit.
        assert not fits(texts, tilted(wanted)[0])


def test_the_prompt_is_weighed_against_the_posterior(prior, task, unchecked: None):
    _, z = tilted(law(prior, TEMPLATES[0], 2))
    completions = task.prompted().completions(4000)
    weights = torch.tensor([c.log_w for c in completions]).double().exp()
    assert abs(weights.mean() - z) < 5 * weights.std() / math.sqrt(len(weights))
    assert float(weights.log().std()) > 0.1
    shown = {c.text: c.log_r for c in completions}
    assert all(log_r == pytest.approx(liking([text])[0]) for text, log_r in shown.items())


def test_one_posterior_of_two_templates_reaches_both(prior, task, unchecked: None):
    posterior = task.fit(
        steps=140, batch=48, warm_start=0.3, paths_per_condition=16, optimisation=OPTIMISATION
    )
    certificate = posterior.certify(400)
    for context, (template, length) in enumerate(zip(TEMPLATES, (2, 1), strict=True)):
        prior_law = law(prior, template, length)
        wanted, z = tilted(prior_law)
        texts = posterior.sample(1500, context)
        distance = 0.5 * sum(abs(texts.count(t) / 1500 - p) for t, p in wanted.items())
        assert distance < 0.15 < 0.5 * sum(abs(prior_law[t] - p) for t, p in wanted.items())
        estimate = certificate.each[context].defensive.best
        assert estimate.low <= math.log(z) <= estimate.high
        assert certificate.each[context].ess > 0.75
    assert certificate.names[1] == "bob met [1] cat (1 tokens)"
    exact = posterior.sample(600, correct="snis", effort=5)
    assert fits(exact, tilted(law(prior, TEMPLATES[0], 2))[0])


def test_what_is_given_stays_and_what_is_banned_never_comes(prior):
    task = prior.infill("ann [3] , [1-2] . bob", liking, banned=["cat", 9], lengths="uniform")
    lengths = set()
    for completion in task.prior_samples(200) + task.prompted().completions(200):
        first, second = completion.fillings
        assert completion.text == f"ann {first} , {second} . bob"
        assert len(first.split()) == 3 and not {"cat", WORDS[4]} & {*first.split()}
        assert set(completion.text.split()) <= {*WORDS}
        lengths.add(len(second.split()))
    assert lengths == {1, 2}


def test_a_draw_depends_neither_on_the_number_nor_on_other_templates(prior, task):
    few, many = task.prior_samples(3, 1, seed=5), task.prior_samples(40, 1, seed=5)
    assert few == many[:3]
    drawn = prior.infill("ann saw [1-3]", liking, lengths="uniform")
    some, more = drawn.prior_samples(3, seed=5), drawn.prior_samples(40, seed=5)
    assert some == more[:3]
    assert {len(c.tokens) for c in more} == {5, 6, 7}


def test_drawn_lengths_are_weighed_too(prior, unchecked: None):
    law_of_lengths = {1: 0.25, 2: 0.75}
    task = prior.infill("ann saw [1-2]", liking, lengths=law_of_lengths.__getitem__)
    parts = {n: tilted(law(prior, f"ann saw [{n}]", n)) for n in law_of_lengths}
    completions = task.prior_samples(4000)
    weights = torch.tensor([c.log_w for c in completions]).double().exp()
    z = sum(share * parts[n][1] for n, share in law_of_lengths.items())
    assert abs(weights.mean() - z) < 5 * weights.std() / math.sqrt(len(weights))
    joint = {
        text: law_of_lengths[n] * p
        for n in law_of_lengths
        for text, p in law(prior, f"ann saw [{n}]", n).items()
    }
    assert fits([c.text for c in completions], joint)
    with pytest.raises(InputError, match="of one length"):
        task.prompted().sample(2, correct="snis")


def test_the_model_itself_may_end_a_slot(prior):
    task = prior.infill("ann saw [1-3] . bob", liking)
    completions = task.prior_samples(400)
    pad = prior.model.tokenizer.pad_token_id
    ends = {}
    for completion in completions:
        slot = completion.tokens[3:6]
        count = sum(token != pad for token in slot)
        whole = count >= 1 and pad not in slot[:count]
        assert (completion.log_r > -math.inf) == whole
        ends[whole] = ends.get(whole, 0) + (count < 3)
    assert ends[True] and ends[False]
    posterior = task.fit(steps=20, batch=32, optimisation=OPTIMISATION)
    before = sum(c.log_r == -math.inf for c in completions)
    after = sum(c.log_r == -math.inf for c in posterior.completions(400))
    assert after < 0.6 * before


def test_best_of_n_is_the_best_of_its_draws(task):
    drawn = task.prior_samples(12, seed=3)
    best = task.best_of_n(4, among=3, seed=3)
    assert [c.log_r for c in best] == [
        max(c.log_r for c in drawn[i : i + 3]) for i in range(0, 12, 3)
    ]
    assert isinstance(best[0], Completion) and best[0].log_w is None
    with pytest.raises(InputError, match="among=0"):
        task.best_of_n(4, among=0)


def test_canvases_made_elsewhere_are_filled_like_templates(prior, task):
    same = prior.infill(task.canvases.conditions, liking, banned=["[PAD]"])
    assert same.prior_samples(20, 1) == task.prior_samples(20, 1)
    assert same.prompted().completions(20) == task.prompted().completions(20)


def test_a_reward_of_tensors_goes_in_checked(prior):
    reward = CheckedReward(lambda x_0, condition: (x_0 == condition[:, 0]).float().sum(1))
    task = prior.infill("ann saw [2]", reward)
    assert [c.log_r for c in task.prior_samples(2)] == [4.0, 4.0]


def test_errors(prior, task):
    with pytest.raises(RewardError, match=r"shape \(1,\) for \d+ texts; return one log r"):
        prior.infill("ann [2]", lambda texts: [1.0]).prior_samples(20)
    with pytest.raises(InputError, match="has no slot"):
        prior.infill("ann ran", liking)
    with pytest.raises(InputError, match="at most 32"):
        prior.infill("ann [40]", liking)
    with pytest.raises(InputError, match="every slot has length 0"):
        prior.infill("ann [0-1]", liking, lengths=lambda n: float(n == 0))
    with pytest.raises(InputError, match="every token is banned"):
        prior.infill("ann [2]", liking, banned=WORDS)
    for wrong in (999_999, -5):
        with pytest.raises(InputError, match=rf"banned={wrong} is none of the model's ids 0 to 13"):
            prior.infill("ann [2]", liking, banned=["cat", wrong])
    with pytest.raises(InputError, match="n must be at least 1"):
        task.prior_samples(0)
    with pytest.raises(InputError, match="no option 'stepz'"):
        task.fit(stepz=3)


def test_the_chain_is_an_ordinary_one(task):
    assert isinstance(task.target.prior.chain, Chain)
    assert task.target.prior.chain.steps == 2


def test_true_fillings_train_the_templates_under_their_own_canvas(prior, unchecked: None):
    task = prior.infill(["ann saw [2] . bob", "bob [1] , [1-2] cat"], liking)
    data = [["met cat", "met cat", "met cat", "ran home"], [("saw", "ann"), ("saw", "bob ran")]]
    posterior = task.fit(
        Supervised(),
        data=data,
        steps=120,
        batch=32,
        optimisation=Optimisation(learning_rate=2e-2, ema=0.0),
    )
    shares = [c.fillings for c in posterior.completions(400, 0)]
    # The law of the data: 3 in 4, four standard errors and what 120 updates leave.
    assert abs(shares.count(("met cat",)) / 400 - 0.75) < 0.12
    second = [c.fillings for c in posterior.completions(400, 1)]
    assert second.count(("saw", "ann")) + second.count(("saw", "bob ran")) > 340
    assert abs(second.count(("saw", "ann")) / 400 - 0.5) < 0.15


def test_data_finds_the_canvas_of_its_length(prior):
    task = prior.infill("ann saw [1-3]", liking, lengths="uniform")
    x_0, conditions = filled_in(task.canvases, [["bob", "bob met cat"]])
    assert [p.text for p in task.canvases.passages(x_0, conditions)] == [
        "ann saw bob",
        "ann saw bob met cat",
    ]


def test_errors_of_data(task):
    with pytest.raises(InputError, match="from data, and none is given"):
        task.fit(Supervised(), sources=Sources(), steps=1, batch=8)
    for data, words in (
        (["met saw"], "a list of fillings for each template"),
        ([["met saw"]], "fillings of 1 templates, but there are 2"),
        ([[], []], "holds no filling"),
        ([["met"], []], r"'met' of template 0 has 1 tokens, which \[2\] cannot hold"),
        ([[("met", "saw")], []], "2 texts for 1 slots"),
        ([["met dog"], []], "no token for 'dog' in a filling of template 0"),
    ):
        with pytest.raises(InputError, match=words):
            task.fit(Supervised(), data=data, steps=1, batch=8)


def test_a_posterior_is_kept_as_a_model_folder(tmp_path):
    template = "they came to the city. [4] and they drank."
    shipped = load(shipped_folder("text_prior"))
    task = shipped.infill(template, liking)
    optimisation = Optimisation(learning_rate=1e-3, ema=0.0)
    posterior = task.fit(steps=2, batch=8, warm_start=0.0, chunk=32, optimisation=optimisation)
    folder = posterior.export(tmp_path / "posterior")
    again = load(folder).infill(template, liking, suffix="both")
    kept = [c.text for c in again.prior_samples(8)]
    assert kept == posterior.sample(8) != task.prompted().sample(8)
    with pytest.raises(InputError, match="load the prior with load_text_model"):
        tiny_prior().infill("ann saw [2]", liking).posterior().export(tmp_path / "other")
