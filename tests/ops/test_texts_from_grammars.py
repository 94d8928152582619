"""JSON and short texts from grammars: what a person types or a file holds is read, or refused in one line that says of what."""

import json
import math
import re

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.index import INDEX
from cidm_ops.engines.folder import read_config
from cidm_ops.engines.towers import load_tower
from cidm_ops.measure.forgetting import points_in
from cidm_ops.method.boxes import read_boxes, read_region

FOREIGN = re.compile(r"Traceback|object at 0x|\n")
NUMBERS = st.one_of(st.integers(-3, 3), st.floats(), st.sampled_from((0.25, 0.5, 0.75, 10**400, -0.0)))
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12))
ANYTHING = st.recursive(
    PLAIN, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=8), part, max_size=4), max_leaves=8
)
EDGES = st.lists(NUMBERS, min_size=3, max_size=5) | st.sampled_from(([0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]))
BOX = st.fixed_dictionaries(
    {},
    optional={
        "text": st.sampled_from(("a <dog>", "")) | ANYTHING,
        "box": EDGES | ANYTHING,
        "strength": NUMBERS | ANYTHING,
        "priority": NUMBERS | ANYTHING,
        "feather": NUMBERS | ANYTHING,
        "colour": ANYTHING,
    },
)


def written(value) -> str:
    return json.dumps(value)


def damaged(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The texts, whole, cut, doubled, deep, or with a letter of another."""
    at = st.integers(0, 400)
    cut = st.builds(lambda text, at: text[: at % (len(text) + 1)], texts, at)
    put = st.builds(
        lambda text, at, more: text[: at % (len(text) + 1)] + more + text[at % (len(text) + 1) :], texts, at, st.text(max_size=3)
    )
    return texts | cut | put | st.text(max_size=60) | st.sampled_from(("[" * 100_000, '{"a":' * 50_000, "", "null", "[NaN]", "\ufeff[]"))


def refusal(read, *arguments) -> str:
    """In one line what a parser says, "" if it reads."""
    try:
        read(*arguments)
    except ValueError as error:
        said = str(error)
        assert said and len(said) < 1000 and not FOREIGN.search(said.replace("\\n", "")), said
        return said
    return ""


@examples(300)
@given(damaged(st.lists(BOX, max_size=3).map(written)))
def test_boxes_are_regions_within_the_picture_or_named(text):
    if refusal(read_boxes, text):
        return
    boxes = json.loads(text)
    found = read_boxes(text)
    assert [prompt for prompt, _ in found] == [box["text"] for box in boxes]
    for box, (_, region) in zip(boxes, found, strict=True):
        assert set(box) <= {"text", "box", "strength", "priority", "feather"}
        assert region.mask.any() and 0 <= region.strength <= 1 and 0 <= region.feather <= 0.5 and -100 <= region.priority <= 100


@examples(300)
@given(damaged(st.builds(lambda edges, prompt: f"{','.join(map(str, edges))}: {prompt}", EDGES, st.sampled_from(("a <dog>", " ", "a: b")))))
def test_a_region_of_the_command_line_is_one_or_named(text):
    said = refusal(read_region, text)
    assert not said or "region" in said
    assert said or read_region(text)[1].mask.any()


@examples(200)
@given(damaged(st.lists(st.dictionaries(st.sampled_from(("dog", "cat")), NUMBERS | ANYTHING, max_size=2), max_size=3).map(written)))
def test_scores_of_a_sequence_are_numbers_or_named(text):
    if not refusal(points_in, text):
        assert all(math.isfinite(score) for point in points_in(text) for score in point.values())


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Bank:
    from test_manage import small

    return Bank(tmp_path_factory.mktemp("bank")).add(small("bee")).add(small("cow"))


@examples(150)
@given(st.data())
def test_whatever_stands_in_the_index_the_bank_is_what_its_files_are(bank, data):
    index = bank.folder / INDEX
    known = json.loads(index.read_text())
    names = [*known.get("concepts", {"bee.safetensors": {}})]
    entries = st.dictionaries(
        st.sampled_from((*names, "wasp.safetensors", "../x")), st.sampled_from(list(known["concepts"].values())) | ANYTHING
    )
    made = st.fixed_dictionaries({"format": st.sampled_from((known["format"], 0, None)), "concepts": entries | ANYTHING}) | ANYTHING
    text = data.draw(damaged(made.map(written)))
    whole = index.read_bytes()
    index.write_text(text, encoding="utf-8", errors="surrogatepass")
    found = Bank(bank.folder)
    assert found.names == ["bee", "cow"] and not found.damaged and found.get("bee").name == "bee"
    index.write_bytes(whole)


@examples(60)
@given(damaged(ANYTHING.map(written)))
def test_settings_beside_a_model_are_settings_or_the_file_is_named(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("model")
    (folder / "unet").mkdir()
    for file in (folder / "config.json", folder / "unet" / "config.json"):
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
    said = refusal(read_config, folder / "unet" / "config.json")
    assert "config.json" in said if said else isinstance(read_config(folder / "unet" / "config.json"), dict)
    assert str(folder) in refusal(load_tower, str(folder)), "no tower has these settings"


def test_no_number_is_too_long():
    assert "expected four numbers" in refusal(read_boxes, f'[{{"text": "a", "box": [0, 0, {10**400}, 1]}}]')
    assert math.isfinite(read_boxes('[{"text": "a", "box": [0, 0, 0.5, 1]}]')[0][1].strength)
