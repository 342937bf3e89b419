"""The commands: options in, lines and one JSON object out. Only this room knows options, commands and a terminal.

In reading order:
    streams         standard streams that nobody may be behind any more
    typed_commands  command lines that were typed once, as they are true now
    wording         what the library says, in the words of the command line
    options         dataclass fields become options, errors one line, results one object
    default_paths   where caches, runs and results are looked for
    printing        what the commands say
    shared          what several commands take and do alike
    hub_cards       cards of caches and runs on the Hugging Face Hub
    extraction      extract, import-features, merge
    caches          inspect, repair, convert
    training        train-head, finetune, import-checkpoint
    judging         eval, compare, leaderboard, report
    backbones       backbones, fetch, adopt
    searching       search, index, export
    serving         serve
    demo            demo
    doctor          doctor
    completion      completion
"""
