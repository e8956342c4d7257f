"""`python -m ssmlib.generate FOLDER "prompt"`: continue a prompt with a checkpoint's model.

The tokens go to standard output as they come, and a line of progress to standard error. FOLDER is
what `ssmlib.checkpoints` reads, with the tokenizer.json that belongs to it; `pip install
"ssmlib[text]"` brings the package that reads that.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ssmlib.checkpoints import from_pretrained
from ssmlib.generate.loop import stream


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        folder = Path(args.folder)
        tokenizer = load_tokenizer(folder)
        dtype = None if args.dtype is None else getattr(torch, args.dtype)
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = from_pretrained(folder, device, dtype)
        stop = () if args.go_on else stop_tokens(folder)
        _continue(model, tokenizer, args, stop)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, or an error that says what is missing."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        told = 'the package tokenizers, which reads them (pip install "ssmlib[text]")'
        raise ImportError(f"tokens: expected {told}, got none") from None
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer.json: expected a file in {folder}, got none")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package has no class of its own for what it refuses
        raise ValueError(f"tokenizer.json: expected a tokenizer, got {error}") from None


def stop_tokens(folder: Path) -> tuple[int, ...]:
    """The end of text, of generation_config.json or else config.json; none where neither says."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return (found,) if isinstance(found, int) else tuple(found)
    return ()


class Text:
    """Tokens to text as they come: a letter may be spread over several, and shows with the last.

    A token is decoded with a few before it, since how it reads may depend on them.
    """

    def __init__(self, tokenizer: Any, prompt: list[int]):
        self.tokenizer, self.tokens = tokenizer, list(prompt)
        self.done = len(prompt)  # so many are shown
        self.before = max(0, self.done - 8)

    def add(self, token: int) -> str:
        self.tokens.append(token)
        whole = self._read(len(self.tokens))
        return "" if whole.endswith("\N{REPLACEMENT CHARACTER}") else self._show(whole)

    def rest(self) -> str:
        return self._show(self._read(len(self.tokens)))

    def _read(self, end: int) -> str:
        return self.tokenizer.decode(self.tokens[self.before : end])

    def _show(self, whole: str) -> str:
        new = whole[len(self._read(self.done)) :]
        self.before, self.done = self.done, len(self.tokens)
        return new


def _continue(model: Any, tokenizer: Any, args: argparse.Namespace, stop: tuple[int, ...]) -> None:
    ids = tokenizer.encode(args.prompt).ids
    if not ids:
        raise ValueError("prompt: expected at least one token, got none")
    prompt = torch.tensor([ids], device=next(model.parameters()).device)
    settings = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    tokens = stream(model, prompt, args.tokens, seed=args.seed, stop=stop, **settings)
    text = Text(tokenizer, ids)
    print(args.prompt, end="", flush=True)
    for token in _with_progress(tokens, len(ids)):
        if token not in stop:
            print(text.add(token), end="", flush=True)
    print(text.rest(), flush=True)


def _with_progress(tokens: Iterator[torch.Tensor], read: int) -> Iterator[int]:
    """The tokens as numbers; how fast they come, on the terminal while they do, and at the end."""
    began, first = time.perf_counter(), 0.0
    live = sys.stderr.isatty() and not sys.stdout.isatty()  # one terminal shows one thing at a time
    for made, token in enumerate(tokens, 1):
        number, now = token.item(), time.perf_counter()
        first = first or now
        yield number
        line = f"{read} tokens read in {first - began:.2f} s, {made} made"
        line += f", {(made - 1) / (now - first):.1f} a second" if made > 1 else ""
        if live:
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
    print(f"\r{line}" if live else f"\n{line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ssmlib.generate",
        description="Continue a prompt with the model of a checkpoint folder, token by token.",
    )
    parser.add_argument("folder", help="config.json, weights and tokenizer.json, on this machine")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("-n", "--tokens", type=int, default=100, help="at most so many new tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest")
    parser.add_argument("--top-k", type=int, help="draw from so many of the likeliest alone")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest with so much in all")
    parser.add_argument("--seed", type=int, help="of the drawing")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the end of text")
    parser.add_argument("--device", help="cuda or cpu; by default cuda if there is one")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
