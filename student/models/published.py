"""Published figures of compact models, each with the source that it was read in.

Table 9 of GhostNetV3 (arXiv 2404.11202) itself was not at hand: its figures are those that later
papers quote from it, and the other models' are from those papers or from the models' own pages.
A figure that was found nowhere is None. docs/paper.md says what is missing.

Figures are kept as printed, since their last digit says how exact they are.
"""

from dataclasses import dataclass
from decimal import Decimal

ABSTRACT = "arXiv 2404.11202, abstract"
EMOV2 = "EMOv2, arXiv 2412.06674, comparison on ImageNet-1K"
IFORMER = "iFormer, arXiv 2501.15369, comparison on ImageNet-1K"
SHUFFLENET = "README of megvii-model/ShuffleNet-Series"
MOBILENEXT = "README of zhoudaquan/rethinking_bottleneck_design"
GHOSTNETV2 = "GhostNetV2, arXiv 2211.12905, abstract"
MOBILEFORMER = "README of Mobile-Former's PyTorch implementation (arXiv 2108.05895)"

_SCALE = {"M": Decimal(10**6), "G": Decimal(10**9)}


@dataclass(frozen=True, slots=True)
class Published:
    """What a source prints of a model on ImageNet-1k at 224 px."""

    top1: float
    """Percent."""
    params: str | None
    """Such as `6.1M`."""
    macs: str | None
    """Multiply-adds, such as `167M` or `0.17G`; papers call them FLOPs."""
    source: str
    phone_ms: float | None = None
    """Latency on a phone, as its paper measured it; it cannot be measured here."""


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
    Row("GhostNetV3 0.5x", "ghostnetv3_050", Published(69.4, "2.7M", "48M", EMOV2), 3),
    Row("GhostNetV3 1.0x", "ghostnetv3_100", Published(77.1, "6.1M", "0.17G", IFORMER), 3),
    Row(
        "GhostNetV3 1.3x",
        "ghostnetv3_130",
        Published(79.1, "8.9M", "269M", f"{ABSTRACT}; {EMOV2}", phone_ms=14.46),
        3,
    ),
    Row("GhostNetV3 1.6x", "ghostnetv3_160", Published(80.4, "12.3M", "0.40G", IFORMER), 3),
    Row("GhostNetV2 1.0x", "ghostnetv2_100", Published(75.3, None, "167M", GHOSTNETV2)),
    Row("GhostNetV2 1.3x", "ghostnetv2_130", None),
    Row("GhostNetV2 1.6x", "ghostnetv2_160", None),
    Row(
        "MobileNetV2 1.0x",
        "mobilenetv2_100",
        Published(72.0, "3.4M", "300M", SHUFFLENET),
        3,
        ("blocks.*",),
    ),
    Row(
        "MobileNetV2 1.4x",
        "mobilenetv2_140",
        Published(74.7, "6.9M", "585M", SHUFFLENET),
        3,
        ("blocks.*",),
    ),
    Row(
        "MobileNetV3-Large 0.75x",
        "mobilenetv3_large_075",
        Published(73.3, "4.0M", "155M", SHUFFLENET),
    ),
    Row(
        "MobileNetV3-Large 1.0x",
        "mobilenetv3_large_100",
        Published(75.2, "5.4M", "217M", SHUFFLENET),
    ),
    Row(
        "ShuffleNetV2 1.0x",
        "torchvision/shufflenet_v2_x1_0",
        Published(69.4, "2.3M", "146M", SHUFFLENET),
        3,
        ("stage*",),
    ),
    Row(
        "ShuffleNetV2 1.5x",
        "torchvision/shufflenet_v2_x1_5",
        Published(72.6, "3.5M", "299M", SHUFFLENET),
        3,
        ("stage*",),
    ),
    Row(
        "ShuffleNetV2 2.0x",
        "torchvision/shufflenet_v2_x2_0",
        Published(75.0, "7.4M", "591M", SHUFFLENET),
        3,
        ("stage*",),
    ),
    Row("DeiT-tiny", "deit_tiny_patch16_224", Published(72.2, "5.7M", "1258M", EMOV2)),
    Row("MobileNeXt 1.0x", None, Published(74.02, "3.5M", "300M", MOBILENEXT)),
    Row("MobileNeXt 1.4x", None, Published(76.1, "6.1M", "590M", MOBILENEXT)),
    Row("MobileFormer-96M", None, Published(72.8, "4.6M", "96M", EMOV2)),
    Row("MobileFormer-151M", None, Published(75.2, "7.6M", "151M", MOBILEFORMER)),
    Row("MobileFormer-294M", None, Published(77.9, "11.4M", "294M", EMOV2)),
)


def in_units(printed: str) -> int:
    """`48M` -> 48,000,000."""
    return int(Decimal(printed[:-1]) * _SCALE[printed[-1]])


def agrees(count: int, printed: str) -> bool:
    """Whether a count, rounded to the last digit printed, is the printed figure."""
    figure, scale = Decimal(printed[:-1]), _SCALE[printed[-1]]
    return (Decimal(count) / scale).quantize(figure) == figure
