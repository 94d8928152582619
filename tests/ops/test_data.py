"""Pictures, masks and captions as the trainer sees them."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from cidm_ops.models.sd import DOODLE, SD1
from cidm_ops.training.captions import OBJECT_TEMPLATES, Wording, concept_captions, constant_words
from cidm_ops.training.crops import bucket, fit
from cidm_ops.training.dataset import Dataset, from_images
from cidm_ops.training.folder import from_folder

WORDS = ["<rex.1>", "<rex.2>"]


def save(file: Path, size=(60, 40), mode="RGB", colour=(200, 30, 30), **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file, **options)
    return file


class TestFolder:
    def test_every_kind_of_file_is_read_with_its_caption(self, tmp_path):
        for ending in ("jpg", "png", "webp", "bmp"):
            save(tmp_path / f"a.{ending}").with_suffix(".txt").write_text("a  dog\nhere")
        data = from_folder(tmp_path, 32)
        assert data.names == ["a.bmp", "a.jpg", "a.png", "a.webp"] and data.captions == ["a dog here"] * 4
        assert all(p.shape == (3, 40, 60) for p in data.pictures)

    def test_a_photo_on_its_side_is_turned_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        save(tmp_path / "a.jpg", exif=exif)
        assert from_folder(tmp_path, 32).pictures[0].shape == (3, 60, 40)

    def test_masks_come_from_beside_a_folder_or_alpha(self, tmp_path):
        save(tmp_path / "a.png")
        save(tmp_path / "a_mask.png", mode="L", colour=255)
        save(tmp_path / "b.png")
        save(tmp_path / "masks" / "b.png", mode="L", colour=0)
        cut = Image.new("RGBA", (60, 40), (200, 30, 30, 255))
        cut.paste((0, 0, 0, 0), (0, 0, 30, 40))
        cut.save(tmp_path / "c.png")
        save(tmp_path / "d.png")
        data = from_folder(tmp_path, 32)
        assert [None if m is None else float(m.mean()) for m in data.masks] == [1, 0, 0.5, None]
        assert torch.equal(data.pictures[2][:, :, :30], torch.ones(3, 40, 30))

    def test_kohyas_repeats_count(self, tmp_path):
        save(tmp_path / "3_dog" / "a.png")
        save(tmp_path / "b.png")
        data = from_folder(tmp_path, 32)
        assert data.names == ["b.png", "3_dog/a.png"] and data.order(random.Random(0)).count(1) == 3

    def test_a_large_photo_is_kept_small(self, tmp_path):
        save(tmp_path / "a.png", (900, 600))
        assert from_folder(tmp_path, 64).pictures[0].shape == (3, 128, 192)

    def test_a_mask_of_another_shape_is_refused(self, tmp_path):
        save(tmp_path / "a.png")
        save(tmp_path / "a_mask.png", (40, 60), "L", 255)
        with pytest.raises(ValueError, match="a_mask.png is 40 x 60 and its picture 60 x 40"):
            from_folder(tmp_path, 32)

    def test_a_broken_picture_is_named(self, tmp_path):
        file = save(tmp_path / "a.jpg", (600, 400))
        file.write_bytes(file.read_bytes()[:900])
        with pytest.raises(ValueError, match="a.jpg"):
            from_folder(tmp_path, 32)


class TestFit:
    @pytest.mark.parametrize(("height", "width", "shape"), [(100, 100, (512, 512)), (600, 800, (448, 576)), (1000, 500, (704, 320))])
    def test_the_bucket_is_the_nearest_shape_of_the_area(self, height, width, shape):
        assert bucket(height, width, 512) == shape

    def test_no_bucket_is_larger_than_the_square(self):
        for height in range(50, 1000, 50):
            h, w = bucket(height, 500, 512)
            assert h * w <= 512 * 512 and h % 64 == w % 64 == 0

    def test_the_middle_is_kept(self):
        picture = torch.zeros(3, 32, 64)
        picture[:, :, 16:48] = 1
        out, mask = fit(picture, picture[:1], "centre", 32, random.Random(0))
        assert torch.equal(out, torch.ones(3, 32, 32)) and torch.equal(mask, torch.ones(1, 32, 32))

    def test_random_is_new_at_every_draw_and_marks_the_padding(self):
        picture = torch.linspace(0.6, 1, 60).expand(3, 40, 60)
        draws = [fit(picture, None, "random", 32, random.Random(seed)) for seed in range(8)]
        assert all(p.shape == (3, 32, 32) and torch.equal(p[:1] > 0.3, m > 0.5) for p, m in draws)
        assert all((a - b).abs().max() > 1e-3 for i, (a, _) in enumerate(draws) for b, _ in draws[:i])
        assert torch.equal(fit(picture, None, "random", 32, random.Random(3))[0], draws[3][0])


class TestCaptions:
    def test_the_class_word_is_found_as_whole_tokens(self):
        said, warnings = concept_captions(["A Dog in the hotdog_stand", "dog's day", "two dogs"], "dog", WORDS, "rex")
        assert said == ["A <rex.1> <rex.2> in the hotdog_stand", "<rex.1> <rex.2>'s day", "<rex.1> <rex.2>, two dogs"]
        assert len(warnings) == 1 and "'two dogs'" in warnings[0]
        assert concept_captions(["a teddy  bear_here"], "teddy bear", WORDS, "rex")[0] == ["a <rex.1> <rex.2>_here"]

    @pytest.mark.parametrize(
        ("caption", "said"),
        [
            ("a photo of <my-dog>", "<rex.1> <rex.2>, a photo of <my-dog>"),
            ("a <dog> on grass", "a <rex.1> <rex.2> on grass"),
            ("a < Dog > on grass", "a <rex.1> <rex.2> on grass"),
            ("a <lora:dog:1> cat", "<rex.1> <rex.2>, a <lora:dog:1> cat"),
            ("a <lora:dog:1> dog", "a <lora:dog:1> <rex.1> <rex.2>"),
            ("a <rex> on grass", "a <rex.1> <rex.2> on grass"),
            ("a <rex:0.8> dog, <Rex>", "a <rex.1> <rex.2> dog, <rex.1> <rex.2>"),
            ("a <rex.1> <rex.2> on grass", "a <rex.1> <rex.2> on grass"),
            ("dogs < 3, a dog > 1", "dogs < 3, a dog > 1"),
            ("a <3 dog", "a <3 <rex.1> <rex.2>"),
            ("<<dog>>", "<<rex.1> <rex.2>>"),
        ],
    )
    def test_what_is_in_angle_brackets_is_the_concept_as_a_whole_or_stays_and_is_named(self, caption, said):
        if caption == "dogs < 3, a dog > 1":  # looks like brackets, holds more than the class word
            said = f"<rex.1> <rex.2>, {caption}"
        (out,), warnings = concept_captions([caption], "dog", WORDS, "rex")
        assert out == said
        left = [tag for tag in ("<my-dog>", "<lora:dog:1>") if tag in caption]
        assert all(any(tag in warning and "no word of this concept" in warning for warning in warnings) for tag in left)

    def test_parts_are_shuffled_behind_the_first(self):
        wording = Wording(("{}",), shuffle=True)
        said = {wording.say("a dog, red, wet, old", random.Random(i)) for i in range(40)}
        assert len(said) == 6 and all(s.startswith("a dog, ") for s in said)

    def test_some_captions_are_dropped(self):
        wording = Wording(OBJECT_TEMPLATES, dropout=0.25)
        assert 150 < sum(wording.say("a dog", random.Random(i)) == "" for i in range(800)) < 250

    def test_a_template_needs_a_slot(self):
        with pytest.raises(ValueError, match="one {} for the caption"):
            Wording(("a photo",))

    def test_words_in_every_caption_are_named(self):
        assert constant_words(["a yellow rubber duck", "the rubber duck, yellow and wet"], "duck") == ["rubber", "yellow"]

    def test_pictures_without_a_caption_are_one_line(self):
        for captions, which in ((["", " "], "no captions"), (["a dog", ""], "1 of 2 pictures have no caption")):
            assert concept_captions(captions, "dog", WORDS, "rex")[1] == [f"{which}: what they show is learned as '<rex.1> <rex.2>' alone"]
        assert concept_captions(["a dog"], "dog", WORDS, "rex")[1] == []


class TestDataset:
    def test_masks_that_nobody_gave_are_no_remark(self):
        """A node that finds no mask gives one of ones for every picture."""
        pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        whole, half = torch.ones(1, 64, 64), torch.ones(1, 64, 64)
        half[..., 32:] = 0
        assert Dataset(pictures, ["a dog"] * 3, [whole] * 3).remarks("dog") == []
        (said,) = Dataset(pictures, ["a dog"] * 3, [whole, half, whole]).remarks("dog")
        assert said == "picture 1, picture 3: the mask covers everything, as if there were none"

    def test_a_dataset_without_a_size_has_that_of_the_base(self):
        picture = torch.rand(3, 300, 300)
        for how, family, side in (("centre", DOODLE, 128), ("centre", SD1, 512), ("as_given", DOODLE, 296)):
            data = Dataset([picture], ["a dog"], fit=how).sized_for(family)
            assert data.draw(0, False, random.Random(0))[0].shape == (3, side, side)
        assert Dataset([picture], ["a dog"], size=64, fit="centre").sized_for(SD1).size == 64

    def test_a_size_that_cannot_suit_the_base_is_said(self):
        photo = Dataset([torch.rand(3, 512, 512)], ["a dog"])
        assert photo.unsuited_size(SD1) == [] and "512 x 512 pixels and Doodle was made for 128 x 128" in photo.unsuited_size(DOODLE)[0]
        assert "64 x 64" in Dataset([torch.rand(3, 512, 512)], ["a dog"], size=64, fit="centre").unsuited_size(SD1)[0]

    def test_what_may_go_wrong_is_said(self):
        pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 0, 1)]
        masks = [torch.zeros(1, 64, 64), torch.ones(1, 64, 64), None]
        data = Dataset(pictures, ["a red dog"] * 3, masks, size=512, fit="centre")
        said = " / ".join(data.remarks("dog"))
        for part in ("'red'", "picture 2 and picture 1 are the same", "picture 3 is 64 x 64", "covers nothing", "covers everything"):
            assert part in said

    def test_masks_that_are_all_empty_are_refused(self):
        pictures, nothing, half = [torch.rand(3, 64, 96) for _ in range(2)], torch.zeros(1, 64, 96), torch.zeros(1, 64, 96)
        half[:, :, :16] = 1  # outside of the middle square
        Dataset(pictures, ["a dog"] * 2, [nothing, None], size=64, fit="centre").check_masks()
        for masks, how in (([nothing, nothing], "as_given"), ([nothing, nothing + 0.02], "random"), ([half, nothing], "centre")):
            data = Dataset(pictures, ["a dog"] * 2, masks, size=64, fit=how)
            with pytest.raises(ValueError, match="the masks of all 2 pictures cover nothing"):
                data.check_masks()
        assert "picture 1: its mask covers nothing of what fit 'centre' takes" in "\n".join(data.remarks("dog"))
        Dataset(pictures, ["a dog"] * 2, [half, nothing], size=64, fit="as_given").check_masks()

    @pytest.mark.parametrize(
        ("given", "error"),
        [
            (dict(pictures=[torch.ones(3, 8, 8)], captions=["a"], repeats=[10**12]), "come up 1000000000000 times"),
            (dict(pictures=[torch.ones(3, 8, 8)], captions=["a"], repeats=[0]), "come up 0 times"),
            (dict(pictures=[], captions=[]), "no pictures"),
            (dict(pictures=[torch.ones(3, 8, 8)] * 2, captions=["a"]), "1 captions for 2 pictures"),
            (dict(pictures=[torch.ones(3, 8, 8)], captions=["a"], masks=[torch.ones(1, 8, 9)]), "its mask is 9 x 8 and the picture 8 x 8"),
            (dict(pictures=[torch.ones(3, 8, 8)] * 2, captions=["a"] * 2, masks=[None]), "1 masks for 2 pictures"),
            (dict(pictures=[torch.ones(3, 8, 8)], captions=["a"], fit="square"), "fit 'square'"),
        ],
    )
    def test_what_cannot_work_is_refused(self, given, error):
        with pytest.raises(ValueError, match=error):
            Dataset(**given)

    def test_a_batch_or_a_list_of_images_is_taken(self):
        images = [torch.rand(2, 16, 24, 3), torch.rand(1, 8, 8, 4)]
        data = from_images(images, [])
        assert [p.shape for p in data.pictures] == [(3, 16, 24), (3, 16, 24), (3, 8, 8)]
        assert data.masks[0] is None and data.masks[2].shape == (1, 8, 8)
