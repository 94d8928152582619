"""Files of others in a running ComfyUI: taken into a bank, looked at, and written for other loaders."""

import shutil

import numpy as np
import torch
from graphs import ATTENTION, community_lora, learn, node, paint
from PIL import Image
from safetensors.torch import load_file, save_file

from cidm_ops.bank.concept_file import load_concept


def take_in(bank, file, **inputs):
    """A prompt that imports a file into a bank."""
    given = dict(name="", triggers="", class_word="", rank=16, existing="refuse") | inputs
    return {
        "2": node("CIDMOpenBank", name=bank),
        "3": node("CIDMImportConcept", bank=["2", 0], file=file, **given),
        "4": node("PreviewAny", source=["3", 1]),
    }


def picture(server, prompt):
    image = server.run(prompt)["10"]["images"][0]
    return np.asarray(Image.open(server.folder / "output" / image["subfolder"] / image["filename"]), np.int16)


def test_an_imported_lora_paints_as_in_the_hosts_own_loader(server):
    file, delta = community_lora(server)
    said = server.run(take_in("taken", "loras/my_lora.safetensors", triggers="zzz"))["3"]["text"][0]
    assert "sd1-7x160" in said and "<my_lora>, zzz" in said
    concept = load_concept(server.bank("taken") / "my_lora.safetensors")
    assert any(torch.allclose(f.delta(), delta, atol=1e-6) for f in concept.factors.values())
    ours, theirs = picture(server, paint("taken", "a dog, zzz")), picture(server, paint("", "a dog, zzz", lora=file.name))
    without = picture(server, paint("taken", "a dog"))
    assert np.abs(ours - theirs).max() <= 1 and np.abs(ours - without).max() > 20


def test_an_import_queued_again_changes_nothing_and_another_is_refused(server):
    file, _ = community_lora(server, "loras/again.safetensors")
    server.run(take_in("reimported", "loras/again.safetensors"))
    written = server.bank("reimported") / "again.safetensors"
    first = written.stat().st_mtime_ns
    server.run(take_in("reimported", "loras/again.safetensors"))
    assert written.stat().st_mtime_ns == first
    assert "'again' already" in server.error(take_in("reimported", "loras/again.safetensors", triggers="other"))
    server.run(take_in("reimported", "loras/again.safetensors", triggers="other", existing="replace"))
    assert load_concept(written).triggers == ("other",)


def test_an_imported_embedding_is_a_word(server):
    (server.folder / "models" / "embeddings").mkdir(exist_ok=True)
    rows = torch.randn(2, 160, generator=torch.Generator().manual_seed(0))
    save_file({"clip_l": rows}, server.folder / "models" / "embeddings" / "toy.safetensors")
    server.run(take_in("words", "embeddings/toy.safetensors", class_word="toy"))
    ours = picture(server, paint("words", "a <toy> on the grass"))
    assert np.abs(ours - picture(server, paint("words", "a on the grass"))).max() > 5


def test_an_import_that_cannot_be_is_named(server):
    community_lora(server, "loras/dora.safetensors", **{f"{ATTENTION.format('to_k')}.dora_scale": torch.ones(128, 1)})
    assert "dora.safetensors" in (said := server.error(take_in("bad", "loras/dora.safetensors"))) and "DoRA" in said
    (server.folder / "models" / "loras" / "code.pth").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    assert "code.pth: it wants to run code (posix.system): refused" in server.error(take_in("bad", "loras/code.pth"))


def look(path="", file="none, the path below"):
    return {"1": node("CIDMInspectFile", file=file, path=str(path), architecture="from the file")}


def test_a_file_is_told_by_what_import_would_make_of_it(server):
    community_lora(server, "loras/seen.safetensors", **{"lora_unet_conv_in.diff_b": torch.ones(128)})
    (said,) = server.run(look(file="loras/seen.safetensors"))["1"]["text"]
    assert "a LoRA for Doodle (sd1-7x160)" in said and "2 layers of the model, rank 4" in said and "6 of 7 tensors" in said
    assert "not used: 1, a bias: lora_unet_conv_in.diff_b" in said
    (server.folder / "models" / "loras" / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    for how in (look(file="loras/pointer.safetensors"), look(server.folder / "models" / "loras" / "pointer.safetensors")):
        assert "git lfs pull" in server.run(how)["1"]["text"][0]
    assert "git lfs pull" in server.error(take_in("bad", "loras/pointer.safetensors"))
    server.run(take_in("looked_at", "loras/seen.safetensors"))
    assert "a bank of 1 concepts" in server.run(look("looked_at"))["1"]["text"][0]
    assert "there is nothing to inspect" in server.error(look())


def test_concepts_are_exported_as_files_that_the_host_reads(server):
    server.run(learn("exported", name="dog"))
    server.run(learn("exported", name="cat"))
    shutil.rmtree(server.folder / "output" / "loras", ignore_errors=True)  # of the templates
    bank = {"1": node("CIDMOpenBank", name="exported")}
    how = dict(bank=["1", 0], rank=2, strengths="1, 0.5", merged_name="both")
    server.run(bank | {"2": node("CIDMExportConcept", names="dog", form="lora and embedding", **how)})
    folder = server.folder / "output" / "loras"
    assert sorted(file.name for file in folder.iterdir()) == ["dog.safetensors", "dog_words.safetensors"]
    concept = load_concept(server.bank("exported") / "dog.safetensors")
    assert torch.allclose(load_file(folder / "dog_words.safetensors")["clip_l"], next(iter(concept.tokens.values())).mean(1), atol=1e-6)
    for name, place in (("dog.safetensors", "loras"), ("dog_words.safetensors", "embeddings")):
        (server.folder / "models" / place).mkdir(parents=True, exist_ok=True)
        (server.folder / "models" / place / name).write_bytes((folder / name).read_bytes())
    picture(server, paint("", "a embedding:dog_words on the grass", lora="dog.safetensors"))
    log = server.log.read_text()
    assert "lora key not loaded" not in log and "dog_words" not in log
    said = server.run(bank | {"2": node("CIDMExportConcept", names="", form="one merged LoRA", **how)})["2"]["text"][0]
    assert "both.safetensors" in said and "relative error 0." in said
    assert "2 strengths for 1 concepts" in server.error(bank | {"2": node("CIDMExportConcept", names="dog", form="one merged LoRA", **how)})
