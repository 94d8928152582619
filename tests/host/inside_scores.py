"""Checks of scores inside a ComfyUI, as in inside.py: its towers see what ours see, and two models differ by what they differ."""

import math
from pathlib import Path

from inside import doodle, doubled, near, plain

# isort: split

import torch
from pack import cidm_ops
from pack.cidm_ops.doodle.concepts import CONCEPTS, examples
from pack.cidm_ops.measure.divergence import divergence
from pack.cidm_ops.measure.scores import embed
from pack.cidm_ops.measure.sifting import grow_sifted
from pack.cidm_ops.models.sd import DOODLE
from pack.cidm_ops.training.dataset import Dataset
from pack.nodes import encoders, fisher, native
from subjects import call

cidm_ops.__path__.append(str(Path(__file__).resolve().parents[2] / "cidm_ops"))  # the engines that are compared with do not ship

from pack.cidm_ops.engines.doodle import DoodleReader, DoodleTower  # noqa: E402

SIFTED = {"clip_vision": native.vision(), "features": "image_embeds", "per_original": 2, "slack": 0.05, "least": 0.0}


def drawn(name, count=3, seed=0):
    shown = examples(CONCEPTS[name], count, seed)
    return torch.stack([torch.from_numpy(e.picture.copy()).permute(2, 0, 1).float() / 127.5 - 1 for e in shown])


def the_hosts_tower_sees_what_ours_sees():
    pictures = drawn("dog")
    near(encoders.encode_images(native.vision(), list(pictures)), embed(DoodleTower(), pictures))
    image = pictures.movedim(1, -1) / 2 + 0.5
    near(encoders.encode_images(native.reader(), list(pictures)), embed(DoodleReader(), pictures))
    near(torch.stack(encoders.pictures_of(image)), pictures)


def the_hosts_captions_are_ours():
    """Parentheses in a caption are letters, not weights."""
    clip, words = native.captions(), ["a dog in the snow", "a red boat (at night), a cat"]
    tokens = [clip.tokenize(w.replace("(", "\\(").replace(")", "\\)"))["l"][0] for w in words]
    assert all(weight == 1 for row in tokens for _, weight in row)
    want = DoodleReader().text(torch.tensor([[token for token, _ in row] for row in tokens])).text_embeds
    near(encoders.encode_captions(clip, words, 128), torch.nn.functional.normalize(want, dim=-1))


def the_other_features_are_the_towers_tokens():
    tower, pictures = native.vision(), list(drawn("cat", 2))
    hidden = tower.encode_image(torch.stack(pictures).movedim(1, -1) / 2 + 0.5)["last_hidden_state"].float()
    assert hidden.shape[1] == 257  # a class token and 16 x 16 patches
    near(encoders.encode_images(tower, pictures, "mean of patches"), torch.nn.functional.normalize(hidden[:, 1:].mean(1), dim=-1))
    near(encoders.encode_images(tower, pictures, "class token"), torch.nn.functional.normalize(hidden[:, 0], dim=-1))


def the_text_encoder_without_its_projection_is_refused():
    for clip, width, what in ((native.clip(), DOODLE.width, "never loaded"), (native.captions(), 768, "width 768")):
        try:
            encoders.encode_captions(clip, ["a dog"], width)
        except ValueError as error:
            assert what in str(error) and "Load CLIP" in str(error), error
        else:
            raise AssertionError("it went through")


def probed(first, second, text="a dog", count=6):
    model, clip, _ = doodle()
    doubled(model)
    levels, sigmas = fisher.levels_of(model, count)
    latents = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    asked = plain(clip, text)
    return divergence(*(fisher.clean(change(model), asked, latents, noise, levels, sigmas) for change in (first, second)), levels), levels


def the_model_and_its_clone_do_not_diverge():
    found, levels = probed(lambda m: m, lambda m: m.clone())
    assert not found.eps.any() and not found.likelihood.any()
    sigmas = native.model().get_model_object("model_sampling").sigmas.double()
    assert math.isclose(levels.span, math.log(sigmas[-1] / sigmas[0]), rel_tol=1e-6)


def the_noises_that_differ_by_a_constant_diverge_by_its_square():
    def moved(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] - 0.3 * args["sigma"].view(-1, 1, 1, 1))
        return model

    found, levels = probed(lambda m: m, moved)
    near(found.eps, torch.full((2,), 0.09).double())
    near(found.likelihood, torch.full((2,), 0.09 * 16 * 16 * 16 * levels.span).double())


def the_probe_asks_the_model_what_a_sampler_asks():
    """Against a step of the host's own euler: what it takes for clean at the first sigma."""
    import comfy.sample
    import comfy.samplers

    model, clip, _ = doodle()
    doubled(model)
    levels, sigmas = fisher.levels_of(model, 4)
    latents = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    asked, kept = plain(clip, "a cat"), []
    own = fisher.clean(model, asked, latents, noise, levels, sigmas)
    sampler = comfy.samplers.ksampler("euler")
    steps = torch.stack([sigmas[1], sigmas[2]])
    comfy.sample.sample_custom(
        model, noise, 1.0, sampler, steps, asked, asked, latents, callback=lambda i, x0, x, n: kept.append(x0.cpu()), seed=0
    )
    near(own[1], kept[0])


def the_sifted_pictures_are_what_the_command_line_keeps():
    """With the host's tower as with ours: the same verdicts, likenesses and data set; another individual is left out."""
    own, made, other = drawn("dog"), drawn("dog", 2, seed=2), drawn("dog2", 2, seed=2)
    originals = Dataset(list(own / 2 + 0.5), ["a dog"] * 3)
    images = torch.cat([made, other]).movedim(1, -1) / 2 + 0.5
    dataset, sheet = call("CIDMSiftPictures", dataset=originals, images=images, **SIFTED)
    assert len(dataset) == 5 and dataset.generated == 2 and list(dataset.repeats) == [1] * 5 and sheet.shape[-1] == 3
    assert list(dataset.names[3:]) == ["generated 1", "generated 2"] and dataset.captions[3:] == ["", ""]
    pictures = Dataset(list(images.movedim(-1, 1)), [""] * 4)
    grown, sifted = grow_sifted(DoodleTower(), originals, pictures)
    assert sifted.kept == [0, 1] and all(torch.equal(a, b) for a, b in zip(dataset.pictures, grown.pictures, strict=True))
    _, seen = grow_sifted(encoders.image_encoder(native.vision(), "image_embeds"), originals, pictures)
    near(seen.likeness, sifted.likeness)
    said = call(
        "CIDMSiftPictures", dataset=originals, images=images, **SIFTED | {"captions": "a dog\na dog at night\n\n", "per_original": 1}
    )
    assert said[0].captions[3:] == ["a dog", "a dog at night"]


def the_sifting_that_cannot_be_is_refused():
    own = drawn("dog", 2)
    grown = Dataset(list(own / 2 + 0.5), [""] * 2, generated=1)
    images = own.movedim(1, -1) / 2 + 0.5
    for inputs, error in (({"dataset": grown}, "1 of the originals were made by a model"), ({"captions": "a\nb\nc"}, "3 captions for 2")):
        given = {"dataset": Dataset(list(own / 2 + 0.5), [""] * 2), "images": images, **SIFTED}
        try:
            call("CIDMSiftPictures", **given | inputs)
        except ValueError as found:
            assert error in str(found), found
        else:
            raise AssertionError(error)
