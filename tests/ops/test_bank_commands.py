"""`cidm bank …`: every command does what it says, and refuses in one line."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_manage import filled

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank


@pytest.fixture
def cidm(capsys):
    """Run a command; returns its exit code, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = main(["bank", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def bank(tmp_path) -> Bank:
    return filled(tmp_path / "bank", "ant", "bee", "cow")


def test_a_bank_is_kept_from_the_command_line(cidm, bank, tmp_path):
    place = bank.folder
    assert cidm("rename", place, "bee", "wasp")[0] == 0
    assert cidm("move", place, "cow", 1)[1].split() == ["cow", "ant", "wasp"]
    filled(tmp_path / "other", "doe", "ant")
    assert cidm("merge", place, tmp_path / "other")[0] == 2
    assert cidm("merge", place, tmp_path / "other", "--existing", "skip")[1].split() == ["cow", "ant", "wasp", "doe"]
    assert cidm("remove", place, "cow", "doe")[1] == "2 concepts\n"
    Image.new("RGB", (300, 200)).save(tmp_path / "p.png")
    assert cidm("describe", place, "ant", "--author", "Me", "--preview", tmp_path / "p.png")[0] == 0
    code, out, _ = cidm("show", place, "ant", "--picture", tmp_path / "card.png")
    assert code == 0 and "author: Me" in out and "words: <ant.1> <ant.2>" in out and Image.open(tmp_path / "card.png").width > 500
    assert "<wasp>" in cidm("list", place, "--picture", tmp_path / "table.png")[1] and Image.open(tmp_path / "table.png").height > 100
    assert cidm("verify", place)[:2] == (0, "ant: whole\nwasp: whole\n")


def test_a_bank_goes_into_one_file_and_back(cidm, bank, tmp_path):
    code, out, err = cidm("compress", bank.folder, "--tolerance", 0.1, "--dtype", "float16")
    assert code == 0 and out.strip() == str(tmp_path / "bank.compressed.safetensors") and "largest error" in err
    assert cidm("expand", out.strip(), tmp_path / "back")[1].split() == bank.names == Bank(tmp_path / "back").names


def test_concepts_go_out_as_loras_and_come_in(cidm, bank, tmp_path):
    files = cidm("export", bank.folder, "ant", "--out", tmp_path / "out")[1].split()
    assert [Path(file).name for file in files] == ["ant.safetensors", "ant_words.safetensors"]
    code, out, err = cidm("export", bank.folder, "ant", "bee", "--out", tmp_path / "out", "--merged", "--rank", 8)
    assert code == 0 and out.strip().endswith("ant_bee.safetensors") and "error of rank 8" in err
    architecture = bank.headers["ant"]["architecture"]
    taken = ("import", files[0], "--bank", bank.folder, "--name", "fly", "--trigger", "bzz", "--architecture", architecture)
    assert cidm(*taken)[0] == 0
    back, ant = Bank(bank.folder).get("fly"), bank.get("ant")
    assert back.triggers == ("bzz",) and Bank(bank.folder).read("a bzz").strengths == {"fly": 1.0}
    for name, f in ant.factors.items():
        torch.testing.assert_close(back.factors[name].delta(), f.delta())
    assert cidm(*taken[:-4], "--trigger", "sum")[0] == 2


def test_the_overlap_of_all_and_of_two(cidm, bank, tmp_path):
    rows = cidm("overlap", bank.folder, "--picture", tmp_path / "map.png")[1].splitlines()
    assert len(rows) == 3 and rows[0].startswith("1.000") and Image.open(tmp_path / "map.png").width > 100
    assert len(cidm("overlap", bank.folder, "ant", "bee")[1].splitlines()) == 1


def test_what_is_damaged_is_named_and_gives_exit_code_2(cidm, bank):
    bank.file("bee").write_bytes(bank.file("bee").read_bytes()[:-1])
    code, out, err = cidm("verify", bank.folder)
    assert code == 2 and "bee.safetensors" in out and "1 of 3 concepts" in err
    code, out, err = cidm("repair", bank.folder)
    assert code == 0 and out == "2 concepts\n" and "bee.safetensors" in err


@pytest.mark.parametrize(
    "argv, said",
    [
        (("list", "nowhere"), "there is no bank at nowhere"),
        (("show", "BANK", "fly"), "no concept 'fly'"),
        (("rename", "BANK", "ant", "a/b"), "concept name 'a/b'"),
        (("move", "BANK", "ant", 9), "place 9"),
        (("overlap", "BANK", "ant"), "expected two"),
        (("compress", "BANK", "--tolerance", 2), "tolerance 2.0"),
        (("expand", "BANK/ant.safetensors", "out"), "not a compressed bank"),
    ],
    ids=lambda a: a[0] if isinstance(a, tuple) else "",
)
def test_what_cannot_be_is_one_line(cidm, bank, argv, said):
    code, out, err = cidm(*(str(a).replace("BANK", str(bank.folder)) for a in argv))
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1
    assert Bank(bank.folder).names == ["ant", "bee", "cow"]
