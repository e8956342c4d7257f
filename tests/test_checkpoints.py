"""ssmlib.checkpoints: transformers' own models, the round trip, and what is refused, by name."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from agreement import assert_close
from safetensors.torch import load_file, save_file

from ssmlib.checkpoints import ARCHITECTURES, from_pretrained, save
from ssmlib.generate import generate, prefill
from ssmlib.layers import MLPConfig, MoEConfig, NormConfig
from ssmlib.mixers.attention import AttentionConfig
from ssmlib.mixers.h3 import H3Config
from ssmlib.mixers.mamba import MambaConfig
from ssmlib.mixers.mamba2 import Mamba2Config
from ssmlib.model import ModelConfig

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
BLOCKS = ["mamba", "hybrid", "mamba", "hybrid", "hybrid", "mamba"]
TINY = {
    "mamba": ("Mamba", {"state_size": 8, "time_step_rank": 3}),
    "mamba, biased": ("Mamba", {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}),
    "mamba2": ("Mamba2", {"state_size": 16, "num_heads": 8, "head_dim": 8, "n_groups": 2}),
    "mamba2, limited": (
        "Mamba2",
        {"num_heads": 4, "head_dim": 16, "n_groups": 1, "time_step_limit": (0.05, 0.5)},
    ),
    "falcon_mamba": ("FalconMamba", {"state_size": 8, "tie_word_embeddings": False}),
    "llama": ("Llama", HEADS | {"intermediate_size": 48, "rms_norm_eps": 1e-3}),
    "llama, biased": (
        "Llama",
        HEADS
        | {"intermediate_size": 48, "head_dim": 6, "attention_bias": True, "mlp_bias": True}
        | {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    ),
    "bamba": (
        "Bamba",
        HEADS
        | {"intermediate_size": 48, "attn_layer_indices": [1], "num_hidden_layers": 3}
        | {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 2},
    ),
    "jamba": (
        "Jamba",
        HEADS
        | {"intermediate_size": 48, "num_hidden_layers": 4, "num_experts": 4, "mamba_d_state": 8}
        | {"attn_layer_period": 4, "attn_layer_offset": 2},
    ),
    "zamba2": (
        "Zamba2",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48}
        | {"mamba_d_state": 8, "n_mamba_heads": 4, "adapter_rank": 4, "num_mem_blocks": 2}
        | {"num_hidden_layers": 6, "layers_block_type": BLOCKS, "use_mem_rope": True}
        | {"use_shared_attention_adapter": True, "time_step_min": 1e-9},
    ),
    "zamba2, plain": (
        "Zamba2",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "n_mamba_heads": 4, "adapter_rank": 4}
        | {"num_hidden_layers": 3, "layers_block_type": BLOCKS[:3], "add_bias_linear": True}
        | {"mamba_d_state": 8, "mamba_ngroups": 2, "time_step_min": 1e-9},
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        {"intermediate_size": 48, "num_hidden_layers": 3, "attention_window_size": 8}
        | {"num_attention_heads": 4, "num_key_value_heads": 1},
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function from a name in TINY to a random model of transformers and the folder it wrote."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def write(name):
        if name not in made:
            kind, settings = TINY[name]
            torch.manual_seed(0)
            common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
            config = getattr(transformers, f"{kind}Config")(**common | settings)
            model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
            with torch.no_grad():
                for p in model.parameters():  # so that each matters
                    p.add_(0.1 * torch.randn_like(p))
            folder = tmp_path_factory.mktemp("theirs") / "model"
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return write


@pytest.fixture
def mamba(written, tmp_path):
    """A copy of a small folder, to be damaged."""
    folder = tmp_path / "mamba"
    shutil.copytree(written("mamba")[1], folder)
    return folder


def edit(folder, **entries):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def retensor(folder, change):
    tensors = {n: x.clone() for n, x in load_file(folder / "model.safetensors").items()}
    save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_logits_are_those_of_transformers(name, written, seeded):
    theirs, folder = written(name)
    ours, tokens = from_pretrained(folder), seeded.integers(0, 64, 2, 19)
    assert not ours.training
    want = theirs(tokens, use_cache=False).logits
    assert_close(ours(tokens)[0], want, 1e-5)


@pytest.mark.parametrize("name", sorted(TINY.keys() - {"mamba2, limited"}))  # their step: no limit
@torch.no_grad()
def test_prefill_and_decoding_are_those_of_transformers(name, written, seeded):
    theirs, folder = written(name)
    ours, tokens = from_pretrained(folder), seeded.integers(0, 64, 2, 17)
    step = decoder(theirs)
    got, state = prefill(ours, tokens[:, :12], piece=5)
    assert_close(got, step(tokens, 0, 12)[:, -1], 1e-5)
    for i in range(12, 17):
        got, state = ours(tokens[:, i : i + 1], state)
        assert_close(got, step(tokens, i, i + 1), 1e-5, f"token {i}")


def decoder(theirs):
    """A function that reads tokens from start to end, and remembers those before."""
    from transformers import DynamicCache

    cache = DynamicCache(config=theirs.config)
    mamba = theirs.config.model_type in ("mamba", "mamba2", "falcon_mamba")
    held = {"cache_params" if mamba else "past_key_values": cache}

    def step(tokens, start, end):
        own = {} if mamba else {"position_ids": torch.arange(start, end).expand(len(tokens), -1)}
        return theirs(tokens[:, start:end], use_cache=True, **held, **own).logits

    return step


@pytest.mark.parametrize("name", TINY)
def test_the_likeliest_tokens_are_those_of_transformers(name, written, seeded):
    theirs, folder = written(name)
    tokens = seeded.integers(3, 64, 2, 7)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    want = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
    assert torch.equal(generate(from_pretrained(folder), tokens, 12), want)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_what_is_saved_is_read_again_here_and_there(name, written, tmp_path, seeded):
    from transformers import AutoModelForCausalLM

    theirs, folder = written(name)
    ours = from_pretrained(folder)
    save(ours, tmp_path / "again", {"eos_token_id": 2}, shard_bytes=20_000)
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    again = from_pretrained(tmp_path / "again")
    assert again.config == ours.config
    assert again.state_dict().keys() == ours.state_dict().keys()
    for key, x in again.state_dict().items():
        assert torch.equal(x, ours.state_dict()[key]), key
    there, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert type(there) is type(theirs)
    assert there.config.eos_token_id == 2
    for key, x in there.state_dict().items():
        assert torch.equal(x, theirs.state_dict()[key]), key
    settings = {"use_cache": False}
    tokens = seeded.integers(0, 64, 1, 9)
    assert torch.equal(there.eval()(tokens, **settings).logits, theirs(tokens, **settings).logits)


def test_ties_stay_ties_and_shared_blocks_shared(written):
    zamba = from_pretrained(written("zamba2")[1])
    assert zamba.lm_head.weight is zamba.embedding.weight
    blocks = [
        layer.shared_transformer for layer in zamba.backbone.layers if hasattr(layer, "linear")
    ]
    assert blocks[0] is blocks[2]
    assert blocks[0] is not blocks[1]
    falcon = from_pretrained(written("falcon_mamba")[1])
    assert falcon.lm_head.weight is not falcon.embedding.weight


def test_parameters_are_ones_own_and_train(mamba):
    model = from_pretrained(mamba)
    before = load_file(mamba / "model.safetensors")
    logits, _ = model.train()(torch.arange(8)[None])
    logits.square().mean().backward()
    with torch.no_grad():
        for name, p in model.named_parameters():
            assert p.grad.abs().sum() > 0, name
            p.zero_()
    for name, x in load_file(mamba / "model.safetensors").items():
        assert torch.equal(x, before[name])


def test_dtype_and_device_are_asked_for(mamba):
    assert from_pretrained(mamba, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    retensor(mamba, lambda tensors: {n: x.half() for n, x in tensors.items()})
    model = from_pretrained(mamba, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for asked in ({"device": "cudda"}, {"device": "cuda:99"}, {"dtype": "float32"}):
        (name,) = asked
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got '{asked[name]}'"):
            from_pretrained(mamba, **asked)


def original(mamba, tmp_path, **entries):
    """The same model as mamba_ssm writes it: another config, another name, torch's own file."""
    folder = tmp_path / "original"
    folder.mkdir()
    tensors = load_file(mamba / "model.safetensors")
    tensors = {n.replace("embeddings", "embedding"): x for n, x in tensors.items()}
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    config = {
        "d_model": 32,
        "n_layer": 2,
        "vocab_size": 61,
        "ssm_cfg": {"d_state": 8, "dt_rank": 3, "dt_min": 0.01},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def test_the_original_format_is_the_same_model(mamba, tmp_path):
    ours, tokens = from_pretrained(original(mamba, tmp_path)), torch.arange(10)[None]
    assert torch.equal(ours(tokens)[0], from_pretrained(mamba)(tokens)[0])
    assert ours.lm_head.weight is ours.embedding.weight


def test_the_original_format_of_mamba_2(written, tmp_path):
    theirs, folder = written("mamba2")
    settings = {"layer": "Mamba2", "d_state": 16, "headdim": 8, "ngroups": 2, "chunk_size": 16}
    shutil.copytree(folder, tmp_path / "source")
    entries = {"ssm_cfg": settings, "vocab_size": 64, "tie_embeddings": False}
    made = original(tmp_path / "source", tmp_path, **entries)
    tensors = torch.load(made / "pytorch_model.bin")
    tensors["lm_head.weight"] = theirs.lm_head.weight.data
    torch.save(tensors, made / "pytorch_model.bin")
    tokens = torch.arange(9)[None]
    assert torch.equal(from_pretrained(made)(tokens)[0], from_pretrained(folder)(tokens)[0])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"ssm_cfg": {"layer": "Mamba3"}}, "layer: expected Mamba1 or Mamba2, got 'Mamba3'"),
        ({"ssm_cfg": {"gates": 2}}, "ssm_cfg: expected entries of mamba_ssm, got 'gates'"),
        ({"attn_layer_idx": [3]}, r"attn_layer_idx: expected \[\], got \[3\]"),
        ({"rms_norm": False}, "rms_norm: expected True, got False"),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "rmsnorm: expected True, got False"),
    ],
)
def test_original_models_that_are_none_of_these_are_refused(entries, message, mamba, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_pretrained(original(mamba, tmp_path, **entries))


class Opens:
    """Pickled, it would make a file when read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_torch_files_does_not_run(mamba, tmp_path):
    folder = original(mamba, tmp_path)
    trace = tmp_path / "ran"
    torch.save({"a": Opens(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: expected a whole file of tensors"):
        from_pretrained(folder)
    assert not trace.exists()
    torch.save({"a": 1}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected tensors by name, got 'a', which is none"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: expected one of mamba, .*, got 'gpt2'"),
        ({"model_type": ...}, "model_type: expected one of mamba, .*, got None"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map: expected none, got one"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected none"),
        ({"hidden_act": "relu"}, "hidden_act: expected 'silu', got 'relu'"),
        ({"hidden_size": "32"}, "config.json: hidden_size: expected a whole number >= 1, got '32'"),
        ({"hidden_size": ...}, "config.json: hidden_size: expected an entry, got none"),
        ({"intermediate_size": 65}, "intermediate_size: expected a multiple of hidden_size=32"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, got 1"),
        ({"state_size": 9}, r"A_log: expected shape \(64, 9\), as the config says, got \(64, 8\)"),
        ({"num_hidden_layers": 1}, r"left over backbone.layers.1.mixer.A_log, .* and 7 more"),
        ({"num_hidden_layers": 3}, r"missing backbone.layers.2.mixer.A_log, .* and 7 more"),
        ({"use_bias": True}, "missing backbone.layers.0.mixer.in_proj.bias"),
        ({"tie_word_embeddings": False}, "missing lm_head.weight"),
    ],
)
def test_what_a_config_says_is_checked(entries, message, mamba):
    edit(mamba, **entries)
    with pytest.raises(ValueError, match=message):
        from_pretrained(mamba)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update(x=t.pop("backbone.norm_f.weight")),
            "missing backbone.norm_f.weight; left over x$",
        ),
        (lambda t: t.update(extra=torch.ones(2)), "left over extra$"),
        (
            lambda t: t.update({"backbone.norm_f.weight": torch.ones(31)}),
            r"backbone.norm_f.weight: expected shape \(32,\), as the config says, got \(31,\)",
        ),
        (
            lambda t: t.update({"backbone.norm_f.weight": torch.ones(32).half()}),
            r"norm_f.weight: expected dtype float32, as .* has, got float16 \(dtype=",
        ),
        (
            lambda t: t.update({"backbone.norm_f.weight": torch.ones(32, dtype=torch.int8)}),
            "norm_f.weight: expected one of float64, .*, got I8",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(64, 32)}),
            "lm_head.weight: expected what backbone.embeddings.weight holds, since the two",
        ),
    ],
)
def test_tensors_are_checked_by_name(change, message, mamba):
    retensor(mamba, change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(mamba)


def test_old_llamas_keep_what_is_computed(written, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(written("llama")[1], folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    retensor(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    edit(folder, rope_parameters=..., rope_theta=10000.0, rope_scaling=None)
    tokens = torch.arange(9)[None]
    want = from_pretrained(written("llama")[1])(tokens)[0]
    assert torch.equal(from_pretrained(folder)(tokens)[0], want)
    edit(folder, rope_scaling={"type": "yarn", "factor": 2.0})
    with pytest.raises(
        ValueError, match="rope_type: expected default, linear or llama3, got 'yarn'"
    ):
        from_pretrained(folder)


def test_prompts_are_as_long_as_positions_go(written, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(written("llama")[1], folder)
    edit(folder, max_position_embeddings=8)
    model = from_pretrained(folder)
    with pytest.raises(ValueError, match="expected at most max_length=8 tokens"):
        generate(model, torch.zeros(1, 6, dtype=torch.long), 4)


def test_damaged_files_are_named(mamba, tmp_path):
    path = mamba / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], whole[:4], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model.safetensors: expected a whole file of safet"):
            from_pretrained(mamba)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(
        ValueError, match=r"model.safetensors: expected weights, got a pointer of Git"
    ):
        from_pretrained(mamba)
    folder = original(mamba.parent / "mamba", tmp_path) if path.write_bytes(whole) else None
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"pytorch_model.bin: expected a whole file of tensors"):
        from_pretrained(folder)


def test_folders_and_files_that_are_not_there(mamba, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder: expected a local folder, got 'state-sp"):
        from_pretrained("state-spaces/mamba-130m-hf")
    (mamba / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model.safetensors or pytorch_model.bin"):
        from_pretrained(mamba)
    (mamba / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json: expected an object, got list"):
        from_pretrained(mamba)
    (mamba / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: expected JSON, got"):
        from_pretrained(mamba)
    (mamba / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json: expected a file"):
        from_pretrained(mamba)


def test_an_index_is_held_to_what_it_says(mamba, tmp_path):
    model = from_pretrained(mamba)
    save(model, tmp_path / "shards", shard_bytes=20_000)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    first, *_, last = sorted(good["weight_map"].items(), key=lambda item: item[1])

    def placed(**changes):
        index.write_text(json.dumps(good | {"weight_map": good["weight_map"] | changes}))

    placed(**{first[0]: "../model.safetensors"})
    with pytest.raises(ValueError, match=r"expected the name of a .safetensors file in the folder"):
        from_pretrained(tmp_path / "shards")
    placed(**{first[0]: last[1]})
    with pytest.raises(ValueError, match=f"{first[0]}: expected in {last[1]}, as the index says"):
        from_pretrained(tmp_path / "shards")
    placed()
    (tmp_path / "shards" / last[1]).unlink()
    with pytest.raises(ValueError, match=f"{last[1]}: expected a file in"):
        from_pretrained(tmp_path / "shards")


@pytest.mark.parametrize(
    ("pattern", "legend", "changes", "message"),
    [
        ("H", {"H": H3Config()}, {}, "H3Config: expected a layer that a checkpoint can hold"),
        (
            "Mm",
            {"M": MambaConfig(), "m": MambaConfig(state_size=4)},
            {},
            "MambaConfig: expected all of its layers alike",
        ),
        (
            "M",
            {"M": MambaConfig(gated=False)},
            {},
            "mamba differs in legend.M.gated: False, not True",
        ),
        ("M", {"M": MambaConfig(norms="learned")}, {}, "falcon_mamba differs in legend.M.norms"),
        ("M", {"M": MambaConfig()}, {"norm": NormConfig(place="both")}, "differs in norm.place"),
        (
            "M",
            {"M": MambaConfig()},
            {"logit_cap": 9.0},
            "mamba differs in logit_cap: 9.0, not None",
        ),
        ("**", {"*": AttentionConfig(2)}, {}, "expected a model that one of mamba, "),
    ],
)
def test_models_that_no_architecture_computes_are_not_saved(
    pattern, legend, changes, message, tmp_path
):
    model = ModelConfig(16, 8, pattern, legend, **changes).build()
    with pytest.raises(ValueError, match=message):
        save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_models_made_here_are_saved_under_the_name_that_fits(tmp_path):
    made = {
        "mamba": ("mm", {"m": MambaConfig(4)}),
        "mamba2": ("SS", {"S": Mamba2Config(4, head_dim=4)}),
        "llama": ("A-A-", {"A": AttentionConfig(2, max_length=64), "-": MLPConfig()}),
        "jamba": (
            "MEM-*EM-",
            {
                "M": MambaConfig(4, norms="learned"),
                "*": AttentionConfig(2, base=None),
                "-": MLPConfig(16),
                "E": MoEConfig(4, 2, 16),
            },
        ),
    }
    for kind, (pattern, legend) in made.items():
        norm = NormConfig(1e-6) if kind == "jamba" else NormConfig()
        model = ModelConfig(32, 16, pattern, legend, norm=norm).build().eval()
        save(model, tmp_path / kind)
        assert json.loads((tmp_path / kind / "config.json").read_text())["model_type"] == kind
        tokens = torch.arange(9)[None]
        again = from_pretrained(tmp_path / kind)
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
        assert_close(again(tokens)[0], model(tokens)[0])


def test_nothing_is_written_over(mamba, tmp_path):
    model = from_pretrained(mamba)
    with pytest.raises(FileExistsError, match="expected nothing there, or an empty folder"):
        save(model, mamba)
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")
    assert from_pretrained(tmp_path / "empty").config == model.config


@pytest.mark.parametrize(
    "limit", [100, 40_000]
)  # within the first file of tensors, and a later one
def test_a_full_disk_leaves_nothing(limit, mamba, tmp_path):
    model, place = from_pretrained(mamba), tmp_path / "place"
    place.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="could not be written, nothing is left of it"):
            save(model, place / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(place.iterdir())


def test_every_architecture_is_tested():
    assert {name.partition(",")[0] for name in TINY} == ARCHITECTURES.keys()
