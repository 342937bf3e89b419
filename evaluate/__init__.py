"""From features and a trained head to ranks, metrics, tables and answers.

In reading order:
    ranks             rank of every query of a similarity matrix, or of its tiles
    metrics           metrics of ranks, one entry each
    similarity        similarity of every text with every video, tile by tile
    neighbours        the nearest neighbours of every query
    query_banks       banks of training queries
    hubness           normalisations against hubs
    confidence        bootstrap intervals
    settings          what an evaluation can be told
    seen_in_training  videos that are judged on and were trained on
    judged_lists      which list a result was judged on, and which were judged on the same
    run_names         how a result is called, with a mark where it is optimistic
    watched           what all scores have in common: alike, or one video for all
    parts             ranks in a gallery that one machine does not hold
    graded            several right answers a query, and TREC's files
    evaluation        a head on one split of a cache: the result file
    ensemble          several runs judged as one
    result_record     what stands in a result file, checked
    evaluated_run     what is known about one evaluated run, read back
    paired            two lists of ranks, query by query
    paired_runs       evaluated runs against the first of them
    published         published results to print beside one's own
    result_tables     tables of results, one's own and published ones

Wings, which an evaluation never loads:
    compare/          runs side by side
    leaderboard/      all heads on one cache, over seeds
    report/           one HTML page about some runs
    validating/       a training that is validated as runs are judged
    second_pass/      a second pass judged from pixels
    search/           from a sentence to videos
    moment_retrieval/ when in its video a caption happens
    serve/            a page and an API to search with
    exporting/        vectors for an index, a run for mteb
"""

from glscl.common.callable_room import let_call

let_call(__name__, "glscl.evaluate.evaluation:evaluate_run")
