"""A photo edited with concepts without a host: what is not painted over stays to the last bit, and masks say what is."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_command_line import cidm, refused  # noqa: F401

from cidm_ops.method.editing import feathered
from cidm_ops.method.regions import RegionMask
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.composition import compose_regions
from cidm_ops.painting.editing import Edit, edit
from cidm_ops.painting.paint import Photo, SamplingConfig, paint_latents, unit_noise
from cidm_ops.schedule import Schedule

PROMPT = "a <dog> in the snow"


@pytest.fixture
def latents(backbone, bank):
    clean = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(5))

    def made(mask, prompt=PROMPT, regions=(), denoise=1.0, steps=3):
        composition = compose_regions(backbone, bank, prompt, regions)
        photo = None if mask is None else Photo(clean, mask, denoise)
        return paint_latents(backbone, composition, unit_noise(DOODLE, 1, 1, 128, 128), SamplingConfig(steps, 3.0), photo=photo)

    made.clean = clean
    return made


def box(top, bottom, left, right, height=16, width=16):
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


class TestLatents:
    def test_nothing_masked_is_the_photo(self, latents):
        assert torch.equal(latents(torch.zeros(16, 16)), latents.clean)

    def test_outside_of_the_mask_they_are_the_photos(self, latents):
        mask = box(4, 12, 4, 12)
        for denoise in (1.0, 0.6):
            painted = latents(mask, denoise=denoise)
            assert torch.equal(painted * (1 - mask), latents.clean * (1 - mask))
            assert float(((painted - latents.clean) * mask).abs().max()) > 0.1

    def test_everything_masked_is_painting_over_it_freely(self, latents, backbone, bank):
        """As a host does without a mask: over the photo's latents, with noise of the first level added."""
        free = latents(torch.ones(16, 16))
        assert not torch.equal(free, latents(None)) and float((free - latents.clean).abs().max()) > 0.1

    def test_less_denoising_stays_nearer(self, latents):
        little, all_of_it = (latents(torch.ones(16, 16), denoise=part, steps=4) for part in (0.1, 1.0))
        assert float((little - latents.clean).norm()) < float((all_of_it - latents.clean).norm())

    def test_two_holes_in_one_pass_are_two_regions(self, latents):
        holes = [("a <dog> in the snow", RegionMask(box(2, 14, 0, 7))), ("a <cat> in the snow", RegionMask(box(2, 14, 9, 16)))]
        both = box(2, 14, 0, 7) + box(2, 14, 9, 16)
        painted = latents(both, "in the snow", holes)
        assert torch.equal(painted * (1 - both), latents.clean * (1 - both))
        other = latents(both, "in the snow", holes[::-1])
        assert float((painted - other).abs().max()) <= 1e-4 * float(painted.abs().max())

    def test_a_part_that_is_none_is_named(self, latents):
        with pytest.raises(ValueError, match="denoise 0: expected a part of the sampling, above 0"):
            Photo(latents.clean, torch.ones(16, 16), 0.0)


def test_a_level_of_noise_is_where_the_sampler_is():
    """Of every kind of prediction: with the first level of pure noise and no noise at the end."""
    clean, noise = torch.randn(1, 16, 2, 2), torch.randn(1, 16, 2, 2)
    for schedule in (Schedule.of_alphas(torch.linspace(0.999, 0.001, 1000), "eps"), Schedule.straight(3.0)):
        levels, _ = schedule.levels(5)
        assert torch.equal(schedule.noised(clean, noise, 0.0), clean)
        x = schedule.noised(clean, noise, levels[2])
        gone_on = x + (x - clean) / levels[2] * (levels[3] - levels[2])  # a step of a model that knows what is clean
        torch.testing.assert_close(gone_on, schedule.noised(clean, noise, levels[3]))


class TestPhotos:
    photo = torch.rand(3, 150, 200, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = box(60, 110, 80, 140, 150, 200)

    def test_every_pixel_outside_of_the_soft_edge_stays(self, backbone, bank):
        edited, warnings = edit(backbone, bank, Edit(self.photo, [(PROMPT, self.mask)], feather=6), SamplingConfig(2, 3.0))
        outside = feathered(self.mask, 6) == 0
        assert edited.shape == self.photo.shape and not warnings and edited.abs().max() <= 1
        assert torch.equal(edited[:, outside], self.photo[:, outside])
        assert float((edited - self.photo)[:, self.mask == 1].abs().mean()) > 0.05

    def test_several_holes_are_painted_at_once(self, backbone, bank):
        holes = [(PROMPT, box(40, 100, 10, 70, 150, 200)), ("a <cat> in the snow", box(40, 100, 120, 180, 150, 200))]
        edited, _ = edit(backbone, bank, Edit(self.photo, holes, "in the snow"), SamplingConfig(2, 3.0))
        for _, mask in holes:
            assert float((edited - self.photo)[:, mask == 1].abs().mean()) > 0.05

    def test_what_cannot_be_is_named(self, backbone, bank):
        with pytest.raises(ValueError, match="there is no mask"):
            Edit(self.photo, [])
        with pytest.raises(ValueError, match="the mask covers nothing"):
            edit(backbone, bank, Edit(self.photo, [(PROMPT, torch.zeros(150, 200))]))


def test_the_command_line_edits_a_photo(cidm, bank, tmp_path):  # noqa: F811
    pixels = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = np.zeros((150, 200), np.uint8)
    mask[60:110, 80:140] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ["edit", "--bank", bank.folder, "--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--prompt", PROMPT]
    given += ["--steps", 1, "--out", tmp_path / "new" / "edited.png"]
    code, out, _ = cidm(*given)
    assert code == 0 and out == [str(tmp_path / "new" / "edited.png")]
    edited = np.array(Image.open(tmp_path / "new" / "edited.png"))
    assert (edited[:50] == pixels[:50]).all() and (edited[:, :60] == pixels[:, :60]).all()
    assert (edited[60:110, 80:140] != pixels[60:110, 80:140]).mean() > 0.5
    assert "2 prompts for 1 masks" in refused(cidm(*given, "--prompt", "a <cat>"))
    assert "ends in .png" in refused(cidm(*given[:-1], tmp_path / "edited.jpg"))
    assert "photo.txt" in refused(cidm(*[tmp_path / "photo.txt" if a == tmp_path / "photo.png" else a for a in given]))
    assert "nobody" in refused(cidm(*[a if a != PROMPT else "a <nobody>" for a in given]))
