import pytest

from search_spaces.fusion import fusion_group


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_bert_attention_projections_share_a_group(name: str) -> None:
    assert fusion_group(f"encoder.layer.3.attention.self.{name}") == "encoder.layer.3.attention.self.qkv"


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "to_q", "to_k", "to_v", "q", "k", "v"])
def test_other_attention_projections_share_a_group(name: str) -> None:
    assert fusion_group(f"layers.0.self_attn.{name}") == "layers.0.self_attn.qkv"


@pytest.mark.parametrize("name", ["gate_proj", "up_proj"])
def test_gated_feed_forward_shares_a_group(name: str) -> None:
    assert fusion_group(f"layers.0.mlp.{name}") == "layers.0.mlp.gate_up"


@pytest.mark.parametrize(
    "name", ["layers.0.mlp.down_proj", "layers.0.self_attn.o_proj", "classifier", "features.0", "quaver", "w2"]
)
def test_other_layers_are_their_own_group(name: str) -> None:
    assert fusion_group(name) == name


def test_blocks_do_not_share_groups() -> None:
    assert fusion_group("layers.0.q_proj") != fusion_group("layers.1.q_proj")


def test_experts_share_a_group_for_each_projection() -> None:
    groups = {fusion_group(f"layers.2.experts.{expert}.{part}") for expert in range(8) for part in ("w1", "w2", "w3")}
    assert groups == {"layers.2.experts.*.w13", "layers.2.experts.*.w2"}


def test_projection_at_the_top_needs_no_parent() -> None:
    assert fusion_group("q_proj") == "qkv"
