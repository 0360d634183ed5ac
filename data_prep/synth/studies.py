"""Questions about a study that a text reports: its aim, what it found, how it went about it.

An abstract says "kajian ini" or "this paper", which points at its own title; with the title in the question, that one
is understood alone. The passage of such a question must not show the title.
"""

from __future__ import annotations

import re

_MS_AIM = re.compile(
    r"^(?:kajian|artikel|makalah|kertas(?: kerja| kajian)?|penelitian|penulisan|tulisan|tesis|disertasi|skripsi|"
    r"jurnal) ini "
    r"(?:\w+ ){0,2}?(?:bertujuan|bermatlamat)|^(?:tujuan|objektif|matlamat)(?: utama)? (?:kajian|penelitian|artikel|"
    r"makalah|"
    r"penulisan)(?: ini)? (?:adalah|ialah)|^penelitian ini dilakukan untuk",
    re.IGNORECASE,
)
_MS_FOUND = re.compile(
    r"^(?:hasil|dapatan|keputusan|penemuan)(?: daripada| dari)? (?:kajian|penelitian|analisis|penyelidikan)(?: ini|"
    r" tersebut)? "
    r"(?:\w+ ){0,2}?(?:menunjukkan|mendapati|mendedahkan|menyatakan|memperlihatkan)|^kajian ini (?:\w+ )?mendapati",
    re.IGNORECASE,
)
_MS_HOW = re.compile(
    r"^(?:metode|kaedah|metodologi)(?: penelitian| kajian)?(?: yang digunakan(?: dalam (?:penelitian|kajian) ini)?)? "
    r"(?:adalah|ialah|merupakan)|^(?:kajian|penelitian) ini (?:menggunakan|dijalankan menggunakan) (?:kaedah|metode|"
    r"pendekatan)",
    re.IGNORECASE,
)
_EN_AIM = re.compile(
    r"^(?:the (?:\w+ )?(?:aim|purpose|objective|goal)s? of this (?:study|paper|research|article|thesis|work) (?:is|"
    r"are|was|were)|"
    r"this (?:study|paper|article|research|thesis) (?:\w+ )?(?:aims|aimed|examines|investigates|explores|seeks|"
    r"attempts))\b",
    re.IGNORECASE,
)
_EN_FOUND = re.compile(
    r"^(?:the )?(?:\w+ )?(?:results?|findings?)(?: of (?:this|the) (?:study|research|analysis))? "
    r"(?:\w+ )?(?:show|shows|showed|reveal|revealed|indicate|indicated|suggest|suggested|demonstrate)\b",
    re.IGNORECASE,
)
_FORMS = {
    "ms": (
        (_MS_AIM, "Apakah tujuan kajian {}?"),
        (_MS_FOUND, "Apakah dapatan kajian {}?"),
        (_MS_HOW, "Apakah kaedah kajian {}?"),
    ),
    "id": (
        (_MS_AIM, "Apa tujuan penelitian {}?"),
        (_MS_FOUND, "Apa hasil penelitian {}?"),
        (_MS_HOW, "Apa metode penelitian {}?"),
    ),
    "en": ((_EN_AIM, "What is the aim of the study on {}?"), (_EN_FOUND, "What did the study on {} find?")),
}
_MIN_TITLE_WORDS, _MAX_TITLE_WORDS = 4, 24


def about_study(sentence: str, title: str, language: str) -> tuple[str, str] | None:
    """("study", question) where the sentence tells a study's aim, finding or method, else None."""
    if not _MIN_TITLE_WORDS <= len(title.split()) <= _MAX_TITLE_WORDS:
        return None
    for pattern, form in _FORMS.get(language, ()):
        if pattern.match(sentence):
            named = title.strip(" .\"'“”")
            return "study", form.format(named.lower() if named.isupper() else named)
    return None
