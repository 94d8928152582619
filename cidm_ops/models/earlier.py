"""Models that shipped once and no longer do: what is of them is refused by name."""

EARLIER = {"sd1-7x128": "the first Doodle, whose pictures could not show marks and which this version no longer has"}  # by architecture


def check_present(architecture: str) -> None:
    """Raises ``ValueError`` for the architecture of an earlier model."""
    if said := EARLIER.get(architecture):
        raise ValueError(f"{architecture} is {said}: choose another base")
