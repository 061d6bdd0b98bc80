"""What plain diffusers draws from an exported posterior, and with which lines.

With the same scheduler, steps, ``eta``, guidance scale and noise it draws our latents at every step
that has a density. A last step without noise is a map that our posterior shares with its prior:
there the adapters have to be off (``disable_lora``; the README says how). DDIM with
``set_alpha_to_one=False`` at ``eta`` > 0, as Stable Diffusion has it, ends in a law.

The scheduler of flow matching steps along an ODE. At ``eta`` = 1 our steps are those of
SDE-DPM-Solver++ of first order, which diffusers ships, on other levels: with ``e^{-h}`` =
``α_t σ_s / (α_s σ_t)`` both draw ``x_s = (σ_s / σ_t) e^{-h} x_t + α_s (1 - e^{-2h}) x̂_0 +
σ_s sqrt(1 - e^{-2h}) ε``. The README puts it on ours. At other ``eta`` diffusers has no such steps.

Source: Lu et al. 2022, eq. 18 (arXiv 2211.01095).
"""

from typing import Any

from difftilt.adapters.text_to_image.record import PictureChain
from difftilt.adapters.text_to_image.transformers import DiT


def integrates(model: PictureChain) -> bool:
    """Whether the pipeline's own scheduler steps along the ODE of flow matching."""
    scheduler = model.scheduler
    is_flow = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    return is_flow and not scheduler.config.stochastic_sampling


def plain_scheduler(model: PictureChain) -> Any:
    """The scheduler that takes the chain's steps in plain diffusers; the own one if none does."""
    if not integrates(model) or model.eta != 1:
        return model.scheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=model.scheduler.config.num_train_timesteps,
        algorithm_type="sde-dpmsolver++",
        solver_order=1,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
    )


def levels(model: PictureChain) -> list[float]:
    """The noise scales N ... 0 of the chain, as its scheduler tells them."""
    return model.chain.gaussian.levels.sigma.flip(0).tolist()


def readme(model: PictureChain, settings: dict[str, Any], whole: bool) -> str:
    """What to do with an exported folder, and what plain diffusers draws with it.

    Arguments:
        model: the prior's.
        settings: what is written beside the weights.
        whole: a whole pipeline is written, else adapters.
    """
    kind = "A whole pipeline" if whole else "Low-rank adapters"
    code = "\n".join(["```python", *_code(model, settings, whole), "```"])
    said = ["# A posterior sampler", f"{kind} for plain diffusers:", code]
    other = _other_law(model, whole)
    if other is not None:
        asked = f"steps={settings['steps']}, eta={model.eta}, "
        asked += f"guidance_scale={settings['guidance_scale']}"
        said.append(
            f"{other} Draw the posterior with difftilt, from its run folder (`difftilt sample`); "
            f"`difftilt.load(pipeline, {asked})` with the pipeline above takes the same steps but "
            "for a last one without noise, which the posterior leaves to its prior."
        )
    return "\n\n".join(said) + "\n"


def _other_law(model: PictureChain, whole: bool) -> str | None:
    """How the law that plain diffusers draws from differs from the posterior's; None: not."""
    own = type(model.family.pipeline).__name__
    acting = f"These weights load and act in plain diffusers, but its {own}"
    if integrates(model) and (whole or model.eta != 1):
        return (
            f"{acting} then draws from the ODE sampler of the shifted velocity, which is another "
            f"law than the posterior's: the SDE at eta={model.eta}."
        )
    if isinstance(model.family, DiT) and _takes_eta(model) and model.eta != 0:
        return (
            f"{acting} steps without noise, which is another law than the posterior's: the sampler "
            f"at eta={model.eta}."
        )
    if whole and not model.chain.diffusion.has_density(1):
        return "In plain diffusers the last step, a map, is not the prior's but its own."
    return None


def _takes_eta(model: PictureChain) -> bool:
    return type(model.scheduler).__name__ == "DDIMScheduler"


def _code(model: PictureChain, settings: dict[str, Any], whole: bool) -> list[str]:
    own = settings["pipeline"]
    if whole:
        lines = [
            f"from diffusers import {own}",
            "",
            f'pipeline = {own}.from_pretrained("THIS FOLDER")',
        ]
    else:
        lines = _with_adapters(model, own)
    asked = {"num_inference_steps": settings["steps"], **model.family.asked()}
    if _takes_eta(model) and not isinstance(model.family, DiT):
        asked["eta"] = settings["eta"]
    if not whole and not model.chain.diffusion.has_density(1):
        lines += _adapters_off(model.chain.steps)
        asked["callback_on_step_end"] = "last_step_is_the_priors"
    shown = [f"{k}={v if k.startswith('callback') else repr(v)}" for k, v in asked.items()]
    return [*lines, f"pictures = pipeline({model.family.subject}, {', '.join(shown)}).images"]


def _with_adapters(model: PictureChain, own: str) -> list[str]:
    scheduler = type(plain_scheduler(model)).__name__
    other_levels = plain_scheduler(model) is not model.scheduler
    first = ["import json", "", "import torch"] if other_levels else []
    stepping = "OnOurLevels" if other_levels else scheduler
    return [
        *first,
        f"from diffusers import {own}, {scheduler}",
        *(_ON_OUR_LEVELS if other_levels else []),
        "",
        f'pipeline = {own}.from_pretrained("THE PRIOR")',
        f'pipeline.scheduler = {stepping}.from_pretrained("THIS FOLDER", subfolder="scheduler")',
        'pipeline.load_lora_weights("THIS FOLDER")',
    ]


_ON_OUR_LEVELS = """

class OnOurLevels(DPMSolverMultistepScheduler):
    def set_timesteps(self, num_inference_steps, device=None, **others):
        super().set_timesteps(num_inference_steps, device)
        with open("THIS FOLDER/difftilt.json") as file:
            self.sigmas = torch.tensor(json.load(file)["sigmas"])
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)

""".splitlines()


def _adapters_off(steps: int) -> list[str]:
    return [
        "",
        "",
        "def last_step_is_the_priors(pipeline, step, time, values):",
        f"    if step == {steps - 2}:",
        "        pipeline.disable_lora()",
        f"    if step > {steps - 2}:",
        "        pipeline.enable_lora()",
        "    return values",
        "",
        "",
    ]
