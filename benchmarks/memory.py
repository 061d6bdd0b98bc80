"""Peak memory of one update of relative trajectory balance, by the number of steps.

``--model pixels``: a UNet2DModel of 15.9 M parameters (random weights, 32 × 32, one channel) as the
prior, and low-rank adapters of rank 32 in it as the posterior. ``--model text_to_image``: a
StableDiffusionPipeline (random weights, latents of 4 × 32 × 32) under classifier-free guidance,
both halves in one batch, and adapters of rank 4 on attention.

Each number of steps runs one ``training_step`` (draw paths, residual, chunked backward, optimiser)
in a process of its own. The extra memory is the peak resident size during the step minus the
resident size before it, with the models built and one throw-away update done at N = 2, so that what
a first call loads (kernels, thread pools, Adam's moments) is not billed to any N.

Allocator noise: glibc keeps freed blocks below its mmap threshold, and raises that threshold as a
process frees larger ones, so the same tensors may cost twice the memory by the order of their
release. The child runs with the threshold fixed (MALLOC_MMAP_THRESHOLD_), so that every large
tensor returns to the system when it is freed.

    python benchmarks/memory.py --steps 10 100 --batch 16 --chunk 32 --json-file memory.json
    python benchmarks/memory.py --model text_to_image --steps 10 50 --batch 4 --chunk 8
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

BAR = 1.1


@dataclass(frozen=True)
class Case:
    """One measurement: N, paths per update, states per network call with a graph, the model."""

    steps: int
    batch: int
    chunk: int
    model: str = "pixels"


def build_prior(model: str) -> Any:
    """A small StableDiffusionPipeline, or the UNet2DModel of the official image experiments."""
    if model == "text_to_image":
        from pictures import small_pipeline

        return small_pipeline(32, (32, 64))
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 128, 256),
    )


def build_state(unet: Any, case: Case) -> Any:
    """A training of low-rank adapters on the UNet: on-policy paths alone, learned log Z."""
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from difftilt.posteriors import LoRA, load
    from difftilt.training.plan import RTB, BehaviourWeights, Training

    plan = Training(
        batch=case.batch,
        chunk=case.chunk,
        warm_start=0.0,
        objective=RTB(log_z="learned"),
        behaviour=BehaviourWeights(on_policy=1.0, pool=0.0),
        paths_per_condition=2,
    )
    if case.model == "text_to_image":
        prior = load(unet, steps=case.steps, guidance_scale=7.5)
        task = prior.draw(["a cat", "a dog"], lambda x: -x.square().mean((1, 2, 3)))
        return task.target.state(task.target.posterior(LoRA(rank=4)), plan, task.sources)
    prior = load(DDPMPipeline(unet, DDPMScheduler()), steps=case.steps)
    target = prior.tilt(lambda x: -x.square().mean((1, 2, 3)))
    return target.state(target.posterior(LoRA(rank=32)), plan)


def resident_megabytes() -> float:
    """Resident size of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(case: Case) -> dict[str, Any]:
    """One update in this process; its peak is a high-water mark, so once per process."""
    from difftilt.training.steps import training_step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = build_prior(case.model)
    network = unet.unet if case.model == "text_to_image" else unet
    parameters = sum(p.numel() for p in network.parameters())
    training_step(build_state(unet, Case(2, 2, 2, case.model)))
    state = build_state(unet, case)
    before, started = resident_megabytes(), time.process_time()
    training_step(state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        **asdict(case),
        "parameters": parameters,
        "trainable": sum(p.numel() for p in state.parameters),
        "before_mb": round(before, 1),
        "extra_mb": round(peak - before, 1),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def measure_apart(case: Case) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
        "MALLOC_TRIM_THRESHOLD_": str(128 * 1024),
    }
    command = [sys.executable, __file__, "--child", json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(
    steps: tuple[int, ...] = (10, 100),
    batch: int = 16,
    chunk: int = 32,
    model: str = "pixels",
    json_file: Path | None = None,
) -> None:
    """Peak extra memory of one update for each number of steps.

    Args:
        steps: numbers of steps N; the first is what the others are compared with.
        batch: paths per update.
        chunk: states per network call with a graph.
        model: "pixels" or "text_to_image".
        json_file: write the rows there.
    """
    rows: list[dict[str, Any]] = []
    for n in steps:
        row = measure_apart(Case(n, batch, chunk, model))
        row["ratio"] = round(row["extra_mb"] / (rows[0] if rows else row)["extra_mb"], 3)
        rows.append(row)
        print(", ".join(f"{k} {v}" for k, v in row.items()), file=sys.stderr)
    print(render(rows))
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


def render(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["  N  batch  chunk  extra MB  ratio (bar 1.10)  CPU s"]
    for r in rows:
        lines.append(
            f"{r['steps']:>3}  {r['batch']:>5}  {r['chunk']:>5}  {r['extra_mb']:>8.0f}"
            f"  {r['ratio']:>16.3f}  {r['cpu_seconds']:>5.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(Case(**json.loads(sys.argv[2])))))
    else:
        tyro.cli(main)
