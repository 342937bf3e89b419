"""From lists and pixels into a cache.

In reading order:
    part            a share of an extraction
    settings        what an extraction can be told
    datasets/       annotation lists → videos and captions with their splits
    decode/         video file → frames at their times
    backbone/       frames and captions → features
    shard_frames    frames of a shard on their way into the cache
    batching        frames of different videos in full batches
    listing         annotations → a list: videos by content, captions by text
    beginning       first videos, decoded while torch is imported
    engine          where shards are made: here, or on other machines
    captions        captions, encoded and committed shard by shard
    videos          videos, decoded, encoded and committed
    forecast        what a run will make and take
    pipeline        one run: the list, captions, videos

Wings, which an extraction never loads:
    importing/      features that other programs extracted
    cluster/        shards made on the machines of a Ray cluster
"""

from glscl.common.callable_room import let_call

let_call(__name__, "glscl.extract.pipeline:extract")
