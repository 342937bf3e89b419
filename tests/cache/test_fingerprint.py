from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from glscl.cache.fingerprint import annotation_hash, differences, fingerprint
from glscl.cache.schema import TextItem, VideoItem

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_order_of_keys_does_not_matter(configuration):
    assert fingerprint(configuration) == fingerprint(dict(reversed(configuration.items())))


@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_differences_are_empty_exactly_when_configurations_are_equal(a, b):
    assert (differences(a, b) == []) == (
        {k: v for k, v in a.items() if v is not None} == {k: v for k, v in b.items() if v is not None} or a == b
    )


def test_every_part_of_the_annotations_counts_but_the_path_does_not():
    videos = [VideoItem("a", "train", "/x/a.mp4"), VideoItem("b", "test", "/x/b.mp4", 0.0, 31.0)]
    texts = [TextItem("a#0", "a", "train", "a dog"), TextItem("b#0", "b", "test", "a cat")]
    base = annotation_hash(videos, texts)
    assert annotation_hash([structs.replace(v, path=None) for v in videos], texts) == base
    changed = [
        annotation_hash([structs.replace(videos[0], id="c"), videos[1]], texts),
        annotation_hash([structs.replace(videos[0], split="test"), videos[1]], texts),
        annotation_hash([videos[0], structs.replace(videos[1], end=30.0)], texts),
        annotation_hash(videos[::-1], texts),
        annotation_hash(videos, [structs.replace(texts[0], text="a dog runs"), texts[1]]),
        annotation_hash(videos, [structs.replace(texts[0], video="b"), texts[1]]),
        annotation_hash(videos, texts[:1]),
    ]
    assert len({base, *changed}) == 8
