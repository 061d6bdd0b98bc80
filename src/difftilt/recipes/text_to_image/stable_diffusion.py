"""The paper's text-to-image recipe: Stable Diffusion v1.5, tilted by a reward of pictures.

    difftilt train sd --reward imagereward:FOLDER --python OTHER/bin/python --out runs/rabbit
    difftilt train sd --prompts prompts.txt --reward clip:FOLDER 0.1*jpeg --precision bfloat16

Any text-to-image pipeline that ``load`` takes, its prompts and a sum of rewards by name. What the
paper and its published flags say, and what they are here:

| paper | here |
|---|---|
| SD v1.5, DDIM, 50 steps, η = 1, guidance 7.5 | the same; guidance is part of the prior |
| LoRA of rank 4 on attention, 1e-5, clipped at 0.1 | the same, Adam, no decay, no averaging |
| 12 paths per update, 2 of 12 new | ``batch=12``: 2 own paths, 10 replayed, in chunks of 2 states |
| 8 of 50 steps get a gradient | the same, scaled by 50/8, so that it stays unbiased |
| learned log Z, 1e-3 | the same, one for each prompt |
| log-probabilities averaged over the latents | summed: an average targets another posterior |

Replayed are latents, noised back to paths that the posterior scores anew. A warm start
(``--training.warm-start 0.1``) and β annealing are those of every training.

Source: Venkatraman et al. 2024, sections 3.2 and H (arXiv 2405.20971).
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from difftilt.adapters.diffusers import open_pipeline
from difftilt.adapters.image_rewards import Isolation, image_reward
from difftilt.adapters.image_rewards.names import reward_digests
from difftilt.adapters.text_to_image.loading import text_to_image_model
from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.diagnostics.features import diversity
from difftilt.errors import InputError
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row
from difftilt.recipes.custom import fitting
from difftilt.recipes.form import FormChoice
from difftilt.recipes.pictures import MOST_SHOWN, Picture, as_bytes
from difftilt.recipes.text_to_image.sheets import prompt_sheet
from difftilt.sampling.draws import Samples
from difftilt.text_to_image import TextToImagePrior
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Replaying, Training

PAPER_PROMPT = "A green colored rabbit."
SHOWN_PROMPTS, SHOWN_PICTURES, SHOWN_SIDE = 8, 4, 96


def paper_training() -> Training:
    """The plan of the module's table; a replayed latent is one of the newest 500."""
    return Training(
        steps=10_000,
        batch=12,
        warm_start=0.0,
        paths_per_condition=4,
        chunk=2,
        subset=8,
        warm_start_subset=8,
        objective=RTB("learned"),
        optimisation=Optimisation(
            learning_rate=1e-5,
            log_z_learning_rate=1e-3,
            decay_from=1.0,
            gradient_clip=0.1,
            ema=0.0,
        ),
        behaviour=BehaviourWeights(on_policy=2, pool=0, replay=10),
        replaying=Replaying(capacity=500, priority="uniform"),
    )


@dataclass(frozen=True)
class StableDiffusion(Recipe):
    """A text-to-image pipeline (Stable Diffusion v1.5) and rewards of pictures: the paper's recipe.

    Arguments:
        prior: folder or hub id of a text-to-image pipeline.
        reward: one or several that are summed: clip:FOLDER, 0.5*jpeg, imagereward:FOLDER,
            file.py:function ...; see difftilt.adapters.image_rewards.names.
        prompt: one prompt (or several) to train for; default the paper's, "A green colored rabbit."
        prompts: a file of prompts, one a line; empty lines and those that begin with # are skipped.
        beta: β of p(x | prompt) r(x, prompt)^β.
        steps: N of the chain.
        eta: stochasticity of DDIM, in (0, 1].
        guidance_scale: of classifier-free guidance, a part of the prior; 1 for none.
        precision: what the pipeline is held in. The network that denoises, its adapters and the
            log-ratios calculate in float32 with each: rounding would part posterior and prior.
        autocast: let the network calculate in its 16 bits all the same: quicker on a GPU.
        device: where all runs, such as "cuda"; empty for a GPU if there is one.
        checkpointing: keep only the borders of the network's blocks for the backward pass.
        isolate: run a reward of your own in another process.
        python: the interpreter of that process and of ImageReward; empty for this one.
        timeout: seconds that a reward in another process may take for one batch.
        form: what carries the posterior.
        training: the plan.
    """

    prior: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    reward: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    prompts: str = ""
    beta: float = 1.0
    steps: int = 50
    eta: float = 1.0
    guidance_scale: float = 7.5
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    autocast: bool = False
    device: str = ""
    checkpointing: bool = False
    isolate: bool = False
    python: str = ""
    timeout: float = 600.0
    samples: int = 32
    certificate_paths: int = 128
    form: FormChoice = field(default_factory=lambda: FormChoice("lora", rank=4))
    training: Training = field(default_factory=paper_training)

    def job(self) -> Job:
        prompts = self._prompts()
        reward = self._reward()
        task = self._prior().draw(prompts, reward, self.beta)
        posterior = task.target.posterior(self.form.build())
        plan = fitting(self.training, len(posterior.chain.density_steps))
        if len(task.prompts) == 1:
            plan = replace(plan, paths_per_condition=plan.batch)
        rows = task.prior.rows(task.prompts)
        digests = reward_digests(self.reward)
        return Job(task.target, posterior, plan, task.sources, rows, task.prompts, digests)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        """The table: rewards and diversity over all prompts, then a log Z and reward of each."""
        sets = _sets(drawn)
        mean = {name: _mean(s.log_r) for name, s in sets.items()}
        spread = {
            name: diversity(_seen(job, s), job.context_of(len(s.x_0))) for name, s in sets.items()
        }
        rows = [
            metric_row("mean log r", "nats; higher is more rewarded", mean),
            metric_row("diversity", "mean pairwise pixel distance within a prompt", spread),
        ]
        assert isinstance(drawn.certificate, ConditionalCertificate)
        each = zip(job.names, drawn.certificate.each, strict=False)
        for k, (prompt, certificate) in enumerate(each):
            own = {name: _mean(_own(s.log_r, k, job)) for name, s in sets.items()}
            rows.append(metric_row(f"log r of {prompt!r}", "its samples", own))
            best = certificate.defensive.best
            note = f"the certificate, [{best.low:.2f}, {best.high:.2f}]"
            rows.append(metric_row(f"log Z of {prompt!r}", note, {"posterior": best.value}))
        notes = [f"{len(job.names)} prompts; certificate on average: {drawn.certificate.verdict}."]
        return {"title": "Pictures of the prompts", "rows": rows, "notes": notes}

    def pictured(self, job: Job, samples: Samples) -> Tensor | None:
        return as_bytes(job.target.prior.decoded(samples.x_0[:MOST_SHOWN]))

    def pictures(self, job: Job, drawn: Drawn) -> list[Picture]:
        """The first pictures of the first prompts, by each sampler."""
        count = min(SHOWN_PROMPTS, len(job.names))
        sheets = {
            name: [_small(_seen(job, _of(s, k, job))) for k in range(count)]
            for name, s in _sets(drawn).items()
        }
        return [prompt_sheet(sheets, job.names[:count])]

    def _prompts(self) -> list[str]:
        if self.prompt and self.prompts:
            raise InputError("sd takes --prompt or --prompts, not both; put all into the file")
        if not self.prompts:
            return list(self.prompt) or [PAPER_PROMPT]
        file = Path(self.prompts).expanduser()
        if not file.is_file():
            raise InputError(f"there is no file {file} of prompts; give one with a prompt a line")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise InputError(f"{file} holds no prompt; write one a line")
        return found

    def _reward(self) -> Any:
        if not self.reward:
            raise InputError(
                "sd needs --reward, such as imagereward:FOLDER or clip:FOLDER; see difftilt train "
                "sd --help"
            )
        return image_reward(self.reward, Isolation(self.isolate, self.python or None, self.timeout))

    def _prior(self) -> TextToImagePrior:
        pipeline = open_pipeline(self.prior)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipeline.to(device)
        if self.precision != "float32":
            pipeline.to(getattr(torch, self.precision))
        model = text_to_image_model(
            pipeline,
            self.steps,
            self.eta,
            guidance_scale=self.guidance_scale,
            checkpointing=self.checkpointing,
            autocast=self.autocast,
        )
        return TextToImagePrior(model, self.prior)


def _sets(drawn: Drawn) -> dict[str, Samples]:
    sets = {"prior": drawn.prior, "posterior": drawn.posterior, "corrected": drawn.corrected}
    return {name: samples for name, samples in sets.items() if samples is not None}


def _seen(job: Job, samples: Samples) -> Tensor:
    """Pictures in [0, 1]."""
    return job.target.prior.decoded(samples.x_0)


def _of(samples: Samples, k: int, job: Job) -> Samples:
    """The first samples of prompt k; samples are of the prompts in turn."""
    return Samples(samples.x_0[k :: len(job.names)][:SHOWN_PICTURES])


def _own(log_r: Tensor | None, k: int, job: Job) -> Tensor | None:
    return None if log_r is None else log_r[k :: len(job.names)]


def _mean(log_r: Tensor | None) -> float:
    return math.nan if log_r is None or not len(log_r) else float(log_r.mean())


def _small(pictures: Tensor) -> Tensor:
    """Pictures of at most 96 pixels."""
    factor = SHOWN_SIDE / max(pictures.shape[2:])
    if factor >= 1:
        return pictures.cpu()
    small = interpolate(pictures.float(), scale_factor=factor, mode="bilinear", antialias=True)
    return small.cpu()
