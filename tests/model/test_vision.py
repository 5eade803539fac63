"""Encoders of both libraries: number of patches, and exactly the documented feature."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    PixtralVisionConfig,
    SiglipVisionConfig,
    ViTMAEConfig,
)

from pargo_ds.model import VisionTower, vision_config_from_timm, vision_config_from_transformers

timm = pytest.importorskip("timm")

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
HF_CONFIGS = {
    "clip": CLIPVisionConfig(**SMALL, image_size=32, patch_size=8),
    "siglip": SiglipVisionConfig(**SMALL, image_size=32, patch_size=8),
    "dinov2": Dinov2Config(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=32,
        patch_size=8,
    ),
}


def pixels(size: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", HF_CONFIGS)
def test_transformers_feature_is_the_blocks_output_before_the_final_norm(kind, layer):
    config = vision_config_from_transformers(HF_CONFIGS[kind], feature_layer=layer)
    torch.manual_seed(0)
    tower = VisionTower(config)
    torch.manual_seed(0)
    whole = VisionTower(
        vision_config_from_transformers(HF_CONFIGS[kind])
    )  # all three blocks, the same weights
    blocks = next(m for m in whole.backbone.modules() if isinstance(m, torch.nn.ModuleList))
    tower.backbone.load_state_dict(whole.backbone.state_dict(), strict=False)
    caught = []
    blocks[layer].register_forward_hook(
        lambda _m, _i, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    whole(pixels(32))
    features = tower(pixels(32))
    assert features.shape == (2, 16, 24)
    expected = F.layer_norm(caught[0][:, -16:], (24,))  # the class token comes first
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name, size, patches, width", [
    ("vit_tiny_patch16_224", 64, 16, 192),
    ("eva02_tiny_patch14_224", 56, 16, 192),
    ("vit_base_patch16_siglip_224", 32, 4, 768),
])  # fmt: skip
def test_timm_vit_feature_is_the_last_block_before_the_norm_without_prefix(
    name, size, patches, width
):
    config = vision_config_from_timm(name, size)
    assert (config.num_patches, config.hidden_size, config.feature_norm) == (patches, width, True)
    tower = VisionTower(config)
    caught = []
    tower.backbone.blocks[-1].register_forward_hook(lambda _m, _i, out: caught.append(out))
    features = tower(pixels(size))
    assert features.shape == (2, patches, width)
    prefix = caught[0].shape[1] - patches
    assert prefix == (0 if "siglip" in name else 1)
    torch.testing.assert_close(features, F.layer_norm(caught[0][:, prefix:], (width,)))


def test_the_papers_encoder_has_576_patches_of_1024():
    config = vision_config_from_timm("eva02_large_patch14_clip_336")
    assert (config.image_size, config.num_patches, config.hidden_size) == (336, 576, 1024)


def test_timm_cnn_feature_is_its_last_map_in_raster_order():
    config = vision_config_from_timm("tf_efficientnet_lite0", 256)
    assert (config.num_patches, config.hidden_size, config.feature_norm) == (64, 1280, False)
    assert config.image_mean == [0.5, 0.5, 0.5]
    tower = VisionTower(config)
    features = tower(pixels(256))
    normalised = (pixels(256).float() / 255 - 0.5) / 0.5
    expected = tower.backbone.forward_features(normalised)  # (images, 1280, 8, 8)
    assert features.shape == (2, 64, 1280)
    torch.testing.assert_close(features[:, 8 * 3 + 5], expected[:, :, 3, 5])


def test_uint8_is_normalised_and_float_is_taken_as_it_is():
    config = vision_config_from_transformers(HF_CONFIGS["clip"])
    tower = VisionTower(config)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (config.image_mean, config.image_std))
    torch.testing.assert_close(tower(pixels(32)), tower((pixels(32) / 255 - mean) / std))


@pytest.mark.parametrize("kind", HF_CONFIGS)
def test_every_trained_parameter_of_a_tower_gets_a_gradient(kind):
    tower = VisionTower(vision_config_from_transformers(HF_CONFIGS[kind]))
    tower(pixels(32)).square().sum().backward()
    assert not any(
        "vision_model" in name for name, _ in tower.named_parameters()
    )  # the same names in both versions
    unused = {name for name, p in tower.backbone.named_parameters() if p.grad is None}
    assert unused <= {"embeddings.mask_token"}  # DINOv2 keeps its pre-training token


def test_frozen_tower_makes_no_graph_and_learns_no_statistics():
    tower = (
        VisionTower(vision_config_from_timm("tf_efficientnet_lite0", 64))
        .requires_grad_(False)
        .train()
    )
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    assert not tower(pixels(64)).requires_grad
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())


def test_a_prebuilt_encoder_is_used_as_it_is():
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    weight = backbone.blocks[0].attn.qkv.weight
    tower = VisionTower(vision_config_from_timm("vit_tiny_patch16_224", 32), backbone)
    assert tower.backbone.blocks[0].attn.qkv.weight is weight


def test_weights_with_a_classifier_load_and_others_are_refused():
    config = vision_config_from_timm("vit_tiny_patch16_224", 32)
    weights = timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict()
    tower = VisionTower(config)
    tower.load_backbone(weights)
    assert torch.equal(tower.backbone.pos_embed, weights["pos_embed"])
    weights["blocks.0.extra"] = torch.zeros(1)
    del weights["pos_embed"]
    with pytest.raises(
        ValueError, match=r"missing \['pos_embed'\].*unexpected \['blocks.0.extra'\]"
    ):
        tower.load_backbone(weights)


def test_image_text_pairs_give_their_vision_part():
    pair = CLIPConfig(vision_config={**SMALL, "image_size": 32, "patch_size": 8})
    assert vision_config_from_transformers(pair).num_patches == 16


def test_feature_layer_outside_the_encoder_is_an_error():
    with pytest.raises(ValueError, match="feature_layer -4: encoder .* has 3 block"):
        VisionTower(vision_config_from_transformers(HF_CONFIGS["clip"], feature_layer=-4))


def test_unknown_timm_name_is_an_error():
    with pytest.raises(ValueError, match="timm knows no model 'vit_huge_nothing'"):
        vision_config_from_timm("vit_huge_nothing")


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        ("eva02_tiny_patch14_224", 60, "56 or 70"),
        ("vit_base_patch16_siglip_224", 47, "32 or 48"),
        (
            "convnext_atto",
            112,
            "96 or 128",
        ),  # the fourth stage would leave out what the first ones see
    ],
)
def test_a_timm_encoder_that_would_not_see_all_pixels_is_refused(name, size, fits):
    with pytest.raises(ValueError, match=f"pixels would never be seen; set image_size to {fits}"):
        vision_config_from_timm(name, size)


@pytest.mark.parametrize(
    ("name", "size"), [("tf_efficientnet_lite0", 70), ("resnet18", 70), ("test_vit", 64)]
)
def test_padding_and_shortcuts_lose_no_pixels(name, size):
    assert vision_config_from_timm(name, size).image_size == size


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        (HF_CONFIGS["siglip"], 64, "at image_size 64 does not work here"),
        (HF_CONFIGS["clip"], 64, "at image_size 64 does not work here"),
        (
            HF_CONFIGS["dinov2"],
            60,
            "60 is no multiple of 8, .*the last 4 rows .*set image_size to 56 or 64",
        ),
        (SiglipVisionConfig(**SMALL, image_size=36, patch_size=8), 44, "at image_size 44"),
        (
            ConvNextConfig(),
            224,
            r"\(convnext, hidden_size None\) is no vision encoder .*library: timm",
        ),
        # All patches of a batch in one row: right for one image, wrong for two.
        (
            PixtralVisionConfig(**SMALL, image_size=32, patch_size=8),
            32,
            r"gives \(1, 16, 32\) .*not \(2, 16, 32\)",
        ),
        (
            ViTMAEConfig(**SMALL, image_size=32, patch_size=8),
            32,
            "expected 16 patches",
        ),  # masks them at random
    ],
)
def test_a_transformers_encoder_that_does_not_work_at_this_size_is_one_error(config, size, said):
    with pytest.raises(ValueError, match=said):
        vision_config_from_transformers(config, image_size=size)


def test_at_the_size_it_was_published_for_an_encoder_may_pass_by_the_edges_with_a_warning():
    """SigLIP so400m, 384 pixels in patches of 14, is a popular one."""
    with pytest.warns(
        UserWarning,
        match="the last 4 rows and columns of pixels would never be seen, as in its own",
    ):
        config = vision_config_from_transformers(
            SiglipVisionConfig(**SMALL, image_size=36, patch_size=8)
        )
    assert config.num_patches == 16


def test_encoders_that_compute_their_positions_take_other_sizes():
    """DINOv3's rotary tables want a real device."""
    dinov3 = DINOv3ViTConfig(**SMALL, image_size=32, patch_size=8)
    for config, size in ((HF_CONFIGS["dinov2"], 64), (dinov3, 32), (dinov3, 64)):
        assert (
            vision_config_from_transformers(config, image_size=size).num_patches == (size // 8) ** 2
        )


def test_a_timm_name_that_is_nearly_right_is_answered_with_near_ones():
    with pytest.raises(ValueError, match="did you mean vit_tiny_patch16_224"):
        vision_config_from_timm("vit_tiny_patch16_24")
    with pytest.raises(ValueError, match="Invalid pretrained tag"):
        vision_config_from_timm("vit_tiny_patch16_224.nothing")
    with pytest.raises(ValueError, match="library: transformers"):
        vision_config_from_timm("openai/clip-vit-large-patch14")
