"""What a language model wrote → questions. Models wrap JSON in fences, thoughts and chatter; that is undone here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FIELDS = ("question", "query", "text")
_DECODER = json.JSONDecoder()
_BRACKET = re.compile(r"[{\[]")
_MOST_WRONG = 100


def read_questions(text: str) -> list[str]:
    """The questions in an answer: distinct, white space collapsed, in order.

    Accepted: `{"questions": […]}`, an object with one list under another name, or a bare list; of strings, or of
    objects with a `question`, `query` or `text`. Where the text holds several, the last one is the answer.

    Raises:
        ValueError: there is none; the message says why, for the model to read.
    """
    cleaned = _THOUGHTS.sub("", text)
    found = [questions for value in _values(cleaned) if (questions := _questions(value))]
    if found:
        return found[-1]
    if not cleaned.strip():
        raise ValueError("the answer is empty")
    try:
        json.loads(cleaned)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is not JSON ({error})") from error
    raise ValueError('the answer holds no {"questions": [strings]}')


def read_cut_questions(text: str) -> list[str]:
    """The whole questions of an answer that was cut off in the middle; empty where there is none."""
    start = re.search(r'\{\s*"\w+"\s*:\s*\[|\[', _THOUGHTS.sub("", text))
    if not start:
        return []
    rest, questions = start.string[start.end() :], []
    while item := re.match(r'\s*,?\s*(?=")', rest):
        try:
            value, end = _DECODER.raw_decode(rest, item.end())
        except ValueError:
            break
        questions.append(value)
        rest = rest[end:]
    return _questions(questions)


def _values(text: str) -> Iterator[Any]:
    """Every JSON object or list in the text that lies in no other; gives up after many brackets that begin none."""
    place, wrong = 0, 0
    while wrong < _MOST_WRONG and (start := _BRACKET.search(text, place)):
        try:
            value, place = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            place, wrong = start.end(), wrong + 1
        else:
            yield value


def _questions(value: Any) -> list[str]:
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = value.get("questions", lists[0] if len(lists) == 1 else None)
    if not isinstance(value, list):
        return []
    texts = [next((item[f] for f in _FIELDS if f in item), None) if isinstance(item, dict) else item for item in value]
    flat = [" ".join(text.split()) for text in texts if isinstance(text, str)]
    return list(dict.fromkeys(text for text in flat if text.strip(" .…")))
