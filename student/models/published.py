"""What GhostNetV3 (arXiv 2404.11202) prints of itself and of others in its Table 9, row by row.

Figures are kept as printed, since their last digit says how exact they are. docs/paper.md tells
where they contradict the networks, or the paper's own text.
"""

from dataclasses import dataclass
from decimal import Decimal

TABLE_9 = "GhostNetV3, arXiv 2404.11202, Table 9"

_SCALE = Decimal(10**6)


@dataclass(frozen=True, slots=True)
class Published:
    """What is printed of a model on ImageNet-1k at 224 px."""

    top1: float
    """Percent."""
    top5: float | None
    params: str
    """Such as `6.1M`."""
    macs: str
    """Multiply-adds, such as `167M`; papers call them FLOPs."""
    cpu_ms: float
    """One image on an Intel i7-8700 at 3.2 GHz."""
    phone_ms: float
    """One image on a Huawei Mate40Pro (Kirin 9000)."""
    source: str = TABLE_9


@dataclass(frozen=True, slots=True)
class Row:
    """A model of the comparison."""

    label: str
    model: str | None
    """Its name for `build_student`; None: neither timm nor torchvision has it."""
    published: Published | None
    branches: int | None = None
    """N of its training form where that is not the model itself."""
    select: tuple[str, ...] = ()
    """Which of its convolutions: all but the stem and the last one."""


ROWS = (
    Row("GhostNetV1 0.5x", "ghostnet_050", Published(66.2, 86.6, "2.6M", "42M", 1.98, 5.43)),
    Row("Mobileformer-52", None, Published(68.7, None, "3.6M", "52M", 34.27, 89.65)),
    Row("MobileNetV3-S", "mobilenetv3_small_100", Published(67.4, None, "2.5M", "56M", 2.10, 5.47)),
    Row("GhostNetV3 0.5x", "ghostnetv3_050", Published(69.4, 88.5, "2.7M", "48M", 2.09, 5.67), 3),
    Row("Mobileformer-96", None, Published(72.8, None, "4.6M", "96M", 42.18, 101.37)),
    Row(
        "ShuffleNetV2 1.0x",
        "torchvision/shufflenet_v2_x1_0",
        Published(69.4, 88.9, "2.3M", "146M", 4.69, 11.07),
    ),
    Row(
        "ShuffleNetV2 1.0x + ours",
        "torchvision/shufflenet_v2_x1_0",
        Published(71.6, 89.8, "2.3M", "146M", 4.69, 11.07),
        3,
        ("stage*",),
    ),
    Row("MobileViT-XXS", "mobilevit_xxs", Published(69.0, None, "1.3M", "373M", 12.5, 29.47)),
    Row("MobileNetV1", "mobilenetv1_100", Published(70.6, None, "4.2M", "575M", 7.02, 12.85)),
    Row("MobileOne-S0", "mobileone_s0", Published(71.4, None, "2.1M", "275M", 5.48, 12.34)),
    Row("PiT-ti", "pit_ti_224", Published(71.3, None, "4.9M", "710M", 21.87, 45.34)),
    Row("DeiT-tiny", "deit_tiny_patch16_224", Published(72.2, None, "5.9M", "1300M", 28.01, 56.4)),
    Row("PiT-xs", "pit_xs_224", Published(72.4, None, "10.6M", "1400M", 32.92, 69.7)),
    Row("ConViT-tiny", "convit_tiny", Published(73.1, 91.7, "5.7M", "1000M", 28.75, 58.73)),
    Row("MobileViT-XS", "mobilevit_xs", Published(74.8, None, "2.3M", "724M", 23.43, 64.34)),
    Row("MixNet-S", "mixnet_s", Published(75.8, 92.8, "4.1M", "256M", 15.75, 30.79)),
    Row(
        "MobileNetV3-L", "mobilenetv3_large_100", Published(75.2, None, "5.4M", "219M", 7.25, 14.24)
    ),
    Row(
        "ShuffleNetV2 2.0x",
        "torchvision/shufflenet_v2_x2_0",
        Published(74.9, None, "7.4M", "591M", 15.62, 25.36),
    ),
    Row("MNASNet-A1", "semnasnet_100", Published(75.2, 92.5, "3.9M", "312M", 7.81, 13.57)),
    Row("MobileNetV2 1.0x", "mobilenetv2_100", Published(72.0, 90.8, "3.4M", "300M", 7.96, 14.97)),
    Row(
        "MobileNetV2 1.0x + ours",
        "mobilenetv2_100",
        Published(75.0, 92.1, "3.4M", "300M", 7.96, 14.97),
        3,
        ("blocks.*",),
    ),
    Row("GhostNetV1 1.0x", "ghostnet_100", Published(73.9, 91.4, "5.2M", "141M", 6.25, 12.65)),
    Row("MobileNeXt 1.0x", None, Published(74.0, None, "3.4M", "311M", 8.63, 16.17)),
    Row("MobileOne-S1", "mobileone_s1", Published(75.9, None, "4.8M", "825M", 14.86, 27.21)),
    Row("FBNet-C", "fbnetc_100", Published(74.9, None, "5.5M", "375M", 9.37, 15.67)),
    Row("GhostNetV2 1.0x", "ghostnetv2_100", Published(75.3, 92.4, "6.1M", "167M", 7.81, 14.69)),
    Row("GhostNetV3 1.0x", "ghostnetv3_100", Published(77.1, 93.3, "6.1M", "167M", 7.81, 14.69), 3),
    Row("MobileNetV2 1.4x", "mobilenetv2_140", Published(74.7, None, "6.9M", "585M", 13.07, 22.85)),
    Row("GhostNetV1 1.3x", "ghostnet_130", Published(75.7, 93.4, "7.3M", "226M", 12.69, 24.31)),
    Row("MobileNeXt 1.4x", None, Published(76.1, None, "6.1M", "590M", 11.46, 21.65)),
    Row("MobileOne-S2", "mobileone_s2", Published(77.4, None, "7.8M", "1299M", 23.04, 40.28)),
    Row("MixNet-M", "mixnet_m", Published(77.0, 93.3, "5.0M", "360M", 21.44, 43.12)),
    Row("MobileViT-S", "mobilevit_s", Published(78.4, None, "5.6M", "1792M", 35.93, 92.28)),
    Row("GhostNetV2 1.3x", "ghostnetv2_130", Published(76.9, 93.4, "8.9M", "269M", 14.46, 28.69)),
    Row(
        "GhostNetV3 1.3x", "ghostnetv3_130", Published(79.1, 94.5, "8.9M", "269M", 14.46, 28.69), 3
    ),
    Row("GhostNetV1 1.7x", None, Published(77.2, 93.4, "11.0M", "378M", 18.45, 37.24)),
    Row("EfficientNet-B0", "efficientnet_b0", Published(76.3, 93.2, "5.3M", "390M", 12.50, 37.67)),
    Row("GhostNetV2 1.6x", "ghostnetv2_160", Published(77.8, 93.8, "12.3M", "399M", 18.87, 38.46)),
    Row("MobileOne-S3", "mobileone_s3", Published(78.1, None, "10.1M", "1896M", 33.31, 58.33)),
    Row("MixNet-L", "mixnet_l", Published(78.9, 94.2, "7.3M", "565M", 34.01, 67.93)),
    Row("Mobileformer-508", None, Published(79.3, None, "14.0M", "508M", 129.58, 163.39)),
    Row("MobileOne-S4", "mobileone_s4", Published(79.4, None, "14.8M", "2978M", 52.86, 92.06)),
    Row(
        "GhostNetV3 1.6x", "ghostnetv3_160", Published(80.4, 95.2, "12.3M", "399M", 18.87, 38.46), 3
    ),
)


def in_units(printed: str) -> int:
    """`48M` -> 48,000,000."""
    return int(Decimal(printed.removesuffix("M")) * _SCALE)


def agrees(count: int, printed: str) -> bool:
    """Whether a count, rounded to the last digit printed, is the printed figure."""
    figure = Decimal(printed.removesuffix("M"))
    return (Decimal(count) / _SCALE).quantize(figure) == figure
