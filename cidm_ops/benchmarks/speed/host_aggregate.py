"""Painting steps inside a ComfyUI: ``python host_aggregate.py PACK OUT CHECKPOINT BANK SMALL_BANK ROUNDS PIXELS``.

BANK has a thousand concepts, SMALL_BANK the three that a prompt names.
"""

from dataclasses import replace

from in_host import ARGUMENTS, painter, steps, tell

# isort: split

import comfy.model_management
import comfy.sd
import torch
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.benchmarks.speed.timing import figures, interleave, ratio
from pack.cidm_ops.painting.compose import mix
from pack.cidm_ops.painting.texts import CONCEPTS, TEXTS
from pack.nodes import patches
from pack.nodes.host import ComfyBackbone

CHECKPOINT, BANK, SMALL = ARGUMENTS[:3]
ROUNDS, PIXELS = map(int, ARGUMENTS[3:])
TEN = " and ".join(f"a <c{i}>" for i in range(1, 11)) + " on the beach"
FOUR = [f"a <c{i}> on the beach" for i in range(1, 5)]
THREE = "a <c1> and a <c2> and a <c3>"


def anew(call):
    """Return the call as it is when no text and no concept was kept before."""

    def called():
        TEXTS.clear()
        CONCEPTS.clear()
        call()

    return called


def main():
    with torch.inference_mode():  # as the executor does
        model, clip, *_ = comfy.sd.load_checkpoint_guess_config(CHECKPOINT)
        backbone, bank, small = ComfyBackbone(model, clip), Bank(BANK), Bank(SMALL)
        ten = mix(backbone, bank, TEN)
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        plain = clip.encode_from_tokens_scheduled(clip.tokenize("a dog on the beach"))
        alone = mix(backbone, bank, FOUR[0])
        style = replace(alone, concepts=[replace(concept, training={"kind": "style"}) for concept in alone.concepts])
        sides = {"bare": painter(model, plain, negative, PIXELS)} | {
            name: painter(patches.with_concepts(backbone, [mixture]), patches.conditioning(clip, [mixture]), negative, PIXELS)
            for name, mixture in (("merged", ten), ("style", style))
        }
        single = steps(sides, ROUNDS)

        four = [mix(backbone, bank, prompt) for prompt in FOUR]
        routed = patches.with_concepts(backbone, four)
        sides = {
            "bare_4": painter(model, plain, negative, PIXELS, 4),
            "routed_4": painter(routed, patches.conditioning(clip, four), negative, PIXELS, 4),
        }
        batch = steps(sides, ROUNDS)

        turn = 0

        def aggregate():
            """Go from a new prompt to a model whose weights are patched, starting at a model with another prompt."""
            nonlocal turn
            turn += 1
            prompt = TEN.replace("<c10>", f"<c{10 + turn}>")
            patched = patches.with_concepts(backbone, [mix(backbone, bank, prompt)])
            comfy.model_management.load_models_gpu([patched])

        done = interleave({"aggregate": anew(aggregate), "encode": anew(lambda: patches.conditioning(clip, [ten]))}, 2 * ROUNDS)
        named = interleave(
            {
                "three_of_1000": anew(lambda: patches.with_concepts(backbone, [mix(backbone, bank, THREE)])),
                "three_of_3": anew(lambda: patches.with_concepts(backbone, [mix(backbone, small, THREE)])),
            },
            4 * ROUNDS,
        )
    tell(
        {
            "step_ratio_merged": ratio(single, "merged", "bare"),
            "step_ratio_style": ratio(single, "style", "bare"),
            "step_ratio_routed_4": ratio(batch, "routed_4", "bare_4"),
            "three_of_1000_to_three_of_3": ratio(named, "three_of_1000", "three_of_3"),
            **figures(single | batch | done | named),
        }
    )


main()
