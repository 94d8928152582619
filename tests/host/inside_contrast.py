"""Checks of contrast inside a ComfyUI, as in inside.py: the node's parts on the host's own classes, and both engines contrast alike."""

import tempfile
from dataclasses import replace
from pathlib import Path

from inside import RESULTS, data_of, doodle, equal, host, native, near

# isort: split

import torch
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.doodle import files
from pack.cidm_ops.doodle.concepts import CONCEPTS, common_things, examples
from pack.cidm_ops.models.sd import DOODLE
from pack.cidm_ops.training.canvases import Lesson, cut_drawn
from pack.cidm_ops.training.contrasting import ContrastConfig, contrast, contrast_into
from pack.cidm_ops.training.dataset import Dataset
from pack.cidm_ops.training.method import Task
from pack.cidm_ops.training.methods import configure
from pack.cidm_ops.training.spaces import CaptionSide, Contrast
from pack.cidm_ops.training.task import learn_into
from pack.nodes.contrast import lessons_of, parse_lines, sheet_of, space_of
from safetensors.torch import save_file

SHORT = ContrastConfig(steps=3, batch=8, canvases=12, lr=1e-2, norm_stop=0)


def lesson_of(name, count=3):
    drawn = examples(CONCEPTS[name], count)
    masks = [torch.from_numpy(e.mask)[None].float() / 255 for e in drawn]
    return Lesson(name, CONCEPTS[name].class_word, replace(data_of(name, count), masks=masks))


def compared(backbone, tower=None):
    return Contrast((space_of(backbone, tower or native.vision(), None),), tuple(cut_drawn(common_things(4))))


def the_words_alone_change_and_the_bank_keeps_its_own_to_the_last_bit():
    model, clip, vae = doodle()
    modules = (model.model, clip.cond_stage_model, vae.first_stage_model)
    before = [p.clone() for m in modules for p in m.state_dict().values()]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        backbone = host.ComfyBackbone(model, clip, vae)
        by = compared(backbone)
        bank = contrast_into(Bank(folder), backbone, by, [lesson_of("dog")], SHORT).bank
        file = Path(bank.file("dog")).read_bytes()
        told = contrast_into(bank, backbone, by, [lesson_of("dog2"), lesson_of("cat")], SHORT)
        assert told.bank.names == ["dog", "dog2", "cat"] and len(told.losses) == 3
        assert Path(bank.file("dog")).read_bytes() == file
        again = contrast_into(told.bank, backbone, by, [lesson_of("dog2"), lesson_of("cat")], SHORT)
        assert again.losses == []
        task = Task(name="cat", class_word="cat", config=configure("clif", steps=2), existing="continue", contrast=by)
        learned = learn_into(told.bank, backbone, data_of("cat"), task)
        assert learned.concept.training["began"] and learned.concept.factors
    for old, new in zip(before, (p for m in modules for p in m.state_dict().values()), strict=True):
        equal(new, old)


def the_contrast_of_both_engines_is_the_same():
    with torch.inference_mode(False):
        backbone = host.ComfyBackbone(*doodle())
        by = compared(backbone)
        done = contrast(backbone, by, [lesson_of("dog"), lesson_of("dog2")], [], SHORT)
        side = CaptionSide(backbone, by.spaces[0])(["a photo of a red dog on the left", "a cat"], {})
    rows = {c.name: c.tokens["clip_l"] for c in done.concepts}
    save_file({**rows, "texts": side.detach(), "losses": torch.tensor(done.losses)}, RESULTS.with_name("contrast.safetensors"))


def the_ends_of_texts_are_those_that_the_host_projects():
    clip = native.captions()
    with torch.inference_mode(False):
        text = host.ComfyText(clip)
        ids = torch.cat([text.tokenize(said) for said in ("a red dog", "a cat on the left")])
        rows = text.token_rows(ids).requires_grad_()
        ends = text.end_states(ids, rows, projected=True)
        ends.square().sum().backward()
        assert float(rows.grad[:, 1].abs().max()) > 0
    for end, said in zip(ends.detach(), ("a red dog", "a cat on the left"), strict=True):
        part = clip.cond_stage_model.clip_l
        part.set_clip_options({"projected_pooled": True})
        near(end[None], part.encode_token_weights(clip.tokenize(said)["l"])[1].float())
        part.reset_clip_options()


def the_pictures_and_the_names_of_the_node_go_together():
    images, masks, nothing = torch.rand(2, 64, 64, 3), torch.ones(2, 64, 64), (None, None)

    def given(*pairs):
        return dict(enumerate([*pairs, *[nothing] * (4 - len(pairs))], 1))

    found = lessons_of("rex: dog\nspot: dog", given((images, masks), (images, None)))
    assert [(lesson.name, lesson.class_word, len(lesson.data)) for lesson in found] == [("rex", "dog", 2), ("spot", "dog", 2)]
    data = Dataset([torch.rand(3, 64, 64)], [""])
    for told, call in (
        ("nothing is connected to images_2", lambda: lessons_of("rex: dog\nspot: dog", given((images, None)))),
        ("pictures at images_3", lambda: lessons_of("rex: dog", given((images, None), nothing, (images, None)))),
        ("brings its own masks", lambda: lessons_of("rex: dog", given((data, masks)))),
        ("5 names: expected at most 4", lambda: parse_lines("\n".join(f"dog{i}: dog" for i in range(5)))),
        ("no concept given", lambda: parse_lines("")),
    ):
        try:
            call()
        except ValueError as error:
            assert told in str(error), error
        else:
            raise AssertionError(f"it was not said: {told}")
    with torch.inference_mode(False):
        by = compared(host.ComfyBackbone(*doodle()))
        sheet = sheet_of(found, by, 0)
    assert sheet.shape == (16, 128, 128, 3) and 0 <= float(sheet.min()) <= float(sheet.max()) <= 1


def the_tower_that_the_text_encoder_does_not_lead_to_is_refused():
    space = f"the image tower's space of width {files.VISION_CONFIG['projection_dim']}"
    backbone = host.ComfyBackbone(*doodle())
    backbone.architecture = "sd1-16x160"  # of the family, and not the Doodle that has a bridge
    for tower, told, text_side in (
        (native.vision(), f"leads into {space}", None),
        (native.vision(), f"no text encoder of this CLIP reads into {space}", native.clip()),
        (native.reader(), "the text projection reads states of width 128, and", native.captions()),
    ):
        try:
            space_of(backbone, tower, text_side)
        except ValueError as error:
            assert told in str(error), error
        else:
            raise AssertionError(f"it was not said: {told}")


def the_projection_of_a_whole_clip_leads_into_its_tower():
    """A CLIP of one's own: the text encoder of the base, and a tower as wide, with projections that are random."""
    draw, width = torch.Generator().manual_seed(0), DOODLE.width
    backbone = host.ComfyBackbone(*doodle())
    backbone.architecture = "sd1-16x160"
    projection = torch.randn(width, width, generator=draw) / width**0.5
    text_side = native.text_encoder(files.text_state() | {"text_projection.weight": projection}, files.TEXT_CONFIG, native.DoodleTokenizer)
    seen = files.vision_state()
    seen["visual_projection.weight"] = torch.randn(width, seen["visual_projection.weight"].shape[1], generator=draw)
    read = space_of(backbone, native.image_tower(seen), text_side)
    assert read.encoder == "clip_l" and read.scale == 100.0
