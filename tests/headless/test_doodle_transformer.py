"""Doodle as a transformer: what it learns on, and the base that comes of it, with weights that are random and lively."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from cidm_ops.__main__ import main
from cidm_ops.adapters import joint_linears
from cidm_ops.bank.bank import Bank
from cidm_ops.doodle.files import TEXT_CONFIG
from cidm_ops.doodle.training.alignment import align_transformer
from cidm_ops.doodle.training.autoencoder import pass_through
from cidm_ops.doodle.training.base import result_file, write_transformer
from cidm_ops.doodle.training.diffusion import DiffusionRecipe, Pictures, loss_of, text_encoder
from cidm_ops.doodle.training.loop import Session, save_tensors
from cidm_ops.doodle.training.tokens import Tokens, shipped_text, table_rows, token_ids
from cidm_ops.doodle.training.transformer import learn_transformer, new_transformer, trained_text
from cidm_ops.engines.diffusers import load_any
from cidm_ops.engines.lumina_at_once import AtOnce
from cidm_ops.engines.transformer import family_in
from cidm_ops.models.clip import CHUNK, END, START
from cidm_ops.models.doodle_transformer import DOODLE_TRANSFORMER
from cidm_ops.models.nextdit import LUMINA
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.compose import ConceptMix
from cidm_ops.painting.joint_paint import read_region

CAPTIONS = [["a dog, on the grass", "a dog"], ["a white cat with black spots and a red hat", "a cat"]]
TOKENS = Tokens(token_ids(CAPTIONS))


def lively(seed: int = 1) -> Any:
    """A transformer whose every layer has a part in what it answers."""
    model, draw = new_transformer(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the stages before it make, and a transformer."""
    folder = tmp_path_factory.mktemp("marks")
    torch.manual_seed(0)
    text = text_encoder(TEXT_CONFIG, TOKENS.vocabulary, TOKENS.end)
    for name, state in {
        "text": shipped_text(text.state_dict(), TOKENS),
        "vae": pass_through(DOODLE.latent_channels).state_dict(),
        "transformer": lively().state_dict(),
    }.items():
        save_tensors({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, result_file(folder, name))
    write_transformer(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder) -> Any:
    return load_any(folder / "transformer")


@pytest.fixture(scope="module")
def text(folder):
    return trained_text(result_file(folder, "text"))


def test_it_begins_with_an_answer_of_nothing_and_has_the_sizes_of_its_family():
    model = new_transformer()
    assert 4.2e6 < sum(p.numel() for p in model.parameters()) < 4.3e6
    linears = {name: (m.out_features, m.in_features) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert linears == dict(DOODLE_TRANSFORMER.shapes)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert not model(torch.randn(2, 16, 16, 16), torch.tensor([0.1, 0.8]), torch.randn(2, 3, 160), mask).sample.any()


def test_it_learns_on_the_words_that_its_base_reads(base, text):
    ids = TOKENS.batch(np.arange(4), np.random.default_rng(0), dropout=0.0, rare=0.0)
    rows = table_rows(TOKENS)
    assert len(rows) == TOKENS.vocabulary and len(rows.unique()) == len(rows), "words without meaning are none of a caption"
    for caption, read in zip((caption for captions in CAPTIONS for caption in captions), rows[ids], strict=True):
        own = base.tokenize(caption)
        assert own[0, 0] == START and own[0, -1] == END and torch.equal(read[: own.shape[1]], own[0])
        assert bool((read[own.shape[1] :] == END).all()), "what fills it up"
        torch.testing.assert_close(base.read(caption)[0], text(read[None]).last_hidden_state[:, : own.shape[1]], atol=1e-5, rtol=1e-5)
    assert base.read("")[0].shape == (1, 2, 160) and base.read(100 * "dog ")[0].shape == (1, CHUNK, 160)


def test_texts_of_different_length_are_learned_as_each_alone():
    """Their answers are those of each, and the image's features are found behind each text."""
    model = lively()
    alignment = align_transformer(model, 4)
    x, sigma = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.9])
    states, lengths = torch.randn(2, 11, 160, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 11])
    with torch.no_grad():
        both = AtOnce(model)(x, sigma, states, lengths)
        features = alignment.features
        assert features is not None and features.shape == (2, 192, 8, 8)
        assert float(alignment(torch.ones(2, 4, 16, 16))) > 0
        for row, length in enumerate(lengths.tolist()):
            mask = torch.ones(1, length, dtype=torch.bool)
            alone = model(x[row, None], sigma[row, None], states[row, None, :length], mask).sample
            torch.testing.assert_close(both[row, None], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(features[row, None], alignment.features, atol=1e-5, rtol=1e-5)


def test_a_few_steps_lower_the_loss_and_leave_the_text_encoder(text, tmp_path):
    before = {key: value.clone() for key, value in text.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    pictures = Pictures(torch.randn(2, 16, 16, 16, generator=draw), np.ones((2, 16, 16), bool), torch.randn(2, 4, 16, 16, generator=draw))
    model = new_transformer()

    def loss() -> float:
        def guess(noisy: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            states = text(table_rows(TOKENS)[ids]).last_hidden_state
            return -model(noisy, 1 - (t + 1) / 1000, states, torch.ones(ids.shape, dtype=torch.bool)).sample

        clean = Pictures(pictures.latents)
        asked = loss_of(guess, clean, TOKENS, DiffusionRecipe("flow", 0.0, 16, middle=0.75), nn.ModuleDict(), torch.device("cpu"))
        with torch.no_grad():
            return float(asked(np.random.default_rng(5), torch.Generator().manual_seed(5)))

    nothing = loss()
    recipe = DiffusionRecipe("flow", 0.0, 4, 0.02, 0.0, 0.75, 6.0, 0.5)
    learn_transformer(model, text, pictures, TOKENS, Session(tmp_path), steps=40, recipe=recipe)
    assert loss() < 0.95 * nothing
    assert all(torch.equal(value, before[key]) for key, value in text.state_dict().items())


def test_what_comes_of_it_is_a_base_of_its_own(folder, base):
    assert base.family is DOODLE_TRANSFORMER and base.architecture == "lumina2-7x192" and base.size == 128
    assert base.schedule.prediction == "flow" and float(base.schedule.sigma[499]) == 0.5
    for name, part in {"transformer": base.unet, "vae": base.vae}.items():
        weights = load_file(result_file(folder, name))
        assert all(torch.equal(weight, weights[key].float()) for key, weight in part.state_dict().items())
    words = load_file(result_file(folder, "text"))
    table = base.part("text_encoder").get_input_embeddings().weight
    assert torch.equal(table[words["token_ids"].long()], words["token_rows"].float())
    picture = torch.rand(1, 3, 128, 128) * 2 - 1
    assert base.encode_image(picture).shape == (1, *DOODLE_TRANSFORMER.latent_shape(128, 128))
    lumina = {"_class_name": "Lumina2Transformer2DModel", "hidden_size": 2304}
    assert family_in(lumina) is LUMINA, "the whole Lumina 2 stays what it was"


def test_a_concept_is_learned_on_it_and_acts_alone_and_in_a_region(folder, base, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    common = ["--base", str(base.folder), "--device", "cpu"]
    learn = ["train", *common, "--bank", str(tmp_path / "bank"), "--images", str(tmp_path / "photos"), "--name", "rex"]
    assert main([*learn, "--class-word", "dog", "--steps", "2", "--rank", "2", "--set", "lr=0.5"]) == 0, capsys.readouterr().err
    concept = Bank(tmp_path / "bank").get("rex")
    assert concept.architecture == "lumina2-7x192"
    assert {*concept.factors} == {*joint_linears(base.family, base.layers)} and len(concept.factors) == 7 * 7
    shown = {}
    for name, (bank, prompt, *more) in {
        "concept": ("bank", "a <rex>"),
        "words": ("none", "a rex dog"),
        "region": ("bank", "a cat", "--region", "0,0,0.5,1: a <rex>", "--region", "0.5,0,1,1: a dog in the snow"),
        "plain": ("bank", "a cat"),
    }.items():
        given = [*common, "--bank", str(tmp_path / bank), "--steps", "2", "--prompt", prompt, *more]
        assert main(["generate", *given, "--out", str(tmp_path / name)]) == 0, capsys.readouterr().err
        (file,) = (tmp_path / name).glob("*.png")
        shown[name] = np.asarray(Image.open(file)).astype(int)
        assert shown[name].shape == (128, 128, 3)
    for one, other in (("concept", "words"), ("region", "plain")):
        assert (shown[one] != shown[other]).any(), f"{one} and {other} are one picture"
    sought = read_region(base, ConceptMix("a rex dog on the grass", [concept], {"rex": 1.0}), True)
    assert sought.plans[0].token_masks["rex"].nonzero()[:, 0].tolist() == [2, 3], "behind the start and one word"
