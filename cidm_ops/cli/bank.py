"""`cidm bank …`: what is in a concept bank, what is wrong with it, and the keeping of it. Arguments and calls."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bank.header import RESIDUALS
from ..bank.index import read_headers
from ..printable import one_line
from .arguments import whole
from .progress import warn

if TYPE_CHECKING:
    from ..bank.bank import Bank

Options = argparse.Namespace


def check_there(folder: Path) -> Path:
    """Return the folder of a bank. Raises ``FileNotFoundError`` if there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no bank at {folder}: `cidm train` makes one")
    return folder


def existing(folder: Path) -> "Bank":
    """The bank in a folder. Raises ``FileNotFoundError`` if there is none."""
    from ..bank.bank import Bank

    return Bank(check_there(folder))


def show_list(options: Options) -> None:
    headers, damaged = read_headers(check_there(options.bank))
    for name, header in headers.items():
        words = " ".join([*header["words"], *header["triggers"]]) or ("by Infusion" if header["method"] == RESIDUALS else "")
        print(f"{header['task']:3d}  <{name}>  {one_line(header['class_word'])}  {one_line(words)}  {one_line(header['architecture'])}")
    warn(damaged.values())
    if options.picture:
        from ..bank.formats import write_picture
        from ..measure.cards import bank_table

        write_picture(bank_table(existing(options.bank)), options.picture)


def show(options: Options) -> None:
    bank = existing(options.bank)
    concept = bank.get(options.name)
    ranks = sorted({f.rank for f in concept.all_factors.values()})
    facts = {
        "name": f"<{concept.name}>",
        "class word": concept.class_word,
        "words": " ".join(concept.words),
        "triggers": ", ".join(concept.triggers),
        "task": concept.task,
        "base": f"{concept.architecture} {concept.fingerprint}",
        "factors": f"{len(concept.all_factors)} layers of rank {', '.join(map(str, ranks))}" if ranks else "",
        "residuals": f"{sum(r.numel() for r in concept.residuals.values())} numbers, by Infusion" if concept.residuals else "",
        **concept.about,
        **{key: value for key, value in concept.training.items() if key != "losses"},
    }
    for key, value in facts.items():
        if value != "":
            print(f"{one_line(key)}: {one_line(value)}")
    if options.picture:
        from ..bank.formats import write_picture
        from ..measure.cards import concept_card

        write_picture(concept_card(concept, bank.file(options.name)), options.picture)


def verify(options: Options) -> None:
    from ..bank import manage

    bank = existing(options.bank)
    found = manage.verify(bank)
    for name, wrong in found.items():
        print(f"{one_line(name)}: {one_line(wrong) or 'whole'}")
    warn(manage.remarks(bank))
    if bad := [name for name, wrong in found.items() if wrong]:
        raise ValueError(f"{len(bad)} of {len(found)} concepts are not as they should be: {', '.join(bad)}")


def repair(options: Options) -> None:
    from ..bank import manage

    bank = existing(options.bank)
    left = manage.leftovers(bank)
    bank = manage.repair(bank)
    print(f"{len(bank.names)} concepts")
    for part in left:
        if not part.exists():
            print(f"cleared {one_line(part.relative_to(bank.folder))}")
    warn(bank.damaged.values())


def remove(options: Options) -> None:
    from ..bank import manage

    bank = existing(options.bank)
    for name in options.names:
        bank = manage.remove(bank, name)
    print(f"{len(bank.names)} concepts")


def rename(options: Options) -> None:
    from ..bank import manage

    print(manage.rename(existing(options.bank), options.name, options.new).file(options.new))


def move(options: Options) -> None:
    from ..bank import manage

    print(" ".join(manage.move(existing(options.bank), options.name, options.place).names))


def merge(options: Options) -> None:
    from ..bank import manage
    from ..bank.bank import Bank

    print(" ".join(manage.merge(Bank(options.bank), existing(options.other), options.existing).names))


def describe(options: Options) -> None:
    from ..bank import manage
    from ..bank.thumbnails import from_file

    about = {key: getattr(options, key) for key in ("author", "license", "description") if getattr(options, key) is not None}
    bank = existing(options.bank)
    manage.describe(bank, options.name, about, options.preview and from_file(options.preview))
    print(bank.file(options.name))


def compress(options: Options) -> None:
    from ..bank.archive import compress_bank

    file, report = compress_bank(existing(options.bank), options.out, options.tolerance, options.rank, options.dtype)
    print(report, file=sys.stderr)
    print(file)


def expand(options: Options) -> None:
    from ..bank.archive import expand_into

    print(" ".join(expand_into(options.file, options.bank).names))


def overlap(options: Options) -> None:
    from ..bank.formats import write_picture
    from ..measure.pictures import overlap_map, pair_map

    bank = existing(options.bank)
    if options.names and len(options.names) != 2:
        raise ValueError(f"{len(options.names)} names: expected two for the overlap layer by layer, or none for that of all concepts")
    concepts = [bank.get(name) for name in options.names] if options.names else bank.concepts()
    picture, found = pair_map(*concepts) if options.names else overlap_map(concepts)
    for row in found.tolist():
        print("  ".join(f"{value:.3f}" for value in row))
    if options.picture:
        write_picture(picture, options.picture)


def take_in(options: Options) -> None:
    from ..bank.bank import Bank
    from ..bank.exchange import import_into

    how = {key: getattr(options, key) for key in ("name", "class_word", "architecture", "rank", "existing")}
    bank, concepts, warnings = import_into(Bank(options.bank), options.file, triggers=tuple(options.trigger), **how)
    for concept in concepts:
        print(bank.file(concept.name))
    warn(warnings)


def give_out(options: Options) -> None:
    from ..bank.export import export_concept, export_merged

    bank = existing(options.bank)
    concepts = [bank.get(name) for name in options.names]
    if options.merged:
        file = options.out / f"{'_'.join(options.names)[:100]}.safetensors"
        error = export_merged(concepts, [1.0] * len(concepts), options.rank, file)
        print(f"error of rank {options.rank}: {error:.4f}", file=sys.stderr)
        print(file)
        return
    for concept in concepts:
        for file in export_concept(concept, options.out):
            print(file)


def add_commands(into: Any) -> None:
    """Adds every subcommand."""

    def command(name: str, call: Callable[[Options], None], text: str) -> argparse.ArgumentParser:
        added = into.add_parser(name, help=text, description=text)
        added.set_defaults(run=call)
        return added

    def on_bank(name: str, call: Callable[[Options], None], text: str) -> argparse.ArgumentParser:
        added = command(name, call, text)
        added.add_argument("bank", type=Path, help="folder of the concept bank")
        return added

    def picture(to: argparse.ArgumentParser, what: str) -> None:
        to.add_argument("--picture", type=Path, metavar="PNG", help=f"also draw {what}")

    one = "the concept's name"
    picture(on_bank("list", show_list, "the concepts of a bank in the order learned"), "the table with thumbnails")
    look = on_bank("show", show, "all about one concept")
    look.add_argument("name", help=one)
    picture(look, "its card")
    on_bank("verify", verify, "read every file as a whole; exit code 2 if anything is wrong")
    on_bank("repair", repair, "make the index anew and clear what interrupted writers left")
    on_bank("remove", remove, "delete concepts").add_argument("names", nargs="+", metavar="NAME", help=one)
    other = on_bank("rename", rename, "give a concept another name, its words with it")
    other.add_argument("name", help=one)
    other.add_argument("new", help="its new name")
    place = on_bank("move", move, "put a concept at another place in the order")
    place.add_argument("name", help=one)
    place.add_argument("place", type=whole(1), help="from 1")
    both = on_bank("merge", merge, "copy the concepts of another bank behind those of this one")
    both.add_argument("other", type=Path, help="folder of the other bank")
    both.add_argument(
        "--existing", choices=("refuse", "skip", "replace"), default="refuse", help="names that both have (default: %(default)s)"
    )
    about = on_bank("describe", describe, "set a concept's author, license, description and thumbnail")
    about.add_argument("name", help=one)
    for key in ("author", "license", "description"):
        about.add_argument(f"--{key}", help="empty takes it away")
    about.add_argument("--preview", type=Path, help="a picture, for the thumbnail")
    small = on_bank("compress", compress, "the whole bank in one file on shared bases")
    small.add_argument("--out", type=Path, help="the file (default: <bank>.compressed.safetensors beside the folder)")
    small.add_argument("--tolerance", type=float, default=0.05, help="largest error of a concept (default: %(default)s)")
    small.add_argument("--rank", type=whole(0), default=0, help="instead of a tolerance: directions of a basis at most")
    small.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of bases and cores (default: %(default)s)")
    large = command("expand", expand, "write the concepts of a compressed bank as files again")
    large.add_argument("file", type=Path, help="the compressed bank")
    large.add_argument("bank", type=Path, help="a folder without concepts")
    angles = on_bank("overlap", overlap, "cosines of the principal angles between what concepts write")
    angles.add_argument("names", nargs="*", metavar="NAME", help="two concepts, for every layer (default: all, over all layers)")
    picture(angles, "the map")
    foreign = command("import", take_in, "take a LoRA, an embedding or a reference file into a bank")
    foreign.add_argument("file", type=Path, help="the file")
    foreign.add_argument("--bank", type=Path, required=True, help="folder of the concept bank")
    foreign.add_argument("--name", default="", help="the concept's name (default: that of the file)")
    foreign.add_argument("--trigger", action="append", default=[], help="a word of prompts that it takes part in; may be repeated")
    foreign.add_argument("--class-word", default="", help="what it is in plain words")
    foreign.add_argument("--rank", type=whole(1), default=16, help="for kinds that are no low-rank factors (default: %(default)s)")
    foreign.add_argument("--architecture", default="", help="such as sd1-16x768, where the file's layers do not say it")
    foreign.add_argument(
        "--existing", choices=("refuse", "replace"), default="refuse", help="a concept of that name (default: %(default)s)"
    )
    out = on_bank("export", give_out, "concepts as plain LoRAs and embeddings")
    out.add_argument("names", nargs="+", metavar="NAME", help=one)
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    out.add_argument("--merged", action="store_true", help="all of them in one LoRA")
    out.add_argument("--rank", type=whole(1), default=16, help="of the merged LoRA (default: %(default)s)")
