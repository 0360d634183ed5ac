"""Malay sentences turned into questions; Indonesian ones too, which differ in a few words.

Malay makes this easy: no inversion, no conjugation, so that "Bilakah" and the clause without its date is a question.
Every rule takes a sentence of one clause without its full stop and gives (kind, question) or None. The words that rules
look for are in `malay_words.py`.
"""

from __future__ import annotations

import re

from data_prep.synth.malay_facts import fact_of
from data_prep.synth.malay_words import (
    AMOUNT,
    DATE,
    HEADS,
    MEASURES,
    NAME,
    NOUN,
    PERSON,
    POINTERS,
    SAYING,
    TITLED,
    VERB,
)  # fmt: skip
from data_prep.synth.phrases import inside, is_clause, is_subject, says_which

_WHEN_END = re.compile(rf"^(?P<clause>.+?),? pada (?P<date>{DATE})(?: lalu| lepas)?(?P<rest>,? .*)?$")
_WHEN_FRONT = re.compile(rf"^[Pp]ada (?P<date>{DATE})(?: lalu| lepas)?,? (?P<clause>.+)$")
_WHERE = re.compile(
    r"^(?P<clause>.+? (?:terletak|berpusat|beribu pejabat|berpangkalan|(?:akan )?diadakan|dilahirkan|"
    r"(?:akan )?berlangsung|"
    r"(?:akan )?dianjurkan|ditubuhkan|dibina|dijalankan|ditemui|ditemukan|meninggal dunia|dibuka))"
    rf" (?P<place>di (?:\w+ ){{0,3}}?{NAME})(?P<rest>,? .*)?$"
)
_IS = re.compile(
    r"^(?P<subject>.{2,120}?) (?P<verb>ialah|adalah|merupakan|bermaksud|bererti|berarti|didefinisikan sebagai|"
    r"ditakrifkan sebagai|merujuk kepada|merujuk pada|mengacu pada) (?P<rest>.+)$"
)
_HOW_MANY = re.compile(
    r"^(?P<word>[Ss]eramai|[Ss]ebanyak|[Ss]ejumlah) (?P<number>(?:kira-kira |lebih |hampir )?\d[\d.,]*(?: (?:juta|"
    r"ribu|bilion))?) "
    r"(?P<noun>[a-z][\w-]+(?: [\w-]+){0,5}?) (?:yang )?(?P<verb>(?:telah |akan |sudah |sedang |dijangka )?"
    r"(?:me\w{3,}|ber\w{3,}|di\w{4,}|ter\w{4,}|hadir|hilang|maut|mati|kehilangan)) (?P<rest>.+)$"
)
_WORTH = re.compile(
    rf"^(?P<subject>.+?) (?P<verb>{'|'.join(MEASURES)}) (?P<number>(?:kira-kira |lebih |hampir )?(?:RM|USD|US\$|"
    rf"Rp)? ?\d.*)$"
)
_WHY = re.compile(
    r"^(?P<clause>.+?),? (?:kerana|disebabkan(?: oleh)?|gara-gara|lantaran|karena|akibat|berikutan)"
    r" (?P<reason>\w+(?: \S+)+)$"
)
_PURPOSE = re.compile(r"^(?P<subject>.+?) (?:adalah )?bertujuan (?:untuk |bagi )?(?P<rest>\w+(?: \S+)+)$")
_BY = re.compile(
    r"^(?P<clause>.+? (?P<verb>di\w{4,}(?: dan di\w{4,})?)(?: secara \w+)?)"
    rf" oleh (?P<agent>(?:[a-z-]+ ){{0,4}}?{NAME})(?P<rest>,? (?:pada|di|dalam|untuk|bagi|dengan) .*)?$"
)
_KNOWN_AS = re.compile(
    r"^(?P<subject>.+?),? (?:(?:atau|dan|yang|juga|turut|lebih|Lebih|biasa) )*dikenali (?:sebagai|"
    r"dengan nama) (?P<rest>.+)$"
)
_CONSISTS = re.compile(r"^(?P<subject>.+?) (?P<verb>terdiri (?:daripada|dari|atas)) (?P<rest>.+(?:,| dan ).+)$")
_QUOTED = re.compile(
    r"^[\"“'‘](?P<term>[^\"”“’]{2,60})[\"”’'],? "
    r"(?:ertinya|bererti|bermaksud|mempunyai erti|mempunyai makna|termasuklah|berarti)\b"
)
_PENALTY = re.compile(
    r"^(?:[Mm]ana-mana|[Ss]eseorang|[Ss]esiapa|[Tt]iap-tiap)(?: orang| pihak)? yang (?P<act>.{12,160}?)(?:,|"
    r" adalah)? melakukan "
    r"(?:suatu|satu|sesuatu) kesalahan"
)
_REFERENCE = re.compile(
    r"\b(?:subseksyen|perenggan|seksyen|peraturan|perintah|perkara) ?\(?\d|\bini\b|\btersebut\b|\bitu\b", re.IGNORECASE
)
# "Masalah X merupakan …" weighs a problem, "masalah X ialah …" names it.
_WEIGHTY = re.compile(r"^(?:masalah|isu|cabaran|konsep|usaha|peranan)\b", re.IGNORECASE)
_NO_EVENT = re.compile(r"^(?:alasan|punca|sebab|faktor|kenyataan|kes|kejadian)\b", re.IGNORECASE)


def definition_in_quotes(sentence: str) -> tuple[str, str] | None:
    """("definition", question) of a definition as laws write it: "saham" ertinya …"""
    match = _QUOTED.match(sentence)
    return ("definition", f'Apakah maksud "{match["term"].strip()}"?') if match else None


def question_of(sentence: str, *, indonesian: bool = False) -> tuple[str, str] | None:
    """(kind, question) of a sentence without its full stop, its first word in the case it has inside a sentence.

    Args:
        sentence: one sentence.
        indonesian: ask with Indonesian question words.
    """
    for rule in (_penalty, _purpose, _known_as, _where, _how_many, _worth, _by, _consists):
        made = rule(sentence)
        if made:
            return made
    when, why = ("Kapan", "Mengapa") if indonesian else ("Bilakah", "Mengapakah")
    return _when(sentence, when) or _why(sentence, why) or _is(sentence) or fact_of(sentence)


def _when(sentence: str, ask: str) -> tuple[str, str] | None:
    match = _WHEN_FRONT.match(sentence) or _WHEN_END.match(sentence)
    if not match:
        return None
    clause = match["clause"].rstrip(",")
    rest = match.groupdict().get("rest") or ""
    if not is_clause(clause) or len(rest.split()) > 8 or re.search(rf"\b(?:sejak|berbanding|{DATE})\b", clause):
        return None
    if not (VERB.search(clause) or re.search(r"\b(?:lahir|tiba|meninggal|tamat|kembali|menang|kalah|mula)\b", clause)):
        return None
    if _IS.match(clause) or _NO_EVENT.match(clause):
        return None
    return "date", f"{ask} {clause}?"


def _where(sentence: str) -> tuple[str, str] | None:
    match = _WHERE.match(sentence)
    if not match or len((match["rest"] or "").split()) > 10 or _IS.match(match["clause"]):
        return None
    return ("place", f"Di manakah {match['clause']}?") if is_clause(match["clause"], most=12) else None


def _is(sentence: str) -> tuple[str, str] | None:
    match = _IS.match(sentence)
    if not match:
        return None
    subject, verb, rest = match["subject"].strip(), match["verb"], match["rest"].strip()
    if subject.lower().startswith("antara "):
        head = subject[7:]
        return (
            ("definition", f"Apakah {head}?")
            if HEADS.match(head) and is_subject(head, most=14) and says_which(head)
            else None
        )
    headed = HEADS.match(subject) is not None and len(subject.split()) >= (5 if " yang " in subject else 3)
    if not is_subject(subject, most=14 if headed else 9):
        return None
    if verb.startswith(("ber", "dit", "did", "meruj", "meng")):
        return "definition", f"Apakah maksud {inside(subject)}?"
    if AMOUNT.match(rest) and len(subject.split()) >= 2:
        return "number", f"Berapakah {inside(subject)}?"
    headed = headed and says_which(subject) and (verb == "ialah" or not _WEIGHTY.match(subject))
    if headed and not re.match(r"(?:amat|sangat|begitu|lebih|ber\w+|ter\w+|sama|penting|jelas|apabila|jika)\b", rest):
        return "definition", f"Apakah {inside(subject)}?"
    named = all(part[0].isupper() for part in subject.split() if len(part) > 3)
    if PERSON.match(rest) and named:
        return "person", f"Siapakah {subject}?"
    if TITLED.match(subject) or not NOUN.match(rest) or " yang " in f" {subject} ":
        return None
    return "definition", f"Apakah {inside(subject)}?"


def _how_many(sentence: str) -> tuple[str, str] | None:
    match = _HOW_MANY.match(sentence)
    if not match or len(match["rest"].split()) > 16 or "," in match["rest"] or POINTERS.search(match["rest"]):
        return None
    noun = match["noun"]
    if POINTERS.search(noun) or noun.split()[0] in ("peratus", "daripada", "kali", "juta") or noun.endswith(" lagi"):
        return None
    if not (any(part[0].isupper() for part in match["rest"].split()) or len(match["rest"].split()) >= 5):
        return None
    ask = "Berapa ramaikah" if match["word"].lower() == "seramai" else "Berapakah bilangan"
    return "number", f"{ask} {noun} yang {match['verb']} {match['rest']}?"


def _worth(sentence: str) -> tuple[str, str] | None:
    match = _WORTH.match(sentence)
    if not match or not is_subject(match["subject"], most=12) or len(match["number"].split()) > 8:
        return None
    return "number", f"Berapakah {MEASURES[match['verb']]} {inside(match['subject'])}?"


def _why(sentence: str, ask: str) -> tuple[str, str] | None:
    match = _WHY.match(sentence)
    if not match or not is_clause(match["clause"]) or len(match["reason"].split()) < 3:
        return None
    if SAYING.search(match["clause"]) or _NO_EVENT.match(match["clause"]) or _IS.match(match["clause"]):
        return None
    return "reason", f"{ask} {match['clause']}?"


def _purpose(sentence: str) -> tuple[str, str] | None:
    match = _PURPOSE.match(sentence)
    if not match or not is_subject(match["subject"], most=14) or len(match["subject"].split()) < 2:
        return None
    return "purpose", f"Apakah tujuan {inside(match['subject'])}?"


def _by(sentence: str) -> tuple[str, str] | None:
    match = _BY.match(sentence)
    if (
        not match
        or not is_clause(match["clause"])
        or match["verb"] in ("diikuti", "disebabkan", "dihadiri", "disertai")
    ):
        return None
    return "agent", f"Oleh siapakah {match['clause']}?"


def _known_as(sentence: str) -> tuple[str, str] | None:
    match = _KNOWN_AS.match(sentence)
    if not match or not is_subject(match["subject"], most=8) or " yang " in match["subject"]:
        return None
    return "name", f"Apakah nama lain bagi {inside(match['subject'])}?"


def _consists(sentence: str) -> tuple[str, str] | None:
    match = _CONSISTS.match(sentence)
    if not match or not is_subject(match["subject"]):
        return None
    subject = match["subject"]
    return "parts", f"{subject[0].upper()}{subject[1:]} {match['verb']} apa?"


def _penalty(sentence: str) -> tuple[str, str] | None:
    match = _PENALTY.match(sentence)
    if not match or _REFERENCE.search(match["act"]):
        return None
    return "penalty", f"Apakah hukuman bagi orang yang {match['act'].strip()}?"
