"""Malay and English in one sentence, as Malaysians write: frequent words in the other language."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from eval.robustness.perturbation import Perturbation, replace_words

if TYPE_CHECKING:
    from numpy.random import Generator

# Malay=English. Words that stand in both languages with other meanings (air, jam, main, pun, masa) are left out; where
# a word is there twice, its first line is used in that direction. "_" stands for a space.
_PAIRS = """
macam_mana=how di_mana=where terima_kasih=thank_you saya=I awak=you dia=he mereka=they kami=we siapa=who bagaimana=how
kenapa=why mengapa=why berapa=how_many bila=when yang=that dan=and atau=or tetapi=but tapi=but kerana=because
sebab=because jika=if kalau=if dengan=with tanpa=without untuk=for dari=from daripada=from kepada=to ke=to dalam=in
pada=on antara=between selepas=after sebelum=before semasa=during sejak=since hingga=until sehingga=until
tentang=about mengenai=about seperti=like macam=like oleh=by tidak=not bukan=not boleh=can akan=will perlu=need
mesti=must harus=should mahu=want hendak=want nak=want ada=have sudah=already telah=already masih=still belum=not_yet
sedang=currently sangat=very lebih=more paling=most kurang=less juga=also hanya=only sahaja=only lagi=again
sekarang=now kini=now hari=day esok=tomorrow semalam=yesterday malam=night pagi=morning petang=evening minggu=week
bulan=month tahun=year semua=all banyak=many sedikit=few beberapa=several setiap=every lain=other baru=new lama=old
besar=big kecil=small tinggi=high rendah=low panjang=long pendek=short baik=good buruk=bad cantik=beautiful
murah=cheap mahal=expensive mudah=easy susah=difficult penting=important benar=true betul=correct salah=wrong
cepat=fast lambat=slow kuat=strong lemah=weak panas=hot sejuk=cold orang=people lelaki=man perempuan=woman
wanita=woman anak=child kanak-kanak=children bapa=father ayah=father ibu=mother emak=mother suami=husband isteri=wife
keluarga=family kawan=friend rakan=friend guru=teacher pelajar=student pekerja=worker doktor=doctor polis=police
menteri=minister kerajaan=government negara=country negeri=state bandar=city kampung=village rumah=house
sekolah=school pejabat=office kedai=shop pasar=market jalan=road kereta=car kapal=ship sungai=river laut=sea
hutan=forest tanah=land hujan=rain banjir=flood api=fire makanan=food makan=eat minum=drink minuman=drinks nasi=rice
ikan=fish ayam=chicken daging=meat sayur=vegetables buah=fruit susu=milk gula=sugar garam=salt ubat=medicine
penyakit=disease demam=fever sakit=sick hospital=hospital kesihatan=health bayi=baby kerja=work gaji=salary wang=money
duit=money harga=price cukai=tax bank=bank hutang=debt syarikat=company perniagaan=business pelanggan=customer
barang=goods jualan=sales bantuan=aid masalah=problem cara=way sistem=system undang-undang=law akta=act mahkamah=court
hak=rights kes=case laporan=report berita=news kajian=study penyelidikan=research pendidikan=education
universiti=university ilmu=knowledge buku=book bahasa=language perkataan=word surat=letter soalan=question
jawapan=answer peperiksaan=exam keputusan=result nama=name nombor=number gambar=picture lagu=song filem=film
permainan=game pasukan=team pemain=player kemenangan=victory budaya=culture agama=religion masyarakat=society
sejarah=history alam=nature ekonomi=economy politik=politics pilihan_raya=election parti=party calon=candidate
undi=vote rakyat=citizens pemimpin=leader pembangunan=development keselamatan=safety kemalangan=accident
perubahan=change kesan=effect punca=cause tujuan=purpose faktor=factor peranan=role penggunaan=use pengguna=user
teknologi=technology telefon=phone komputer=computer buat=do membuat=make beri=give memberi=give ambil=take
mengambil=take pergi=go datang=come balik=return keluar=exit masuk=enter beli=buy membeli=buy jual=sell menjual=sell
guna=use menggunakan=use lihat=see melihat=see tengok=look dengar=hear cakap=talk kata=say berkata=said tanya=ask
jawab=reply tahu=know faham=understand fikir=think rasa=feel suka=like cinta=love sayang=love takut=afraid
gembira=happy sedih=sad marah=angry tunggu=wait cari=find mencari=search tolong=help membantu=help mula=start
berhenti=stop buka=open tutup=close hantar=send terima=receive bayar=pay belajar=study mengajar=teach baca=read
membaca=read tulis=write tidur=sleep bangun=wake hidup=live mati=dead jatuh=fall naik=rise turun=drop tambah=add
meningkat=increase menurun=decrease hilang=lost jumpa=meet tinggal=stay pakai=wear ingat=remember lupa=forget
pilih=choose satu=one dua=two tiga=three empat=four lima=five enam=six tujuh=seven lapan=eight sembilan=nine
sepuluh=ten pertama=first kedua=second terakhir=last di=at
"""


@cache
def tables() -> tuple[dict[str, str], dict[str, str]]:
    """Malay → English and English → Malay, lower case."""
    english: dict[str, str] = {}
    malay: dict[str, str] = {}
    for item in _PAIRS.split():
        left, right = item.replace("_", " ").split("=")
        if left.lower() != right.lower():
            english.setdefault(left, right)
            malay.setdefault(right.lower(), left)
    return english, malay


def to_english(text: str, strength: float, generator: Generator) -> str:
    """A share of the Malay words that the list knows, in English."""
    return replace_words(text, strength, generator, tables()[0])


def to_malay(text: str, strength: float, generator: Generator) -> str:
    """A share of the English words that the list knows, in Malay."""
    return replace_words(text, strength, generator, tables()[1])


KINDS = (
    Perturbation("switch_to_english", "switching", "query", "frequent Malay words in English, in a share of them",
                 to_english),
    Perturbation("switch_to_malay", "switching", "query", "frequent English words in Malay, in a share of them",
                 to_malay),
)  # fmt: skip
