"""The commands of `glscl`, a group a module; cli.py lists them in the order of `--help`."""
