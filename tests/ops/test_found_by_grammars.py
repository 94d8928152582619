"""What ten thousand files from the grammars of test_files_from_grammars.py found, each as it must be."""

import pytest
import torch
from test_other_peoples_files import KEY, L, kohya, pair, read


def test_words_beside_what_no_concept_holds_are_read_and_the_rest_is_named(tmp_path):
    reading = read({"clip_l": L, "unet.conv_norm_out.diff": torch.zeros(2)}, tmp_path)
    assert torch.equal(reading.concept.tokens["clip_l"][:, 0], L) and {*reading.unused} == {"unet.conv_norm_out.diff"}
    assert any("'unet.conv_norm_out.diff'" in said for said in reading.warnings)
    with pytest.raises(ValueError, match="Flux.2"):
        read({"clip_l": L} | kohya("double_stream_modulation_img.lin", *pair()), tmp_path)


def test_a_name_with_a_line_break_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^x\.safetensors: .*expected rows of numbers") as refused:
        read({"one\ntwo": torch.zeros(0)}, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_scale_beyond_what_a_factor_holds_is_refused(tmp_path):
    with pytest.raises(ValueError, match="finite numbers"):
        read(kohya(KEY, *pair()) | {f"lora_unet_{KEY.replace('.', '_')}.alpha": torch.tensor(1e300, dtype=torch.float64)}, tmp_path)
