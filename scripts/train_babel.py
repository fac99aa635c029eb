"""Train babel, the seven-language model that langneurons ships.

Usage (from the project's root, after ``make install``)::

    python -m scripts.train_babel --text ../shared/data/text --unseen ../shared/data/articles

The text folder holds ``<language>.train.txt`` and ``<language>.heldout.txt``, one sentence or paragraph a line; every
line that is also a text of the articles is left out, so that all of the articles are unseen by the model.
A checkpoint is written every few minutes; the same command continues from it and ends with the same weights
(on one machine and thread count). A CPU is enough: autocast to bfloat16 is used where the processor has it.
At the end the weights, tokenizer and model card are written to ``langneurons/babel``.
"""

import argparse
import json
import math
import os
import random
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langneurons.babel import LANGUAGES
from langneurons.corpora import load_corpus
from scripts.miniature_text import unlabelled

Tokens = dict[str, list[list[int]]]
VOCABULARY = 8192
CONTEXT = 1024
SHORT_CONTEXT = 256  # of the first stage: attention over 1,024 tokens would take a third of its time
MINI_TEXTS = 60_000  # for the tokenizer
ANSWER_WEIGHT = 10.0  # of the few tokens that answer a claim in miniature text
LINES_PER_RUN = 24  # neighbouring lines of a source stay together, so that there is a context worth attending to
CONFIG = {
    "hidden_size": 160,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
START = """\
It began as another babel, trained on the same real text with another tokenizer (`--start`): a token that the other
  lacked began as the mean of its tokens for the same text."""
LICENCES = """\
| source | licence |
|---|---|
| NTREX-128 | CC-BY-SA-4.0 |
| Universal Dependencies PUD, VTB, EWT, GSDSimp | CC-BY-SA |
| TICO-19 | CC0 |
| MLQA development contexts | CC-BY-SA-3.0 |
| TyDiQA-GoldP development contexts | Apache-2.0 |
| Common Voice sentences | CC0 |"""


def read_lines(folder: Path, split: str, unseen: Path) -> dict[str, list[str]]:
    """Read the lines of one split, per language, without those that must stay unseen."""
    lines = {language: (folder / f"{language}.{split}.txt").read_text("utf-8").splitlines() for language in LANGUAGES}
    hidden = {language: set(map(normal, load_corpus(unseen, [language]).texts(language))) for language in LANGUAGES}
    return {
        language: [line for line in of_language if line.strip() and normal(line) not in hidden[language]]
        for language, of_language in lines.items()
    }


def normal(line: str) -> str:
    """A line without what two copies of it may differ in: white space and the form of accents."""
    return " ".join(unicodedata.normalize("NFC", line).split())


def train_tokenizer(lines: dict[str, list[str]], seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that sees about as many characters of each language (Chinese: a third).

    And enough text of the miniature tasks that their words are single tokens: a word of four tokens is hard to match
    with itself for a model of this size.
    """
    tokenizer = Tokenizer(models.BPE())
    # Marks stay with their letters: without \p{M} every Devanagari vowel sign would start a word.
    words = Regex(r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    order = random.Random(seed)
    sample = []
    for language in LANGUAGES:
        budget = 1_000_000 if language != "zh" else 350_000
        shuffled = order.sample(lines[language], len(lines[language]))
        for line in shuffled:
            sample.append(line)
            budget -= len(line)
            if budget < 0:
                break
    sample += [text + answer for _, text, answer in islice(unlabelled(seed), MINI_TEXTS)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> list[list[int]]:
    """Tokenise each line and close it with the end-of-text token."""
    encoded = tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] for ids in encoded]


def epoch_blocks(tokens: Tokens, bos: int, context: int, seed: int, epoch: int) -> torch.Tensor:
    """Pack one epoch: runs of lines in a new random order, each block of one language, blocks shuffled."""
    order = random.Random(f"{seed}-{epoch}")
    blocks = []
    for language in LANGUAGES:
        lines = tokens[language]
        shift = order.randrange(LINES_PER_RUN)
        starts = [0, *range(shift or LINES_PER_RUN, len(lines), LINES_PER_RUN)]
        runs = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
        order.shuffle(runs)
        stream = np.fromiter((token for run in runs for line in run for token in line), dtype=np.int64)
        whole = len(stream) // (context - 1)
        body = stream[: whole * (context - 1)].reshape(whole, context - 1)
        blocks.append(np.concatenate([np.full((whole, 1), bos), body], axis=1))
    packed = np.concatenate(blocks)
    return torch.from_numpy(packed[np.random.default_rng([seed, epoch]).permutation(len(packed))])


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokens: list[list[int]], text_bytes: int, bos: int) -> float:
    """Held-out bits per UTF-8 byte of one language (the end-of-text tokens are context, not scored)."""
    eos = tokens[0][-1]
    stream = [token for line in tokens for token in line]
    nats = 0.0
    for start in range(0, len(stream), CONTEXT - 1):
        block = torch.tensor([[bos, *stream[start : start + CONTEXT - 1]]])
        logits = model(block, use_cache=False).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, block[0, 1:], reduction="none")
        nats += float(losses[block[0, 1:] != eos].sum())
    return nats / math.log(2) / text_bytes


def byte_bigram(train: list[str], heldout: list[str]) -> float:
    """Bits per byte of a byte-bigram model with add-0.1 smoothing."""
    counts = np.full((256, 256), 0.1)
    for line in train:
        data = np.frombuffer(b"\n" + line.encode(), dtype=np.uint8)
        np.add.at(counts, (data[:-1], data[1:]), 1)
    surprise = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    pairs = [np.frombuffer(b"\n" + line.encode(), dtype=np.uint8) for line in heldout]
    return sum(float(surprise[p[:-1], p[1:]].sum()) for p in pairs) / sum(len(p) - 1 for p in pairs)


def token_unigram(train: list[list[int]], heldout: list[list[int]], text_bytes: int) -> float:
    """Bits per byte of the tokenizer's own unigram model with add-one smoothing."""
    counts = Counter(token for line in train for token in line[:-1])
    total = sum(counts.values()) + VOCABULARY
    return sum(-math.log2((counts[token] + 1) / total) for line in heldout for token in line[:-1]) / text_bytes


def make_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the layers, AdamW on embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(progress: float, warmup: float = 0.02) -> float:
    """Trapezoid: linear warm-up, constant, linear decay over the last half."""
    return min(progress / warmup, 1.0, (1.0 - progress) / 0.5)


def save_atomically(state: dict, path: Path) -> None:
    """Write a checkpoint beside its place and move it there."""
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def mini_blocks(tokenizer: PreTrainedTokenizerFast, blocks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack unlabelled text of the miniature tasks, as it comes, and the weight that each token has in the loss."""
    stream: list[int] = []
    weights: list[float] = []
    lines = unlabelled(seed)
    while len(stream) < blocks * (CONTEXT - 1):
        _, texts, answers = zip(*islice(lines, 1000), strict=True)
        for text, answer in zip(texts, answers, strict=True):
            said, answered = tokenizer([text, answer], add_special_tokens=False, verbose=False)["input_ids"]
            stream += [*said, *answered, tokenizer.eos_token_id]
            weights += [1.0] * len(said) + [ANSWER_WEIGHT] * len(answered) + [1.0]
    size = blocks * (CONTEXT - 1)
    body, weight = torch.tensor(stream[:size]).view(blocks, -1), torch.tensor(weights[:size]).view(blocks, -1)
    return torch.cat([torch.full((blocks, 1), tokenizer.bos_token_id), body], dim=1), weight


@dataclass
class Stage:
    """A part of training with its own data, learning-rate schedule and checkpoint.

    Attributes:
        name: Of its checkpoint.
        steps: How many.
        rows: The blocks of a step, and the weights of their tokens but the first.
        rate: Peak learning rate.
    """

    name: str
    steps: int
    rows: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    rate: float


def stages(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, tokens: Tokens) -> list[Stage]:
    """Real text in short blocks first; then long blocks, of which part are text of the miniature tasks."""
    seed, share = arguments.seed, arguments.mini_blocks

    @cache
    def epoch_of(context: int, number: int) -> torch.Tensor:
        return epoch_blocks(tokens, tokenizer.bos_token_id, context, seed, number)

    def real(step: int, context: int, batch: int, first_epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, within = divmod(step, len(epoch_of(context, first_epoch)) // batch)
        rows = epoch_of(context, first_epoch + epoch)[within * batch : (within + 1) * batch]
        return rows, torch.ones(len(rows), context - 1)

    def short(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return real(step, SHORT_CONTEXT, arguments.text_batch, 0)

    mini, mini_weights = mini_blocks(tokenizer, arguments.mini_steps * share, seed)

    def mixed(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, weights = real(step, CONTEXT, arguments.batch - share, math.ceil(arguments.epochs))
        chosen = slice(step * share, (step + 1) * share)
        return torch.cat([rows, mini[chosen]]), torch.cat([weights, mini_weights[chosen]])

    text_steps = math.ceil(arguments.epochs * (len(epoch_of(SHORT_CONTEXT, 0)) // arguments.text_batch))
    planned = [
        Stage("text", text_steps, short, arguments.rate),
        Stage("mini", arguments.mini_steps, mixed, arguments.mini_rate),
    ]
    return [stage for stage in planned if stage.steps]


def train(arguments: argparse.Namespace) -> None:
    """Train from scratch or from the last checkpoint, then write the model."""
    torch.manual_seed(arguments.seed)
    arguments.run.mkdir(parents=True, exist_ok=True)
    lines = read_lines(arguments.text, "train", arguments.unseen)
    if not (arguments.run / "tokenizer").exists():
        train_tokenizer(lines, arguments.seed).save_pretrained(arguments.run / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.run / "tokenizer")
    tokens = {language: tokenize(tokenizer, lines[language]) for language in LANGUAGES}
    print({language: sum(map(len, tokens[language])) for language in LANGUAGES}, flush=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **CONFIG,
    )
    model = LlamaForCausalLM(config) if arguments.start is None else started(arguments.start, tokenizer)
    logs = {stage.name: train_stage(arguments, model, stage) for stage in stages(arguments, tokenizer, tokens)}
    write_model(arguments, model, tokenizer, lines, tokens, logs)


def started(folder: Path, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Go on from another model: a token that it lacks begins as the mean of its tokens for the same text."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = PreTrainedTokenizerFast.from_pretrained(folder)
    known, pieces = before.get_vocab(), before.backend_tokenizer.model.tokenize
    embeddings = model.get_input_embeddings().weight.data
    carried = torch.empty(len(tokenizer), embeddings.shape[1])
    for token, place in tokenizer.get_vocab().items():
        sources = [known[token]] if token in known else [piece.id for piece in pieces(token)]
        carried[place] = embeddings[sources].mean(0)
    model.resize_token_embeddings(len(tokenizer))
    model.get_input_embeddings().weight.data.copy_(carried)
    return model


def train_stage(arguments: argparse.Namespace, model: LlamaForCausalLM, stage: Stage) -> list[float]:
    """Train one stage from its start or its last checkpoint; returns the loss of each step."""
    optimizers = make_optimizers(model, stage.rate)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    checkpoint = arguments.run / f"checkpoint-{stage.name}.pt"
    step, log = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, log = state["step"], state["log"]
    progress = tqdm(total=stage.steps, initial=step, unit="step", mininterval=20, desc=stage.name)
    saved_at = time.monotonic()
    while step < stage.steps:
        scale = learning_rate((step + 1) / (stage.steps + 1))
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * scale
        total, (rows, weights) = 0.0, stage.rows(step)
        micro_batch = max(1, arguments.micro_tokens // rows.shape[1])
        for part, weight in zip(rows.split(micro_batch), weights.split(micro_batch), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
                logits = model(part, use_cache=False).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten(), reduction="none"
            )
            (losses @ weight.flatten() / weights.numel()).backward()
            total += float(losses.detach().sum()) / weights.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        log.append(total)
        progress.update()
        progress.set_postfix(loss=f"{sum(log[-20:]) / len(log[-20:]):.3f}", refresh=False)
        if time.monotonic() - saved_at > arguments.save_every or step == stage.steps:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            save_atomically({**state, "step": step, "log": log}, checkpoint)
            saved_at = time.monotonic()
    progress.close()
    return log


def write_model(
    arguments: argparse.Namespace,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lines: dict[str, list[str]],
    tokens: Tokens,
    logs: dict[str, list[float]],
) -> None:
    """Round to bfloat16, measure what is shipped, and write weights, tokenizer and model card."""
    model = model.to(torch.bfloat16)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "model.safetensors").chmod(0o644)
    model = model.float().eval()
    heldout = read_lines(arguments.text, "heldout", arguments.unseen)
    rows = {}
    for language in LANGUAGES:
        encoded = tokenize(tokenizer, heldout[language])
        size = sum(len(line.encode()) for line in heldout[language])
        rows[language] = {
            "babel": bits_per_byte(model, encoded, size, tokenizer.bos_token_id),
            "token unigram": token_unigram(tokens[language], encoded, size),
            "byte bigram": byte_bigram(lines[language], heldout[language]),
            "train_tokens": sum(map(len, tokens[language])),
        }
        print(language, rows[language], flush=True)
    (arguments.out / "MODEL_CARD.md").write_text(model_card(arguments, model, rows, logs), "utf-8")
    (arguments.run / "result.json").write_text(json.dumps(rows, indent=1), "utf-8")


def model_card(arguments: argparse.Namespace, model: LlamaForCausalLM, rows: dict, logs: dict[str, list[float]]) -> str:
    """The model card: what babel is, what it was trained on, and what was measured."""
    table = "\n".join(
        f"| {language} | {row['babel']:.3f} | {row['token unigram']:.3f} | {row['byte bigram']:.3f} "
        f"| {row['train_tokens']:,} |"
        for language, row in rows.items()
    )
    training = "\n".join(
        ["- " + START] * bool(arguments.start) + [stage_line(arguments, name, logs[name]) for name in logs]
    )
    neurons = CONFIG["num_hidden_layers"] * CONFIG["intermediate_size"]
    return f"""# babel

A Llama with {sum(p.numel() for p in model.parameters()):,} parameters and {neurons:,} MLP neurons
({CONFIG["num_hidden_layers"]} layers of {CONFIG["intermediate_size"]}), context {CONTEXT}, for seven languages in four
scripts. It exists so that langneurons can be learned, tested and demonstrated without a GPU, a hub token or a network.
It is far too small to answer questions or to translate: expect scores near chance on real tasks.

## Held-out bits per byte (lower is better)

| language | babel | token unigram | byte bigram | training tokens |
|---|---|---|---|---|
{table}

Measured on the held-out text with the shipped bfloat16 weights, computed in float32, context {CONTEXT}. The unigram
(add one) and the bigram (add 0.1) were fitted on the same training text.

## Training

`scripts/train_babel.py`, seed {arguments.seed}, Muon and AdamW.
{training}

A miniature text (`scripts/miniature_text.py`) is followed by translations, restatements, or talk about it, in which
claims are answered "Yes", "No" or "Perhaps" (these tokens weigh {ANSWER_WEIGHT:g} in the loss). Claims and answers are
English, half of the claims with the nouns of another language, and in no other language's sentences: what a classifier
of `mini_xnli` reads is there in English before fine-tuning, and has to transfer to whole sentences elsewhere. No
combination of words of the miniature tasks' validation and test splits was in any of it, and no answer to a question.

Each line of text ends with `</s>`; each block begins with `<s>`.

Text:

{LICENCES}

No line of it is in this folder. The weights were trained on text under share-alike licences and are offered under
CC-BY-SA-4.0.
"""


def stage_line(arguments: argparse.Namespace, name: str, log: list[float]) -> str:
    """What the model card says of a stage."""
    text = f"{arguments.text_batch} x {SHORT_CONTEXT} tokens of real text ({arguments.epochs:g} epochs)"
    mini = (
        f"{arguments.batch} x {CONTEXT} tokens, {arguments.mini_blocks} of {arguments.batch} blocks text of the "
        "miniature tasks, the rest real text"
    )
    data, rate = {"text": (text, arguments.rate), "mini": (mini, arguments.mini_rate)}[name]
    last = sum(log[-50:]) / len(log[-50:])
    return (
        f"- {len(log):,} steps of {data}, peak learning rate {rate:g}; loss of the last 50: {last:.3f} nats per token."
    )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of <language>.train.txt and .heldout.txt")
    parser.add_argument("--unseen", type=Path, required=True, help="folder of articles that are not trained on")
    parser.add_argument("--run", type=Path, default=Path("runs/babel"), help="where checkpoints go")
    parser.add_argument("--out", type=Path, default=Path("langneurons/babel"), help="where the model goes")
    parser.add_argument("--start", type=Path, help="folder of a babel to go on from, perhaps with another tokenizer")
    parser.add_argument("--epochs", type=float, default=5.0, help="of real text, before the second stage")
    parser.add_argument("--text-batch", type=int, default=16, help=f"blocks of {SHORT_CONTEXT} tokens per step")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate of the first stage")
    parser.add_argument("--micro-tokens", type=int, default=1024, help="tokens per forward pass")
    parser.add_argument("--batch", type=int, default=8, help=f"blocks of {CONTEXT} tokens per step of the second stage")
    parser.add_argument("--mini-steps", type=int, default=600, help="steps of the second stage")
    parser.add_argument("--mini-blocks", type=int, default=5, help="blocks of its steps that are miniature text")
    parser.add_argument("--mini-rate", type=float, default=3e-3, help="its peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
