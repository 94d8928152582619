"""Folders as people bring them: whatever lies in one is used, or named with what to do about it."""

import io
import os
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image

from cidm_ops.bank.picture_file import MOST, open_picture, suffixes
from cidm_ops.evaluation.protocol import read_prompts, references_in
from cidm_ops.text_file import read_json, read_text
from cidm_ops.training.folder import from_folder
from cidm_ops.training.listing import read_from

posix = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and links")


def picture(file: Path, size=(96, 96), mode="RGB", colour=(200, 40, 40), **how) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file, **how)
    return file


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three pictures with captions."""
    for i in range(3):
        picture(tmp_path / f"p{i}.png", colour=(60 * i, 90, 200))
        (tmp_path / f"p{i}.txt").write_text("a dog on grass")
    return tmp_path


def told(folder: Path, size=64) -> str:
    return "\n".join(from_folder(folder, size).warnings)


def png(width: int, height: int) -> bytes:
    """A white PNG of any size, made without laying it out."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1) + b"\xff" * -(-width // 8)) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


class TestPictures:
    def test_every_format_that_pillow_reads_is_taken_and_every_other_named(self, tmp_path):
        (tmp_path / "a.txt").write_text("a dog")
        kinds = {
            "a.jpg": "JPEG",
            "b.gif": "GIF",
            "c.tif": "TIFF",
            "d.jfif": "JPEG",
            "e.jpe": "JPEG",
            "f.ppm": "PPM",
            "G.JPG": "JPEG",
            "i.jp2": "JPEG2000",
        }
        if ".avif" in suffixes():
            kinds["j.avif"] = "AVIF"
        for name, kind in kinds.items():
            picture(tmp_path / name, format=kind)
        others = {
            "h.jxl": b"\xff\x0a",
            "k.tga": b"",
            "photo.cr2": b"II*\0",
            "notes.md": b"# dogs",
            "p0.caption": b"a dog",
        }
        for name, begin in others.items():
            (tmp_path / name).write_bytes(begin + bytes(64))
        data = from_folder(tmp_path, 64)
        assert sorted(data.names) == sorted(kinds)
        said = "\n".join(data.warnings)
        assert all(name in said for name in others), said

    def test_a_folder_of_other_things_says_what_they_are(self, tmp_path):
        (tmp_path / "h.jxl").write_bytes(b"\xff\x0a")
        (tmp_path / "more").mkdir()
        with pytest.raises(FileNotFoundError, match="no pictures in it.*h.jxl.*convert it to JPEG") as refusal:
            from_folder(tmp_path, 64)
        assert "more: only folders such as 10_dog" in str(refusal.value)

    @pytest.mark.parametrize(
        ("head", "said"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"\n <html>", "web page"),
            (b"\0\0\0\x18ftypisom", "film"),
            (b"\xff\x0a", "JPEG XL"),
            (b"", "it is empty"),
            (b"\x89PNG\r\n\x1a\n" + b"\xff" * 80, "repair or remove it"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "repair or remove it"),
        ],
    )
    def test_what_only_has_the_name_of_a_picture_is_named_with_what_to_do(self, photos, head, said):
        (photos / "p3.jpg").write_bytes(head)
        with pytest.raises(ValueError, match=f"p3.jpg: .*{said}"):
            from_folder(photos, 64)

    def test_hidden_files_are_no_pictures(self, photos):
        (photos / "._p0.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60))
        picture(photos / ".trashed-1700-old.jpg")
        (photos / ".DS_Store").write_bytes(b"x")
        data = from_folder(photos, 64)
        assert data.names == ["p0.png", "p1.png", "p2.png"]
        assert "._p0.png, .trashed-1700-old.jpg: hidden files" in "\n".join(data.warnings) and ".DS" not in "\n".join(data.warnings)

    @pytest.mark.parametrize("name", ["scan.png", "scan.tif"])
    def test_16_bits_are_scaled_to_8(self, photos, name):
        half = np.where(np.arange(96)[None] < 48, 16384, 49152).repeat(96, 0).astype(np.uint16)
        Image.fromarray(half).save(photos / name)
        Image.fromarray(half).save(photos / "p0_mask.png")
        data = from_folder(photos, 64)
        for seen in (data.pictures[data.names.index(name)], data.masks[0]):
            assert seen[:, :, :48].mean().item() == pytest.approx(0.25, abs=0.004) and seen[:, :, 48:].mean().item() == pytest.approx(
                0.75, abs=0.004
            )
        Image.fromarray((half >> 8).astype(np.uint8)).save(photos / name)
        assert torch.allclose(from_folder(photos, 64).pictures[data.names.index(name)], data.pictures[data.names.index(name)], atol=0.004)

    def test_12_bits_of_a_camera_have_their_own_white(self, tmp_path):
        tags = {256: 64, 257: 64, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 64, 279: 64 * 64 * 12 // 8}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        (tmp_path / "raw.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, 9) + entries + bytes(4) + b"\xff" * tags[279])
        assert from_folder(tmp_path, 64).pictures[0].min() == 1

    def test_numbers_of_unknown_white_are_refused(self, tmp_path):
        Image.fromarray(np.full((96, 96), 7.5, np.float32)).save(tmp_path / "depth.tif")
        with pytest.raises(ValueError, match=r"depth\.tif: its values reach from 7\.5 to 7\.5.*8 or 16 bits"):
            from_folder(tmp_path, 64)
        Image.fromarray(np.full((96, 96), 0.5, np.float32)).save(tmp_path / "depth.tif")
        assert from_folder(tmp_path, 64).pictures[0].mean().item() == pytest.approx(0.5, abs=0.003)

    def test_a_giant_picture_is_refused_by_name_and_a_giant_jpeg_decoded_small(self, photos, recwarn):
        (photos / "giant.png").write_bytes(png(20000, 20000))
        began = time.monotonic()
        with pytest.raises(
            ValueError, match=r"giant\.png: it has more pixels than a picture of use|giant\.png: it has 20000 x 20000 pixels"
        ):
            from_folder(photos, 64)
        (photos / "giant.png").unlink()
        picture(photos / "large.jpg", (14000, 13000), "L", 255)
        assert MOST < 14000 * 13000
        data = from_folder(photos, 64)
        assert min(data.pictures[0].shape[1:]) == 128 and not [w for w in recwarn if "bomb" in str(w.message)]
        assert time.monotonic() - began < 30

    def test_a_giant_jpeg_that_cannot_be_decoded_small_is_refused(self, photos):
        data = bytearray(picture(photos / "p3.jpg", (64, 64), progressive=True).read_bytes())
        at = data.index(b"\xff\xc2") + 5  # height and width in the header of a progressive JPEG
        data[at : at + 4] = struct.pack(">HH", 60000, 60000)
        (photos / "p3.jpg").write_bytes(data)
        with pytest.raises(ValueError, match=r"p3\.jpg: it has 60000 x 60000 pixels, at most 178 million"):
            from_folder(photos, 64)

    def test_the_first_of_several_pictures_is_used_and_that_is_said(self, photos):
        frames = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")]
        frames[0].save(photos / "p3.gif", save_all=True, append_images=frames[1:])
        data = from_folder(photos, 64)
        assert data.pictures[3][0].min() > 0.9 and "p3.gif: it holds several pictures, the first" in "\n".join(data.warnings)

    @posix
    def test_what_is_no_file_is_named_and_left_out(self, photos):
        os.mkfifo(photos / "f.png")
        (photos / "zero.png").symlink_to("/dev/zero")
        (photos / "gone.png").symlink_to(photos / "nowhere")
        (photos / "circle.png").symlink_to(photos / "circle.png")
        (photos / "folder.png").mkdir()
        (photos / "p1.txt").unlink()
        (photos / "p1.txt").symlink_to("/dev/zero")
        data = from_folder(photos, 64)
        assert data.names == ["p0.png", "p1.png", "p2.png"] and data.captions == ["a dog on grass", "", "a dog on grass"]
        said = "\n".join(data.warnings)
        assert "f.png: a pipe and no ordinary file" in said and "zero.png: a device" in said or "p1.txt, zero.png: a device" in said
        assert all(name in said for name in ("gone.png", "circle.png", "folder.png", "p1.txt")), said

    @posix
    def test_a_picture_that_becomes_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "f.png")
        with pytest.raises(ValueError, match="f.png is a pipe"):
            open_picture(tmp_path / "f.png")

    def test_a_shortage_says_what_did_not_fit(self, photos, monkeypatch):
        def short(*args, **how):
            raise MemoryError

        monkeypatch.setattr(Image.Image, "load", short)
        with pytest.raises(MemoryError, match="p0.png: there is not enough memory to read it"):
            from_folder(photos, 64)

    def test_references_say_what_they_leave_out(self, photos):
        (photos / "h.jxl").write_bytes(b"\xff\x0a")
        pictures, remarks = references_in(photos)
        assert len(pictures) == 3 and "h.jxl" in "\n".join(remarks)


class TestHeic:
    """What phones write. It is read where pillow-heif is installed, which no host brings."""

    @pytest.fixture
    def without(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it raises ImportError
        known = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind != "HEIF"}
        monkeypatch.setattr(Image, "EXTENSION", known)
        suffixes.cache_clear()
        yield
        monkeypatch.undo()
        suffixes.cache_clear()

    def test_without_pillow_heif_it_is_named_with_what_to_do(self, without, tmp_path):
        (tmp_path / "g.heic").write_bytes(b"\0\0\0\x18ftypheic")
        picture(tmp_path / "p.png")
        assert "g.heic: no picture that can be read here, so it is left out: convert it to JPEG, or install pillow-heif" in told(tmp_path)
        (tmp_path / "p.png").write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(ValueError, match="p.png: it is a picture in HEIC: convert it to JPEG, or install pillow-heif"):
            from_folder(tmp_path, 64)

    def test_with_pillow_heif_it_is_a_picture_like_others(self, tmp_path):
        pillow_heif.register_heif_opener()
        turned = Image.Exif()
        turned[0x112] = 6  # a camera held upright
        left = Image.new("RGB", (96, 64), "red")
        left.paste("blue", (48, 0, 96, 64))
        left.save(tmp_path / "IMG_1.HEIC", exif=turned.tobytes())
        left.save(tmp_path / "burst.heif", save_all=True, append_images=[left])
        found = open_picture(tmp_path / "IMG_1.HEIC")
        assert found.size == (64, 96)
        (red, _, blue), (blue_below, _, _) = found.getpixel((32, 20)), found.getpixel((32, 76))
        assert red > 200 and blue < 60 and blue_below < 60
        data = from_folder(tmp_path, 64)
        assert data.names == ["IMG_1.HEIC", "burst.heif"] and "burst.heif" in "\n".join(data.warnings)
        whole = (tmp_path / "IMG_1.HEIC").read_bytes()
        for kept in (12, 300, len(whole) - 40):
            (tmp_path / "IMG_1.HEIC").write_bytes(whole[:kept])
            with pytest.raises(ValueError, match=r"IMG_1.HEIC: it cannot be read as a picture, as if it were damaged: repair or remove it"):
                from_folder(tmp_path, 64)


class TestCaptions:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
    def test_a_text_that_says_its_encoding_is_read_without_its_mark(self, photos, encoding):
        mark = "\ufeff" if encoding == "utf-16-le" else ""
        (photos / "p0.txt").write_bytes((mark + "a dog in a caf\xe9").encode(encoding))
        assert from_folder(photos, 64).captions[0] == "a dog in a caf\xe9"

    @pytest.mark.parametrize(
        ("text", "encoding"), [("a dog in a caf\xe9", "cp1252"), ("\u4e00\u53ea\u72d7 dog", "gbk"), ("a dog", "utf-16-le")]
    )
    def test_any_other_encoding_is_named_with_what_to_do(self, photos, text, encoding):
        (photos / "p2.txt").write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match=r"p2\.txt is no text in UTF-8.*save it as UTF-8"):
            from_folder(photos, 64)

    def test_every_text_of_a_person_is_read_so(self, tmp_path):
        file = tmp_path / "prompts.txt"
        file.write_bytes("a <TOK> in a caf\xe9".encode("utf-16"))
        assert read_prompts(file) == ["a <TOK> in a caf\xe9"]
        file.write_bytes("a <TOK> in a caf\xe9".encode("cp1252"))
        for read in (read_prompts, read_text, read_json):
            with pytest.raises(ValueError, match=r"prompts\.txt is no text in UTF-8"):
                read(file)
            with pytest.raises(FileNotFoundError, match="none.txt: there is no such file"):
                read(tmp_path / "none.txt")
            with pytest.raises(ValueError, match="is a folder: expected an ordinary file"):
                read(tmp_path)
        file.write_bytes(b"x" * 11)
        with pytest.raises(ValueError, match="more than 10 bytes"):
            read_text(file, 10)
        with pytest.raises(ValueError, match=r"prompts\.txt is no JSON"):
            read_json(file)

    @posix
    def test_a_link_out_of_the_folder_is_not_read(self, photos, tmp_path_factory):
        secret = tmp_path_factory.mktemp("elsewhere") / "passwd"
        secret.write_text("root:x:0:0")
        (photos / "p0.txt").unlink()
        (photos / "p0.txt").symlink_to(secret)
        data = from_folder(photos, 64)
        assert data.captions[0] == "" and "p0.txt: a link out of the folder" in "\n".join(data.warnings)
        assert "root" not in "\n".join(data.warnings)

    def test_a_caption_of_no_picture_is_named(self, photos):
        (photos / "p9.txt").write_text("a dog")
        picture(photos / "q.jpg")
        (photos / "q.jpg.txt").write_text("a dog at night")
        data = from_folder(photos, 64)
        assert "p9.txt: there is no picture of that name" in "\n".join(data.warnings) and data.captions[-1] == "a dog at night"

    def test_pictures_without_captions_are_named(self, photos):
        (photos / "p1.txt").unlink()
        assert "p1.png: no caption file such as p1.txt, the class word stands alone" in told(photos)


class TestMasks:
    @pytest.mark.parametrize(
        "name",
        [
            "p0_mask.jpg",
            "p0_mask.png",
            "P0_MASK.webp",
            "p0-mask.png",
            "p0-masklabel.png",
            "masks/p0.bmp",
            "Mask/p0.png",
            "masks/p0_mask.png",
        ],
    )
    def test_masks_of_every_usual_name_are_taken(self, photos, name):
        if name.startswith("P0"):
            for ending in ("png", "txt"):
                (photos / f"p0.{ending}").rename(photos / f"P0.{ending}")
        picture(photos / name, mode="L", colour=0)
        data = from_folder(photos, 64)
        assert [m is not None and m.max() < 0.02 for m in data.masks] == [True, False, False] and not data.warnings

    @pytest.mark.parametrize("given", ["", "10_dog"])
    def test_kohyas_masks_lie_beside_the_folders_of_pictures(self, tmp_path, given):
        for i in range(2):
            picture(tmp_path / "10_dog" / f"p{i}.png").with_suffix(".txt").write_text("a dog")
        picture(tmp_path / "masks" / "p0.png", mode="L", colour=0)
        data = from_folder(tmp_path / given, 64)
        assert data.masks[0].max() == 0 and data.masks[1] is None and not data.warnings

    def test_a_mask_that_no_picture_takes_is_named(self, photos):
        picture(photos / "masks" / "other.png", mode="L", colour=0)
        picture(photos / "p9_mask.png", mode="L", colour=0)
        picture(photos / "p0_mask.png", mode="L", colour=255)
        picture(photos / "p0_mask.jpg", mode="L", colour=255)
        said = told(photos)
        assert "p9_mask.png" in said and "masks/other.png: a mask that is not used, there is no picture of that name" in said
        assert "p0_mask.jpg: a mask that is not used" in said or "p0_mask.png: a mask that is not used" in said

    def test_a_mask_that_two_pictures_could_have_is_named(self, tmp_path):
        for sub in ("10_dog", "5_more"):
            picture(tmp_path / sub / "p0.png").with_suffix(".txt").write_text("a dog")
        picture(tmp_path / "masks" / "p0.png", mode="L", colour=0)
        data = from_folder(tmp_path, 64)
        assert data.masks == [None, None] and "masks/p0.png: a mask that is not used" in "\n".join(data.warnings)

    def test_what_is_transparent_in_a_mask_is_not_covered(self, photos):
        mask = Image.new("RGBA", (96, 96), (255, 255, 255, 0))
        mask.paste((255, 255, 255, 255), (0, 0, 48, 96))
        mask.save(photos / "p0_mask.png")
        assert from_folder(photos, 64).masks[0].mean().item() == pytest.approx(0.5)


class TestFolders:
    @posix
    def test_only_what_is_read_is_looked_at(self, photos):
        deep = photos / "deep"
        for i in range(40):
            deep = deep / f"d{i}"
        deep.mkdir(parents=True)
        picture(deep / "x.png")
        (photos / "gone.txt").symlink_to(photos / "nowhere")
        picture(photos / "2_more" / "m.png")
        picture(photos / "masks" / "p0.png", mode="L", colour=255)
        files = {str(Path(file).relative_to(photos)) for file, _, _ in read_from(photos)}
        assert files == {*(f"p{i}.{ending}" for i in range(3) for ending in ("png", "txt")), "2_more/m.png", "masks/p0.png"}
        before = list(read_from(photos))
        (photos / "p0.txt").write_text("another")
        assert list(read_from(photos)) != before

    @posix
    def test_the_root_of_the_disk_has_no_pictures_at_once(self):
        began = time.monotonic()
        assert list(read_from(Path("/"))) == [] or os.listdir("/") == []
        with pytest.raises(FileNotFoundError, match="/: no pictures in it"):
            from_folder("/", 64)
        assert time.monotonic() - began < 2

    def test_a_count_that_no_memory_holds_is_refused_and_none_is_named(self, photos):
        picture(photos / "0_dog" / "a.png")
        assert "0_dog: the folder counts 0 times" in told(photos)
        picture(photos / "999999999999_x" / "a.png")
        with pytest.raises(ValueError, match="999999999999_x: its pictures would count 999999999999 times: expected at most 10000"):
            from_folder(photos, 64)

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="who is root reads everything")
    def test_a_folder_that_may_not_be_read_is_named(self, photos):
        photos.chmod(0)
        with pytest.raises(ValueError, match="cannot be read"):
            from_folder(photos, 64)


def test_a_picture_of_bytes_is_opened_as_one_of_a_file():
    data = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(data, "PNG")
    assert open_picture(data.getvalue()).size == (40, 30)
