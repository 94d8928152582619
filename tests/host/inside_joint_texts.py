"""Checks inside a ComfyUI, as in inside.py, of the texts of regions on transformers: where the words of a concept stand in what each family
reads, places that are found by them, prompts of a batch, and an adapter that texts go through.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from inside_joint import OTHER, OWN, THIRD, concept, conditioning, differ, filled, in_places, painted, same, stack_of
from inside_transformers import SPELLINGS, imported, lora_file, refused

# isort: split

import comfy.sample
import torch
from host_transformers import (
    ARCHITECTURES,
    CONFIGS,
    NEWEST,
    TEXT,
    WIDE_SD3,
    anima_clip,
    built,
    flux_clip,
    model_of,
    qwen_clip,
    sd3_clip,
)
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.exchange import import_into
from pack.cidm_ops.concept_text import ConceptText
from pack.cidm_ops.method.regions import RegionMask
from pack.cidm_ops.row_plan import RowPlan
from pack.nodes import patches
from subjects import call


def the_places_of_concepts_are_found_by_their_words():
    texts, words = "a <rex> in the snow\na <tom> in the snow", {"rex": "red cat", "tom": "dog"}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: lora_file("Flux", SPELLINGS["kohya"], seed) for seed, name in enumerate(words)}
        nameless = {"model": model_of("Flux"), "clip": flux_clip(), "bank": imported(folder, "Flux", **files)}
        bank = Bank(Path(folder) / "named")
        for name, word in words.items():
            bank = import_into(bank, Path(folder) / f"{name}.safetensors", architecture=ARCHITECTURES["Flux"], triggers=[word])[0]
        given = {**nameless, "bank": bank}
        regions = {until: call("CIDMFindRegions", texts=texts, until_percent=until) for until in (0.3, 1.0)}
        refused("no trigger or class word of that stands in the text", "CIDMPaint", **nameless, prompt="snow", regions=regions[0.3])
        plain = painted("Flux", *call("CIDMPaint", **given, prompt="snow")[:2])
        model, positive = call("CIDMPaint", **given, prompt="snow", regions=regions[1.0])[:2]
        same(painted("Flux", model, positive), plain, "while places are looked for, the picture is the global prompt's")
        found = painted("Flux", *call("CIDMPaint", **given, prompt="snow", regions=regions[0.3])[:2])
        differ(found, plain, "places that were found")
        tokens = {word: [token[0] for token in flux_clip().tokenize(word)["t5xxl"][0]] for word in words.values()}
        for text, (name, word) in zip(positive[0][0].plans[0].regions, words.items(), strict=True):
            at = text.plans[0].token_masks[name].nonzero()[:, 0].tolist()
            whole = flux_clip().tokenize(f"a {word} in the snow")["t5xxl"][0]
            assert [whole[i][0] for i in at] == tokens[word][: len(word.split())], f"{word} stands at {at}"


def the_words_of_qwen_stand_behind_its_template():
    texts, words = "a <rex> in the snow\na <tom> in the snow", {"rex": "red cat", "tom": "dog"}
    with tempfile.TemporaryDirectory() as folder:
        imported(folder, "QwenImage", **{name: lora_file("QwenImage", SPELLINGS["kohya"], i) for i, name in enumerate(words)})
        bank = Bank(Path(folder) / "named")
        for name, word in words.items():
            file = Path(folder) / f"{name}.safetensors"
            bank = import_into(bank, file, architecture=ARCHITECTURES["QwenImage"], triggers=[word])[0]
        given = {"model": model_of("QwenImage"), "clip": qwen_clip(), "bank": bank}
        regions = call("CIDMFindRegions", texts=texts, until_percent=0.3)
        model, positive = call("CIDMPaint", **given, prompt="snow", regions=regions)[:2]
        plain = painted("QwenImage", *call("CIDMPaint", **given, prompt="snow")[:2])
        differ(painted("QwenImage", model, positive), plain, "places that were found")
        for text, (name, word) in zip(positive[0][0].plans[0].regions, words.items(), strict=True):
            mask = text.plans[0].token_masks[name]
            whole = [token[0] for token in qwen_clip().tokenize(f"a {word} in the snow")["qwen25_7b"][0]]
            assert len(whole) - text.shape[1] > 20 and len(mask) == text.shape[1], "the template is cut off"
            at = (mask.nonzero()[:, 0] + len(whole) - len(mask)).tolist()
            assert qwen_clip().tokenizer.qwen25_7b.tokenizer.decode([whole[i] for i in at]).strip() == word
        boxes = '[{"text": "a <rex> in the snow", "box": [0, 0, 0.5, 1]}, {"text": "a <tom> in the snow", "box": [0.5, 0, 1, 1]}]'
        box = call("CIDMRegionBoxes", boxes=boxes)
        drawn = []
        for more in (1.0, 2.0):
            settings = call("CIDMAggregationSettings", region_guidance=more)
            model, positive = call("CIDMPaint", **given, prompt="snow", regions=box, settings=settings)[:2]
            drawn.append(painted("QwenImage", model, positive, 2.0, count=2))
        differ(*drawn, "more guidance in regions")


def the_words_of_stable_diffusion_3_stand_in_the_text_of_t5():
    model, clip, texts = built("SD3", WIDE_SD3), sd3_clip(), {"rex": "a <rex> in the snow", "tom": "a <tom> in the snow"}
    words, boxes = {"rex": "red cat", "tom": "dog"}, [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    factors = {layer: f for layer, f in concept("SD3").factors.items() if "context_embedder" not in layer}
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank(Path(folder))
        for name, word in words.items():
            bank = bank.add(replace(concept("SD3"), name=name, factors=factors, triggers=(word,)))
        given = {"model": model, "clip": clip, "bank": bank, "prompt": "snow"}
        found = call("CIDMFindRegions", texts="\n".join(texts.values()), until_percent=0.3)
        sought, positive = call("CIDMPaint", **given, regions=found)[:2]
        for text, word in zip(positive[0][0].plans[0].regions, words.values(), strict=True):
            at = next(iter(text.plans[0].token_masks.values())).nonzero()[:, 0] - 77
            ids = [token[0] for token in clip.tokenize(f"a {word} in the snow")["t5xxl"][0]]
            assert text.shape[1] == 77 + 77 and clip.tokenizer.t5xxl.tokenizer.decode([ids[i] for i in at]) == word
        latent = torch.zeros(1, 16, 8, 8)
        given_to = comfy.sample.prepare_noise(latent, 1), 2, 1.0, "euler", "simple"
        drawn = call("CIDMRegionBoxes", boxes=json.dumps([{"text": t, "box": b} for t, b in zip(texts.values(), boxes, strict=True)]))
        cut = call("CIDMAggregationSettings", region_texts="cut")
        pictures = [comfy.sample.sample(sought, *given_to, positive, positive, latent, seed=1)]
        for more in ({}, {"settings": cut}):
            painter, positive = call("CIDMPaint", **given, regions=drawn, **more)[:2]
            pictures.append(comfy.sample.sample(painter, *given_to, positive, positive, latent, seed=1))
            assert [t.shape[1] for t in positive[0][0].plans[0].regions] == [77 + (64 if more else 77)] * 2
        for one, other in ((0, 1), (1, 2)):
            differ(pictures[one], pictures[other], "found, drawn, and with shorter texts")


def the_prompts_of_a_batch_on_qwen_are_painted_as_each_alone():
    prompts = ("a <rex:0.8> in the snow", "a <rex> and a <tom>, a <tom> and more of it")
    with tempfile.TemporaryDirectory() as folder:
        files = {name: lora_file("QwenImage", SPELLINGS["kohya"], seed) for seed, name in enumerate(("rex", "tom"))}
        given = {"model": model_of("QwenImage"), "clip": qwen_clip(), "bank": imported(folder, "QwenImage", **files)}
        model, positive, *_ = call("CIDMAggregateBatch", **given, texts="\n".join(prompts))
        found = painted("QwenImage", model, positive, count=2)
        for number, prompt in enumerate(prompts):
            merged = call("CIDMAggregate", **given, text=prompt)[0]
            said = call("CIDMEncodePrompt", clip=given["clip"], bank=given["bank"], text=prompt)[0]
            same(found[number : number + 1], painted("QwenImage", merged, said, count=2)[number : number + 1], prompt)


def the_adapter_of_anima_reads_each_text_as_its_concepts_changed_it():
    """What concepts changed of the adapter acts on the texts of their places too, as if it were merged and the text alone."""
    if not NEWEST:
        return
    boxes = '[{"text": "a <rex> in the snow", "box": [0, 0, 1, 1]}]'
    with tempfile.TemporaryDirectory() as folder:
        files = {name: lora_file("Anima", SPELLINGS["kohya"], seed) for seed, name in enumerate(("rex", "tom"))}
        bank = imported(folder, "Anima", **files)
        for name in bank.names:  # whose layers that see the picture as a whole act in no region
            factors = {n: f for n, f in bank.get(name).factors.items() if not n.startswith(("x_", "t_", "final_")) and "adaln" not in n}
            bank = bank.add(replace(bank.get(name), factors=factors))
        given = {"model": model_of("Anima"), "clip": anima_clip(), "bank": bank}
        merged = call("CIDMAggregate", **given, text="a <rex> in the snow")[0]
        said = call("CIDMEncodePrompt", clip=given["clip"], bank=bank, text="a <rex> in the snow")[0]
        assert "t5xxl_ids" in said[0][1], "the host's own text"
        wanted = painted("Anima", merged, said)
        bare = patches.merge(model_of("Anima"), {n: f for n, f in bank.get("rex").factors.items() if "llm_adapter" not in n})
        differ(painted("Anima", bare, said), wanted, "without what the adapter learned")
        model, positive = call("CIDMPaint", **given, prompt="fog", regions=call("CIDMRegionBoxes", boxes=boxes))[:2]
        assert positive[0][0].shape == (1, 512, TEXT) and "t5xxl_ids" not in positive[0][1]
        same(painted("Anima", model, positive), wanted, "in a region that is the picture")
        foreign = given["clip"].encode_from_tokens_scheduled(given["clip"].tokenize("fog"))
        same(painted("Anima", model, foreign), wanted, "with the text of another node")
        routed = call("CIDMAggregate", **given, text="a <rex> in the snow", settings=call("CIDMAggregationSettings", path="routed"))[0]
        same(painted("Anima", routed, said), wanted, "beside the layers")
        prompts = "a <rex> in the snow\na <tom:0.5> and a <rex>"
        beside, texts, *_ = call("CIDMAggregateBatch", **given, texts=prompts)
        found = painted("Anima", beside, texts, count=2)
        for number, prompt in enumerate(prompts.splitlines()):
            one = call("CIDMAggregate", **given, text=prompt)[0]
            own = call("CIDMEncodePrompt", clip=given["clip"], bank=bank, text=prompt)[0]
            same(found[number : number + 1], painted("Anima", one, own, count=2)[number : number + 1], prompt)


def the_words_of_anima_stand_among_those_of_its_adapter():
    if not NEWEST:
        return
    with tempfile.TemporaryDirectory() as folder:
        imported(folder, "Anima", rex=lora_file("Anima", SPELLINGS["kohya"]))
        file = Path(folder) / "rex.safetensors"
        bank = import_into(Bank(Path(folder) / "named"), file, architecture=ARCHITECTURES["Anima"], triggers=["red cat"])[0]
        given = {"model": model_of("Anima"), "clip": anima_clip(), "bank": bank}
        regions = call("CIDMFindRegions", texts="a <rex> in the snow", until_percent=0.3)
        model, positive = call("CIDMPaint", **given, prompt="snow", regions=regions)[:2]
        mask = positive[0][0].plans[0].regions[0].plans[0].token_masks["rex"]
        whole, word = ([t[0] for t in anima_clip().tokenize(text)["t5xxl"][0]] for text in ("a red cat in the snow", "red cat"))
        at = mask.nonzero()[:, 0].tolist()
        assert len(mask) == 512 and [whole[i] for i in at] == word[:-1], at  # behind the word is the end of the text
        differ(painted("Anima", model, positive), painted("Anima", *call("CIDMPaint", **given, prompt="snow")[:2]), "found")
        said = given["clip"].encode_from_tokens_scheduled(given["clip"].tokenize("fog"))
        mixed = [[torch.cat([positive[0][0], said[0][0]], 1), said[0][1]]]
        try:
            painted("Anima", model, mixed)
        except ValueError as error:
            assert "mixed with one of another node" in str(error), str(error)
        else:
            raise AssertionError("it painted a text that is half read")


def the_places_of_every_family_are_found():
    for kind in CONFIGS:
        words = [RowPlan(token_masks={"rex": torch.eye(text.shape[1])[at]}) for at, text in enumerate((OWN, THIRD), 1)]
        found = [ConceptText.of(text, [plan]) for text, plan in zip((OWN, THIRD), words, strict=True)]
        more = conditioning(kind, OTHER)[0][1]
        said = [[ConceptText.of(filled(kind, OTHER), [RowPlan(regions=tuple(found))]), more]]
        plain = painted(kind, model_of(kind), conditioning(kind, OTHER))
        for until, check in ((1.0, same), (0.3, differ)):
            place = RegionMask(torch.zeros(1, 1), sought=until)
            check(painted(kind, in_places(kind, place, place, stacks=(stack_of(kind, 0.0, 1.0, 1.0),)), said), plain, kind)
