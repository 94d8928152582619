"""`cidm doodle ten`: a bank of Doodle's concepts is learned by one command, says whose they are, and is only read the second time."""

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.doodle.concepts import CONCEPTS
from cidm_ops.evaluation import ten


def test_concepts_are_learned_described_and_not_learned_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ten, "RECIPE", ten.RECIPE.update(steps=1))
    monkeypatch.setattr(ten, "CONCEPTS", {name: CONCEPTS[name] for name in ("dog", "ink")})
    assert main(["doodle", "ten", str(tmp_path)]) == 0
    bank = Bank(tmp_path)
    assert bank.names == ["dog", "ink"] and bank.get("dog").preview
    assert bank.get("ink").about == {"author": "CIDM", "license": "Apache-2.0", "description": "an ink painting of the Doodle world"}
    before = {name: bank.file(name).read_bytes() for name in bank.names}
    assert main(["doodle", "ten", str(tmp_path)]) == 0
    assert {name: bank.file(name).read_bytes() for name in bank.names} == before
