"""The stages in which the Doodle model is trained, and the steps of each."""

STAGES = ("autoencoder", "diffusion", "decoder", "vision", "reader", "ship")
STEPS = {"autoencoder": 1900, "diffusion": 9000, "decoder": 4000, "vision": 2500, "reader": 1200}
