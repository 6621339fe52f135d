"""Presets are the models whose names they have: their sizes, and the number of their parameters."""

import pytest

from parity.cases.family import CaseError, check_divisible
from parity.presets import list_presets, load_preset

PUBLISHED = {
    "gpt2": 124.4e6,
    "gpt2-xl": 1.558e9,
    "bert-base": 109.5e6,
    "bert-large": 335.2e6,
    "llama2-7b": 6.738e9,
    "llama3-8b": 8.03e9,
    "llama3-70b": 70.55e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_matches_what_is_published(name):
    preset = load_preset(name)
    assert preset.num_parameters(padded=False) == preset.parameters
    assert preset.parameters == pytest.approx(PUBLISHED[name], rel=5e-4)


@pytest.mark.parametrize("name", list_presets())
def test_sizes_of_a_preset_fit_together(name):
    preset = load_preset(name)
    dims = preset.dims
    assert dims["H"] * dims["E"] == dims["D"]
    assert dims["H"] % dims["K"] == 0
    assert preset.options["num_heads"] == dims["H"]
    assert preset.num_parameters() >= preset.num_parameters(padded=False)
    if "V" in dims:
        assert dims["N"] <= dims["V"] < dims["N"] + 128
    # Every tp degree of a node, but for the 25 heads of GPT-2 XL.
    mesh = {"tp": 1 if name == "gpt2-xl" else 4}
    check_divisible(preset.family, {"B": 1, "S": 8, **dims}, mesh)


def test_layouts_name_each_block_once():
    names = list(load_preset("llama3-70b").shapes())
    assert len(names) == len(set(names)) == 3 + 80 * 9
    assert "blocks.79.mlp.gate.w" in names


def test_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(CaseError, match=r"^model 'llama4': there are gpt-tiny, .*, llama3-70b$"):
        load_preset("llama4")


@pytest.mark.parametrize("name", ["gpt2", "bert-base", "llama3-8b"])
def test_number_of_parameters_matches_transformers(name):
    pytest.importorskip("transformers", reason="the extra `oracle` is not installed")
    import torch
    import transformers

    dims = load_preset(name).dims
    common = {"hidden_size": dims["D"], "intermediate_size": dims["F"], "num_hidden_layers": dims["L"]}
    common |= {"num_attention_heads": dims["H"], "vocab_size": dims["N"]}
    config, model = {
        "gpt2": (transformers.GPT2Config(), transformers.GPT2LMHeadModel),
        "bert-base": (transformers.BertConfig(type_vocab_size=0), transformers.BertForMaskedLM),
        "llama3-8b": (
            transformers.LlamaConfig(**common, num_key_value_heads=dims["K"], head_dim=dims["E"]),
            transformers.LlamaForCausalLM,
        ),
    }[name]
    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in model(config).parameters())
    assert total == load_preset(name).num_parameters(padded=False)
