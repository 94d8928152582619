"""The stages in which a Doodle model is trained, and the steps of each."""

STAGES = ("autoencoder", "diffusion", "decoder", "vision", "reader", "bridge", "ship")
STEPS = {"autoencoder": 1900, "diffusion": 9000, "decoder": 4000, "vision": 2500, "reader": 1200, "bridge": 3000}

# Of the Doodle of marks, with its own; a stage reads what those before it wrote.
MARKED_STAGES = ("parts", "tower", "autoencoder", "diffusion", "decoder", "base", "transformer")
MARKED_DEFAULT = MARKED_STAGES[:-1]  # the transformer takes as long as the U-Net, and nothing is made of it yet
MARKED_STEPS = {"parts": 4000, "tower": 4000, "autoencoder": 6000, "diffusion": 20_000, "decoder": 4000, "transformer": 20_000}
# Of the time that is left after rendering, the stages that are asked for share so much; the rest is for encoding and for writing.
MARKED_FITTED = 0.89
MARKED_SHARES = {"parts": 0.11, "tower": 0.13, "autoencoder": 0.19, "diffusion": 0.39, "decoder": 0.07, "transformer": 0.39}
PREDICTIONS = ("v", "flow", "eps")
SEERS = ("none", "judge", "tower")  # whose layers compare reconstructions
MEASURES = ("psnr", "parts", "tower", "captions")
STARTS = ("nothing", "shipped")  # which weights the autoencoder begins with
