"""Train the shipped models of small molecules on QM9: the prior, and the regressor that judges it.

    pip download --no-deps qm9pack==1.0.3
    python scripts/train_molecules.py data --wheel qm9pack-1.0.3-py3-none-any.whl --out qm9.npz
    python scripts/train_molecules.py seen --data qm9.npz --out seen.npz
    python scripts/train_molecules.py prior --data qm9.npz --out prior.safetensors
    python scripts/train_molecules.py regressor --data qm9.npz --out regressor.safetensors

``data`` takes a minute, keeps the neutral molecules of 2 to 9 heavy atoms whose bonds follow
from their places, and shuffles them. The prior sees the first half, the regressor the second.
"""

import argparse
import ast
import csv
import io
import math
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difftilt.models.egnn import AtomNetwork, present_atoms
from difftilt.tasks.molecules.chemistry import KINDS, molecule_of
from difftilt.tasks.molecules.metrics import fingerprint
from difftilt.tasks.molecules.models import (
    MOST_ATOMS,
    PROPERTIES,
    PropertyNetwork,
    encoded,
    new_prior_network,
    schedule,
)

COLUMNS = {
    "alpha": "Polarizability_bohr3",
    "gap": "HOMO_LUMO_gap_au",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "mu": "Dipole_debye",
    "cv": "Heatcapacity_Cv_cal_mol_K",
}
HARTREE = 27.211386
ENERGIES = ("gap", "homo", "lumo")
LOOKS = 500


def table(wheel: Path) -> Iterator[dict[str, str]]:
    """The rows of the data set, read inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if "qm9_part" in name:
                with archive.open(name) as file:
                    yield from csv.DictReader(io.TextIOWrapper(file))


def heavy_atoms(row: dict[str, str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Places (n, 3) and kinds (n,) of a molecule's heavy atoms, or None: an atom is charged."""
    known = {(kind.element, kind.hydrogens): index for index, kind in enumerate(KINDS)}
    elements = np.array(ast.literal_eval(row["Elements"]))
    numbers = row["XYZ_Ang"].replace("[", " ").replace("]", " ").replace(",", " ")
    places = np.array(numbers.split(), dtype=float).reshape(-1, 3)
    heavy, light = places[elements != "H"], places[elements == "H"]
    apart = np.linalg.norm(light[:, None] - heavy[None], axis=-1)
    hydrogens = np.bincount(apart.argmin(1), minlength=len(heavy))
    found = [known.get(pair) for pair in zip(elements[elements != "H"], hydrogens, strict=True)]
    return None if None in found else (heavy - heavy.mean(0), np.array(found))


def collect(wheel: Path, out: Path, seed: int = 0) -> None:
    """Write places, kinds (-1 where no atom is), properties and SMILES of what is kept."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")  # pyright: ignore[reportAttributeAccessIssue]
    kept: list[tuple[Any, ...]] = []
    seen = 0
    for row in table(wheel):
        seen += 1
        found = heavy_atoms(row)
        if found is None or not 2 <= len(found[1]) <= MOST_ATOMS:
            continue
        molecule = molecule_of(*found, consistent=True)
        if molecule is None:
            continue
        room = MOST_ATOMS - len(found[1])
        values = [
            float(row[column]) * (HARTREE if name in ENERGIES else 1.0)
            for name, column in COLUMNS.items()
        ]
        places = np.pad(found[0], ((0, room), (0, 0)))
        kinds = np.pad(found[1], (0, room), constant_values=-1)
        kept.append((places, kinds, values, Chem.MolToSmiles(molecule, isomericSmiles=False)))
    order = np.random.default_rng(seed).permutation(len(kept))
    places, kinds, values, smiles = zip(*(kept[i] for i in order), strict=True)
    np.savez_compressed(
        out,
        places=np.array(places, dtype=np.float32),
        kinds=np.array(kinds, dtype=np.int8),
        properties=np.array(values, dtype=np.float32),
        smiles=np.array(smiles),
    )
    print(f"kept {len(kept)} of {seen} molecules; wrote {out}")


def list_seen(data: Path, out: Path) -> None:
    """Write the fingerprints of the molecules that the prior is trained on."""
    stored = np.load(data)["smiles"]
    prints = [fingerprint(str(smiles)) for smiles in stored[: len(stored) // 2]]
    np.savez_compressed(out, fingerprints=np.unique(np.array(prints, dtype=np.uint64)))


def half(data: Path, second: bool) -> dict[str, Tensor]:
    """One half of what ``collect`` wrote, as tensors."""
    stored = np.load(data)
    middle = len(stored["kinds"]) // 2
    part = slice(middle, None) if second else slice(None, middle)
    return {
        name: torch.from_numpy(stored[name][part]) for name in ("places", "kinds", "properties")
    }


def turned(states: Tensor, generator: torch.Generator) -> Tensor:
    """States with their places turned at random (the features of a turned molecule are its own)."""
    drawn = torch.randn(len(states), 3, 3, generator=generator)
    rotation = torch.linalg.qr(drawn).Q
    return torch.cat([states[..., :3] @ rotation, states[..., 3:]], -1)


def rate_at(share: float, highest: float) -> float:
    """A warm-up over the first hundredth, then half a cosine down to 0."""
    return highest * min(1.0, share / 0.01) * 0.5 * (1 + math.cos(math.pi * share))


def train_prior(asked: argparse.Namespace) -> None:
    """Predict v at uniform times, mean squared error over the atoms' numbers, Adam, averaged."""
    torch.manual_seed(asked.seed)
    generator = torch.Generator().manual_seed(asked.seed)
    data = half(asked.data, second=False)
    counts = (data["kinds"] >= 0).sum(1)
    network = new_prior_network()
    if asked.start is not None:
        network.load_state_dict(load_file(asked.start))
    average = {k: v.clone() for k, v in network.state_dict().items()}
    optimiser = torch.optim.Adam(network.parameters(), asked.rate)
    begun, losses = time.process_time(), []
    while (share := (time.process_time() - begun) / asked.seconds) < 1:
        optimiser.param_groups[0]["lr"] = rate_at(share, asked.rate)
        rows = torch.randint(len(counts), (asked.batch,), generator=generator)
        loss = prior_loss(network, encoded(data["places"][rows], data["kinds"][rows]), counts[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - min(asked.average, len(losses) / (len(losses) + 10)))
        if len(losses) % LOOKS == 0:
            spent = time.process_time() - begun
            print(f"{len(losses)} {spent:.0f} s, loss {np.mean(losses[-LOOKS:]):.4f}", flush=True)
            save_file(average, asked.out)
    save_file(average, asked.out)


def prior_loss(network: AtomNetwork, x_0: Tensor, counts: Tensor) -> Tensor:
    """The mean over atoms of the squared error of ``v = alpha eps - sigma x_0``.

    Draws of torch's global generator.
    """
    present = present_atoms(counts, MOST_ATOMS)
    here = present[..., None].float()
    eps = torch.randn_like(x_0)
    mean = (eps[..., :3] * here).sum(1, keepdim=True) / here.sum(1, keepdim=True)
    eps = torch.cat([eps[..., :3] - mean, eps[..., 3:]], -1) * here
    told = torch.rand(len(x_0)).clamp(min=1e-3)
    alpha, sigma = (v[:, None, None] for v in schedule().alpha_sigma(told))
    found = network(alpha * x_0 + sigma * eps, told, present)
    wanted = alpha * eps - sigma * x_0
    return ((found - wanted) ** 2).sum() / (here.sum() * x_0.shape[-1])


def train_regressor(asked: argparse.Namespace) -> None:
    """Mean absolute error of standardised properties; a twentieth of the half is kept to test."""
    torch.manual_seed(asked.seed)
    generator = torch.Generator().manual_seed(asked.seed)
    data = half(asked.data, second=True)
    network = PropertyNetwork()
    network.standardise(data["properties"])
    wanted = (data["properties"] - network.centre) / network.spread
    test = len(wanted) // 20
    optimiser = torch.optim.Adam(network.parameters(), asked.rate)
    begun, losses = time.process_time(), []
    while (share := (time.process_time() - begun) / asked.seconds) < 1:
        optimiser.param_groups[0]["lr"] = rate_at(share, asked.rate)
        rows = torch.randint(test, len(wanted), (asked.batch,), generator=generator)
        x = encoded(data["places"][rows], data["kinds"][rows])
        # Samples are not at rest to the last hundredth of an Å.
        x[..., :3] += asked.jitter * torch.randn(x[..., :3].shape, generator=generator)
        loss = (network.standardised(x, data["kinds"][rows] >= 0) - wanted[rows]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if len(losses) % LOOKS == 0:
            spent = time.process_time() - begun
            print(f"{len(losses)} {spent:.0f} s, loss {np.mean(losses[-LOOKS:]):.4f}", flush=True)
            save_file(network.state_dict(), asked.out)
    save_file(network.state_dict(), asked.out)
    with torch.no_grad():
        x = encoded(data["places"][:test], data["kinds"][:test])
        error = (network(x, data["kinds"][:test] >= 0) - data["properties"][:test]).abs().mean(0)
    for name, off, spread in zip(PROPERTIES, error, network.spread, strict=True):
        print(f"{name}: mean absolute error {off:.3f}, standard deviation {spread:.3f}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the shipped models of molecules.")
    parts = parser.add_subparsers(dest="part", required=True)
    data = parts.add_parser("data", help="read QM9 from its wheel")
    data.add_argument("--wheel", type=Path, required=True)
    data.add_argument("--out", type=Path, required=True)
    seen = parts.add_parser("seen", help="list the molecules that the prior is trained on")
    seen.add_argument("--data", type=Path, required=True)
    seen.add_argument("--out", type=Path, required=True)
    for name, seconds, average in (("prior", 1400.0, 0.999), ("regressor", 400.0, 0.0)):
        part = parts.add_parser(name, help=f"train the {name}")
        part.add_argument("--data", type=Path, required=True, help="what the part data wrote")
        part.add_argument("--out", type=Path, required=True, help="where to write the weights")
        part.add_argument("--seconds", type=float, default=seconds, help="of CPU time")
        part.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
        part.add_argument("--batch", type=int, default=128)
        part.add_argument("--average", type=float, default=average, help="decay of the average")
        part.add_argument("--jitter", type=float, default=0.01, help="noise of the places, Å")
        part.add_argument("--start", type=Path, default=None, help="weights to go on from")
        part.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    asked = parsed()
    torch.set_num_threads(1)
    if asked.part == "data":
        collect(asked.wheel, asked.out)
    elif asked.part == "seen":
        list_seen(asked.data, asked.out)
    elif asked.part == "prior":
        train_prior(asked)
    else:
        train_regressor(asked)
