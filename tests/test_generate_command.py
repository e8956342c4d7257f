"""python -m ssmlib.generate: a checkpoint's words as they come, one line of progress, errors."""

import json
import sys

import pytest
import torch

from ssmlib.checkpoints import save
from ssmlib.generate import generate
from ssmlib.generate.__main__ import Text, main, stop_tokens
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.model import ModelConfig

WORDS = [f"w{i}" for i in range(16)]


@pytest.fixture
def folder(tmp_path):
    """A small model with words for tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    model = ModelConfig(16, 8, "MM", {"M": MambaConfig(4)}).build().eval()
    torch.nn.init.normal_(model.embedding.weight)
    save(model, tmp_path / "model")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model", model


def said(model, **settings):
    tokens = generate(model, torch.tensor([[3, 1, 4]]), 8, **settings)[0].tolist()
    return " ".join(WORDS[i] for i in tokens)


def test_it_says_what_generate_does(folder, capsys):
    path, model = folder
    assert main([str(path), "w3 w1 w4", "-n", "8"]) == 0
    out, err = capsys.readouterr()
    assert out == said(model) + "\n"
    assert "3 tokens read in" in err
    assert "8 made," in err
    assert main([str(path), "w3 w1 w4", "-n", "8", "--temperature", "1", "--seed", "5"]) == 0
    assert capsys.readouterr().out == said(model, temperature=1.0, seed=5) + "\n"


def test_it_stops_at_the_end_of_text(folder, capsys):
    path, model = folder
    fourth = int(said(model).split()[6][1:])
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [15, fourth]}))
    assert stop_tokens(path) == (15, fourth)
    words = said(model).split()
    end = words.index(f"w{fourth}", 3)
    main([str(path), "w3 w1 w4", "-n", "8"])
    assert capsys.readouterr().out.split() == words[:end]
    main([str(path), "w3 w1 w4", "-n", "8", "--go-on"])
    assert capsys.readouterr().out.split() == words


def test_letters_of_several_tokens_show_whole():
    class Bytes:
        def decode(self, tokens):
            return bytes(tokens).decode(errors="replace")

    text = Text(Bytes(), list(b"ab"))
    whole = "aé→z".encode()
    assert [text.add(byte) for byte in whole] == ["a", "", "é", "", "", "→", "z"]
    assert text.add("é".encode()[0]) == ""
    assert text.rest() == "\N{REPLACEMENT CHARACTER}"


def test_what_is_missing_is_named(folder, capsys, monkeypatch, tmp_path):
    path, _ = folder
    cases = [
        ([str(tmp_path / "none"), "w1"], "tokenizer.json: expected a file in"),
        ([str(path), ""], "prompt: expected at least one token, got none"),
        ([str(path), "w1", "-n", "0"], "max_new_tokens: expected a whole number >= 1, got 0"),
    ]
    for arguments, message in cases:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    (path / "tokenizer.json").write_text("{}")
    assert main([str(path), "w1"]) == 1
    assert "tokenizer.json: expected a tokenizer, got" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert main([str(path), "w1"]) == 1
    assert 'pip install "ssmlib[text]"' in capsys.readouterr().err
