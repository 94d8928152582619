"""The stages in which Doodle is trained, and the steps of each."""

STAGES = (
    "parts",
    "tower",
    "autoencoder",
    "diffusion",
    "decoder",
    "reader",
    "bridge",
    "base",
    "transformer",
    "ship",
)  # a stage reads what those before wrote
TRAINED = tuple(stage for stage in STAGES if stage not in ("transformer", "ship"))  # one takes as long as the U-Net, one touches the pack
STEPS = {
    "parts": 3000,
    "tower": 1500,
    "autoencoder": 5000,
    "diffusion": 7500,
    "decoder": 1500,
    "reader": 1200,
    "bridge": 3000,
    "transformer": 7500,
}
# Of the time that is left after rendering, the stages that are asked for share so much; the rest is for encoding and for writing.
FITTED = 0.89
SHARES = {
    "parts": 0.1,
    "tower": 0.12,
    "autoencoder": 0.18,
    "diffusion": 0.39,
    "decoder": 0.06,
    "reader": 0.03,
    "bridge": 0.01,
    "transformer": 0.39,
}
PREDICTIONS = ("v", "flow", "eps")
SEERS = ("judge", "tower", "none")  # whose layers compare reconstructions
MEASURES = ("psnr", "parts", "tower", "captions")
STARTS = ("nothing", "shipped")  # which weights autoencoder, U-Net and text encoder begin with
