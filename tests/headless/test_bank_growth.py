"""The benchmark of a growing bank makes up banks that are whole, and says how each operation grows."""

from cidm_ops.bank import manage
from cidm_ops.bank.bank import Bank
from cidm_ops.benchmarks.speed.bank import make_up, run


def test_made_up_banks_open_whole(tmp_path):
    make_up(tmp_path / "bank", 12)
    bank = Bank(tmp_path / "bank")
    assert len(bank.names) == 12 and not bank.damaged and bank.names[-1] == "dog"
    assert [*bank.read("a <c0000003> and a <dog>").strengths] == ["c0000003", "dog"]
    assert manage.verify(bank)["dog"] == ""


def test_every_operation_has_a_figure_at_every_size():
    found = run((20, 40))
    keys = {"open_first", "open", "prompt", "get", "paint_first", "paint", "add", "rename", "describe", "remove"}
    for size in ("20", "40"):
        assert {f"{key}_seconds" for key in keys} | {"files_mb", "index_mb", "open_mb"} == found["sizes"][size].keys()
    assert found["growth"].keys() == found["sizes"]["40"].keys() - {"files_mb"} and found["largest_index_mb"] == 256
