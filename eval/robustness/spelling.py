"""The spelling of Malay chats and text messages: short forms that everybody knows, and vowels left out by rule."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from eval.robustness.perturbation import Perturbation, in_case_of, known_words, replace_spans, touch_words

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

# Standard (or spoken) word → how it is typed; "_" stands for a space. Kept apart from data_prep/synth/colloquial.py on
# purpose: training questions are written with that table, and the same one here would only ask what was taught.
_WRITTEN = """
ada=ade adalah=adlh akan=akn aku=ak anak=ank apa=ape apabila=bila awak=awk bagaimana=mcm_mne baik=baek baru=bru
bayar=byr beberapa=bbrp belajar=bljr belum=blm benda=bnde berapa=brape bercakap=ckp besar=bsr betul=btol biasa=bese
bila=ble boleh=blh buat=wat bukan=bkn cakap=ckp cantik=cntk cepat=cpt cuba=cube cuma=cume daripada=drpd dapat=dpt
dalam=dlm dan=n dari=dr datang=dtg dekat=dkt dengan=dgn dia=die diri=dri dulu=dlu esok=esk gambar=gmbr hari=ari
harga=hrga hendak=nk ingat=igt ini=ni itu=tu jadi=jd jalan=jln jangan=jgn juga=gak jumpa=jmpe kadang=kdg kalau=klau
kali=kli kami=kmi kamu=kmu kau=ko kata=kate kawan=kwn keluar=kuar kemudian=pastu kenapa=npe kepada=kpd kerja=krje
kerana=kerna kereta=kete kita=kite lagi=lg lain=laen lama=lame lambat=lmbt lebih=lbh lepas=lps macam=mcm makan=mkn
malam=mlm mana=mne masa=mase masalah=msalah masih=msh masuk=msk mereka=dorang minta=mntk minum=mnm mudah=mudh
mungkin=mgkn nanti=nt orang=org pada=pd pagi=pg pakai=pkai paling=plg pasal=psl pergi=g perlu=prlu pernah=pnh
petang=ptg pula=plak rasa=rse rumah=rmh sahaja=je saja=je sakit=skt sama=sme sampai=smpi sangat=sgt saya=sy sebab=sbb
sebelum=sblm sekali=skali sekarang=skrg sekolah=skolah selalu=slalu semua=sume senang=sng seperti=spt siapa=sape
sikit=skt suka=ske sudah=dh supaya=spy tahu=tau tahun=thn tak=x telah=tlh tempat=tmpt tengok=tgk terima=trima
tetapi=tp tetap=ttp tiada=tade tidak=x tidur=tdo tinggal=tgl tolong=tlg untuk=utk waktu=wktu yang=yg
"""
_PHRASES = {
    "macam mana": "mcm mne", "di mana": "kt mne", "terima kasih": "tq", "tidak ada": "xde", "tak ada": "xde",
    "tidak boleh": "xleh", "tak boleh": "xleh", "tak tahu": "xtau", "tidak tahu": "xtau", "tak payah": "xyah",
    "tak nak": "xnak", "tidak mahu": "xnak", "assalamualaikum": "salam", "kuala lumpur": "kl",
}  # fmt: skip
_ENGLISH = {
    "you": "u", "your": "ur", "are": "r", "please": "pls", "because": "bcoz", "people": "ppl", "before": "b4",
    "thanks": "tqvm", "about": "abt", "with": "wif", "today": "2day", "for": "4", "to": "2", "and": "n",
    "between": "btwn", "through": "thru", "should": "shud", "would": "wud", "could": "cud", "message": "msg",
}  # fmt: skip


SHORT = dict(item.replace("_", " ").split("=") for item in _WRITTEN.split()) | _PHRASES | _ENGLISH
"""Word or phrase in lower case → its form in a text message."""
_VOWELS = frozenset("aeiou")


def sms(text: str, strength: float, generator: Generator) -> str:
    """A share of the words that have a short form get it; kanak-kanak counts as one, and becomes kanak2."""
    twice = [(m.start(), m.end(), f"{m[1]}2") for m in _twice().finditer(text)]
    inside = {at for start, end, _ in twice for at in range(start, end)}
    short = [
        (start, end, in_case_of(text[start:end], SHORT.get(key, text[start:end])))
        for start, end, key in known_words(text, SHORT)
        if start not in inside
    ]
    return replace_spans(text, [s for s in sorted(twice + short) if generator.random() < strength])


@cache
def _twice() -> Any:
    import regex

    edge = r"[\p{L}\p{M}\p{N}\u200c\u200d-]"
    return regex.compile(rf"(?<!{edge})((?:\p{{Latin}}\p{{M}}*){{3,}})-\1(?!{edge})")


def _without_vowels(letters: list[str], draws: NDArray[Any]) -> str:
    inner = [x for x in letters[1:-1] if x.lower() not in _VOWELS]
    return "".join([letters[0], *inner, letters[-1]])


def vowels_dropped(text: str, strength: float, generator: Generator) -> str:
    """A share of the words of four or more letters lose the vowels inside: sekolah becomes sklh, mana becomes mna."""
    return touch_words(text, strength, generator, _without_vowels, least=4)


KINDS = (
    Perturbation("sms_spelling", "spelling", "query", "short forms of chats, in a share of the words that have one",
                 sms),
    Perturbation("vowels_dropped", "spelling", "query", "vowels inside a word left out, in a share of the words",
                 vowels_dropped),
)  # fmt: skip
