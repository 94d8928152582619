"""A bank in one file: what it promises of size, error and exactness, and what happens to what is not one."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_manage import filled

from cidm_ops.bank.archive import compress_bank, expand_into, load_compressed, save_compressed
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.compress import Compressed, add, compress, distance, numbers
from cidm_ops.bank.concept import Concept
from cidm_ops.lowrank import LowRank

LAYERS = {
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (48, 32),
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q": (32, 32),
}
CONV, TEXT = "down_blocks.0.resnets.0.conv1", "clip_l.encoder.layers.0.self_attn.q_proj"


def related(count: int, shared: int = 6, noise: float = 0.01, rank: int = 4, start: int = 0) -> list[Concept]:
    """Concepts whose factors lie in spaces of ``shared`` dimensions that all have, but for some noise."""
    common = torch.Generator().manual_seed(0)
    spaces = {n: (torch.randn(o, shared, generator=common), torch.randn(shared, i, generator=common)) for n, (o, i) in LAYERS.items()}
    out = []
    for g in range(start, start + count):
        draw = torch.Generator().manual_seed(g + 1)
        factors = {
            n: LowRank(
                up @ torch.randn(shared, rank, generator=draw) + noise * torch.randn(len(up), rank, generator=draw),
                0.1 * torch.randn(rank, shared, generator=draw) @ down,
            )
            for n, (up, down) in spaces.items()
        }
        name, tokens = f"c{g}", {"clip_l": torch.randn(2, 3, 4, generator=draw)}
        training = {"losses": torch.rand(5, generator=draw).double().tolist(), "steps": 5}
        made = Concept(
            name=name,
            class_word="dog",
            words=(f"<{name}.1>", f"<{name}.2>"),
            factors=factors,
            tokens=tokens,
            architecture="sd1-3x4",
            fingerprint="abc",
            task=g + 1,
            training=training,
            token_layers=(0, 2, 1),
        )
        out.append(replace(made, about={"author": "A. Person"}, preview=b"\xff\xd8" + bytes([g])))
    return out


def error(a: Concept, b: Concept) -> float:
    """Over all layers, from the full matrices."""
    lost = sum(float((f.delta().double() - b.all_factors[n].delta().double()).square().sum()) for n, f in a.all_factors.items())
    return (lost / sum(float(f.delta().double().square().sum()) for f in a.all_factors.values())) ** 0.5


def texts(c: Concept) -> Concept:
    return replace(c, factors={}, text_factors={}, tokens={})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("tolerance", [0.01, 0.1, 0.4])
def test_no_concept_loses_more_than_the_tolerance_and_what_is_said_is_so(tolerance, dtype):
    concepts = related(12)
    small = compress(concepts, tolerance, dtype=dtype)
    for c, back in zip(concepts, small.expand(), strict=True):
        assert small.errors[c.name] == pytest.approx(error(c, back), rel=1e-2, abs=1e-6)
        assert small.errors[c.name] <= tolerance and small.bounds[c.name] <= tolerance
        assert dtype == "float16" or small.errors[c.name] <= small.bounds[c.name] + 1e-6


def test_concepts_that_share_directions_share_bases():
    concepts = related(40)
    small = compress(concepts, 0.05)
    assert all(basis.up is not None and len(basis.up) == 6 and basis.down is not None for basis in small.bases.values())
    assert numbers(small) < 0.35 * sum(f.up.numel() + f.down.numel() for c in concepts for f in c.factors.values())


def test_concepts_that_share_nothing_keep_their_factors_and_grow_no_larger():
    concepts = related(4, shared=32, noise=1.0)
    small = compress(concepts, 0.01)
    assert numbers(small) <= sum(f.up.numel() + f.down.numel() for c in concepts for f in c.factors.values())


def test_a_rank_bounds_the_bases_and_the_error_is_said():
    concepts = related(12, shared=12)
    small = compress(concepts, rank=8)
    assert all(len(rows) <= 8 for basis in small.bases.values() for rows in (basis.up, basis.down) if rows is not None)
    for c, back in zip(concepts, small.expand(), strict=True):
        assert small.errors[c.name] == pytest.approx(error(c, back), rel=1e-3) and 0.1 < error(c, back) <= small.bounds[c.name] + 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_concept_that_comes_later_changes_no_earlier_one_by_a_bit(dtype):
    first = compress(related(12), 0.05, dtype=dtype)
    new = related(3, shared=7, start=20)
    both = add(first, new)
    assert all(len(both.bases[n].up) > len(first.bases[n].up) for n in LAYERS), "the bases grew"
    for a, b in zip(first.expand(), both.expand(), strict=False):
        assert all(torch.equal(f.up, b.factors[n].up) and torch.equal(f.down, b.factors[n].down) for n, f in a.factors.items())
        assert first.errors[a.name] == both.errors[a.name]
    for c, back in zip(new, both.expand()[12:], strict=True):
        assert error(c, back) <= 0.05 and both.errors[c.name] == pytest.approx(error(c, back), rel=1e-2)
    for basis in both.bases.values():
        assert (basis.up.double() @ basis.up.double().T - torch.eye(len(basis.up))).abs().max() < 2e-3


def test_a_concept_within_the_bases_adds_no_direction():
    first = compress(related(12), 0.05)
    both = add(first, related(1, start=30))
    assert all(len(both.bases[n].up) == len(first.bases[n].up) for n in LAYERS)


def test_layers_of_some_concepts_only_convolutions_and_text_encoders():
    concepts = related(3)
    torch.manual_seed(0)
    extra = {CONV: LowRank(torch.randn(8, 2), torch.randn(2, 36), (3, 3))}
    concepts[1] = replace(
        concepts[1], factors=concepts[1].factors | extra, text_factors={TEXT: LowRank(torch.randn(9, 3), torch.randn(3, 9))}
    )
    concepts[2] = replace(concepts[2], factors={n: LowRank(torch.zeros_like(f.up), f.down) for n, f in concepts[2].factors.items()})
    back = compress(concepts, 0.05).expand()
    assert list(back[1].factors) == list(concepts[1].factors) and back[1].factors[CONV].kernel == (3, 3)
    assert error(concepts[1], back[1]) <= 0.05 and list(back[1].text_factors) == [TEXT] and list(back[0].text_factors) == []
    assert all(f.delta().abs().max() == 0 for f in back[2].factors.values())


def test_the_file_holds_the_same_and_expands_to_the_same_bytes_twice(tmp_path):
    small = add(compress(related(12), 0.05, dtype="float16"), related(2, shared=7, start=20))
    save_compressed(small, tmp_path / "x.safetensors")
    read = load_compressed(tmp_path / "x.safetensors")
    assert (read.errors, read.bounds, read.tolerance, read.rank, read.dtype) == (small.errors, small.bounds, 0.05, 0, "float16")
    one, two = (expand_into(tmp_path / "x.safetensors", tmp_path / name) for name in ("one", "two"))
    assert expand_into(tmp_path / "x.safetensors", tmp_path / "two").names == two.names == [f"c{g}" for g in (*range(12), 20, 21)]
    for c in [*related(12), *related(2, shared=7, start=20)]:
        assert one.file(c.name).read_bytes() == two.file(c.name).read_bytes()
        back = one.get(c.name)
        assert texts(back) == texts(c) and torch.equal(back.tokens["clip_l"], c.tokens["clip_l"])
        kept = next(e for e in small.expand() if e.name == c.name)
        assert all(torch.equal(f.up, back.factors[n].up) and torch.equal(f.down, back.factors[n].down) for n, f in kept.factors.items())


def test_a_folder_with_another_concept_of_that_name_is_left_alone(tmp_path):
    save_compressed(compress(related(2)), tmp_path / "x.safetensors")
    other = filled(tmp_path / "bank", "c0")
    before = other.file("c0").read_bytes()
    with pytest.raises(ValueError, match="another concept 'c0'"):
        expand_into(tmp_path / "x.safetensors", other.folder)
    assert other.names == Bank(other.folder).names and other.file("c0").read_bytes() == before


def test_a_bank_is_compressed_beside_its_folder(tmp_path):
    bank = filled(tmp_path / "bank", "ant", "bee")
    file, report = compress_bank(bank)
    assert file == tmp_path / "bank.compressed.safetensors" and "2 concepts" in report and "largest error" in report
    assert Bank(tmp_path / "bank").names == bank.names
    with pytest.raises(ValueError, match="nothing to compress"):
        compress_bank(Bank(tmp_path / "none"))
    bank.file("bee").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"bee\.safetensors"):
        compress_bank(Bank(bank.folder))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign", "concept", "flipped", "newer"])
def test_a_damaged_or_foreign_file_is_one_error_that_names_it(tmp_path, damage):
    file = tmp_path / "x.compressed.safetensors"
    save_compressed(compress(related(3)), file)
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[13 + int.from_bytes(data[:8], "little")] ^= 4  # in a core
    elif damage == "newer":
        data = data.replace(b'{\\"format\\": 1', b'{\\"format\\": 9')
    file.write_bytes({"cut": data[:-50], "empty": b"", "text": b"hello" * 99}.get(damage, data))
    if damage == "foreign":
        save_file({"x": torch.zeros(1)}, file)
    elif damage == "concept":
        file.write_bytes(filled(tmp_path / "bank", "ant").file("ant").read_bytes())
    with pytest.raises(ValueError, match=r"^x\.compressed\.safetensors: " + ("written in format 9" if damage == "newer" else "")):
        expand_into(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_be_are_refused():
    for options, said in (({"tolerance": 0.0}, "tolerance"), ({"rank": -1}, "rank"), ({"dtype": "int8"}, "float32, float16")):
        with pytest.raises(ValueError, match=said):
            compress(related(2), **options)
    with pytest.raises(ValueError, match="store float32"):
        compress(related(2), 1e-5, dtype="float16")
    with pytest.raises(ValueError, match="'c1' already"):
        add(compress(related(2)), related(1, start=1))
    with pytest.raises(ValueError, match="sd1-16x768"):
        add(compress(related(2)), [replace(related(1, start=5)[0], architecture="sd1-16x768")])


def test_the_distance_of_factors_is_that_of_their_matrices():
    torch.manual_seed(0)
    f, g = (LowRank(torch.randn(7, 3), torch.randn(3, 5)) for _ in range(2))
    assert distance(f, g) == pytest.approx(float((f.delta() - g.delta()).norm()), rel=1e-5)
    assert Compressed().expand() == []
