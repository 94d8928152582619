"""What a file, a folder, a bank or a checkpoint is, what of it would be used and what not, and why, told by the readers that use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from .bank.archive import load_compressed
from .bank.concept import Concept
from .bank.exchange import Labels, Reading, handle, read_file
from .bank.index import SUFFIX, header_of, read_files
from .bank.picture_file import picture_size, suffixes
from .models.checkpoint import family_of_checkpoint, inventory, is_checkpoint, missing_parts, schedule_of_checkpoint
from .models.registry import family_of
from .tensor_file import read_tensors, tensors_in
from .training.folder import from_folder

TENSORS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pti")
MOST = 200  # files of a folder that are looked into
NAMED = 5  # keys of a kind that are not used
SIZE = 64  # pixels that pictures of a folder are decoded at


@dataclass(frozen=True)
class Finding:
    """A finding says what lies at a path, with lines on what is used of it and what not, remarks, and why it cannot be used, "" if it can;
    for a folder also what is in it.
    """

    path: Path
    what: str
    used: Sequence[str] = ()
    unused: Sequence[str] = ()
    remarks: Sequence[str] = ()
    refused: str = ""
    inside: Sequence["Finding"] = field(default_factory=tuple)

    @property
    def usable(self) -> bool:
        """Whether it can be used, and a folder if anything in it can."""
        return not self.refused and (not self.inside or any(found.usable for found in self.inside))


def inspect(path: Path | str, architecture: str = "", rank: int = 16) -> Finding:
    """Tell what lies at a path. Nothing is written, and no code of a file is run; what cannot be used is a finding and no error."""
    path = Path(path)
    labels = Labels(architecture=architecture, rank=rank)
    try:
        return inspect_folder(path, labels) if path.is_dir() else inspect_file(path, labels)
    except (ValueError, KeyError) as error:
        return Finding(path, "nothing that can be used", refused=str(error.args[0] if isinstance(error, KeyError) else error))
    except (OSError, RuntimeError, SafetensorError, MemoryError) as error:
        why = getattr(error, "strerror", None) or str(error) or "there is not enough memory"
        return Finding(path, "nothing that can be read", refused=why)


def inspect_file(file: Path, labels: Labels) -> Finding:
    """Tell what one file is. Raises what its reader raises."""
    if file.is_file() and file.suffix.lower() in suffixes():
        width, height = picture_size(file)
        return Finding(file, f"a picture of {width} x {height} pixels", ["in a folder with others, to learn from"])
    try:
        content, metadata = read_tensors(file, "meta")
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    if "cidm.bank" in metadata:
        return compressed_bank(file)
    tensors = {key.removeprefix("state_dict."): tensor for key, tensor in tensors_in(content).items()}
    if is_checkpoint(tensors):
        return checkpoint(file, tensors, metadata)
    unnamed = "cidm" not in metadata and not handle(file.stem)
    found = of_reading(file, read_file(file, replace(labels, name="concept") if unnamed else labels))
    return replace(found, remarks=[*found.remarks, "the file's name makes no concept's name: give one (--name)"]) if unnamed else found


def checkpoint(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Finding:
    """A base model in one file, by the names and shapes in it."""
    try:
        family = family_of_checkpoint(tensors)
        schedule = schedule_of_checkpoint(tensors, metadata, family)
    except ValueError as error:
        return Finding(file, "a checkpoint", refused=str(error))
    found = inventory(tensors)
    missing = missing_parts(found, family)
    predicts = "v" if schedule.get("prediction_type") == "v_prediction" else "epsilon"
    predicts += " and ends in pure noise (zero terminal SNR)" if schedule.get("rescale_betas_zero_snr") else ""
    return Finding(
        file,
        f"a checkpoint of {family.title} ({family.architecture}) that predicts {predicts}, for --base",
        [f"{part}: {count} tensors" for part, count in found.parts.items()],
        by_reason(found.unused),
        refused=f"it has no {' and no '.join(missing)}" if missing else "",
    )


def of_reading(file: Path, reading: Reading) -> Finding:
    """Tell what import would make of a file."""
    concept = reading.concept
    what = f"{reading.what} for {family_of(concept.architecture).title} ({concept.architecture})"
    total = len(reading.used) + len(reading.unused)
    used = [*contents_of(concept), f"{len(reading.used)} of {total} tensors"]
    said = [w for w in reading.warnings if not (reading.unused and "keys are left out" in w)]
    return Finding(file, what, used, by_reason(reading.unused), said)


def contents_of(concept: Concept) -> list[str]:
    """Factors, words and residuals of a concept in lines."""
    lines = []
    for factors, of in ((concept.factors, "of the model"), (concept.text_factors, "of the text encoders")):
        if factors:
            ranks = sorted({f.rank for f in factors.values()})
            lines.append(f"{len(factors)} layers {of}, rank {' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}")
    if concept.words:
        lines.append(f"{len(concept.words)} words for {' and '.join(concept.tokens)}")
    if concept.residuals:
        lines.append(f"{len(concept.residuals)} residuals of Infusion")
    if concept.triggers:
        lines.append(f"triggers: {', '.join(concept.triggers)}")
    return lines


def by_reason(unused: Mapping[str, str]) -> list[str]:
    """Keys that are not used, with some of their names, by the reason."""
    reasons: dict[str, list[str]] = {}
    for key, why in unused.items():
        reasons.setdefault(why, []).append(key)
    return [f"{len(keys)}, {why}: {', '.join(keys[:NAMED])}{', ...' if len(keys) > NAMED else ''}" for why, keys in reasons.items()]


def compressed_bank(file: Path) -> Finding:
    """A bank in one file."""
    names = [concept.name for concept in load_compressed(file).concepts]
    return Finding(file, f"a compressed bank of {len(names)} concepts: `cidm bank expand` makes files of them", [", ".join(names)])


def inspect_folder(folder: Path, labels: Labels) -> Finding:
    """A model in diffusers' layout, a bank, a folder of files of tensors, or one of pictures."""
    if (folder / "model_index.json").is_file() or (folder / "unet" / "config.json").is_file():
        return model_folder(folder)
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    if any(is_concept(file) for file in files):
        return bank_folder(folder)
    if tensors := [file for file in files if file.suffix.lower() in TENSORS]:
        found = tuple(inspect(file, labels.architecture, labels.rank) for file in tensors[:MOST])
        more = [f"{len(tensors) - MOST} more files are not looked into"] if len(tensors) > MOST else []
        return Finding(
            folder, f"a folder of {len(tensors)} files of tensors, and {len(files) - len(tensors)} others", remarks=more, inside=found
        )
    data = from_folder(folder, SIZE)
    return Finding(folder, f"a folder of {len(data.pictures)} pictures to learn from", [", ".join(data.names)], remarks=list(data.warnings))


def is_concept(file: Path) -> bool:
    """Whether a file is a concept of this pack, by its header."""
    try:
        return file.suffix == SUFFIX and bool(header_of(file))
    except ValueError:
        return False


def bank_folder(folder: Path) -> Finding:
    """Every concept of a bank, read as a whole, and what in its folder is none."""
    entries, damaged, _ = read_files(folder, {})
    found = [inspect(folder / name) for name in sorted(entries, key=lambda name: (entries[name]["header"]["task"], name))]
    wrong = [Finding(folder / f"{name}{SUFFIX}", "no concept of the bank", refused=why) for name, why in damaged.items()]
    return Finding(folder, f"a bank of {len(found)} concepts", inside=(*found, *wrong))


PARTS = ("unet", "text_encoder", "vae", "scheduler")


def model_folder(folder: Path) -> Finding:
    """A model in diffusers' layout, by its parts."""
    missing = [part for part in PARTS if not any((folder / part).glob("*.json"))]
    return Finding(
        folder,
        "a model in diffusers' layout, for --base",
        [", ".join(sorted(sub.name for sub in folder.iterdir() if sub.is_dir()))],
        refused=f"it lacks the folder {missing[0]} with its configuration" if missing else "",
    )


def lines_of(found: Finding, indent: str = "") -> list[str]:
    """A finding for reading."""
    lines = [f"{indent}{found.path.name or found.path}: {found.what}"]
    lines += [f"{indent}  used: {line}" for line in found.used]
    lines += [f"{indent}  not used: {line}" for line in found.unused]
    lines += [f"{indent}  note: {line}" for line in found.remarks]
    if found.refused:
        lines.append(f"{indent}  cannot be used: {found.refused.removeprefix(f'{found.path.name}: ')}")
    return lines + [line for inner in found.inside for line in lines_of(inner, f"{indent}  ")]
