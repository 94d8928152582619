"""English, where a sentence is made of a person's words."""


def article(words: str) -> str:
    """Puts the article before words: "an orange dog", "a red dog"; those that bring their own keep it, as "the <toy> duck"."""
    if words.startswith(("a ", "an ", "the ", "my ")):
        return words
    return ("an " if words.lower().startswith(tuple("aeiou")) else "a ") + words
