"""A user's own prior and reward."""

from dataclasses import dataclass, field, replace

from difftilt.errors import InputError
from difftilt.loading import load, mark_of
from difftilt.posteriors import Prior
from difftilt.recipes.base import Job, Recipe
from difftilt.recipes.form import FormChoice
from difftilt.rewards.isolation import isolated
from difftilt.rewards.loading import load_reward, reward_digest
from difftilt.training.plan import Training

ELSEWHERE = {
    "config.json": "a language model; fill in text from Python, with difftilt.load(...).infill",
    "policy.json": "a policy; name it to difftilt train control --parts.policy",
}


@dataclass(frozen=True)
class Custom(Recipe):
    """Your own diffusers pipeline and your own reward.

    Arguments:
        prior: folder or hub id of an unconditional diffusers pipeline, or folder of a
            ``PointCloudModel``.
        reward: "package.module:function" or "file.py:function", x_0 (B, C, H, W) -> log r (B,).
        beta: β of p(x) r(x)^β.
        steps: N of the chain.
        eta: stochasticity of a DDIM scheduler, in (0, 1]; None: 1.
        log_bound: an upper bound of log r, if there is one; makes the certificate a proof.
        isolate: run the reward in another process, with its own interpreter if ``python`` is given.
        python: that interpreter.
        timeout: seconds that an isolated reward may take for one batch.
        initial: also learn the law of x_N.
        form: what carries the posterior.
        training: the plan.
    """

    prior: str = ""
    reward: str = ""
    beta: float = 1.0
    steps: int = 50
    eta: float | None = None
    log_bound: float | None = None
    isolate: bool = False
    python: str | None = None
    timeout: float = 60.0
    initial: bool = False
    form: FormChoice = field(default_factory=FormChoice)
    training: Training = field(
        default_factory=lambda: Training(
            steps=500, batch=16, chunk=32, subset=8, warm_start_subset=8
        )
    )

    def job(self) -> Job:
        for name in ("prior", "reward"):
            if not getattr(self, name):
                raise InputError(f"custom needs --{name}; see difftilt train custom --help")
        if self.isolate:
            reward = isolated(self.reward, python=self.python, timeout=self.timeout)
        else:
            reward = load_reward(self.reward)
        target = self._prior().tilt(reward, self.beta, self.log_bound)
        posterior = target.posterior(self.form.build(), self.initial)
        plan = fitting(self.training, len(posterior.chain.density_steps))
        return Job(target, posterior, plan, reward_digest=reward_digest(self.reward))

    def _prior(self) -> Prior:
        elsewhere = ELSEWHERE.get(mark_of(self.prior) or "")
        if elsewhere is not None:
            raise InputError(f"{self.prior} is {elsewhere}")
        prior = load(self.prior, self.steps, eta=self.eta)
        if not isinstance(prior, Prior):
            raise InputError(
                f"{self.prior} reads prompts; train it with difftilt train sd --prior {self.prior} "
                "--reward ... --prompt ..."
            )
        return prior


def fitting(plan: Training, stochastic_steps: int) -> Training:
    """The plan for a chain that may have fewer steps than the plan's subset of them."""
    if plan.subset is None or plan.subset <= stochastic_steps:
        return plan
    return replace(plan, subset=None, warm_start_subset=None)
