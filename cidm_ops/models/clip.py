"""CLIP's text encoders (Radford et al. 2021): their ids, and the names of their layers in the LoRA files of others."""

import re
from collections.abc import Mapping
from typing import Any

START, END = 49406, 49407
CHUNK = 77  # start, 75 tokens of text, end
VOCABULARY = 49408

# Words of a single token that prompts hardly ever hold: as many concept words can a prompt have. New ones go last, so that texts stay as
# they are, bit for bit.
PLACEHOLDERS = dict(
    foxtv=49396, garza=49393, charli=49392, alsace=49388, udaipur=49385, hertz=49383, milla=49381, blanchett=49378,
    northwales=49371, dairyfree=49366, hayat=49360, nhljets=49357, ashleigh=49356, lupita=49352, antitrust=49343,
    orthopedic=49341, therapper=49340, pancreatic=49337, broome=49335, onstorm=49333, stingly=49332, wylie=49330,
    hamlin=49326, bbcsport=49321, monoxide=49314, barrymore=49310, lisse=49309, farmington=49305, rajkumar=49304,
    linus=49303, songz=49302, ssummit=49301, givingback=49300, bazar=49298, aztecs=49387, probiotics=49395,
    lopes=49269, furman=49238, gaines=49225, kellie=49224, rctid=49223, epiconetsy=49222, pasco=49220, rafaelnadal=49219, winona=49202,
    bexhill=49200, drogba=49199, hardworkpaysoff=49193, abhcosmetics=49189, patil=49187, delgado=49182, walang=49180, mesut=49177,
    nasheed=49176, clements=49175, kilig=49172, madurai=49159, avicii=49158, loughborough=49153, hickman=49148, bhagat=49136,
    ghoshal=49134, harlan=49133, ramatta=49112, asiangames=49108, downloadable=49105, therapeutics=49101, rizzo=49076, tompkins=49068,
    nederland=49058, burrell=49045, drayton=49044, wexmondays=49042, learnenglish=49040, halep=49017, njcaa=48992, womack=48980,
    joachim=48979, conwy=48971, woodson=48967, andolan=48965, malam=48956, barrington=48954, strickland=48939, finalized=48930,
    igers=48928, admins=49297, telethon=49266, respondents=49253, serverless=49243,
)  # fmt: skip

LAYER = re.compile(r"(?:text_model_)?encoder_layers_(\d+)_(?:self_attn_(?:to_)?(q|k|v|out)(?:_proj)?|mlp_(fc[12]))")

# The sizes, in transformers' words.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
BIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}


def clip_layer(flat: str) -> str | None:
    """The name of a layer, such as ``encoder.layers.0.mlp.fc1``, from one with ``_`` for every dot; ``None`` for what is none."""
    match = LAYER.fullmatch(flat)
    if not match:
        return None
    return f"encoder.layers.{match[1]}." + (f"mlp.{match[3]}" if match[3] else f"self_attn.{match[2]}_proj")


def clip_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The weights ``(out, in)`` of all linear layers in the blocks of a text encoder, by name."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    block = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    block |= {"mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}
    return {f"encoder.layers.{i}.{name}": shape for i in range(config["num_hidden_layers"]) for name, shape in block.items()}
