"""Published text-video retrieval results to print beside one's own. What trains the backbone and what leaves it frozen
are kept apart: a head on frozen features cannot be compared with a model fine-tuned from pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

PublishedMetrics = dict[str, float]

FROZEN, FINE_TUNED = "frozen", "fine-tuned"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a paper's table.

    Attributes:
        method: name in the paper, with "+ QB-Norm" where the scores were normalised with a bank of training queries.
        dataset: key of `DATASETS`.
        protocol: which test set.
        backbone: as open_clip calls it.
        text_to_video, video_to_text: metric -> value, only those that were published.
        source: the method's paper; None where the numbers are common knowledge to check a cache with.
    """

    method: str
    dataset: str
    protocol: str
    backbone: str
    text_to_video: PublishedMetrics
    video_to_text: PublishedMetrics | None = None
    source: str | None = None


_SOURCES = {
    "CLIP4Clip": "Luo et al. 2022, arXiv:2104.08860",
    "CenterCLIP": "Zhao et al. 2022, arXiv:2205.00823",
    "X-CLIP": "Ma et al. 2022, arXiv:2207.07285",
    "X-Pool": "Gorti et al. 2022, arXiv:2203.15086",
    "TS2-Net": "Liu et al. 2022, arXiv:2207.07852",
    "DRL": "Wang et al. 2022, arXiv:2203.07111",
    "DiCoSA": "Jin et al. 2023",
    "Prompt Switch": "Deng et al. 2023, arXiv:2308.07648",
    "GLSCL": "Zhang et al. 2024, arXiv:2405.12710",
    "MS-SL++": "Chen et al. 2025, arXiv:2208.12510 (its program's page)",
    "GMMFormer": "Wang et al. 2024, arXiv:2310.05195",
}
_MV_ADAPTER = "MV-Adapter, Jin et al. 2024, arXiv:2301.07868 (sequence transformer alone trained)"


def _numbers(values: str, names: str = "R@1 R@5 R@10 MdR MnR") -> PublishedMetrics:
    """A slash-separated row under its names; "–" was not published."""
    return {name: float(value) for name, value in zip(names.split(), values.split("/"), strict=True) if value != "–"}


def _msrvtt(method: str, t2v: str, v2t: str, *, backbone: str = "ViT-B-32") -> Published:
    return Published(
        method=method,
        dataset="msrvtt",
        protocol="1k-A",
        backbone=backbone,
        text_to_video=_numbers(t2v),
        video_to_text=_numbers(v2t),
        source=next((source for name, source in _SOURCES.items() if method.startswith(name)), None),
    )


def _glscl(dataset: str, protocol: str, t2v: str, v2t: str) -> Published:
    return Published(
        method="GLSCL",
        dataset=dataset,
        protocol=protocol,
        backbone="ViT-B-32",
        text_to_video=_numbers(t2v, "R@1 R@5 R@10 MnR"),
        video_to_text=_numbers(v2t, "R@1 R@5 R@10 MnR"),
        source=_SOURCES["GLSCL"],
    )


def _frozen_sequence_transformer(dataset: str, protocol: str, t2v: str) -> Published:
    return Published(
        method="CLIP4Clip seqTransf, head only",
        dataset=dataset,
        protocol=protocol,
        backbone="ViT-B-16",
        text_to_video=_numbers(t2v, "R@1 R@5 R@10"),
        source=_MV_ADAPTER,
    )


def _partially_relevant(method: str, dataset: str, protocol: str, t2v: str) -> Published:
    """A row of partially relevant retrieval: heads trained on frozen features, which are not CLIP's."""
    return Published(
        method=method,
        dataset=dataset,
        protocol=protocol,
        backbone="RoBERTa, I3D" + (" + ResNet-152" if dataset == "tvr" else ""),
        text_to_video=_numbers(t2v, "R@1 R@5 R@10 R@100"),
        source=_SOURCES[method],
    )


PUBLISHED: dict[str, tuple[Published, ...]] = {
    FROZEN: (
        _msrvtt("CLIP zero-shot, mean of 12 frames", "31.1/53.7/63.4/4/41.6", "26.5/50.1/61.7/5/39.9"),
        _frozen_sequence_transformer("msrvtt", "1k-A", "42.1/68.3/78.8"),
        _frozen_sequence_transformer("msvd", "test", "45.0/74.2/83.4"),
        _frozen_sequence_transformer("lsmdc", "test", "20.1/37.4/46.0"),
        _frozen_sequence_transformer("didemo", "test", "36.2/61.8/72.7"),
        _frozen_sequence_transformer("activitynet", "val_1", "36.9/68.5/81.0"),
        _partially_relevant("MS-SL++", "tvr", "val", "13.6/33.1/44.2/83.5"),
        _partially_relevant("GMMFormer", "tvr", "val", "13.9/33.3/44.5/84.9"),
        _partially_relevant("MS-SL++", "activitynet_captions", "val_1", "7.0/23.1/35.2/75.8"),
        _partially_relevant("GMMFormer", "activitynet_captions", "val_1", "8.3/24.9/36.7/76.1"),
        _partially_relevant("MS-SL++", "charades_sta", "test", "1.8/7.6/12.0/48.4"),
        _partially_relevant("GMMFormer", "charades_sta", "test", "2.1/7.8/12.5/50.6"),
    ),
    FINE_TUNED: (
        _msrvtt("CLIP4Clip meanP", "43.1/70.4/80.8/2/16.2", "43.1/70.5/81.2/2/12.4"),
        _msrvtt("CLIP4Clip seqTransf", "44.5/71.4/81.6/2/15.3", "42.7/70.9/80.6/2/11.6"),
        _msrvtt("CenterCLIP", "44.2/71.6/82.1/2/15.1", "42.8/71.7/82.2/2/10.9"),
        _msrvtt("X-CLIP", "46.1/73.0/83.1/2/13.2", "46.8/73.3/84.0/2/9.1"),
        _msrvtt("X-Pool", "46.9/72.8/82.2/2/14.3", "44.4/73.3/84.0/2/9.0"),
        _msrvtt("TS2-Net", "47.0/74.5/83.8/2/13.0", "45.3/74.1/83.7/2/9.2"),
        _msrvtt("DRL", "47.6/73.4/83.3/2/12.8", "45.1/72.9/83.5/2/9.2"),
        _msrvtt("DiCoSA", "46.7/75.0/82.9/2/13.0", "44.1/73.5/82.7/2/9.8"),
        _msrvtt("DiCoSA + QB-Norm", "47.5/74.7/83.8/2/13.2", "46.7/75.2/84.3/2/8.9"),
        _msrvtt("Prompt Switch", "47.8/73.9/82.2/–/14.1", "46.0/74.3/84.8/–/8.5"),
        _msrvtt("GLSCL", "48.1/73.9/82.3/2/13.8", "47.1/73.0/83.2/2/10.3"),
        _msrvtt("GLSCL + QB-Norm", "50.0/73.7/82.8/1.5/14.2", "49.4/74.5/83.9/2/9.6"),
        _msrvtt("GLSCL", "49.5/75.1/83.9/2/12.6", "48.9/76.3/85.8/2/8.4", backbone="ViT-B-16"),
        _msrvtt("GLSCL + QB-Norm", "50.5/75.2/83.8/1/12.8", "49.2/76.1/86.2/2/8.5", backbone="ViT-B-16"),
        _glscl("msvd", "test", "47.5/76.3/86.1/9.8", "69.1/91.5/94.8/3.2"),
        _glscl("didemo", "test", "46.7/75.0/82.9/13.0", "45.9/74.5/83.1/9.5"),
        _glscl("lsmdc", "test", "23.4/42.4/49.8/56.2", "22.2/41.4/50.0/50.3"),
        _glscl("activitynet", "val_1", "41.4/72.1/83.9/7.5", "40.6/71.8/84.1/7.1"),
    ),
}

# Videos of the test sets that the rows above are about; other splits and protocols are other benchmarks.
TEST_VIDEOS = {"msrvtt": 1_000, "msvd": 670, "lsmdc": 1_000, "didemo": 1_004, "activitynet": 4_917}
TEST_VIDEOS |= {"activitynet_captions": 4_917, "charades_sta": 1_334, "tvr": 2_179}

# Cost of scoring as GLSCL's paper counts it.
HEAD_GFLOPS = {"GLSCL": 1.0, "CLIP4Clip": 0.5, "X-CLIP": 220.9, "X-Pool": 275.0, "Prompt Switch": 298.5}
