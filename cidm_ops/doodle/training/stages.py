"""The stages in which a Doodle model is trained, and the steps of each."""

STAGES = ("autoencoder", "diffusion", "decoder", "vision", "reader", "bridge", "ship")
STEPS = {"autoencoder": 1900, "diffusion": 9000, "decoder": 4000, "vision": 2500, "reader": 1200, "bridge": 3000}

# Of the Doodle of marks, with its own; a stage reads what those before it wrote.
MARKED_STAGES = ("parts", "tower", "autoencoder", "diffusion", "decoder", "base")
MARKED_STEPS = {"parts": 4000, "tower": 4000, "autoencoder": 6000, "diffusion": 20_000, "decoder": 4000}
# Of the time that is left after rendering, the part of each where all are fitted into it; the rest is for encoding and for writing.
MARKED_SHARES = {"parts": 0.11, "tower": 0.13, "autoencoder": 0.19, "diffusion": 0.39, "decoder": 0.07}
PREDICTIONS = ("v", "flow", "eps")
SEERS = ("none", "judge", "tower")  # whose layers compare reconstructions
MEASURES = ("psnr", "parts", "tower", "captions")
STARTS = ("nothing", "shipped")  # which weights the autoencoder begins with
