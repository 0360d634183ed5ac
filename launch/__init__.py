"""The `rumpun` command, recipes, the stage graph and everything that decides where and when work runs."""

VERSION = "0.1.0"
