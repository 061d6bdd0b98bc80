"""Train the priors that ``difftilt.tasks.sequences`` ships, and write their labelled pairs.

    pip download --no-deps modlamp==4.3.3 qm9pack==1.0.3, unzip both wheels into DATA
    python scripts/train_sequences.py --data DATA --parts peptides --minutes 8

Peptides are those of modlAMP's AMPvsUniProt set, at most 32 residues, in thirds: the first has
antimicrobial labels, the second hydropathy's, the last is for the judge and no prior sees it.
Molecules are those of QM9 as SELFIES of at most 17 tokens: half for the prior, of the other half
labelled pairs for each control. One seed fixes every draw; the learning rate follows the
clock of the processor.
"""

import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor
from training_by_clock import train_by_clock

from difftilt.tasks.any_order import drawn_masks, stratified
from difftilt.tasks.sequences import dna, molecules, peptides
from difftilt.tasks.sequences.network import SequenceNetwork
from difftilt.tasks.sequences.sets import SIZES

Part = Literal["dna", "peptides", "selfies"]
PAIRS = 8_000


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    data: Path = Path(".")
    """Folder with the unpacked wheels: modlamp/ and qm9pack/ somewhere below."""
    out: Path = Path("src/difftilt/tasks/data/sequences")
    """Folder that receives the weights and the pairs."""
    parts: tuple[Part, ...] = ("dna", "peptides", "selfies")
    minutes: float = 8.0
    """Of each part, of one core."""
    molecules: int = 60_000
    """Molecules of QM9 that are read, evenly spread over its order."""
    batch: int = 256
    learning_rate: float = 3e-3
    seed: int = 0
    threads: int = 1


def peptide_parts(settings: Settings) -> tuple[Tensor, Tensor]:
    """Peptides for the prior and held-out ones; writes the labelled thirds."""
    path = next(settings.data.rglob("AMPvsUniProt.csv"))
    labels: dict[str, set[int]] = {}
    for sequence, label in list(csv.reader(path.open()))[1:]:
        labels.setdefault(sequence.strip(), set()).add(int(label))
    known = {s: min(y) for s, y in labels.items() if len(y) == 1 and len(s) <= peptides.LENGTH}
    order = np.random.default_rng(settings.seed).permutation(len(known))
    ids = peptides.encoded(list(known))[order]
    antimicrobial = torch.tensor(list(known.values()))[order]
    first, second, third = torch.arange(len(ids)).tensor_split(3)
    hydrophobic = peptides.hydropathy(ids) > 0
    _save_pairs(
        settings.out / "peptides.npz",
        first=(ids[first], antimicrobial[first]),
        second=(ids[second], hydrophobic[second]),
        judge=(ids[third], antimicrobial[third]),
    )
    return ids[: len(first) + len(second)], ids[third]


def molecule_parts(settings: Settings) -> tuple[Tensor, Tensor]:
    """SELFIES for the prior and held-out ones; writes pairs and fingerprints."""
    csv.field_size_limit(10**9)
    found: list[str] = []
    for path in sorted(settings.data.rglob("qm9_part*.csv")):
        with path.open() as lines:
            found += [row["SMILES"] for row in csv.DictReader(lines)]
    chosen = found[:: max(1, len(found) // settings.molecules)]
    distinct = sorted({molecules.canonical(each) for each in chosen} - {""})
    order = np.random.default_rng(settings.seed).permutation(len(distinct))
    smiles = [distinct[i] for i in order]
    half = len(smiles) // 2
    seen, apart = (_encoded_molecules(part) for part in (smiles[:half], smiles[half:]))
    first, second, held_out = apart[:PAIRS], apart[PAIRS : 2 * PAIRS], apart[2 * PAIRS :]
    known = molecules.fingerprints(smiles[:half]).sort().values
    _save_pairs(
        settings.out / "selfies.npz",
        first=(first, molecules.controls(first)[:, 0]),
        second=(second, molecules.controls(second)[:, 1]),
        known=known.numpy().astype(np.uint32),
    )
    return seen, held_out


def _encoded_molecules(smiles: list[str]) -> Int[Tensor, "n L"]:
    rows = [molecules.encoded_smiles(each) for each in smiles]
    return torch.tensor([row for row in rows if row is not None])


def _save_pairs(path: Path, known: np.ndarray | None = None, **sets: tuple[Tensor, Tensor]) -> None:
    arrays = {} if known is None else {"known": known}
    for name, (x, y) in sets.items():
        arrays |= {f"{name}_x": x.numpy().astype(np.uint8), f"{name}_y": y.numpy().astype(np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]


def dna_parts(settings: Settings) -> tuple[Tensor, Tensor]:
    """Sequences of the Markov chain."""
    generator = torch.Generator().manual_seed(settings.seed)
    return dna.drawn_dna(200_000, generator), dna.drawn_dna(2_000, generator)


def masked_terms(
    network: SequenceNetwork, x: Int[Tensor, "B L"], generator: torch.Generator | None = None
) -> Tensor:
    """One draw of the any-order bound on ``log p(x)`` per sequence, nats."""
    opened = torch.ones_like(x, dtype=torch.bool)
    masks = drawn_masks(opened, stratified(len(x), generator), generator)
    hidden = network.network.hidden(x.masked_fill(masks, network.mask_id))
    logits = network.logits(hidden[masks])
    terms = -torch.nn.functional.cross_entropy(logits.float(), x[masks], reduction="none")
    total = torch.zeros(len(x)).index_add(0, masks.nonzero()[:, 0], terms)
    return total * x.shape[1] / masks.sum(1)


PARTS: dict[Part, Callable[[Settings], tuple[Tensor, Tensor]]] = {
    "dna": dna_parts,
    "peptides": peptide_parts,
    "selfies": molecule_parts,
}


def train_part(settings: Settings, part: Part) -> None:
    """Write a set's pairs, train its prior, say how likely it finds held-out sequences."""
    torch.manual_seed(settings.seed)
    seen, held_out = PARTS[part](settings)
    vocab_size, size = SIZES[part]
    network = SequenceNetwork(vocab_size, seen.shape[1], size)
    count = sum(p.numel() for p in network.parameters())
    print(f"{part}: {len(seen)} sequences, {count} parameters", file=sys.stderr)

    def loss() -> Tensor:
        return -masked_terms(network, seen[torch.randint(len(seen), (settings.batch,))]).mean()

    minutes, rate = settings.minutes, settings.learning_rate
    train_by_clock(part, network, loss, minutes, rate, time.process_time)
    state = {name: each.half() for name, each in network.state_dict().items()}
    save_file(state, settings.out / f"{part}.safetensors")
    with torch.no_grad():
        for name, each in (("seen", seen), ("held out", held_out)):
            drawn = torch.stack([masked_terms(network, each[:2000]) for _ in range(32)])
            print(f"{part}: any-order bound, {name}: {drawn.mean():.3f} nats a sequence")


def main(settings: Settings) -> None:
    """Train the parts."""
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    for part in settings.parts:
        train_part(settings, part)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
