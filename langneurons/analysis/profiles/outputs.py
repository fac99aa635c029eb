"""The tokens that neurons promote and suppress, with the script each is written in."""

from collections import Counter
from typing import Any

import pandas as pd

from langneurons.analysis.profiles.result import OUTPUTS
from langneurons.corpora.purity import script
from langneurons.identification.neurons import NeuronSet
from langneurons.models import ModelView
from langneurons.models.output_directions import token_changes

OTHER = "other"
REPLACEMENT = "�"  # what decoding gives for bytes that are no character by themselves


def output_tokens(seen: ModelView, neurons: NeuronSet, count: int) -> pd.DataFrame:
    """Find the output tokens whose logits each neuron raises and lowers most by the direct path.

    Args:
        seen: The model.
        neurons: Which neurons.
        count: Tokens promoted, and as many suppressed.

    Returns:
        Rows as ``Profiles.outputs`` has them; none at sites whose units have no direction of their own.
    """
    rows: list[tuple[Any, ...]] = []
    names: dict[int, tuple[str, str]] = {}
    for layer, units in neurons.per_layer().items() if count else ():
        changes = token_changes(seen, neurons.site, layer, units)
        if changes is None:
            break
        for effect, sign in (("promoted", 1), ("suppressed", -1)):
            most = (sign * changes).topk(min(count, changes.shape[1]), dim=1)
            for unit, values, tokens in zip(units.tolist(), most.values, most.indices.tolist(), strict=True):
                for rank, (value, token) in enumerate(zip(values.tolist(), tokens, strict=True)):
                    if token not in names:
                        names[token] = named(seen, token)
                    rows.append((layer, unit, effect, rank, *names[token], sign * value))
    return pd.DataFrame(rows, columns=pd.Index(OUTPUTS))


def named(seen: ModelView, token: int) -> tuple[str, str]:
    """What a token reads, and the script it is written in.

    Bytes that are only a part of a character read as hexadecimal digits, such as 0xE0A4; where they begin one, its
    script is known.
    """
    tokenizer: Any = seen.tokenizer
    if tokenizer is None:
        return f"token {token}", OTHER
    text = tokenizer.decode([token])
    if REPLACEMENT not in text:
        return text, script_of(text)
    raw = bytes_of(str(tokenizer.convert_ids_to_tokens(token)))
    return (text, OTHER) if raw is None else (f"0x{raw.hex().upper()}", script_of(completed(raw)))


def script_of(text: str) -> str:
    """The script of most of a text's letters, such as "Devanagari"; "other" where there is no letter.

    Example:
        >>> script_of("नमस्ते"), script_of("the"), script_of("123")
        ('Devanagari', 'Latin', 'other')
    """
    letters = Counter(name for letter in text if letter.isalpha() and (name := script(letter)))
    return letters.most_common(1)[0][0].title().replace("Cjk", "Chinese") if letters else OTHER


def bytes_of(name: str) -> bytes | None:
    """The bytes that a tokenizer's name of a token stands for, in GPT-2's alphabet of bytes or as <0xE0>."""
    if name.startswith("<0x"):
        return bytes.fromhex(name[3:-1])
    alphabet = _alphabet()
    return bytes(alphabet[letter] for letter in name) if set(name) <= set(alphabet) else None


def completed(raw: bytes) -> str:
    """A character that begins with these bytes, "" where they begin none."""
    start = raw.lstrip(bytes(range(0x80, 0xC0)))
    for missing in range(4):
        try:
            return (start + b"\x85" * missing).decode()
        except UnicodeDecodeError:
            continue
    return ""


def _alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes (Radford et al. 2019, encoder.py): printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}
