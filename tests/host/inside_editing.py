"""Checks of editing inside a ComfyUI, as in inside.py: masks, inpainting checkpoints, and that the command line paints as the host does."""

import tempfile

from inside import doodle, equal, host, near, plain
from inside_regions import Scene, half

# isort: split

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.utils
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent
from pack.cidm_ops.doodle import files
from pack.cidm_ops.method.regions import RegionMask
from pack.cidm_ops.models.sd import DOODLE
from pack.cidm_ops.painting.composition import compose_regions
from pack.cidm_ops.painting.paint import Photo, SamplingConfig, paint_latents
from pack.nodes import native, patches, pictures


class Inpainting(native.Doodle):
    """Doodle as an inpainting model: the host gives it the photo and its mask."""

    def inpaint_model(self):
        return True


def inpainting(weights=0.0):
    """Doodle that reads a photo and its mask too, with ``weights`` on them that are all alike."""
    more = DOODLE.latent_channels + 1
    config = native.UNET | {"in_channels": DOODLE.latent_channels + more}
    names, kind = comfy.utils.unet_to_diffusers(config), Inpainting(config)
    kind.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    base = kind.get_model({}, "", device=offload)
    state = {key: weight.float() for key, weight in files.unet_state().items()}
    first = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([first, torch.full((len(first), more, *first.shape[2:]), weights)], 1)
    base.load_model_weights({names[key]: weight for key, weight in state.items()}, "")
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base, load_device=comfy.model_management.get_torch_device(), offload_device=offload)


def photo():
    return torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))


def painted(model, positive, negative, latent, mask=None, denoise=1.0, steps=4):
    noise = comfy.sample.prepare_noise(latent, 1)
    return comfy.sample.sample(
        model, noise, steps, 4.0, "euler", "normal", positive, negative, latent, denoise=denoise, noise_mask=mask, seed=1, disable_pbar=True
    )


def the_inpainting_model_paints_concepts():
    """With weights of 0 on what it reads besides, it is the ordinary model; with others it reads the photo."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        places = [("a <rex>", RegionMask(half())), ("a <tom>", RegionMask(half(False)))]
        mask = half()[None, None]
        found = []
        for model in (native.model(), inpainting(), inpainting(0.1)):
            backbone = host.ComfyBackbone(model, scene.clip)
            bank = scene.bank
            for prompt, regions in (("a <rex> in the snow", []), ("in the snow", places)):
                patched, positive = patches.in_regions(backbone, compose_regions(backbone, bank, prompt, regions))
                found.append(painted(patched, positive, scene.nothing, photo(), mask))
        for ordinary, blind, seeing in zip(found[:2], found[2:4], found[4:], strict=True):
            near(blind, ordinary, scale=30 * float(ordinary.abs().max()))
            assert float((seeing - ordinary).abs().max()) > 0.01 and seeing.isfinite().all()


def the_inpainting_model_is_not_learned_on():
    _, clip, vae = doodle()
    try:
        host.ComfyBackbone(inpainting(), clip, vae)
    except ValueError as error:
        assert "learned on an ordinary checkpoint" in str(error), error
    else:
        raise AssertionError("it was taken to learn on")


def the_mask_says_what_is_painted_over():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        model, positive = scene.composed("a <rex> in the snow")
        nowhere, everywhere = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
        near(painted(model, positive, scene.nothing, photo(), nowhere), photo())
        near(painted(model, positive, scene.nothing, photo(), everywhere), painted(model, positive, scene.nothing, photo()))
        part = painted(model, positive, scene.nothing, photo(), half()[None, None])
        near(part * (1 - half()), photo() * (1 - half()))
        assert float((part - photo()).abs().max()) > 0.1


def the_command_line_paints_over_photos_as_the_host_does():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        places = [("a <rex>", RegionMask(half())), ("a <tom>", RegionMask(half(False)))]
        for prompt, regions in (("a <rex> in the snow", []), ("in the snow", places)):
            composition = compose_regions(scene.backbone, scene.bank, prompt, regions)
            patched, positive = patches.in_regions(scene.backbone, composition)
            for denoise in (1.0, 0.5):
                want = painted(patched, positive, plain(scene.clip, ""), photo(), half()[None, None], denoise)
                noise = comfy.sample.prepare_noise(photo(), 1)
                over = Photo(scene.model.model.process_latent_in(photo()), half(), denoise)
                made = paint_latents(scene.backbone, composition, noise, SamplingConfig(4, 4.0), photo=over)
                near(scene.model.model.process_latent_out(made.cpu()), want, scale=10 * float(want.abs().max()))


def the_pictures_of_concepts_are_a_chain_of_reference_latents():
    """Behind those that a conditioning has, and without a change of what came in."""
    _, clip, vae = doodle()
    shown = [torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(((64, 96), (128, 64)))]
    before = pictures.with_references(plain(clip, "a dog"), [torch.zeros(1, 64, 64, 3)], vae)
    want = before
    for picture in shown:
        want = ReferenceLatent.execute(want, {"samples": vae.encode(picture)}).args[0]
    found = pictures.with_references(before, shown, vae)
    (_, one), (_, other) = found[0], want[0]
    assert one.keys() == other.keys() and len(one["reference_latents"]) == 3 and len(before[0][1]["reference_latents"]) == 1
    for a, b in zip(one["reference_latents"], other["reference_latents"], strict=True):
        equal(a, b)
