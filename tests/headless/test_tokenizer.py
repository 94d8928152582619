"""Token ids without ComfyUI are those of ComfyUI."""

import json
import random
import subprocess
import textwrap

from cidm_ops.engines.tokenizer import clip_bpe, token_ids, tokenize
from cidm_ops.models.clip import END, PLACEHOLDERS, START
from cidm_ops.tokens import concept_words, hide

TEXTS = [
    "",
    " ",
    "a photo of a dog",
    "A Photo of TWO Dogs, playing!",
    "don't, we've, it's, I'd, they'LL, rock'n'roll, ''quoted'', o'clock's",
    "12345 3.14159 50% 1st 2nd 4k 8K (masterpiece) [x] {y} #tag @me a&b c/d e\\f g_h-i",
    "tabs\tand\nnew lines \r\n and   many    spaces\u00a0hard\u3000wide",
    "café cafe\u0301 naïve Ångström \u01c5 \u0130stanbul \u1e9etraße \u03a3\u0391\u03a3 œuvre",
    "\u043a\u0440\u0430\u0441\u043d\u0430\u044f \u0441\u043e\u0431\u0430\u043a\u0430 \u0438"
    " \u8d64\u3044\u72ac \ube68\uac04 \uac1c"
    " \u0915\u0941\u0924\u094d\u0924\u093e \u0643\u0644\u0628 \u0623\u062d\u0645\u0631"
    " \u72ac\U0001f415\U0001f3fd\u200d\U0001f9ba ½ ² \u2167 \u0663",
    "zero\u200bwidth soft\u00adhyphen bell\x07 replacement\ufffd line\u2028separator",
    "&amp; &lt;b&gt; <dog-1> <dog_1> <|endoftext|> x<|startoftext|>y <|EndOfText|>",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis xyzzyqwrtplk",
    *("word " * n for n in (74, 75, 76, 150, 151, 400)),
    "a red dog " * 24 + "pneumonoultramicroscopicsilicovolcanoconiosis",
]


def noise(count: int) -> list[str]:
    """Seeded strings over scripts, marks, controls, emoji and everyday pieces."""
    draw = random.Random(0)
    ranges = [(1, 0x500), (0x300, 0x340), (0x2000, 0x2100), (0x4E00, 0x4E80), (0xAC00, 0xAC40), (0x1F300, 0x1F400)]
    letters = [chr(code) for low, high in ranges for code in range(low, high) if chr(code) not in "()\\"]
    pieces = [" ", "the", "dog's", "DON'T", "\n", "  ", "12", ", ", "<|endoftext|>"]
    return ["".join(draw.choice(letters if draw.random() < 0.5 else pieces) for _ in range(draw.randint(0, 60))) for _ in range(count)]


COMFY = """
    import json, sys
    texts = json.load(sys.stdin)
    sys.argv[1:] = ["--cpu"]
    import comfy.options
    comfy.options.enable_args_parsing()
    from comfy.sd1_clip import SDTokenizer
    tokenizer = SDTokenizer()
    rows = [[[token for token, _ in row] for row in tokenizer.tokenize_with_weights(text, disable_weights=True)] for text in texts]
    print(json.dumps([tokenizer.tokenizer.get_vocab(), rows]))
"""


def test_ids_and_chunks_are_those_of_comfyui(comfy_host):
    texts = TEXTS + noise(2000)
    result = subprocess.run(
        [comfy_host.python, "-c", textwrap.dedent(COMFY)], cwd=comfy_host.path, input=json.dumps(texts), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    vocabulary, rows = json.loads(result.stdout.splitlines()[-1])
    assert clip_bpe().get_vocab() == vocabulary
    for text, expected in zip(texts, rows, strict=True):
        assert tokenize(text).tolist() == expected, text


def test_ids_are_those_of_clip():
    # "a photo of a cat" as in the documentation of CLIP's tokenizer
    assert tokenize("A photo of a\ncat").tolist() == [[START, 320, 1125, 539, 320, 2368] + [END] * 71]


def test_long_text_goes_on_in_the_next_row():
    rows = tokenize("dog " * 76)
    assert rows.shape == (2, 77)
    assert rows[:, 0].tolist() == [START, START]
    assert rows[0, 76] == END
    assert rows[1, 1] == rows[0, 1] and (rows[1, 2:] == END).all()
    assert tokenize("dog " * 75).shape == (1, 77)


def test_no_text_is_one_empty_row():
    assert tokenize("").tolist() == [[START] + [END] * 76]


def test_every_placeholder_is_one_token_of_its_id():
    around = token_ids("a , .")
    for word, number in PLACEHOLDERS.items():
        assert token_ids(f"a {word} , .") == [around[0], number, *around[1:]], word
    assert len(set(PLACEHOLDERS.values())) == len(PLACEHOLDERS)


def test_thirty_concepts_of_three_words_stand_in_one_prompt():
    words = [word for i in range(30) for word in concept_words(f"bear{i}", "teddy bear")]
    text, hidden = hide(" and ".join(words), words, PLACEHOLDERS)
    assert list(hidden.values()) == words
    assert [token for token in token_ids(text) if token in hidden] == list(hidden)
