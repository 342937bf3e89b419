"""From lists and pixels into a cache.

In reading order:
    settings        what an extraction can be told
    part            a share of an extraction
    datasets/       annotation lists → videos and captions with their splits
    decode/         video file → frames at their times
    backbone/       frames and captions → features
    frame_spool     frames of a shard on their way into the cache
    batching        frames of different videos in full batches
    captions        captions of a plan, encoded and committed shard by shard
    videos          videos of a plan, decoded, encoded and committed
    pipeline        one run: captions, then videos
    single_video    features of one file, made as those of a cache were

Wings, which an extraction never loads:
    importing/      features that other programs extracted
"""
