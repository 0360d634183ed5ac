"""More Malay rules: offices, causes, effects, uses, what to do when.

Like those of `malay.py`: each takes a sentence of one clause and gives (kind, question) or None; `office` alone reads
sentences of any shape, since it only needs the name of an office with its holder beside it.
"""

from __future__ import annotations

import re

from data_prep.synth.malay_words import PERSON, POINTERS, VERB
from data_prep.synth.phrases import inside, is_subject

_OFFICE_HEAD = (
    r"(?:(?:[Bb]ekas |Naib |Timbalan |Penolong |Pemangku )?(?:Ketua|Pengerusi|Menteri|Presiden|Pengarah|Setiausaha|"
    r"Yang [Dd]i-?[Pp]ertua|Pesuruhjaya|Pengurus|Jurulatih|Perdana Menteri|Pengasas|Mufti|Peguam|Gabenor|Dekan|"
    r"Canselor|"
    r"Naib Canselor|Panglima|Datuk Bandar|Penyelaras|Pengetua|Exco|Duta))"
)
_RANK = (
    r"(?:Datuk|Datin|Dato['’]?|Tan Sri|Puan Sri|Tun|Toh Puan|Dr\.?|Prof\.?|Encik|Haji|Hajah|Senator|Ustaz|"
    r"Tuan|Tengku|Tunku|Syed|Nik|Asisten Komisioner|Superintendan|Deputi|Leftenan|Mejar|Kolonel|Jeneral|Komisioner|"
    r"Ir\.?)"
)
_OFFICE = re.compile(
    rf"(?<!Tunku )(?<!Pembantu )(?<!merangkap )\b(?P<office>{_OFFICE_HEAD}(?:,? (?!{_RANK} |Allahyarham|"
    rf"\w+nya\b)(?:[A-Z][\w'’-]+|dan|bagi|&)| di Jabatan Perdana Menteri){{1,9}}?(?: \([A-Z]{{2,9}}\))?),? "
    rf"{_RANK} [A-Z][\w'’.-]+(?: [A-Z][\w'’.-]+)*"
)
_HOW = re.compile(
    r"^(?:[Uu]ntuk|[Bb]agi) (?P<aim>me\w+ .{6,110}?), (?P<who>[^,]{3,60}?) "
    r"(?:perlu|perlulah|hendaklah|boleh|bolehlah|mesti|mestilah|haruslah|harus|dikehendaki) (?P<rest>\w+ .+)$"
)
_IF = re.compile(
    r"^(?P<word>[Jj]ika|[Ss]ekiranya|[Aa]pabila|[Jj]ikalau) (?P<case>(?!mahu |ingin |hendak |berbicara |"
    r"membicarakan )[^,]{18,170}), (?P<who>[^,]{3,90}?) "
    r"(?:hendaklah|mestilah|perlu|dikehendaki|haruslah) (?P<rest>\w+ .+)$"
)
_REFERENCE = re.compile(r"\b(?:subseksyen|perenggan|seksyen|peraturan|perintah|bahagian|jadual) ?\(?\d|\bini\b", re.I)
_INDEFINITE = re.compile(r"\b(?:seseorang|mana-mana|sesuatu|suatu|sesebuah)\b", re.IGNORECASE)
_CAUSE = re.compile(
    r"^(?P<what>.+?) (?:berpunca|disebabkan|terjadi akibat|berlaku akibat) (?:daripada|dari|oleh)? ?(?P<rest>\w.+)$"
)
_EFFECT = re.compile(
    r"^(?P<what>.+?) (?:(?:boleh|akan|dapat|mampu|bakal|telah) )?"
    r"(?:menyebabkan|mengakibatkan|membawa kepada|mendatangkan|menimbulkan) (?P<rest>\w+ .+)$"
)
_ROLE = re.compile(
    r"^(?P<what>.+?) (?P<verb>berfungsi|berperanan|memainkan peranan) (?:untuk|sebagai|bagi|dalam) (?P<rest>\w+ .+)$"
)
_USE = re.compile(
    r"^(?P<what>.+?) (?:(?:boleh|biasa|biasanya|sering) )?digunakan (?:untuk|bagi|sebagai) (?P<rest>\w+.*)$"
)
_FROM = re.compile(r"^(?P<what>.+?) berasal (?:dari|daripada) (?P<rest>\w+.*)$")
_MADE = re.compile(r"^(?P<what>.+?) (?P<verb>diperbuat|dibuat|dihasilkan) (?:daripada|dari) (?P<rest>\w+.*)$")
_HOLDS = re.compile(r"^(?P<what>.+?) mengandungi (?P<rest>\w+.*)$")
_MOST = re.compile(
    r"^(?P<what>[^,]{2,60}?) (?:ialah|adalah|merupakan) (?P<noun>[a-z][\w-]+(?: [\w-]+){0,3}?) (?:yang )?"
    r"(?P<most>ter(?:besar|tinggi|panjang|tua|kecil|rendah|banyak|ramai|kaya|awal|baik|luas|laju|pantas|mahal|penting|"
    r"berat|dalam)|paling \w+|pertama) (?P<where>(?:di|dalam|pada|di dunia) .+)$"
)


def office(sentence: str) -> tuple[str, str] | None:
    """Who holds an office, from "Ketua Polis Daerah Kajang, Datuk Ahmad …" in a sentence of any shape."""
    match = _OFFICE.search(sentence)
    if not match:
        return None
    name = re.sub(r" (?:dan|bagi|di|&)$", "", match["office"].rstrip(","))
    if len(re.findall(r"[A-Z]\w+", name)) < 3 or ("," in name and " dan " not in name):
        return None
    if "," in name and re.search(rf"(?:,|dan) {_OFFICE_HEAD}", name):
        return None  # two offices with their holders
    return "office", f"Siapakah {name}?"


def fact_of(sentence: str) -> tuple[str, str] | None:
    """(kind, question) of a sentence without its full stop, or None."""
    for rule in (_superlative, _how, _when_must, _thing):
        made = rule(sentence)
        if made:
            return made
    return None


def _superlative(sentence: str) -> tuple[str, str] | None:
    match = _MOST.match(sentence)
    if not match or not is_subject(match["what"], most=8) or POINTERS.search(match["noun"]):
        return None
    where = re.split(r",| (?:yang|dengan|dan|iaitu|selepas|kerana|sejak) ", match["where"])[0]
    if POINTERS.search(where) or match["noun"].split()[0] in ("antara", "salah", "negara kita"):
        return None
    ask = "Siapakah" if PERSON.match(match["noun"]) else "Apakah"
    return "superlative", f"{ask} {match['noun']} {match['most']} {where}?"


def _how(sentence: str) -> tuple[str, str] | None:
    match = _HOW.match(sentence)
    if not match or POINTERS.search(match["aim"]) or "," in match["aim"] or len(match["rest"].split()) < 3:
        return None
    return "how", f"Bagaimanakah cara untuk {match['aim']}?"


def _when_must(sentence: str) -> tuple[str, str] | None:
    match = _IF.match(sentence)
    if not match or _REFERENCE.search(match["case"]) or POINTERS.match(match["case"]):
        return None
    # "orang itu" is understood where the same sentence says "seseorang".
    if POINTERS.search(re.sub(r"\b(?:itu|tersebut)\b", "", match["case"])):
        return None
    if re.search(r"\b(?:itu|tersebut)\b", match["case"]) and not _INDEFINITE.search(match["case"]):
        return None
    return "duty", f"Apakah yang perlu dilakukan {match['word'].lower()} {match['case']}?"


def _thing(sentence: str) -> tuple[str, str] | None:
    for pattern, kind, form in (
        (_CAUSE, "cause", "Apakah punca {what}?"),
        (_ROLE, "use", "Apakah fungsi {what}?"),
        (_USE, "use", "Apakah kegunaan {what}?"),
        (_FROM, "origin", "Dari manakah {what} berasal?"),
        (_MADE, "parts", "{what} {verb} daripada apa?"),
        (_HOLDS, "parts", "Apakah kandungan {what}?"),
        (_EFFECT, "effect", "Apakah kesan {what}?"),
    ):
        match = pattern.match(sentence)
        if not match:
            continue
        what = match["what"]
        words = what.split()
        if not is_subject(what, most=8) or " yang " in what or VERB.match(what):
            return None
        # A lone name says too little: "Apakah kesan Zahid?"
        if kind in ("cause", "effect", "use") and (len(words) < 2 and not what.islower()):
            return None
        question = form.format(**{"what": inside(what), "verb": match.groupdict().get("verb") or ""})
        return kind, question[0].upper() + question[1:]
    return None
