"""From features and a trained head to ranks, metrics, tables and answers.

In reading order:
    metrics         ranks and retrieval metrics of a similarity matrix
    similarity      similarity of every text with every video, tile by tile
    neighbours      the nearest neighbours of every query
    query_banks     banks of training queries
    hubness         normalisations against hubs
    confidence      bootstrap intervals
    result_record   what stands in a result file, checked
    evaluation      a head on one split of a cache: the result file
    ensemble        several runs judged as one
    from_pixels     a second pass judged from pixels
    published       published results to print beside one's own
    evaluated_run   what is known about one evaluated run, read back
    result_tables   tables for a terminal, Markdown, CSV, LaTeX

Wings, which an evaluation never loads:
    compare/        runs side by side, query by query
    report/         one HTML page about some runs
    search/         from a sentence to videos
    exporting/      vectors for an index
"""
