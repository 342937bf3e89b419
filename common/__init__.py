"""What every room uses: errors, settings, progress, the launch, versions. Knows no room,
no option and no command; of command lines only that records hold some.

In reading order:
    errors             the tree of errors, and hints as data
    addresses          a path on this machine, an address elsewhere, or a refusal
    remote             files at an address: listed, read, put, created only where nothing is
    hub                folders on the Hugging Face Hub, pushed with a card and pulled
    settings           settings of a stage: defaults, bounds, layers from recipe, file and options
    recorded_commands  command lines in records, as far as they may be told again
    staged             files at addresses, read in parts or brought here while they are needed
    outside            code from outside the package: module:attribute and entry points
    launch             which process of a launch this is; the only reader of RANK and its like
    devices            which device a process takes, and full float32 on it
    compiling          a step of training or a tower as compiled code
    signals            Ctrl-C and its like wait until a step is done
    memory             what can be had of it, an error where it does not suffice; what was freed is kept
    progress           tasks with rate and remaining time
    tar_members        videos that lie in a tar: their place as a path
    ray_cluster        a Ray cluster: reached, and functions run on its machines
    archive_limits     compressed files that claim to unpack to far more than they store
    state_dicts        checkpoints of every kind, read without unpickling or running anything but tensors
    clip_names         what a checkpoint is of, and its backbone under open_clip's names
    tables             a table, and how it is written for a terminal, Markdown, CSV and LaTeX
    arguments          what a function of the front door is given, compared with its annotations
    callable_room      a room that is a function of the front door too
    versions           versions of everything that can change a number
"""
