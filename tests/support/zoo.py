"""Models of other libraries, small and with random weights, as docs/integrations.md lists them.

Each builder imports its library, and gives a model and the keyword arguments of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import normal
from torch import Tensor, nn

# A model, and the arguments of its call.
Example = tuple[nn.Module, dict[str, Any]]


def images(*size: int) -> Tensor:
    return normal(size, torch.float64, 3)


def transformers(kind: str, size: int = 64, **config: Any) -> Callable[[], Example]:
    def build() -> Example:
        import transformers as library

        name = kind.partition("For")[0].removesuffix("Model")
        made = getattr(library, f"{name}Config")(**config)
        return getattr(library, kind)(made), {"pixel_values": images(2, 3, size, size)}

    return build


def detr() -> Example:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=["stage4"]
    )
    few = dict.fromkeys(
        ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
        1,
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
        **few,
    )
    return DetrForObjectDetection(config), {"pixel_values": images(2, 3, 64, 64)}


LATENT = dict(
    block_out_channels=(16, 32),
    layers_per_block=1,
    cross_attention_dim=16,
    attention_head_dim=4,
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
)
NOISY = dict(sample=images(2, 4, 16, 16), timestep=torch.tensor(3))


def diffusers_unet() -> Example:
    from diffusers import UNet2DConditionModel

    blocks = ("CrossAttnUpBlock2D", "UpBlock2D")
    model = UNet2DConditionModel(16, 4, 4, up_block_types=blocks, **LATENT)
    return model, NOISY | dict(encoder_hidden_states=images(2, 5, 16))


def diffusers_controlnet() -> Example:
    from diffusers import ControlNetModel

    model = ControlNetModel(conditioning_embedding_out_channels=(8, 16), **LATENT)
    pictures = dict(controlnet_cond=images(2, 3, 32, 32))
    return model, NOISY | pictures | dict(encoder_hidden_states=images(2, 5, 16))


def diffusers_vae() -> Example:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    return model, {"sample": images(2, 3, 32, 32)}


def diffusers_sd3() -> Example:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=32,
    )
    return model, {
        "hidden_states": images(2, 4, 16, 16),
        "encoder_hidden_states": images(2, 5, 32),
        "pooled_projections": images(2, 16),
        "timestep": torch.tensor([3, 3]),
    }


def ultralytics(kind: str, config: str, **options: Any) -> Callable[[], Example]:
    def build() -> Example:
        from ultralytics.nn import tasks

        model = getattr(tasks, kind)(config, verbose=False, **options)
        return model, {"x": images(2, 3, 64, 64)}

    return build


def segmentation(kind: str, encoder: str) -> Callable[[], Example]:
    def build() -> Example:
        import segmentation_models_pytorch

        of_kind = getattr(segmentation_models_pytorch, kind)
        model = of_kind(encoder_name=encoder, encoder_weights=None, classes=3)
        return model, {"x": images(2, 3, 64, 64)}

    return build


def monai(kind: str, size: int = 32, **options: Any) -> Callable[[], Example]:
    def build() -> Example:
        from monai.networks import nets

        model = getattr(nets, kind)(spatial_dims=2, in_channels=1, out_channels=2, **options)
        argument = "x_in" if kind == "SwinUNETR" else "x"
        return model, {argument: images(2, 1, size, size)}

    return build


def timm(name: str, size: int = 64) -> Callable[[], Example]:
    def build() -> Example:
        import timm

        return timm.create_model(name), {"x": images(2, 3, size, size)}

    return build


def kornia() -> Example:
    from kornia.feature import HardNet8

    return HardNet8(False), {"input": images(4, 1, 32, 32)}


def faster_rcnn() -> Example:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as build

    boxes = {"boxes": torch.tensor([[5.0, 5, 40, 40]]).double(), "labels": torch.tensor([1])}
    model = build(weights=None, weights_backbone=None)
    return model, {"images": [images(3, 96, 96)], "targets": [boxes]}


def open_clip() -> Example:
    import open_clip

    vision = dict(image_size=64, layers=[1, 1, 1, 1], width=16, patch_size=None)
    text = dict(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    return model, {"image": images(2, 3, 64, 64), "text": torch.arange(16).reshape(2, 8)}


def segment_anything() -> Example:
    from segment_anything.modeling import ImageEncoderViT

    model = ImageEncoderViT(
        img_size=64,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=16,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1,),
    )
    return model, {"x": images(1, 3, 64, 64)}


def facenet() -> Example:
    from facenet_pytorch import InceptionResnetV1

    model = InceptionResnetV1(pretrained=None, num_classes=5, classify=True)
    return model, {"x": images(2, 3, 96, 96)}


def denoising_diffusion() -> Example:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    model = GaussianDiffusion(Unet(dim=16, dim_mults=(1, 2)), image_size=16, timesteps=10)
    return model, {"img": images(2, 3, 16, 16).sigmoid()}


def mobile_vit() -> Example:
    from vit_pytorch.mobile_vit import MobileViT

    channels = [8, 8, 16, 16, 24, 24, 32, 32, 32, 32, 48]
    model = MobileViT((64, 64), dims=[16, 24, 32], channels=channels, num_classes=3)
    return model, {"x": images(2, 3, 64, 64)}


def cvt() -> Example:
    from vit_pytorch.cvt import CvT

    model = CvT(num_classes=3, s1_emb_dim=16, s2_emb_dim=16, s3_emb_dim=32, s3_depth=1)
    return model, {"x": images(2, 3, 64, 64)}


def esrgan() -> Example:
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    return RRDBNet(num_filters=8, num_blocks=1), {"x": images(1, 3, 16, 16)}


VIT = dict(num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
FOUR = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])

# Name -> library and builder.
ZOO: dict[str, tuple[str, Callable[[], Example]]] = {
    "ViT": ("transformers", transformers("ViTForImageClassification", 32, hidden_size=64, **VIT)),
    "CLIP": ("transformers", transformers("CLIPVisionModel", 32, hidden_size=64, **VIT)),
    "ResNet": ("transformers", transformers("ResNetForImageClassification", **FOUR)),
    "ConvNeXt V2": ("transformers", transformers("ConvNextV2ForImageClassification", **FOUR)),
    "SegFormer": ("transformers", transformers("SegformerForSemanticSegmentation", **FOUR)),
    "MobileViT": ("transformers", transformers("MobileViTForImageClassification", image_size=64)),
    "Swin": (
        "transformers",
        transformers(
            "SwinForImageClassification",
            32,
            image_size=32,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 4],
            window_size=4,
        ),
    ),
    "DPT": (
        "transformers",
        transformers(
            "DPTForDepthEstimation",
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=64,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 16, 24, 32],
            fusion_hidden_size=16,
            is_hybrid=False,
        ),
    ),
    "DETR": ("transformers", detr),
    "UNet2DCondition": ("diffusers", diffusers_unet),
    "ControlNet": ("diffusers", diffusers_controlnet),
    "AutoencoderKL": ("diffusers", diffusers_vae),
    "SD3": ("diffusers", diffusers_sd3),
    "YOLOv8": ("ultralytics", ultralytics("DetectionModel", "yolov8n.yaml")),
    "YOLO11": ("ultralytics", ultralytics("DetectionModel", "yolo11n.yaml")),
    "YOLO11, segmentation": ("ultralytics", ultralytics("SegmentationModel", "yolo11n-seg.yaml")),
    "RT-DETR": ("ultralytics", ultralytics("RTDETRDetectionModel", "rtdetr-resnet50.yaml", nc=4)),
    "U-Net": ("segmentation_models_pytorch", segmentation("Unet", "resnet18")),
    "U-Net++": (
        "segmentation_models_pytorch",
        segmentation("UnetPlusPlus", "timm-mobilenetv3_small_100"),
    ),
    "DeepLabV3+": ("segmentation_models_pytorch", segmentation("DeepLabV3Plus", "mobilenet_v2")),
    "FPN": ("segmentation_models_pytorch", segmentation("FPN", "efficientnet-b0")),
    "Segformer": ("segmentation_models_pytorch", segmentation("Segformer", "mit_b0")),
    "MONAI UNet": ("monai", monai("UNet", channels=(8, 16, 32), strides=(2, 2), num_res_units=2)),
    "AttentionUnet": ("monai", monai("AttentionUnet", channels=(8, 16, 32), strides=(2, 2))),
    "DenseNet": (
        "monai",
        monai("DenseNet", 64, init_features=8, growth_rate=4, block_config=(2, 2, 2)),
    ),
    "SwinUNETR": ("monai", monai("SwinUNETR", 64, feature_size=12)),
    "HardNet8": ("kornia", kornia),
    "Faster R-CNN": ("torchvision", faster_rcnn),
    "open_clip": ("open_clip", open_clip),
    "Segment Anything": ("segment_anything", segment_anything),
    "FaceNet": ("facenet_pytorch", facenet),
    "GaussianDiffusion": ("denoising_diffusion_pytorch", denoising_diffusion),
    "MobileViT of vit-pytorch": ("vit_pytorch", mobile_vit),
    "CvT": ("vit_pytorch", cvt),
    "ESRGAN": ("spandrel", esrgan),
} | {
    name: ("timm", timm(name, size))
    for name, size in {
        "mobilenetv4_conv_small": 64,
        "efficientnetv2_rw_t": 64,
        "tf_efficientnet_b0": 64,
        "convnext_atto": 64,
        "repvgg_a0": 64,
        "fastvit_t8": 64,
        "edgenext_xx_small": 64,
        "ghostnetv2_100": 64,
        "hrnet_w18_small": 64,
        "coatnet_pico_rw_224": 224,
        "maxvit_rmlp_pico_rw_256": 256,
        "regnety_002": 64,
        "mobileone_s0": 64,
        "resnetv2_50": 64,
        "dla34": 64,
        "res2net50_26w_4s": 64,
        "skresnet18": 64,
    }.items()
}
