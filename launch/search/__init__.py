"""Try a model by hand: load any of them, ask it in a terminal, or on a page that only this machine sees."""

from launch.search.model import load_model
from launch.search.terminal import search
from launch.search.texts import read_texts

__all__ = ["load_model", "read_texts", "search"]
