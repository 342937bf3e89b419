"""An extraction on the machines of a Ray cluster: who asked lists, plans and commits; shards are made there and come back.

In reading order:
    node            what runs there: an encoder, and videos decoded anywhere
    ray_engine      who asks: which shard goes to whom, and again where a machine is lost
"""
